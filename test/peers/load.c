/*
 * The load that Modbus TCP servers are measured with.
 *
 *   load PORT CLIENTS COUNT SPAN SECONDS [DEPTH]
 *
 * CLIENTS connections to 127.0.0.1, each of which reads COUNT holding registers
 * somewhere within the first SPAN, DEPTH (1) times in one go, takes the answers
 * and asks again at once. It prints "REQUESTS FAILURES SECONDS"; an answer with a wrong id, length or
 * function is a failure, and ends its connection.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MAX = 1024, DEEP = 16 };

struct client {
	int fd;
	uint16_t tx; /* of the newest request */
	int open;    /* requests to be answered */
	int have;
	uint8_t answer[4096];
};

static struct client clients[MAX];
static int count, span, depth = 1;
static long requests, failures;

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static int ask(struct client *c)
{
	uint8_t req[12 * DEEP] = {0}, *r = req;

	for (int i = 0; i < depth; i++, r += 12) {
		int addr = (int)((unsigned)(c->tx * 7919) % (unsigned)(span - count + 1));
		c->tx++;
		r[0] = (uint8_t)(c->tx >> 8);
		r[1] = (uint8_t)c->tx;
		r[5] = 6;
		r[6] = 1;
		r[7] = 3;
		r[8] = (uint8_t)(addr >> 8);
		r[9] = (uint8_t)addr;
		r[11] = (uint8_t)count;
	}
	c->open = depth;
	c->have = 0;
	return send(c->fd, req, (size_t)(12 * depth), MSG_NOSIGNAL) == 12 * depth ? 0 : -1;
}

/* Takes what has come; 1: all answers are there, 0: not yet, -1: one is wrong. */
static int take(struct client *c)
{
	int want = 9 + 2 * count, at = 0;
	ssize_t n = recv(c->fd, c->answer + c->have, sizeof c->answer - (size_t)c->have, 0);

	if (n <= 0)
		return -1;
	c->have += (int)n;
	for (; c->have - at >= want; at += want) {
		uint16_t tx = (uint16_t)(c->tx - c->open + 1);
		uint8_t *a = c->answer + at;
		if (c->open == 0 || a[0] != tx >> 8 || a[1] != (tx & 0xff) || a[7] != 3 || a[8] != 2 * count)
			return -1;
		c->open--;
		requests++;
	}
	c->have -= at;
	memmove(c->answer, c->answer + at, (size_t)c->have);
	return c->open == 0 && c->have == 0;
}

int main(int argc, char **argv)
{
	if (argc != 6 && argc != 7) {
		fprintf(stderr, "usage: load PORT CLIENTS COUNT SPAN SECONDS [DEPTH]\n");
		return 2;
	}
	int n = atoi(argv[2]);
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1]))};
	struct epoll_event events[64];
	int ep = epoll_create1(0), one = 1;

	count = atoi(argv[3]);
	span = atoi(argv[4]);
	if (argc == 7)
		depth = atoi(argv[6]);
	if (depth < 1 || depth > DEEP)
		return 2;
	if (n < 1 || n > MAX || count < 1 || count > 125 || span < count || ep == -1)
		return 2;
	to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	for (int i = 0; i < n; i++) {
		struct client *c = &clients[i];
		c->fd = socket(AF_INET, SOCK_STREAM, 0);
		c->tx = (uint16_t)(i * 101);
		if (connect(c->fd, (struct sockaddr *)&to, sizeof to) == -1) {
			perror("connect");
			return 1;
		}
		setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
		struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
		epoll_ctl(ep, EPOLL_CTL_ADD, c->fd, &e);
	}
	double start = now(), end = start + atof(argv[5]), t = start;
	for (int i = 0; i < n; i++)
		if (ask(&clients[i]) == -1)
			return 1;
	while (t < end) {
		int ready = epoll_wait(ep, events, 64, 100);
		for (int i = 0; i < ready; i++) {
			struct client *c = events[i].data.ptr;
			int done = take(c);
			if (done == -1 || (done == 1 && ask(c) == -1)) {
				failures++;
				close(c->fd);
			}
		}
		t = now();
	}
	printf("%ld %ld %.6f\n", requests, failures, t - start);
	return 0;
}
