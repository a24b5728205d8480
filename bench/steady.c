/*
 * Load at a fixed rate, which wrk has no option for: request k is due at k / RATE seconds whether or not the server
 * has answered the ones before it, and its latency counts from when it was due, not from when it could be sent. So
 * a server that stops for 10 ms is charged for every request that fell due in them (no "coordinated omission").
 *
 * Free connections are used in turn, one request at a time on each, as Telegram does. The loop spins, so it wants a
 * core of its own. It ends by itself SECONDS after it began, plus at most LINGER for what is still unanswered.
 *
 *     steady PORT TEMPLATE FIRST_ID RATE SECONDS CONNECTIONS
 *
 * TEMPLATE is a file with one whole request (bench/peers/traffic.py writes it), in which IIIIIIIII becomes the
 * update's id and CCCCCCCCC its chat's. Prints one JSON object.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { DIGITS = 9, MARKS = 8, CHATS = 1000, FIRST_CHAT = 700000000, READ = 4096, EVENTS = 512 };
static const int64_t SECOND = 1000000000, LINGER = 5000000000;

struct conn {
    int fd;
    bool busy;
    int64_t due; /* of the request in flight */
    size_t have;
    char buf[READ];
};

/* The connections that are free, in the order they became so. */
static struct {
    struct conn **slot;
    int head, count, size;
} idle;

static struct {
    char *text;
    size_t size;
    size_t id[MARKS], chat[MARKS];
    int ids, chats;
} request;

static struct {
    int64_t *latency; /* nanoseconds, of each good answer */
    long answered, sent, refused, broken, waited;
    int64_t latest_send; /* how late the worst request went out */
} seen;

static struct sockaddr_in server = {.sin_family = AF_INET};

static void die(const char *what) {
    perror(what);
    exit(1);
}

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * SECOND + t.tv_nsec;
}

static void put_idle(struct conn *c) {
    idle.slot[(idle.head + idle.count++) % idle.size] = c;
}

static struct conn *take_idle(void) {
    struct conn *c = idle.slot[idle.head];
    idle.head = (idle.head + 1) % idle.size;
    idle.count--;
    return c;
}

static int find_marks(const char *mark, size_t *at) {
    int n = 0;
    char *from = request.text, *hit;
    while (n < MARKS && (hit = strstr(from, mark))) {
        at[n++] = (size_t)(hit - request.text);
        from = hit + DIGITS;
    }
    return n;
}

static void load_request(const char *path) {
    FILE *file = fopen(path, "rb");
    request.text = calloc(1, 1 << 20);
    if (!file || !request.text) die(path);
    request.size = fread(request.text, 1, (1 << 20) - 1, file);
    fclose(file);
    request.ids = find_marks("IIIIIIIII", request.id);
    request.chats = find_marks("CCCCCCCCC", request.chat);
}

static void write_digits(const size_t *at, int n, long number) {
    char digits[32];
    snprintf(digits, sizeof digits, "%09ld", number);
    for (int i = 0; i < n; i++) memcpy(request.text + at[i], digits, DIGITS);
}

static void open_conn(int loop, struct conn *c) {
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0) die("socket");
    /* Blocking: connecting is not what is measured, and the server is on this machine. */
    if (connect(c->fd, (struct sockaddr *)&server, sizeof server) < 0) die("connect");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    if (epoll_ctl(loop, EPOLL_CTL_ADD, c->fd, &event) < 0) die("epoll_ctl");
    c->have = 0;
}

/* The server closed it, or answered nonsense: counts against the request in flight, and the connection is made anew. */
static void reopen(int loop, struct conn *c) {
    close(c->fd);
    open_conn(loop, c);
    if (!c->busy) return; /* it is in the idle ring and stays there */
    seen.broken++;
    c->busy = false;
    put_idle(c);
}

static void send_due(int loop, struct conn *c, long id, int64_t due) {
    int64_t late = now() - due;
    if (late > seen.latest_send) seen.latest_send = late;
    write_digits(request.id, request.ids, id);
    write_digits(request.chat, request.chats, FIRST_CHAT + id % CHATS);
    c->busy = true;
    c->due = due;
    seen.sent++;
    /* One request is far smaller than the socket's buffer, and only one is in it. */
    if (send(c->fd, request.text, request.size, MSG_NOSIGNAL) != (ssize_t)request.size) reopen(loop, c);
}

