"""The compiled HTTP edge: a protocol class that uvicorn runs.

llhttp, through httptools, reads the bytes. It is fed one message at a time: up to the end of a head, then up to the end
of its body, so that a verdict falls before a byte of the body is kept, requests are answered one by one, and every byte
of a head is counted. What it refuses is refused; the rules beyond it are in `_Request.check`.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.time cimport monotonic_ns, time
from libc.stdint cimport int64_t
from libc.string cimport memcmp, memset

from fasthook._core cimport (
    BAD_REQUEST, BAD_VERSION, CROWDED, ENCODED, EXPECTATION, FORBIDDEN, HEAD_TOO_LARGE, INVALID, TARGET_TOO_LONG,
    TIMEOUT, TOO_LARGE, TUNNEL, Gate, Route, Stats, Verdict,
)
from fasthook._scan cimport Admitted

import asyncio
import logging
from time import monotonic

import httptools

from fasthook.logs import log_request as _log_request
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
    MAX_CHUNK_DIGITS = 16
    LAST = 16                  # bytes of a request line that are kept to look at its end
    MAX_LENGTH_DIGITS = 7      # of a Content-Length whose head is remembered
    UNREAD_SECONDS = 30        # for a peer that does not read its answer
    LINGER_SECONDS = 2         # for a peer to read an answer after which the connection is closed


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
    cdef bytes token           # not to be logged
    cdef Py_ssize_t base
    cdef Py_ssize_t max_connections, max_head, max_headers, max_target
    cdef bint remember, access
    cdef bint reaping          # the reaper will come
    cdef int turn              # requests taken since the loop was last free to do something else
    cdef list delayed          # connections that wait for that
    cdef double now, period
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
        self.token = (settings.token or "").encode()
        self.allowed = settings.allow_ip
        self.trusted = settings.trusted_proxy
        self.max_connections = settings.max_connections
        self.max_head = settings.max_head
        self.max_headers = settings.max_headers
        self.max_target = settings.max_target
        self.delayed = []
        self.remember = receiver.remember_heads
        self.access = settings.access_log
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
            self.now = monotonic()
            self.loop.call_later(self.period, self.reap)
        return 0

    cdef void closed(self) noexcept:
        self.open -= 1
        self.count(CONNECTIONS, -1)

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
                log.exception("a connection is given up")
                (<HookProtocol>connection).abort()

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
        self.now = monotonic()
        for state in range(N_TIMED):
            while True:
                first = self.lists[state].behind
                if first == &self.lists[state] or first.deadline > self.now:
                    break
                unlink(first)
                (<HookProtocol>first.owner).expire()
        self.reaping = self.open > 0
        if self.reaping:
            self.loop.call_later(self.period, self.reap)


cdef Edge edge_of(receiver, loop):
    """The edge of a receiver that runs in this loop."""
    edge = receiver.edge
    if edge is None or (<Edge>edge).loop is not loop:
        edge = receiver.edge = Edge(receiver, loop)
    return <Edge>edge


def find_receiver(app):
    """The receiver of the Hook that uvicorn was given, through the middleware that uvicorn wraps around it."""
    seen = app
    while seen is not None:
        receiver = getattr(seen, "receiver", None)
        if receiver is not None and hasattr(receiver, "gate_is_open"):
            return receiver
        seen = getattr(seen, "app", None)
    raise TypeError(f"HookProtocol serves a fasthook.Hook, not {type(app).__name__}")


# ---------------------------------------------------------------- small readers of bytes

cdef int64_t HUGE = <int64_t>1 << 56


cdef inline bint same_name(const unsigned char *name, const char *lower, Py_ssize_t size) noexcept:
    """Whether a header's name is this one. Names are tokens, in which setting bit 5 only changes letters."""
    cdef Py_ssize_t i
    for i in range(size):
        if name[i] | 0x20 != <unsigned char>lower[i]:
            return False
    return True


