/*
 * What the kernel alone takes for the polls of a gateway.
 *
 *   floor SECONDS PORT...
 *
 * Connects to each PORT on 127.0.0.1, then reads 100 holding registers of unit
 * 1 from each once a second, half of them at each half second: writes all the
 * requests, waits until they have been answered, takes the answers. It looks
 * at nothing but their length, and prints the microseconds of processor time,
 * user and system, that each took.
 */
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { most = 1000, answer = 9 + 2 * 100 };

static double used(void)
{
	struct rusage r;
	getrusage(RUSAGE_SELF, &r);
	return (double)(r.ru_utime.tv_sec + r.ru_stime.tv_sec) * 1e6 + (double)(r.ru_utime.tv_usec + r.ru_stime.tv_usec);
}

static void until(struct timespec *t, long ns)
{
	t->tv_nsec += ns;
	if (t->tv_nsec >= 1000000000) {
		t->tv_nsec -= 1000000000;
		t->tv_sec++;
	}
	clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, t, NULL);
}

int main(int argc, char **argv)
{
	int n = argc - 2, fd[most];

	if (n < 1 || n > most) {
		fprintf(stderr, "usage: floor SECONDS PORT...\n");
		return 2;
	}
	for (int i = 0; i < n; i++) {
		struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(argv[2 + i]))};
		to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
		fd[i] = socket(AF_INET, SOCK_STREAM, 0);
		if (fd[i] == -1 || connect(fd[i], (struct sockaddr *)&to, sizeof to) == -1) {
			perror("connect");
			return 1;
		}
	}
	unsigned char request[] = {0, 0, 0, 0, 0, 6, 1, 3, 0, 0, 0, 100}, buffer[answer];
	long polls = 0;
	struct timespec slot, looked;
	clock_gettime(CLOCK_MONOTONIC, &slot);
	double before = used();
	for (int half = 0; half < 2 * atoi(argv[1]); half++) {
		until(&slot, 500000000);
		request[1]++;
		for (int i = half % 2; i < n; i += 2)
			if (write(fd[i], request, sizeof request) != sizeof request) {
				perror("write");
				return 1;
			}
		looked = slot;
		until(&looked, 20000000);
		for (int i = half % 2; i < n; i += 2, polls++)
			if (recv(fd[i], buffer, answer, MSG_WAITALL) != answer) {
				perror("read");
				return 1;
			}
	}
	printf("%.2f\n", (used() - before) / (double)polls);
	return 0;
}
