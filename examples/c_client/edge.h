/* Ask a model of edge-agent from C: HTTP over its Unix socket, tensors as bytes. POSIX alone, no library.
 *
 *     int agent = edge_connect(NULL);
 *     struct edge_tensor x = {"x", "FP32", 2, {1, 4}, values, sizeof values};
 *     float y[3];
 *     long got = edge_ask(agent, "toy", &x, 1, "y", y, sizeof y, why, sizeof why);
 *
 * One connection serves any number of questions, one after the other: give each thread its own. */
#ifndef EDGE_H
#define EDGE_H

#include <stddef.h>
#include <stdint.h>

#define EDGE_MOST_DIMENSIONS 8

struct edge_tensor {
    const char *name;
    const char *datatype; /* BOOL UINT8 UINT16 UINT32 UINT64 INT8 INT16 INT32 INT64 FP16 FP32 FP64 */
    int dimensions;
    int64_t shape[EDGE_MOST_DIMENSIONS];
    const void *data; /* row by row, little-endian */
    size_t bytes;
};

/* The agent's socket: at `path`, else in EDGE_AGENT_HOME, else where a user's agent has it. -1 and errno where nobody answers. */
int edge_connect(const char *path);

/* The bytes of the output, at most `capacity` of them in `answer`. -1 with a sentence in `why`; close the connection then. */
long edge_ask(int agent, const char *model, const struct edge_tensor *inputs, int count, const char *output, void *answer, size_t capacity, char *why,
              size_t why_bytes);

#endif