cdef int64_t plain_number(const unsigned char *at, Py_ssize_t size) noexcept:
    """The number that these bytes are, if they are digits and nothing else (2**56 for any above that); else -1."""
    cdef int64_t n = 0
    cdef Py_ssize_t i
    for i in range(size):
        if not c'0' <= at[i] <= c'9':
            return -1
        n = n * 10 + (at[i] - c'0') if n < HUGE else HUGE
    return (n if n < HUGE else HUGE) if size else -1


cdef bint valid_host(bytes host) noexcept:
    """`uri-host [ ":" port ]` (RFC 9110, section 7.2): a name, an IPv4 address, or an IPv6 address in brackets."""
    cdef const unsigned char *at = <const unsigned char *>PyBytes_AS_STRING(host)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(host), i = 0
    cdef unsigned char b
    if size == 0:
        return False
    if at[0] == c'[':
        while i < size and at[i] != c']':
            i += 1
            if i < size and not (at[i] == c']' or at[i] == c':' or at[i] == c'.' or is_hex(at[i])):
                return False
        if i == size or i < 3:
            return False
        i += 1
    else:
        while i < size and at[i] != c':':
            b = at[i]
            if not (is_hex(b) or c'g' <= b | 0x20 <= c'z' or b == c'-' or b == c'.' or b == c'_' or b == c'~' or b == c'%'):
                return False
            i += 1
        if i == 0:
            return False
    if i < size:
        if at[i] != c':' or size - i > 6:
            return False
        for i in range(i + 1, size):
            if not c'0' <= at[i] <= c'9':
                return False
    return True


cdef inline bint is_hex(unsigned char b) noexcept:
    return c'0' <= b <= c'9' or c'a' <= b | 0x20 <= c'f'


cdef enum:  # the parts of a chunked body
    SIZE, EXTENSION, DATA, DATA_END, TRAILER, TRAILER_LINE, ENDED, OVERLONG

cdef struct Meter:
    int part
    int64_t left      # bytes of data before the chunk ends
    int digits        # of a chunk's size
    Py_ssize_t extra  # bytes of extensions and trailers


cdef Py_ssize_t measure(Meter *m, const unsigned char *at, Py_ssize_t size) noexcept:
    """How many of these bytes belong to a chunked body. Finds its end and counts; what is valid, llhttp says."""
    cdef Py_ssize_t i = 0
    cdef unsigned char b
    while i < size and m.part < ENDED:
        if m.part == DATA:
            if m.left > size - i:
                m.left -= size - i
                return size
            i += m.left
            m.left = 0
            m.part = DATA_END
            continue
        b = at[i]
        i += 1
        if m.part == SIZE:
            if is_hex(b):
                m.digits += 1
                m.left = m.left << 4 | (b - c'0' if b <= c'9' else (b | 0x20) - c'a' + 10)
                if m.digits > MAX_CHUNK_DIGITS or m.left < 0 or m.left >> 56:
                    m.part = OVERLONG
                continue
            m.part = EXTENSION
        if m.part == EXTENSION:
            m.extra += b != c'\r' and b != c'\n'
            if b == c'\n':
                m.part = DATA if m.left else TRAILER
                m.digits = 0
        elif m.part == DATA_END:
            if b == c'\n':
                m.part = SIZE
        elif m.part == TRAILER:  # at the beginning of a line
            if b == c'\n':
                m.part = ENDED
            elif b != c'\r':
                m.extra += 1
                m.part = TRAILER_LINE
        else:
            m.extra += 1
            if b == c'\n':
                m.part = TRAILER
    return i


# ---------------------------------------------------------------- for the ASGI door