/* The size of the whole answer in buf; 0 if it isn't whole yet, -1 if it is one that can't be read here. */
static long answer_size(struct conn *c) {
    char *end = memmem(c->buf, c->have, "\r\n\r\n", 4);
    if (!end) return c->have < READ ? 0 : -1;
    for (char *line = c->buf; (line = memchr(line, '\n', (size_t)(end - line)));) {
        line++;
        if (strncasecmp(line, "content-length:", 15)) continue;
        long size = end + 4 - c->buf + strtol(line + 15, NULL, 10);
        if (size > READ) return -1;
        return (size_t)size <= c->have ? size : 0;
    }
    return -1;
}

static void receive(int loop, struct conn *c) {
    ssize_t n = recv(c->fd, c->buf + c->have, READ - c->have, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n <= 0) {
        reopen(loop, c);
        return;
    }
    c->have += (size_t)n;
    long size = answer_size(c);
    if (size == 0) return;
    if (size < 0 || !c->busy || (size_t)size != c->have) {
        reopen(loop, c);
        return;
    }
    if (memcmp(c->buf, "HTTP/1.1 200", 12))
        seen.refused++;
    else
        seen.latency[seen.answered++] = now() - c->due;
    c->have = 0;
    c->busy = false;
    put_idle(c);
}

static void receive_all(int loop) {
    struct epoll_event events[EVENTS];
    int n = epoll_wait(loop, events, EVENTS, 0);
    for (int i = 0; i < n; i++) receive(loop, events[i].data.ptr);
}

static void run(int loop, long first, long rate, long total) {
    int64_t start = now() + SECOND / 100;
    bool counted = false; /* that the next request found no connection free */
    for (long k = 0; k < total;) {
        int64_t due = start + (int64_t)((double)k * (double)SECOND / (double)rate);
        if (now() >= due) {
            if (idle.count) {
                send_due(loop, take_idle(), first + k++, due);
                counted = false;
                continue;
            }
            seen.waited += !counted;
            counted = true;
        }
        receive_all(loop);
        if (now() > due + LINGER) return; /* the server is gone or hopelessly behind */
    }
    int64_t end = now() + LINGER;
    while (idle.count < idle.size && now() < end) receive_all(loop);
}

static int by_size(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static double quantile_ms(double q) {
    if (!seen.answered) return 0;
    return (double)seen.latency[(long)(q * (double)(seen.answered - 1))] / 1e6;
}

static void report(long total) {
    qsort(seen.latency, (size_t)seen.answered, sizeof *seen.latency, by_size);
    printf("{\"due\": %ld, \"requests\": %ld, \"p50_ms\": %.4f, \"p99_ms\": %.4f, \"p999_ms\": %.4f, \"max_ms\": %.4f,"
           " \"refused\": %ld, \"broken\": %ld, \"unanswered\": %ld, \"waited\": %ld, \"latest_send_ms\": %.4f}\n",
           total, seen.answered, quantile_ms(0.5), quantile_ms(0.99), quantile_ms(0.999), quantile_ms(1),
           seen.refused, seen.broken, total - seen.answered - seen.refused - seen.broken, seen.waited,
           (double)seen.latest_send / 1e6);
}

int main(int argc, char **argv) {
    if (argc != 7) {
        fprintf(stderr, "usage: steady PORT TEMPLATE FIRST_ID RATE SECONDS CONNECTIONS\n");
        return 2;
    }
    long rate = atol(argv[4]), total = rate * atol(argv[5]);
    int connections = atoi(argv[6]), loop = epoll_create1(EPOLL_CLOEXEC);
    if (rate < 1 || total < 1 || connections < 1) {
        fprintf(stderr, "steady: RATE, SECONDS and CONNECTIONS are whole numbers from 1\n");
        return 2;
    }
    server.sin_port = htons((uint16_t)atoi(argv[1]));
    server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    load_request(argv[2]);
    struct conn *conns = calloc((size_t)connections, sizeof *conns);
    idle.slot = calloc((size_t)connections, sizeof *idle.slot);
    idle.size = connections;
    seen.latency = calloc((size_t)total, sizeof *seen.latency);
    if (loop < 0 || !conns || !idle.slot || !seen.latency) die("start");
    for (int i = 0; i < connections; i++) {
        open_conn(loop, &conns[i]);
        put_idle(&conns[i]);
    }
    run(loop, atol(argv[3]), rate, total);
    report(total);
}
