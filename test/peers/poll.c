/*
 * The bare libmodbus loop that our client is measured against.
 *
 *   poll tcp PORT COUNT SECONDS
 *   poll rtu PATH BAUD COUNT SECONDS UNIT...
 *
 * Reads COUNT holding registers from 0, unit after unit, as fast as it can,
 * and prints "READS FAILURES SECONDS".
 */
#include <modbus/modbus.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
	modbus_t *ctx = NULL;
	uint16_t regs[MODBUS_MAX_READ_REGISTERS];
	int units[32] = {1}, nunits = 1, count = 0;
	double seconds = 0;

	if (argc == 5 && strcmp(argv[1], "tcp") == 0) {
		ctx = modbus_new_tcp("127.0.0.1", atoi(argv[2]));
		count = atoi(argv[3]);
		seconds = atof(argv[4]);
	} else if (argc >= 7 && argc - 6 <= 32 && strcmp(argv[1], "rtu") == 0) {
		ctx = modbus_new_rtu(argv[2], atoi(argv[3]), 'N', 8, 1);
		count = atoi(argv[4]);
		seconds = atof(argv[5]);
		for (nunits = 0; nunits < argc - 6; nunits++)
			units[nunits] = atoi(argv[6 + nunits]);
	}
	if (ctx == NULL || count < 1 || count > MODBUS_MAX_READ_REGISTERS) {
		fprintf(stderr, "usage: poll tcp PORT COUNT SECONDS | poll rtu PATH BAUD COUNT SECONDS UNIT...\n");
		return 2;
	}
	modbus_set_response_timeout(ctx, 0, 500000);
	modbus_set_slave(ctx, units[0]);
	if (modbus_connect(ctx) == -1) {
		perror("connect");
		return 1;
	}
	long reads = 0, failures = 0;
	double start = now(), end = start + seconds, t = start;
	for (int i = 0; t < end; i++, t = now()) {
		modbus_set_slave(ctx, units[i % nunits]);
		if (modbus_read_registers(ctx, 0, count, regs) == count)
			reads++;
		else
			failures++;
	}
	printf("%ld %ld %.6f\n", reads, failures, t - start);
	modbus_free(ctx);
	return 0;
}