def asgi_head(Gate gate not None, dict scope not None, addresses):
    """The gate's word on a head that an ASGI server has read: a Verdict, or the Route to give the body to.

    `addresses`: None, or called with the peer's address and X-Forwarded-For; it answers who calls and whether it may.
    """
    cdef bytes name, value, secret = None, forwarded = b""
    cdef const unsigned char *at
    cdef Py_ssize_t size
    cdef int64_t length = -1
    cdef bint encoded = False, allowed = True, conflict = False
    for pair in scope["headers"]:
        name, value = pair
        at = <const unsigned char *>PyBytes_AS_STRING(name)
        size = PyBytes_GET_SIZE(name)
        if size == 31 and same_name(at, b"x-telegram-bot-api-secret-token", 31):
            conflict |= secret is not None and secret != value
            secret = value
        elif size == 14 and same_name(at, b"content-length", 14):
            length = plain_number(<const unsigned char *>PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value))
        elif size == 16 and same_name(at, b"content-encoding", 16):
            encoded |= value.lower() != b"identity"
        elif size == 15 and same_name(at, b"x-forwarded-for", 15):
            forwarded = forwarded + b"," + value if forwarded else value
    client = scope.get("client")
    caller = client[0] if client else None
    if addresses is not None:
        caller, allowed = addresses(caller, forwarded.decode("latin-1"))
        if not allowed:
            return gate._refuse(None, FORBIDDEN)
    cdef str path = scope["path"], root = scope.get("root_path")
    if root and path.startswith(root):
        path = path[len(root):]
    cdef Route route = gate._find(path.encode())
    cdef bint genuine = route is not None and secret is not None and not conflict and route.genuine(secret)
    # the clock is only for the bucket of a caller with a wrong secret
    judged = gate._judge(route, scope["method"] == "POST", length, genuine, caller, 0 if genuine else monotonic_ns())
    return gate._refuse(<Route>judged, ENCODED) if encoded and type(judged) is Route else judged


def asgi_body(Gate gate not None, Route route not None, bytes raw not None):
    """The gate's word on a body: a Verdict, or the admitted update."""
    if PyBytes_GET_SIZE(raw) > gate.max_body:
        return gate._refuse(route, TOO_LARGE)
    return gate.body(route, raw, time(), 0 if gate.chats is None else monotonic_ns())


# ---------------------------------------------------------------- a request

cdef struct Facts:  # of a head; all zero at its beginning
    Py_ssize_t size         # bytes
    Py_ssize_t target_size
    Py_ssize_t line_size    # of the request line, with its CR LF
    bint line_over          # it has ended
    unsigned char last[LAST]  # its last bytes, each at its place modulo LAST
    int line_end            # how much of CR LF CR LF the last bytes were
    int headers, hosts, codings, secrets
    int64_t length          # declared, -1: none
    bint complete           # llhttp has seen the end of the head
    bint whole              # llhttp has seen the end of the message
    bint genuine
    bint chunked            # the one coding is chunked
    bint expects, other_expectation, encoded, upgrade, closing
    bint found              # the target was looked up


cdef class Memory:
    """A head that was accepted: what stands before and behind the digits of its Content-Length, and what it meant."""

    cdef bytes before
    cdef bytes behind
    cdef Route route
    cdef int64_t generation

    cdef Py_ssize_t match(self, const unsigned char *at, Py_ssize_t size, int64_t *length) noexcept:
        """The size of the head, if these bytes begin with the same one; else 0. `length`: its Content-Length."""
        cdef Py_ssize_t n = PyBytes_GET_SIZE(self.before), rest = PyBytes_GET_SIZE(self.behind), i = n
        cdef int64_t value = 0
        if size < n + 1 + rest or memcmp(at, PyBytes_AS_STRING(self.before), n) != 0:
            return 0
        while i < size - rest and i - n < MAX_LENGTH_DIGITS and c'0' <= at[i] <= c'9':
            value = value * 10 + (at[i] - c'0')
            i += 1
        if i == n or memcmp(at + i, PyBytes_AS_STRING(self.behind), rest) != 0:
            return 0
        length[0] = value
        return i + rest


