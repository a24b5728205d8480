/*
 * The honest floor: what an HTTP server costs on this machine when it does nothing with a request but read it.
 *
 * One thread, one level-triggered epoll loop, keep-alive. Each request is read whole (the head up to CRLFCRLF, then
 * Content-Length bytes of body; there may be several in one read, or one in several reads) and answered with the
 * same bytes. It decides nothing, so no server can be much cheaper: bench.peers measures every other one as a ratio
 * to it.
 *
 *     cc -O2 -o limit limit.c && ./limit PORT
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { READ = 16384, EVENTS = 512, BACKLOG = 4096, BATCH = 64 };

static const char RESPONSE[] = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
enum { ANSWER = sizeof RESPONSE - 1 };

/* Pipelined requests get their answers in one write, cut out of this. */
static char answers[ANSWER * BATCH];

struct conn {
    int fd;
    size_t have;      /* bytes in buf that no request has used yet */
    size_t body_left; /* bytes of the current request's body still to come */
    size_t owed;      /* bytes of answers still to write */
    bool in_body;
    bool polls_out;
    char buf[READ];
};

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void poll_for(int loop, int op, struct conn *c, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = c};
    if (epoll_ctl(loop, op, c->fd, &event) < 0) die("epoll_ctl");
}

/* The declared length of the body; 0 if none is declared, -1 if it is not a number. */
static long content_length(const char *head, const char *end) {
    static const char name[] = "content-length:";
    const char *line = head;
    while ((line = memchr(line, '\n', (size_t)(end - line)))) {
        line++;
        if ((size_t)(end - line) < sizeof name - 1 || strncasecmp(line, name, sizeof name - 1)) continue;
        char *stop; /* the head ends in CRLF, so strtol stays inside it */
        long length = strtol(line + sizeof name - 1, &stop, 10);
        return *stop == '\r' && length >= 0 ? length : -1;
    }
    return 0;
}

/* Uses up the whole requests in buf and owes an answer for each. False: this is not HTTP as we know it. */
static bool take_requests(struct conn *c) {
    size_t used = 0;
    for (;;) {
        if (!c->in_body) {
            const char *head = c->buf + used;
            const char *end = memmem(head, c->have - used, "\r\n\r\n", 4);
            if (!end) break;
            long length = content_length(head, end + 4);
            if (length < 0) return false;
            used += (size_t)(end - head) + 4;
            c->body_left = (size_t)length;
            c->in_body = true;
        }
        size_t there = c->have - used;
        size_t body = there < c->body_left ? there : c->body_left;
        used += body;
        c->body_left -= body;
        if (c->body_left) break;
        c->in_body = false;
        c->owed += ANSWER;
    }
    c->have -= used;
    if (used && c->have) memmove(c->buf, c->buf + used, c->have);
    return c->have < READ; /* a head that fills the buffer is too long */
}

/* Writes what is owed, as far as the socket takes it. All answers are equal, so what is owed tells where we are. */
static bool write_owed(struct conn *c) {
    while (c->owed) {
        size_t begun = (ANSWER - c->owed % ANSWER) % ANSWER;
        size_t size = sizeof answers - begun < c->owed ? sizeof answers - begun : c->owed;
        ssize_t n = send(c->fd, answers + begun, size, MSG_NOSIGNAL);
        if (n < 0) return errno == EAGAIN || errno == EINTR;
        c->owed -= (size_t)n;
    }
    return true;
}

static bool read_some(struct conn *c) {
    ssize_t n = recv(c->fd, c->buf + c->have, READ - c->have, 0);
    if (n == 0) return false;
    if (n < 0) return errno == EAGAIN || errno == EINTR;
    c->have += (size_t)n;
    return take_requests(c);
}

static void serve(int loop, struct conn *c, uint32_t events) {
    bool alive = !(events & (EPOLLERR | EPOLLHUP));
    if (alive && events & EPOLLIN) alive = read_some(c);
    if (alive) alive = write_owed(c);
    if (!alive) {
        close(c->fd); /* which takes it out of the epoll set */
        free(c);
        return;
    }
    /* A peer that doesn't read its answers is not read from either. */
    if (c->polls_out == (c->owed > 0)) return;
    c->polls_out = c->owed > 0;
    poll_for(loop, EPOLL_CTL_MOD, c, c->polls_out ? EPOLLOUT : EPOLLIN);
}

static void accept_all(int loop, int listener) {
    int fd, one = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        struct conn *c = malloc(sizeof *c);
        if (!c) die("malloc");
        *c = (struct conn){.fd = fd};
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        poll_for(loop, EPOLL_CTL_ADD, c, EPOLLIN);
    }
}

static int listen_on(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (fd < 0) die("socket");
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0) die("bind");
    if (listen(fd, BACKLOG) < 0) die("listen");
    return fd;
}

int main(int argc, char **argv) {
    int port = argc == 2 ? atoi(argv[1]) : 0;
    if (port < 1 || port > 65535) {
        fprintf(stderr, "usage: limit PORT\n");
        return 2;
    }
    for (int i = 0; i < BATCH; i++) memcpy(answers + i * ANSWER, RESPONSE, ANSWER);
    int listener = listen_on(port), loop = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event listening = {.events = EPOLLIN, .data.ptr = NULL}, events[EVENTS];
    if (loop < 0 || epoll_ctl(loop, EPOLL_CTL_ADD, listener, &listening) < 0) die("epoll");
    for (;;) {
        int n = epoll_wait(loop, events, EVENTS, -1);
        if (n < 0 && errno != EINTR) die("epoll_wait");
        for (int i = 0; i < n; i++) {
            if (events[i].data.ptr)
                serve(loop, events[i].data.ptr, events[i].events);
            else
                accept_all(loop, listener);
        }
    }
}
