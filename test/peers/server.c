/*
 * A Modbus server made with libmodbus, the outside truth for our client.
 *
 *   server tcp PORT [COUNT]      on 127.0.0.1
 *   server rtu PATH BAUD UNIT
 *
 * Holding register n holds n*3+1, input register n holds n*5+2, coil n is on
 * when n is divisible by 3, discrete input n when n is divisible by 2; COUNT
 * (1000) of each. It prints "ready" when it listens, and serves until it is ended.
 */
#include <errno.h>
#include <modbus/modbus.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <unistd.h>

static void fill(modbus_mapping_t *m)
{
	for (int i = 0; i < m->nb_registers; i++) {
		m->tab_registers[i] = (uint16_t)(i * 3 + 1);
		m->tab_input_registers[i] = (uint16_t)(i * 5 + 2);
		m->tab_bits[i] = i % 3 == 0;
		m->tab_input_bits[i] = i % 2 == 0;
	}
}

static int die(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, modbus_strerror(errno));
	return 1;
}

static int serve_rtu(modbus_t *ctx, modbus_mapping_t *map)
{
	uint8_t query[MODBUS_RTU_MAX_ADU_LENGTH];

	if (modbus_connect(ctx) == -1)
		return die("connect");
	printf("ready\n");
	fflush(stdout);
	for (;;) {
		int n = modbus_receive(ctx, query);
		if (n > 0)
			modbus_reply(ctx, query, n, map);
		else if (n == -1 && errno == EBADF)
			return 0;
	}
}

static int serve_tcp(modbus_t *ctx, modbus_mapping_t *map)
{
	uint8_t query[MODBUS_TCP_MAX_ADU_LENGTH];
	fd_set all;
	int listener = modbus_tcp_listen(ctx, 64), top = listener, one = 1;

	if (listener == -1)
		return die("listen");
	printf("ready\n");
	fflush(stdout);
	FD_ZERO(&all);
	FD_SET(listener, &all);
	for (;;) {
		fd_set ready = all;
		if (select(top + 1, &ready, NULL, NULL, NULL) == -1)
			return die("select");
		for (int fd = 0; fd <= top; fd++) {
			if (!FD_ISSET(fd, &ready))
				continue;
			if (fd == listener) {
				int s = listener;
				int conn = modbus_tcp_accept(ctx, &s);
				if (conn != -1) {
					/* Or else answers wait for acknowledgements, 40 ms each. */
					setsockopt(conn, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
					FD_SET(conn, &all);
					top = conn > top ? conn : top;
				}
				continue;
			}
			modbus_set_socket(ctx, fd);
			int n = modbus_receive(ctx, query);
			if (n > 0)
				modbus_reply(ctx, query, n, map);
			else if (n == -1) {
				close(fd);
				FD_CLR(fd, &all);
			}
		}
	}
}

int main(int argc, char **argv)
{
	int tcp = argc > 1 && strcmp(argv[1], "tcp") == 0;
	int n = tcp && argc == 4 ? atoi(argv[3]) : 1000;
	modbus_mapping_t *map = modbus_mapping_new(n, n, n, n);

	if (map == NULL)
		return die("mapping");
	fill(map);
	if (tcp && (argc == 3 || argc == 4)) {
		modbus_t *ctx = modbus_new_tcp("127.0.0.1", atoi(argv[2]));
		return ctx == NULL ? die("new") : serve_tcp(ctx, map);
	}
	if (argc == 5 && strcmp(argv[1], "rtu") == 0) {
		modbus_t *ctx = modbus_new_rtu(argv[2], atoi(argv[3]), 'N', 8, 1);
		if (ctx == NULL)
			return die("new");
		modbus_set_slave(ctx, atoi(argv[4]));
		return serve_rtu(ctx, map);
	}
	fprintf(stderr, "usage: server tcp PORT [COUNT] | server rtu PATH BAUD UNIT\n");
	return 2;
}