cdef Memory remember(const unsigned char *head, Py_ssize_t size, Route route, int64_t generation):
    """A memory of this head, whose only Content-Length llhttp has accepted; None if its line is not found."""
    cdef Memory memory
    cdef Py_ssize_t i, digits
    for i in range(size - 17):
        if head[i] == c'\n' and same_name(head + i + 1, b"content-length:", 15):
            i += 16
            while head[i] == c' ' or head[i] == c'\t':
                i += 1
            digits = 0
            while c'0' <= head[i + digits] <= c'9':
                digits += 1
            memory = Memory.__new__(Memory)
            memory.before = PyBytes_FromStringAndSize(<const char *>head, i)
            memory.behind = PyBytes_FromStringAndSize(<const char *>head + i + digits, size - i - digits)
            memory.route = route
            memory.generation = generation
            return memory
    return None


@cython.final
cdef class HookProtocol:
    """A connection. `uvicorn.Config(hook, http="fasthook._protocol:HookProtocol")` runs it; `hook` is a `fasthook.Hook`.

    TypeError: uvicorn serves something else.
    """

    cdef Edge edge
    cdef object receiver, loop, server_state, transport, write, parser, peer
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
    cdef int64_t came          # when the last byte of the request in hand did, monotonic ns
    # the request in hand
    cdef Facts facts
    cdef Meter meter
    cdef bytes target
    cdef bytes host
    cdef list forwarded
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
        self.receiver = find_receiver(config.loaded_app)
        self.loop = _loop or asyncio.get_event_loop()
        self.server_state = server_state
        self.state = CLOSED
        self.link.owner = <void *>self

    def __dealloc__(self):
        unlink(&self.link)

    # ------------------------------------------------------------ what the loop calls

    def connection_made(self, transport):
        self.transport = transport
        self.write = transport.write
        self.server_state.connections.add(self)
        if not self.receiver.gate_is_open:
            log.error("the hook is not started: leave uvicorn's lifespan on")
            transport.close()
            return
        self.edge = edge_of(self.receiver, self.loop)
        self.edge.opened()
        self.came = monotonic_ns()
        self.begin_request()
        name = transport.get_extra_info("peername")
        self.peer = name[0] if isinstance(name, tuple) else None
        self.enter(OPENING)
        if self.edge.open > self.edge.max_connections:
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
        if self.state == IDLE:
            self.enter(UNREAD)

    def resume_writing(self):
        self.blocked = False
        if self.state == UNREAD:
            self.enter(IDLE)
        self.go_on()

    def shutdown(self):
        """uvicorn stops: close at once between requests, else after the answer."""
        self.last = True
        if self.answered or self.state == UNREAD or (self.ahead is None and not self.began):
            self.close()

    # ------------------------------------------------------------ from bytes to a request

    cdef int take(self, bytes chunk) except -1:
        """Read as many requests as these bytes hold, one at a time; what is behind one in hand waits."""
        cdef const unsigned char *at = <const unsigned char *>PyBytes_AS_STRING(chunk)
        cdef Py_ssize_t size = PyBytes_GET_SIZE(chunk), used = 0
        cdef int requests = 0
        self.taking = True
        while used < size and self.state != CLOSED and self.state != LINGER:
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
        if head == 0 or length > size - head or length > self.edge.gate.max_body:
            return 0
        self.began = True
        self.route = memory.route
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
        n = self.head_part(data + used, size - used)
        self.feed(chunk, used, n)
        self.after_head(data + used, n)
        return n

    cdef Py_ssize_t head_part(self, const unsigned char *at, Py_ssize_t size) noexcept:
        """Up to CR LF CR LF, and not much more than a head may have."""
        cdef Py_ssize_t i = 0, room = self.edge.max_head + 1 - self.facts.size
        cdef int line_end = self.facts.line_end
        if size > room:
            size = room
        while i < size and line_end < 4:
            if at[i] == c'\r':
                line_end = 3 if line_end == 2 else 1
            elif at[i] == c'\n' and (line_end == 1 or line_end == 3):
                line_end += 1
            else:
                line_end = 0
            if not self.facts.line_over:
                self.request_line(at[i], line_end)
            i += 1
        self.facts.line_end = line_end
        self.facts.size += i
        return i

    cdef inline void request_line(self, unsigned char b, int line_end) noexcept:
        """Count a byte of the request line; one that is empty doesn't count."""
        self.facts.last[self.facts.line_size % LAST] = b
        self.facts.line_size += 1
        if b == c'\n':
            self.facts.line_over = self.facts.line_size > 2 or (line_end != 2 and line_end != 4)
            if not self.facts.line_over:
                self.facts.line_size = 0

    cdef bint plain_request_line(self, Py_ssize_t method) noexcept:
        """Whether the line is a method, a target and HTTP/d.d with one space between: llhttp takes more than that."""
        cdef const char *name = b"HTTP/"
        cdef Py_ssize_t i, size = self.facts.line_size
        if size != method + self.facts.target_size + 12:
            return False
        for i in range(5):
            if self.facts.last[(size - 10 + i) % LAST] != <unsigned char>name[i]:
                return False
        return True

    cdef Py_ssize_t body_part(self, const unsigned char *at, Py_ssize_t size) noexcept:
        if self.facts.chunked:
            return measure(&self.meter, at, size)
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
        cdef bint cut = n != self.facts.size
        if self.state == LINGER or self.state == CLOSED:
            return 0
        if self.facts.target_size > self.edge.max_target:
            return self.fail(TARGET_TOO_LONG)
        if self.facts.size > self.edge.max_head:
            return self.fail(HEAD_TOO_LARGE)
        if not self.facts.complete:
            if self.facts.line_end == 4:
                if self.facts.line_over:  # llhttp wants more: it takes this for the beginning of HTTP/2
                    return self.fail(BAD_VERSION if self.parser.get_http_version() == "2.0" else BAD_REQUEST)
                self.facts.line_end = 0  # empty lines before a request
            return 0
        if self.facts.line_end != 4:
            return self.fail(BAD_REQUEST)  # llhttp saw an end where we did not
        judged = self.judge()
        if type(judged) is not Route:
            self.answered = True
            self.respond(<Verdict>judged)
            if self.state == LINGER or self.state == CLOSED:
                return 0
        else:
            self.keeps = True
            if self.facts.expects:
                self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if self.facts.upgrade:
            self.ignore_upgrade()
        if not self.facts.whole:
            self.missing = self.facts.length
            self.enter(BODY)
            if self.keeps and self.edge.remember and not (
                cut or self.facts.chunked or self.facts.expects or self.facts.upgrade or self.http10
                or not self.keep_alive
            ):
                self.memory = remember(head, n, <Route>judged, self.edge.gate.generation)
            return 0
        return self.finish_request()

    cdef int ignore_upgrade(self) except -1:
        """llhttp takes what follows a head with Upgrade for another protocol. To us it is the body that was declared."""
        self.parser = None
        if self.facts.length <= 0 and not self.facts.chunked:
            return 0
        self.facts.whole = False
        self.replaying = True
        self.parser = _Parser(self)
        coding = b"transfer-encoding: chunked" if self.facts.chunked else b"content-length: %d" % self.facts.length
        self.parser.feed_data(b"POST / HTTP/1.1\r\nhost: a\r\n%s\r\n\r\n" % coding)
        self.replaying = False
        return 0

    cdef int after_body(self) except -1:
        if self.state == LINGER or self.state == CLOSED:
            return 0
        if self.meter.part == OVERLONG:
            return self.fail(BAD_REQUEST)
        if self.facts.size + self.meter.extra > self.edge.max_head or self.facts.headers > self.edge.max_headers:
            return self.fail(HEAD_TOO_LARGE)
        if self.dropped > self.edge.gate.max_body:
            if self.keeps:
                return self.fail(TOO_LARGE)
            self.linger()  # answered long ago, and still sending
            return 0
        if self.facts.whole != (self.meter.part == ENDED if self.facts.chunked else self.missing == 0):
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
        cdef const unsigned char *at = <const unsigned char *>PyBytes_AS_STRING(name)
        cdef Py_ssize_t size = PyBytes_GET_SIZE(name)
        if self.replaying:
            return
        self.facts.headers += 1
        if self.facts.complete:
            return  # a trailer
        value = value.strip(b" \t")
        if size == 4:
            if same_name(at, b"host", 4):
                self.facts.hosts += 1
                self.host = value
        elif size == 6:
            if same_name(at, b"expect", 6):
                if value.lower() == b"100-continue":
                    self.facts.expects = True
                else:
                    self.facts.other_expectation = True
        elif size == 10:
            if same_name(at, b"connection", 10):
                self.facts.closing |= b"close" in [token.strip(b" \t") for token in value.lower().split(b",")]
        elif size == 14:
            if same_name(at, b"content-length", 14):
                self.facts.length = plain_number(<const unsigned char *>PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value))
                if self.facts.length < 0:
                    self.facts.codings += 2  # not plain digits: refused below
        elif size == 15:
            if same_name(at, b"x-forwarded-for", 15):
                if self.forwarded is None:
                    self.forwarded = []
                self.forwarded.append(value)
        elif size == 16:
            if same_name(at, b"content-encoding", 16):
                self.facts.encoded |= value.lower() != b"identity"
        elif size == 17:
            if same_name(at, b"transfer-encoding", 17):
                self.facts.codings += 1
                self.facts.chunked = value.lower() == b"chunked"
        elif size == 31:
            if same_name(at, b"x-telegram-bot-api-secret-token", 31):
                self.find_route()
                self.facts.secrets += 1
                self.facts.genuine = (
                    self.route is not None and self.route.genuine(value)
                    and (self.facts.secrets == 1 or self.facts.genuine)
                )

    def on_headers_complete(self):
        if not self.replaying:
            self.facts.complete = True
            # llhttp forgets it with the end of the message, and lets keep-alive win over close in HTTP/1.0
            self.keep_alive = self.parser.should_keep_alive() and not self.facts.closing

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
        cdef Facts *facts = &self.facts
        cdef Gate gate = self.edge.gate
        cdef str version = self.parser.get_http_version()
        cdef bytes method = self.parser.get_method()
        cdef int refused
        self.http10 = version == "1.0"
        self.bare = method == b"HEAD"
        if facts.expects and self.http10:
            facts.expects = False  # RFC 9110, section 10.1.1
        self.find_route()
        refused = self.check(version, method)
        if refused:
            return gate._refuse(self.route, refused)
        caller = self.peer
        if self.edge.trusted is not None:
            caller = _caller(self.peer, b",".join(self.forwarded or ()).decode("latin-1"), self.edge.trusted)
            if self.edge.allowed is not None and caller not in self.edge.allowed:
                return gate._refuse(self.route, FORBIDDEN)
        judged = gate._judge(self.route, method == b"POST", facts.length, facts.genuine, caller, self.came)
        if type(judged) is Route:
            if facts.other_expectation:
                judged = gate._refuse(self.route, EXPECTATION)
            elif facts.encoded:
                judged = gate._refuse(self.route, ENCODED)
        if type(judged) is not Route and (facts.expects or facts.other_expectation):
            self.keep_alive = False  # the peer may send the body or not: where the next request begins is unknown
        return judged

    cdef int check(self, str version, bytes method) except -1:
        """What llhttp lets through and HTTP does not, or we do not; 0 if there is nothing."""
        cdef Facts *facts = &self.facts
        if version == "0.9" or not self.plain_request_line(PyBytes_GET_SIZE(method)):
            return BAD_REQUEST
        if version != "1.1" and not self.http10:
            return BAD_VERSION
        if facts.headers > self.edge.max_headers:
            return HEAD_TOO_LARGE
        if facts.codings > 1 or (facts.codings == 1 and (not facts.chunked or self.http10 or facts.length >= 0)):
            return BAD_REQUEST
        if facts.hosts > 1 or (facts.hosts == 0 and not self.http10) or (facts.hosts == 1 and not valid_host(self.host)):
            return BAD_REQUEST
        if method == b"CONNECT":
            return TUNNEL
        if self.path() is None:
            return BAD_REQUEST
        return 0

    cdef int find_route(self) except -1:
        """The route of the target, once all of it is known."""
        if not self.facts.found:
            self.facts.found = True
            path = self.path()
            self.route = None if path is None else self.edge.gate._find(path)
        return 0

    cdef bytes path(self):
        """The path in the target; None if it is not one: neither that form nor the absolute one with the Host's authority."""
        cdef bytes target = self.target
        if target is None or b"#" in target:
            return None
        if not target.startswith(b"/"):
            scheme, _, rest = target.partition(b"://")
            if scheme.lower() not in (b"http", b"https"):
                return None
            authority, _, rest = rest.partition(b"/")
            if self.facts.complete and self.host is not None and authority.lower() != self.host.lower():
                return None
            target = b"/" + rest
        return target.partition(b"?")[0]

    # ------------------------------------------------------------ the answer

    cdef int admit(self, Route route, bytes body) except -1:
        """The body is whole: ask the gate, and answer now or when the queue has it."""
        result = self.edge.gate.body(route, body, time(), self.came)
        if type(result) is not Verdict:
            self.enter(HANDLING)
            if self.edge.access:
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
        self.respond(verdict)
        if self.state == HANDLING:
            self.next_request()
            self.go_on()

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
        if self.edge.access:
            self.log_access(verdict)
        if close:
            self.linger()
        return 0

    cdef int fail(self, int code) except -1:
        """The request cannot be read any further: say so, unless it has its answer, and close."""
        if self.state == LINGER or self.state == CLOSED:
            return 0
        if self.answered:
            self.linger()
            return 0
        self.bare = False
        return self.respond(self.edge.gate._refuse(self.route, code))

    cdef int log_access(self, Verdict verdict) except -1:
        path = self.route.path if self.route is not None else (self.target or b"-").partition(b"?")[0]
        if self.edge.token and self.edge.token in path:
            path = path.replace(self.edge.token, b"***")
        _log_request(self.peer, path, verdict, self.route, self.subject, monotonic_ns() - self.came)
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
        if self.facts.size or self.route is None:
            memset(&self.facts, 0, sizeof(Facts))
            memset(&self.meter, 0, sizeof(Meter))
            self.target = self.host = self.forwarded = None
            self.body = None
            self.keeps = self.answered = self.http10 = self.bare = False
            self.keep_alive = True
            self.missing = self.dropped = 0
        self.facts.length = -1
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
        if self.paused and (self.ahead is None or PyBytes_GET_SIZE(self.ahead) <= AHEAD) and self.state != CLOSED:
            self.paused = False
            self.transport.resume_reading()
        if self.ended and self.state != HANDLING and self.ahead is None:
            self.close()
        return 0

    # ------------------------------------------------------------ the end

    cdef void enter(self, int state) noexcept:
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

    cdef int expire(self) except -1:
        """The reaper's: this connection's time in its state is over."""
        cdef int state = self.state
        if state == OPENING or state == HEAD or state == BODY:
            self.edge.count(TIMEOUTS, 1)
            if self.began and not self.answered:
                return self.fail(TIMEOUT)
        if state == UNREAD or state == LINGER:
            self.edge.count(TIMEOUTS, state == UNREAD)
            return self.abort()
        return self.close()


cdef int bad_version(str words) noexcept:
    """llhttp's words for a version that is one but not ours; else the request is just bad."""
    return BAD_VERSION if words == "Invalid HTTP version" or words == "Pause on PRI/Upgrade" else BAD_REQUEST
