"""The compiled HTTP edge: a protocol class that uvicorn runs.

llhttp, through httptools, reads the bytes. It is fed one message at a time: up to the end of a head, then up to the end
of its body, so that a verdict falls before a byte of the body is kept, requests are answered one by one, and every byte
of a head is counted. What it refuses is refused; the rules beyond it are those of `_head`.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.time cimport monotonic_ns, time
from libc.stdint cimport int64_t
from libc.string cimport memset

from fasthook._core cimport (
    BAD_REQUEST, BAD_VERSION, CROWDED, DRAINING, FORBIDDEN, HEAD_TOO_LARGE, INVALID, TARGET_TOO_LONG, TIMEOUT, TOO_LARGE,
    Gate, Route, Stats, Verdict,
)
from fasthook._scan cimport Admitted
from fasthook._framing cimport (
    ENDED, OVERLONG, ChunkMeter, HeadMeter, Memory, asks_for_head, measure_chunks, measure_head, plain_request_line,
    remember,
)
from fasthook._head cimport Head, path_of

import asyncio
import logging
from time import monotonic

import httptools

from fasthook import descriptors
from fasthook.access import AccessLog
from fasthook.telegram.networks import caller as _caller

log = logging.getLogger("fasthook.edge")

_ParserError = httptools.HttpParserError
_ParserUpgrade = httptools.HttpParserUpgrade
_Parser = httptools.HttpRequestParser

#: What the edge counts beside the gate's rows: the last counters of its `Stats`. The first histogram is its latency,
#: from the last byte of a request to its response.
EDGE_COUNTERS = ("connections", "received_bytes", "sent_bytes", "disconnects", "timeouts")

cdef double TLS_LINGER_SECONDS = 0.25

cdef enum:
    CONNECTIONS, RECEIVED, SENT, DISCONNECTS, TIMEOUTS, N_EDGE
    LATENCY = 0
    TURN = 512                 # requests in one turn of the loop, before handlers get theirs
    SHARE = 16                 # of one connection in it
    AHEAD = 65536              # bytes waiting behind a request in hand, before reading pauses
    UNREAD_SECONDS = 30        # for a peer that does not read its answer
    TELL_AGAIN_SECONDS = 60    # between two log lines about the same
    LINGER_SECONDS = 2         # for a peer to read an answer after which the connection is closed
    TO_ASK_SECONDS = 1         # for a connection that has just come when the server stops


# ---------------------------------------------------------------- deadlines

cdef enum:  # the states of a connection
    OPENING, HEAD, BODY, IDLE, UNREAD, LINGER, N_TIMED   # these end at a deadline
    HANDLING, CLOSED                                     # these do not

cdef struct Link:  # a connection's place in the list of those in its state
    Link *before
    Link *behind
    double deadline
    void *owner


cdef inline void unlink(Link *link) noexcept:
    if link.behind != NULL:
        link.before.behind = link.behind
        link.behind.before = link.before
        link.behind = link.before = NULL


cdef class Edge:
    """What the connections of a process share: the gate, the limits, and one reaper for all deadlines.

    A state's connections stand in a list in the order of their deadlines, because all have the same time in it; the
    reaper looks at the first ones, four times in the shortest of the times but once a second at least.
    """

    cdef readonly object receiver
    cdef readonly object loop
    cdef readonly Py_ssize_t open
    cdef Gate gate
    cdef Stats stats
    cdef object accept, reject, allowed, trusted
    cdef object access         # the access log, or None
    cdef Py_ssize_t base
    cdef Py_ssize_t answered   # connections up to which those that are too many are told so
    cdef double told           # when it was said that there are too many
    cdef Py_ssize_t max_connections, max_head, max_headers, max_target
    cdef bint remember
    cdef bint reaping          # the reaper will come
    cdef int turn              # requests taken since the loop was last free to do something else
    cdef list delayed          # connections that wait for that
    cdef double now, period
    cdef int64_t stale         # when `now` is a period old, monotonic ns
    cdef double times[N_TIMED]
    cdef Link lists[N_TIMED]

    def __init__(self, receiver, loop):
        settings = receiver.settings
        self.receiver = receiver
        self.loop = loop
        self.gate = receiver.gate
        self.stats = self.gate.stats
        self.base = self.stats.counters - N_EDGE
        self.accept = receiver.accept
        self.reject = receiver.reject
        self.allowed = settings.allow_ip
        self.trusted = settings.trusted_proxy
        room = descriptors.room(settings.max_connections)
        self.max_connections, self.answered = room.served, room.answered
        self.told = -TELL_AGAIN_SECONDS
        self.max_head = settings.max_head
        self.max_headers = settings.max_headers
        self.max_target = settings.max_target
        self.delayed = []
        self.remember = receiver.remember_heads
        self.access = AccessLog(lambda: receiver.hidden) if settings.access_log else None
        self.times[OPENING] = self.times[HEAD] = settings.header_timeout
        self.times[BODY] = settings.body_timeout
        self.times[IDLE] = settings.keep_alive
        self.times[UNREAD] = UNREAD_SECONDS
        self.times[LINGER] = LINGER_SECONDS
        self.period = min(1.0, settings.header_timeout / 4, settings.body_timeout / 4, settings.keep_alive / 4)
        cdef int state
        for state in range(N_TIMED):
            self.lists[state].before = self.lists[state].behind = &self.lists[state]

    def __dealloc__(self):
        # The collector may take this before the connections that are linked here.
        cdef int state
        for state in range(N_TIMED):
            while self.lists[state].behind != NULL and self.lists[state].behind != &self.lists[state]:
                unlink(self.lists[state].behind)

    cdef int opened(self) except -1:
        self.open += 1
        self.count(CONNECTIONS, 1)
        if not self.reaping:
            self.reaping = True
            self.set_now()
            self.loop.call_later(self.period, self.reap)
        return 0

    cdef int set_now(self) except -1:
        self.now = monotonic()
        self.stale = monotonic_ns() + <int64_t>(self.period * 1e9)
        return 0

    cdef void closed(self) noexcept:
        self.open -= 1
        self.count(CONNECTIONS, -1)

    cdef int crowded(self) except -1:
        """Say that there are too many connections, once a minute."""
        if self.now >= self.told + TELL_AGAIN_SECONDS:
            self.told = self.now
            log.warning("%d connections are open, the most that are taken: further ones get 503", self.max_connections)
        return 0

    cdef bint may_take(self) except -1:
        """Whether a request may be taken in this turn of the loop.

        uvloop reads on from one ready socket to the next; with many of them busy the handlers would never run.
        """
        if self.turn == 0:
            self.loop.call_soon(self.next_turn)
        self.turn += 1
        return self.turn <= TURN

    def next_turn(self):
        """The loop was free: take the requests that had to wait."""
        delayed, self.delayed = self.delayed, []
        self.turn = 0
        for i, connection in enumerate(delayed):
            if self.turn >= TURN:
                self.delayed = delayed[i:] + self.delayed  # first come, first served: these have waited longest
                break
            try:
                (<HookProtocol>connection).go_on()
            except Exception:
                (<HookProtocol>connection).give_up()

    cdef inline void count(self, int counter, Py_ssize_t n) noexcept:
        self.stats._add(self.base + counter, n)

    cdef void enter(self, Link *link, int state) noexcept:
        """Move a connection to a state; its time there begins now."""
        cdef Link *end
        unlink(link)
        if state < N_TIMED:
            end = &self.lists[state]
            link.deadline = self.now + self.times[state] + self.period  # `now` may be a period old
            link.before = end.before
            link.behind = end
            end.before.behind = link
            end.before = link

    def reap(self):
        """End the connections whose time is over, and come again as long as there are any."""
        cdef int state
        cdef Link *first
        cdef HookProtocol connection
        again = self.loop.call_later(self.period, self.reap)  # first, so that no error ends all deadlines
        self.set_now()
        for state in range(N_TIMED):
            while True:
                first = self.lists[state].behind
                if first == &self.lists[state] or first.deadline > self.now:
                    break
                unlink(first)
                connection = <HookProtocol>first.owner
                try:
                    connection.expire()
                except Exception:
                    connection.give_up()
        self.reaping = self.open > 0
        if not self.reaping:
            again.cancel()


cdef Edge edge_of(receiver, loop):
    """The edge of a receiver that runs in this loop."""
    edge = receiver.edge
    if edge is None or (<Edge>edge).loop is not loop:
        edge = receiver.edge = Edge(receiver, loop)
    return <Edge>edge


def find_receiver(app):
    """The receiver of the Hook that uvicorn was given, through the middleware that uvicorn wraps around it, or None.

    Other middleware is not stepped through: it would be passed by, and what it forbids let in.
    """
    seen = app
    while seen is not None:
        receiver = getattr(seen, "receiver", None)
        if receiver is not None and hasattr(receiver, "gate_is_open"):
            return receiver
        if not type(seen).__module__.startswith("uvicorn.middleware."):
            return None
        seen = getattr(seen, "app", None)
    return None


cdef str misuse(app):
    """What is wrong with an application that is no hook, and what to do."""
    seen, between = app, None
    while seen is not None and getattr(seen, "receiver", None) is None:
        if not type(seen).__module__.startswith("uvicorn.middleware.") and between is None:
            between = type(seen).__name__
        seen = getattr(seen, "app", None)
    if seen is None or between is None:
        return (
            "HookProtocol serves a fasthook.Hook, not this application: give uvicorn the hook, or leave its http setting "
            "out"
        )
    return (
        f"HookProtocol would pass by {between}, which stands around the hook: take that away, or let uvicorn run it with "
        "--http auto (http=\"auto\")"
    )


# ---------------------------------------------------------------- a connection

cdef struct Facts:  # of a request; all zero at its beginning
    HeadMeter line          # and the rest of the head
    ChunkMeter chunks
    Py_ssize_t target_size
    bint complete           # llhttp has seen the end of the head
    bint whole              # llhttp has seen the end of the message
    bint upgrade


cdef bytes misused(bytes status, bytes words):
    """The answer of a server that is set up wrongly."""
    return (
        b"HTTP/1.1 %s\r\ncontent-length: %d\r\ncontent-type: text/plain\r\nconnection: close\r\n\r\n%s"
        % (status, len(words), words)
    )


@cython.final
cdef class HookProtocol:
    """A connection. `uvicorn.Config(hook, http="fasthook._protocol:HookProtocol")` runs it; `hook` is a `fasthook.Hook`.

    With something else in its place every connection gets 500, with a hook that was not started 503; the log says why,
    once.
    """

    cdef Edge edge
    cdef object config, receiver, loop, server_state, transport, write, parser
    cdef object peer           # its address, None: it has none
    cdef object caller         # who asks, behind a trusted proxy
    cdef Link link
    cdef int state
    cdef Memory memory
    cdef bytes ahead           # came behind the request in hand
    cdef bint paused           # reading is
    cdef bint blocked          # the peer does not read its answers
    cdef bint last             # the next answer is the last: uvicorn shuts down
    cdef bint ended            # the peer has sent all it will
    cdef bint taking           # `take` is at work: it may be called back from a write
    cdef bint began            # a byte of a request has come
    cdef bint known            # it has shown the secret
    cdef bint large            # its last answer
    cdef double unread_until   # how long an answer behind which it is closed may be unread
    cdef int64_t came          # when the last byte of the request in hand did, monotonic ns
    # the request in hand
    cdef Facts facts
    cdef Head head
    cdef bytes method, target
    cdef Route route           # of its path
    cdef Admitted subject      # the update in it, if that is to be logged
    cdef bint keeps            # its body
    cdef bint answered         # already, before its body has come
    cdef bint rejected         # it is no update: its verdict is counted, and not sent before it is kept
    cdef bint http10, bare, keep_alive, replaying
    cdef object body           # None, bytes, or a bytearray once there were several pieces
    cdef int64_t missing       # bytes of the body that are still to come
    cdef int64_t dropped       # bytes of a body that is not kept

    def __init__(self, config, server_state, app_state=None, _loop=None):
        if not config.loaded:
            config.load()
        self.config = config
        self.receiver = find_receiver(config.loaded_app)
        self.loop = _loop or asyncio.get_event_loop()
        self.server_state = server_state
        self.state = CLOSED
        self.head = Head.__new__(Head)
        self.link.owner = <void *>self

    def __dealloc__(self):
        unlink(&self.link)

    # ------------------------------------------------------------ what the loop calls

    def connection_made(self, transport):
        self.transport = transport
        self.write = transport.write
        self.server_state.connections.add(self)
        if self.receiver is None:
            self.tell_once(misuse(self.config.loaded_app))
            self.turn_away(misused(b"500 Internal Server Error", b"no hook is served here\n"))
            return
        if not self.receiver.gate_is_open:
            self.tell_once("the hook is not started: leave uvicorn's lifespan on, or start it with hook.running()")
            self.turn_away(misused(b"503 Service Unavailable", b"the hook is not started\n"))
            return
        self.edge = edge_of(self.receiver, self.loop)
        self.edge.opened()
        self.came = monotonic_ns()
        self.last = getattr(self.server_state, "fasthook_ends", False)  # its TLS handshake is over only now
        self.begin_request()
        name = transport.get_extra_info("peername")
        self.peer = self.caller = name[0] if isinstance(name, tuple) else None
        self.enter(OPENING)
        if self.edge.open > self.edge.max_connections:
            self.edge.crowded()
            if self.edge.open > self.edge.answered:
                self.abort()  # the descriptors that are left are for files
                return
            self.respond(self.edge.gate._refuse(None, CROWDED))
        elif (
            self.edge.allowed is not None
            and self.peer not in self.edge.allowed
            and (self.edge.trusted is None or self.peer not in self.edge.trusted)
        ):
            self.respond(self.edge.gate._refuse(None, FORBIDDEN))

    def data_received(self, data):
        cdef bytes chunk = data if type(data) is bytes else bytes(data)
        if self.edge is None or self.state == CLOSED:
            return
        self.edge.count(RECEIVED, PyBytes_GET_SIZE(chunk))
        if self.state == LINGER:
            return
        if self.state == HANDLING or self.blocked or self.ahead is not None:
            self.wait(chunk if self.ahead is None else self.ahead + chunk)
            return
        self.came = monotonic_ns()
        if self.came > self.edge.stale:
            self.edge.set_now()  # something has blocked the loop: that is not this peer's time
        self.take(chunk)

    def eof_received(self):
        if self.edge is None:
            return False
        self.ended = True
        # True keeps our side open, for an answer that is still to come; TLS has no half-closed connections
        if (self.state == HANDLING or self.ahead is not None) and self.transport.can_write_eof():
            return True
        if self.state != HANDLING:
            self.disconnected()
            self.enter(LINGER)  # what is written already has so long to be read
        return False

    def connection_lost(self, exc):
        self.server_state.connections.discard(self)
        if self.edge is None:
            return
        self.disconnected()
        unlink(&self.link)
        self.state = CLOSED
        self.edge.closed()
        self.transport = self.write = self.parser = self.ahead = self.body = self.memory = None

    cdef void disconnected(self) noexcept:
        """Count a peer that went away in the middle of a request."""
        if self.state < N_TIMED and self.state != LINGER and self.began:
            self.edge.count(DISCONNECTS, 1)

    def pause_writing(self):
        self.blocked = True
        if not self.paused and self.state != LINGER:
            self.paused = True
            self.transport.pause_reading()
        if self.state == IDLE:
            self.enter(UNREAD)

    def resume_writing(self):
        self.blocked = False
        if self.state == UNREAD:
            self.enter(IDLE)
        elif self.state == LINGER:
            self.enter(LINGER)  # the peer reads: its time for the rest begins now
        self.go_on()

    def shutdown(self):
        """uvicorn stops: as `end_soon`; one that has just come has a moment to ask."""
        told = self.last
        if self.end_soon():
            if told:
                self.close()
            else:
                self.loop.call_later(TO_ASK_SECONDS, self.shutdown)

    def end_soon(self):
        """Close at once between requests, else after the answer. True: it has just come, and its request may be under
        way; it stays until it has the answer to that."""
        self.last = self.server_state.fasthook_ends = True
        if self.state == OPENING and not self.began and self.ahead is None:
            return True
        if self.state != LINGER and (
            self.answered or self.state == UNREAD or (self.ahead is None and not self.began)
        ):
            self.close()
        return False

    def cut(self):
        """The stop waits no longer: a request that is still coming in gets 503, a connection that has not asked is
        closed."""
        if self.state > BODY or self.ahead is not None:
            return
        if self.began:
            self.fail(DRAINING)
        else:
            self.close()

    # ------------------------------------------------------------ from bytes to a request

    cdef int take(self, bytes chunk) except -1:
        """Read as many requests as these bytes hold, one at a time; what is behind one in hand waits."""
        cdef const unsigned char *at = <const unsigned char *>PyBytes_AS_STRING(chunk)
        cdef Py_ssize_t size = PyBytes_GET_SIZE(chunk), used = 0
        cdef int requests = 0
        self.taking = True
        while used < size and self.state != CLOSED and self.state != LINGER:
            if self.blocked and not self.known and size - used > AHEAD:
                self.abort()  # it asks on and on, reads nothing and has shown no secret
                break
            if self.state == HANDLING or self.blocked:
                self.wait(chunk[used:] if used else chunk)
                break
            if not self.began:
                requests += 1
                if requests > SHARE or not self.edge.may_take():
                    self.edge.delayed.append(self)
                    self.wait(chunk[used:] if used else chunk)
                    break
            used += self.take_known(at + used, size - used) or self.take_part(chunk, at, used, size)
        self.taking = False
        return 0

    cdef int wait(self, bytes ahead) except -1:
        """Keep what came behind the request in hand; read no more if that is much."""
        self.ahead = ahead
        if not self.paused and PyBytes_GET_SIZE(ahead) > AHEAD:
            self.paused = True
            self.transport.pause_reading()
        return 0

    cdef Py_ssize_t take_known(self, const unsigned char *at, Py_ssize_t size) except -1:
        """A whole request whose head is the one this connection remembers; else 0, and nothing was taken."""
        cdef Memory memory = self.memory
        cdef Py_ssize_t head
        cdef int64_t length = 0
        if memory is None or self.began or memory.generation != self.edge.gate.generation:
            return 0
        head = memory.match(at, size, &length)
        if head == 0 or head > self.edge.max_head or length > size - head or length > self.edge.gate.max_body:
            return 0
        self.began = True
        self.route = memory.route
        if self.edge.access is not None:
            self.method, self.caller = b"POST", memory.caller
        self.admit(memory.route, PyBytes_FromStringAndSize(<const char *>at + head, length))
        return head + length

    cdef Py_ssize_t take_part(self, bytes chunk, const unsigned char *data, Py_ssize_t used, Py_ssize_t size) except -1:
        """Feed llhttp with the rest of a head or of a body, as far as it is here; how many bytes that were."""
        cdef Py_ssize_t n
        if not self.began:
            self.began = True
            if self.state != OPENING:
                self.enter(HEAD)
        if self.facts.complete:
            n = self.body_part(data + used, size - used)
            self.feed(chunk, used, n)
            self.after_body()
            return n
        n = measure_head(&self.facts.line, data + used, size - used, self.edge.max_head)
        self.feed(chunk, used, n)
        self.after_head(data + used, n)
        return n

    cdef Py_ssize_t body_part(self, const unsigned char *at, Py_ssize_t size) noexcept:
        if self.head.chunked:
            return measure_chunks(&self.facts.chunks, at, size)
        if size > self.missing:
            size = self.missing
        self.missing -= size
        return size

    cdef int feed(self, bytes chunk, Py_ssize_t used, Py_ssize_t n) except -1:
        """Give llhttp a part of what came. What it finds is in `facts` and `body` then."""
        if self.parser is None:
            self.parser = _Parser(self)
        try:
            if n == PyBytes_GET_SIZE(chunk):
                self.parser.feed_data(chunk)
            else:
                self.parser.feed_data(memoryview(chunk)[used : used + n])
        except _ParserUpgrade:
            self.facts.upgrade = True
        except _ParserError as error:
            self.fail(bad_version(str(error)))
        return 0

    cdef int after_head(self, const unsigned char *head, Py_ssize_t n) except -1:
        cdef bint cut = n != self.facts.line.size, unknown = False
        cdef int refused
        if self.state == LINGER or self.state == CLOSED:
            return 0
        if self.edge.trusted is not None and self.edge.allowed is not None:
            unknown = not self.facts.complete  # who asks stands in the head, and goes before what is wrong with it
            if not unknown:
                self.caller = _caller(self.peer, self.head.sources(), self.edge.trusted)
                if self.caller not in self.edge.allowed:
                    return self.fail(FORBIDDEN)
        if self.facts.target_size > self.edge.max_target and not (unknown and self.facts.line.size <= self.edge.max_head):
            return self.fail(TARGET_TOO_LONG)
        if self.facts.line.size > self.edge.max_head:
            return self.fail(HEAD_TOO_LARGE)
        if not self.facts.complete:
            refused = self.line_fault() if self.facts.line.line_over else 0
            if refused:
                return self.fail(refused)
            if self.facts.line.line_end == 4:
                if self.facts.line.line_over:
                    return self.fail(BAD_REQUEST)  # we saw an end where llhttp wants more
                self.facts.line.line_end = 0  # empty lines before a request
            return 0
        if self.facts.line.line_end != 4:
            return self.fail(BAD_REQUEST)  # llhttp saw an end where we did not
        judged = self.judge()
        if type(judged) is not Route:
            self.answered = True
            self.respond(<Verdict>judged)
            if self.state == LINGER or self.state == CLOSED:
                return 0
        else:
            self.keeps = self.known = True
            if self.head.expects:
                self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if self.facts.upgrade:
            self.ignore_upgrade()
        if not self.facts.whole:
            self.missing = self.head.length
            self.enter(BODY)
            if self.keeps and self.edge.remember and not (
                cut or self.head.chunked or self.head.expects or self.head.upgrades or self.http10
                or not self.keep_alive
            ):
                self.memory = remember(head, n, <Route>judged, self.edge.gate.generation, self.caller)
            return 0
        return self.finish_request()

    cdef int ignore_upgrade(self) except -1:
        """llhttp takes what follows a head with Upgrade for another protocol. To us it is the body that was declared."""
        self.parser = None
        if self.head.length <= 0 and not self.head.chunked:
            return 0
        self.facts.whole = False
        self.replaying = True
        self.parser = _Parser(self)
        coding = b"transfer-encoding: chunked" if self.head.chunked else b"content-length: %d" % self.head.length
        self.parser.feed_data(b"POST / HTTP/1.1\r\nhost: a\r\n%s\r\n\r\n" % coding)
        self.replaying = False
        return 0

    cdef int after_body(self) except -1:
        if self.state == LINGER or self.state == CLOSED:
            return 0
        if self.facts.chunks.part == OVERLONG:
            return self.fail(BAD_REQUEST)
        if self.facts.line.size + self.facts.chunks.extra > self.edge.max_head or self.head.headers > self.edge.max_headers:
            return self.fail(HEAD_TOO_LARGE)
        if self.dropped > self.edge.gate.max_body:
            if self.keeps:
                return self.fail(TOO_LARGE)
            self.linger()  # answered long ago, and still sending
            return 0
        if self.facts.whole != (self.facts.chunks.part == ENDED if self.head.chunked else self.missing == 0):
            return self.fail(BAD_REQUEST)  # two readings of where the body ends
        if self.facts.whole:
            return self.finish_request()
        return 0

    cdef int finish_request(self) except -1:
        """The request is here as a whole."""
        if self.facts.upgrade:
            self.parser = None
        if self.answered:
            self.next_request()
        else:
            body = self.body
            self.body = None
            self.admit(self.route, b"" if body is None else body if type(body) is bytes else bytes(body))
        return 0

    # ------------------------------------------------------------ what llhttp calls

    def on_url(self, bytes part):
        self.facts.target_size += PyBytes_GET_SIZE(part)
        self.target = part if self.target is None else self.target + part

    def on_header(self, bytes name, bytes value):
        if self.replaying:
            return
        if self.facts.complete or self.head.headers > self.edge.max_headers:
            self.head.headers += 1  # a trailer, or one too many
        else:
            self.head.add(name, value)

    def on_headers_complete(self):
        if not self.replaying:
            self.facts.complete = True
            # llhttp forgets it with the end of the message, and lets keep-alive win over close in HTTP/1.0
            self.keep_alive = self.parser.should_keep_alive() and not self.head.closes()

    def on_body(self, bytes part):
        if not self.keeps:
            self.dropped += PyBytes_GET_SIZE(part)
            return
        if self.body is None:
            self.body = part
        elif type(self.body) is bytes:
            self.body = bytearray(self.body)
            self.body += part
        else:
            self.body += part
        if len(self.body) > self.edge.gate.max_body:
            self.dropped = self.edge.gate.max_body + 1

    def on_message_complete(self):
        if not self.replaying:
            self.facts.whole = True

    # ------------------------------------------------------------ the verdict on a head

    cdef object judge(self):
        """A Verdict, or the Route to give the body to: the rules beyond llhttp's, then the gate's."""
        cdef Gate gate = self.edge.gate
        cdef Head head = self.head
        cdef bytes path = path_of(self.target, head.host)
        cdef int refused = self.line_fault()
        self.bare = self.method == b"HEAD"
        if self.http10:
            head.expects = False  # RFC 9110, section 10.1.1
        if path is not None:
            self.route = gate._find(path)
        if self.edge.trusted is not None and self.edge.allowed is None:
            self.caller = _caller(self.peer, head.sources(), self.edge.trusted)
        if not refused:
            refused = head.fault(self.method == b"CONNECT", self.http10, path, self.edge.max_headers)
        if refused:
            return gate._refuse(self.route, refused)
        judged = head.judge(gate, self.route, self.method == b"POST", self.caller, self.came)
        if type(judged) is not Route and (head.expects or head.other_expectation):
            self.keep_alive = False  # the peer may send the body or not: where the next request begins is unknown
        return judged

    cdef int line_fault(self) except -1:
        """What llhttp lets through as a request line and we do not; 0 if there is nothing."""
        cdef str version = self.parser.get_http_version()
        self.method = self.parser.get_method()
        self.http10 = version == "1.0"
        if version == "0.9":
            return BAD_REQUEST
        if not plain_request_line(&self.facts.line, PyBytes_GET_SIZE(self.method), self.facts.target_size):
            return BAD_REQUEST
        return 0 if version == "1.1" or self.http10 else BAD_VERSION

    # ------------------------------------------------------------ the answer

    cdef int admit(self, Route route, bytes body) except -1:
        """The body is whole: ask the gate, and answer now or when the queue has it."""
        result = self.edge.gate.body(route, body, time(), self.came)
        if type(result) is not Verdict:
            self.enter(HANDLING)
            if self.edge.access is not None:
                self.subject = <Admitted>result
            result = self.edge.accept(result, self)
            if result is None:
                return 0
            if self.edge.gate.answers_later:
                self.edge.gate._count(route.row, (<Verdict>result).code)
        elif (<Verdict>result).code == INVALID:
            self.enter(HANDLING)
            self.rejected = True
            self.edge.reject(route, body, self)
            return 0
        self.respond(<Verdict>result)
        if self.state != LINGER and self.state != CLOSED:
            self.next_request()
        return 0

    def answer(self, Verdict verdict not None):
        """The verdict on the request in hand, later; from the loop's own thread."""
        if self.edge.gate.answers_later and self.route is not None and not self.rejected:
            self.edge.gate._count(self.route.row, verdict.code)
        if self.state != HANDLING:
            return  # the peer is gone
        try:
            self.respond(verdict)
            if self.state == HANDLING:
                self.next_request()
                self.go_on()
        except Exception:  # the caller has answers for others too
            self.give_up()

    cdef int respond(self, Verdict verdict) except -1:
        """Write an answer, in one write; close behind it if it is the last."""
        cdef bint close = verdict.closes or self.last or not self.keep_alive
        cdef bytes data
        if close or self.http10 or self.bare:
            data = verdict._render(close, self.http10, self.bare)
        else:
            data = verdict.response
        self.write(data)
        self.server_state.total_requests += 1
        self.edge.count(SENT, PyBytes_GET_SIZE(data))
        self.edge.stats._observe(LATENCY, monotonic_ns() - self.came)
        if self.edge.access is not None:
            self.log_access(verdict)
        if close:
            self.large = PyBytes_GET_SIZE(data) > AHEAD
            self.linger()
        return 0

    cdef int fail(self, int code) except -1:
        """The request cannot be read any further: say so, unless it has its answer, and close."""
        if self.state == LINGER or self.state == CLOSED:
            return 0
        if self.answered:
            self.linger()
            return 0
        self.bare = asks_for_head(&self.facts.line)
        return self.respond(self.edge.gate._refuse(self.route, code))

    cdef int log_access(self, Verdict verdict) except -1:
        if self.method is None and self.target is not None:
            self.method = self.parser.get_method()
        method = None if self.method is None else self.method.decode()
        path = self.target if self.route is None else self.route.path
        bot = None if self.route is None else self.route.bot_id
        self.edge.access(self.caller, method, path, verdict, bot, self.subject, monotonic_ns() - self.came)
        self.method, self.caller = None, self.peer
        return 0

    cdef int next_request(self) except -1:
        """The one in hand is over: be ready for another."""
        self.began = False
        self.begin_request()
        self.enter(UNREAD if self.blocked else IDLE)
        if self.last:
            self.close()
        return 0

    cdef void begin_request(self) noexcept:
        if self.facts.line.size or self.route is None:
            memset(&self.facts, 0, sizeof(Facts))
            self.head.clear()
            self.method = self.target = None
            self.caller = self.peer
            self.body = None
            self.keeps = self.answered = self.http10 = self.bare = False
            self.keep_alive = True
            self.missing = self.dropped = 0
        self.rejected = False
        self.subject = None
        self.route = None

    cdef int go_on(self) except -1:
        """Read what came meanwhile; end if the peer has sent all."""
        cdef bytes chunk = self.ahead
        if chunk is not None and self.state < UNREAD and not self.blocked and not self.taking:
            self.ahead = None
            self.came = monotonic_ns()
            self.take(chunk)
        if (
            self.paused and not self.blocked and self.state != CLOSED
            and (self.ahead is None or PyBytes_GET_SIZE(self.ahead) <= AHEAD)
        ):
            self.paused = False
            self.transport.resume_reading()
        if self.ended and self.state != HANDLING and self.ahead is None:
            self.disconnected()
            self.close()
        return 0

    # ------------------------------------------------------------ the end

    cdef int tell_once(self, str words) except -1:
        """Log what is wrong with the whole server, by its first connection."""
        if not getattr(self.config, "fasthook_told", False):
            self.config.fasthook_told = True
            log.error(words)
        return 0

    cdef int turn_away(self, bytes answer) except -1:
        """Answer before anything was asked, where there is no edge and so no reaper."""
        self.write(answer)
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self.loop.call_later(LINGER_SECONDS, self.transport.close)
        else:
            self.loop.call_later(TLS_LINGER_SECONDS, self.transport.close)
        return 0

    cdef void enter(self, int state) noexcept:
        if state == LINGER and self.state != LINGER:
            self.unread_until = self.edge.now + UNREAD_SECONDS
        self.state = state
        self.edge.enter(&self.link, state)

    cdef int linger(self) except -1:
        """Shut down our side, so that the peer reads the answer before it meets a reset; close when it has, or soon."""
        self.ahead = None
        self.enter(LINGER)
        if self.ended:
            self.close()
            return 0
        if not self.transport.can_write_eof():  # TLS: no half-closed connections, so its close has to wait
            self.loop.call_later(TLS_LINGER_SECONDS, self.transport.close)
            return 0
        self.transport.write_eof()
        if self.paused:
            self.paused = False
            self.transport.resume_reading()
        return 0

    cdef int close(self) except -1:
        """Close when what is written has been sent; soon in any case."""
        if self.transport is not None:
            if self.edge is not None and self.state != LINGER:
                self.enter(LINGER)
            self.transport.close()
        return 0

    cdef int abort(self) except -1:
        if self.transport is not None:
            self.transport.abort()
        return 0

    cdef int give_up(self) except -1:
        """End this connection because of an error, which is logged; the others go on."""
        self.abort()
        log.exception("a connection is given up")
        return 0

    cdef int expire(self) except -1:
        """The reaper's: this connection's time in its state is over."""
        cdef int state = self.state
        if state == OPENING or state == HEAD or state == BODY:
            self.edge.count(TIMEOUTS, 1)
            if self.began and not self.answered:
                return self.fail(TIMEOUT)
        if state == LINGER and self.edge.now < self.unread_until and (
            self.transport.get_write_buffer_size()
            or (self.large and not self.transport.can_write_eof())  # TLS does not tell what waits below it
        ):
            self.enter(LINGER)  # its last answer has as long as any to be read
            return 0
        if state == UNREAD or state == LINGER:
            self.edge.count(TIMEOUTS, state == UNREAD)
            return self.abort()
        return self.close()


cdef int bad_version(str words) noexcept:
    """llhttp's words for a version that is one but not ours; else the request is just bad."""
    return BAD_VERSION if words == "Invalid HTTP version" or words == "Pause on PRI/Upgrade" else BAD_REQUEST
