#define _POSIX_C_SOURCE 200809L

#include "edge.h"

#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#define HEAD_BYTES 8192
#define PATIENCE_S 60

struct reply {
    int status;
    size_t body, json; /* bytes: of all, and of the JSON in front of the tensors */
    size_t begun;      /* of the body, in `rest` */
    const char *rest;
};

static int failed(char *why, size_t size, const char *format, ...)
{
    va_list values;
    va_start(values, format);
    vsnprintf(why, size, format, values);
    va_end(values);
    return -1;
}

int edge_connect(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const char *folder = getenv("EDGE_AGENT_HOME"), *home = getenv("HOME");
    struct timeval patience = {.tv_sec = PATIENCE_S};
    int length, agent;
    if (path)
        length = snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    else if (folder && *folder)
        length = snprintf(address.sun_path, sizeof address.sun_path, "%s/agent.sock", folder);
    else if (!access("/run/edge-agent/agent.sock", F_OK)) /* the agent of the whole system */
        length = snprintf(address.sun_path, sizeof address.sun_path, "/run/edge-agent/agent.sock");
    else
        length = snprintf(address.sun_path, sizeof address.sun_path, "%s/.local/share/edge-agent/agent.sock", home ? home : "");
    if (length < 0 || (size_t)length >= sizeof address.sun_path) {
        errno = ENAMETOOLONG; /* reach it through a shorter symbolic link */
        return -1;
    }
    agent = socket(AF_UNIX, SOCK_STREAM, 0);
    if (agent < 0)
        return -1;
    setsockopt(agent, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(agent, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    if (connect(agent, (struct sockaddr *)&address, sizeof address) < 0) {
        int reason = errno;
        close(agent);
        errno = reason;
        return -1;
    }
    return agent;
}

static int send_all(int agent, const void *data, size_t size)
{
    const char *left = data;
    while (size) {
        ssize_t sent = send(agent, left, size, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent <= 0)
            return -1;
        left += sent;
        size -= (size_t)sent;
    }
    return 0;
}

static ssize_t receive(int agent, void *data, size_t size)
{
    ssize_t came;
    do
        came = recv(agent, data, size, 0);
    while (came < 0 && errno == EINTR);
    return came;
}

/* Names go into JSON and into a path as they are: what would need escaping there is no name. */
static int is_plain(const char *name)
{
    if (!*name)
        return 0;
    for (; *name; name++)
        if ((unsigned char)*name < 0x20 || *name == '"' || *name == '\\')
            return 0;
    return 1;
}

/* `{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"parameters":{"binary_data_size":16}}],"outputs":[…]}` */
static int write_json(char *json, size_t size, const struct edge_tensor *inputs, int count, const char *output)
{
    size_t at = 0;
#define ADD(...)                                                              \
    do {                                                                      \
        int added = snprintf(json + at, size - at, __VA_ARGS__);              \
        if (added < 0 || (size_t)added >= size - at)                          \
            return -1;                                                        \
        at += (size_t)added;                                                  \
    } while (0)
    ADD("{\"inputs\":[");
    for (int i = 0; i < count; i++) {
        if (!is_plain(inputs[i].name) || !is_plain(inputs[i].datatype) || inputs[i].dimensions < 0 || inputs[i].dimensions > EDGE_MOST_DIMENSIONS)
            return -1;
        ADD("%s{\"name\":\"%s\",\"datatype\":\"%s\",\"shape\":[", i ? "," : "", inputs[i].name, inputs[i].datatype);
        for (int d = 0; d < inputs[i].dimensions; d++)
            ADD("%s%lld", d ? "," : "", (long long)inputs[i].shape[d]);
        ADD("],\"parameters\":{\"binary_data_size\":%zu}}", inputs[i].bytes);
    }
    ADD("],\"outputs\":[{\"name\":\"%s\",\"parameters\":{\"binary_data\":true}}]}", output);
#undef ADD
    return (int)at;
}

/* A header's number, or `otherwise` where there is none. */
static size_t header(const char *head, const char *name, size_t otherwise)
{
    for (const char *line = strstr(head, "\r\n"); line; line = strstr(line + 2, "\r\n"))
        if (!strncasecmp(line + 2, name, strlen(name)) && line[2 + strlen(name)] == ':')
            return (size_t)strtoull(line + 3 + strlen(name), NULL, 10);
    return otherwise;
}

static int read_head(int agent, char *head, struct reply *reply)
{
    size_t came = 0;
    char *end = NULL;
    while (!end) {
        ssize_t more = came < HEAD_BYTES - 1 ? receive(agent, head + came, HEAD_BYTES - 1 - came) : -1;
        if (more <= 0)
            return -1;
        came += (size_t)more;
        head[came] = 0;
        end = strstr(head, "\r\n\r\n");
    }
    if (sscanf(head, "HTTP/1.1 %d", &reply->status) != 1)
        return -1;
    end[2] = 0;
    reply->body = header(head, "Content-Length", 0);
    reply->json = header(head, "Inference-Header-Content-Length", reply->body);
    reply->rest = end + 4;
    reply->begun = came - (size_t)(end + 4 - head);
    return reply->json <= reply->body && reply->begun <= reply->body ? 0 : -1;
}

/* The next bytes of the body: what came with the head first. To nowhere where `data` is NULL. */
static int read_body(int agent, struct reply *reply, char *data, size_t size)
{
    char nowhere[4096];
    while (size) {
        size_t part = data || size < sizeof nowhere ? size : sizeof nowhere;
        char *target = data ? data : nowhere;
        ssize_t came;
        if (reply->begun) {
            came = (ssize_t)(part < reply->begun ? part : reply->begun);
            memcpy(target, reply->rest, (size_t)came);
            reply->rest += came;
            reply->begun -= (size_t)came;
        } else {
            came = receive(agent, target, part);
        }
        if (came <= 0)
            return -1;
        if (data)
            data += came;
        size -= (size_t)came;
    }
    return 0;
}

long edge_ask(int agent, const char *model, const struct edge_tensor *inputs, int count, const char *output, void *answer, size_t capacity, char *why,
              size_t why_bytes)
{
    char json[4096], head[HEAD_BYTES];
    struct reply reply;
    size_t tensors = 0;
    int json_bytes, head_bytes;
    if (!is_plain(model) || strpbrk(model, "/? ") || !is_plain(output))
        return failed(why, why_bytes, "that is no name");
    json_bytes = write_json(json, sizeof json, inputs, count, output);
    if (json_bytes < 0)
        return failed(why, why_bytes, "these inputs cannot be described: a name with quotes, or too many");
    for (int i = 0; i < count; i++)
        tensors += inputs[i].bytes;
    head_bytes = snprintf(head, sizeof head,
                          "POST /v2/models/%s/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: %zu\r\nInference-Header-Content-Length: %d\r\n\r\n", model,
                          (size_t)json_bytes + tensors, json_bytes);
    if (head_bytes < 0 || (size_t)head_bytes >= sizeof head)
        return failed(why, why_bytes, "that is no name");
    if (send_all(agent, head, (size_t)head_bytes) || send_all(agent, json, (size_t)json_bytes))
        return failed(why, why_bytes, "the agent does not listen any more: %s", strerror(errno));
    for (int i = 0; i < count; i++)
        if (send_all(agent, inputs[i].data, inputs[i].bytes))
            return failed(why, why_bytes, "the agent does not listen any more: %s", strerror(errno));
    if (read_head(agent, head, &reply))
        return failed(why, why_bytes, "the agent did not answer");
    if (reply.status != 200) {
        size_t said = reply.body < sizeof json - 1 ? reply.body : sizeof json - 1;
        if (read_body(agent, &reply, json, said))
            said = 0;
        json[said] = 0;
        return failed(why, why_bytes, "the agent refuses (%d): %s", reply.status, json);
    }
    tensors = reply.body - reply.json;
    if (tensors > capacity || tensors > LONG_MAX)
        return failed(why, why_bytes, "the answer has %zu bytes, there is room for %zu", tensors, capacity);
    if (read_body(agent, &reply, NULL, reply.json) || read_body(agent, &reply, answer, tensors))
        return failed(why, why_bytes, "the answer was cut off");
    return (long)tensors;
}
