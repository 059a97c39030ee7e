/*
 * What the kernel alone takes for the answers of a Modbus TCP server.
 *
 *   answer PORT THREADS
 *
 * Listens on 127.0.0.1 and answers each request with as many registers of 0 as
 * it asks for: one recv, one send, and epoll_wait for all that have come. It
 * looks at nothing, keeps nothing, and takes each recv for one request. With
 * several THREADS each has the connections that it accepted. It serves until it
 * is ended.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

static int listener;

static void take(int ep)
{
	int one = 1, fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
	struct epoll_event e = {.events = EPOLLIN, .data.fd = fd};

	if (fd == -1)
		return; /* another thread has it */
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e);
}

static void *serve(void *unused)
{
	struct epoll_event events[64], e = {.events = EPOLLIN | EPOLLEXCLUSIVE, .data.fd = listener};
	int ep = epoll_create1(0);
	uint8_t in[260], out[260] = {0};

	(void)unused;
	epoll_ctl(ep, EPOLL_CTL_ADD, listener, &e);
	for (;;) {
		int ready = epoll_wait(ep, events, 64, -1);
		for (int i = 0; i < ready; i++) {
			int fd = events[i].data.fd;
			if (fd == listener) {
				take(ep);
				continue;
			}
			if (recv(fd, in, sizeof in, 0) != 12 || in[11] > 125) {
				close(fd);
				continue;
			}
			out[0] = in[0];
			out[1] = in[1];
			out[5] = (uint8_t)(3 + 2 * in[11]);
			out[6] = in[6];
			out[7] = in[7];
			out[8] = (uint8_t)(2 * in[11]);
			send(fd, out, (size_t)(9 + 2 * in[11]), MSG_NOSIGNAL);
		}
	}
	return NULL;
}

int main(int argc, char **argv)
{
	struct sockaddr_in at = {.sin_family = AF_INET};
	int one = 1;
	pthread_t t;

	if (argc != 3) {
		fprintf(stderr, "usage: answer PORT THREADS\n");
		return 2;
	}
	at.sin_port = htons((uint16_t)atoi(argv[1]));
	at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	if (bind(listener, (struct sockaddr *)&at, sizeof at) == -1 || listen(listener, 64) == -1) {
		perror("listen");
		return 1;
	}
	for (int i = 1; i < atoi(argv[2]); i++)
		if (pthread_create(&t, NULL, serve, NULL) != 0)
			return 1;
	serve(NULL);
}
