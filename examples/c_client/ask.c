/* ask MODEL INPUT OUTPUT VALUE... : a row of numbers to a model, its row of numbers back; what takes how long on stderr. */
#define _POSIX_C_SOURCE 200809L

#include "edge.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define TIMES 200

static double now_us(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return 1e6 * (double)time.tv_sec + 1e-3 * (double)time.tv_nsec;
}

static int by_size(const void *a, const void *b)
{
    double left = *(const double *)a, right = *(const double *)b;
    return (left > right) - (left < right);
}

int main(int argc, char **argv)
{
    static float answer[1 << 16];
    static double took[TIMES];
    char why[512];
    float *row;
    long bytes = 0;
    int agent;
    if (argc < 5) {
        fprintf(stderr, "usage: %s MODEL INPUT OUTPUT VALUE...\n", argv[0]);
        return 2;
    }
    row = malloc(sizeof *row * (size_t)(argc - 4));
    if (!row)
        return 1;
    for (int i = 4; i < argc; i++)
        row[i - 4] = strtof(argv[i], NULL);
    agent = edge_connect(NULL);
    if (agent < 0) {
        perror("no agent answers");
        free(row);
        return 1;
    }
    struct edge_tensor input = {argv[2], "FP32", 2, {1, argc - 4}, row, sizeof *row * (size_t)(argc - 4)};
    for (int i = 0; i < TIMES && bytes >= 0; i++) {
        double begin = now_us();
        bytes = edge_ask(agent, argv[1], &input, 1, argv[3], answer, sizeof answer, why, sizeof why);
        took[i] = now_us() - begin;
    }
    close(agent);
    free(row);
    if (bytes < 0) {
        fprintf(stderr, "%s\n", why);
        return 1;
    }
    for (size_t i = 0; i < (size_t)bytes / sizeof *answer; i++)
        printf("%s%g", i ? " " : "", (double)answer[i]);
    printf("\n");
    qsort(took, TIMES, sizeof *took, by_size);
    fprintf(stderr, "%d questions, half of them within %.0f us\n", TIMES, took[TIMES / 2]);
    return 0;
}
