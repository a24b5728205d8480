"""What a head says, header by header, and the rules for it beyond a parser's: the same for both doors."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t

from fasthook._core cimport BAD_REQUEST, ENCODED, EXPECTATION, HEAD_TOO_LARGE, TUNNEL, Gate, Route

cdef int64_t HUGE = <int64_t>1 << 56


@cython.freelist(8)
cdef class Head:
    """The headers that matter, counted and read."""

    def __cinit__(self):
        self.clear()

    cdef void clear(self) noexcept:
        self.host = self.secret = self.forwarded = self.connection = None
        self.forwarded_more = None
        self.headers = self.hosts = self.lengths = self.codings = 0
        self.length = -1
        self.chunked = self.expects = self.other_expectation = self.encoded = self.two_secrets = False
        self.closed_before = self.upgrades = False

    cdef int add(self, bytes name, bytes value) except -1:
        """Take a header in."""
        cdef const unsigned char *at = <const unsigned char *>PyBytes_AS_STRING(name)
        cdef Py_ssize_t size = PyBytes_GET_SIZE(name)
        self.headers += 1
        if size == 4 and same_name(at, b"host", 4):
            self.hosts += 1
            self.host = trimmed(value)
        elif size == 6 and same_name(at, b"expect", 6):
            if trimmed(value).lower() == b"100-continue":
                self.expects = True
            else:
                self.other_expectation = True
        elif size == 7 and same_name(at, b"upgrade", 7):
            self.upgrades = True
        elif size == 10 and same_name(at, b"connection", 10):
            self.closed_before = self.closes()
            self.connection = value
        elif size == 14 and same_name(at, b"content-length", 14):
            self.lengths += 1
            self.length = plain_number(trimmed(value))
        elif size == 15 and same_name(at, b"x-forwarded-for", 15):
            if self.forwarded is None:
                self.forwarded = value
            elif self.forwarded_more is None:
                self.forwarded_more = [value]
            else:
                self.forwarded_more.append(value)
        elif size == 16 and same_name(at, b"content-encoding", 16):
            self.encoded |= trimmed(value).lower() != b"identity"
        elif size == 17 and same_name(at, b"transfer-encoding", 17):
            self.codings += 1
            self.chunked = trimmed(value).lower() == b"chunked"
        elif size == 31 and same_name(at, b"x-telegram-bot-api-secret-token", 31):
            value = trimmed(value)
            self.two_secrets |= self.secret is not None and self.secret != value
            self.secret = value
        return 0

    cdef bint closes(self) except -1:
        """Whether the peer asks for the end of the connection."""
        if self.connection is None or self.closed_before:
            return self.closed_before
        return b"close" in [token.strip(b" \t") for token in self.connection.lower().split(b",")]

    cdef str sources(self):
        """X-Forwarded-For, its lines joined."""
        cdef bytes whole = b"" if self.forwarded is None else self.forwarded
        if self.forwarded_more is not None:
            whole = b",".join([whole, *self.forwarded_more])
        return whole.decode("latin-1")

    cdef int fault(self, bint tunnel, bint http10, bytes path, int max_headers) except -1:
        """The code of what HTTP/1 does not allow, or we do not; 0 if there is nothing.

        `tunnel`: the method is CONNECT. `path`: None if the target is none.
        """
        if self.headers > max_headers:
            return HEAD_TOO_LARGE
        if self.lengths > 1 or (self.lengths == 1 and self.length < 0):
            return BAD_REQUEST
        if self.codings > 1 or (self.codings == 1 and (not self.chunked or http10 or self.lengths)):
            return BAD_REQUEST
        if self.hosts > 1 or (self.hosts == 0 and not http10) or (self.hosts == 1 and not valid_host(self.host)):
            return BAD_REQUEST
        if tunnel:
            return TUNNEL
        return BAD_REQUEST if path is None else 0

    cdef object judge(self, Gate gate, Route route, bint post, object caller, int64_t now):
        """The gate's word: a Verdict, or the Route to give the body to. `now`: monotonic ns."""
        cdef bint genuine = (
            route is not None and self.secret is not None and not self.two_secrets and route.genuine(self.secret)
        )
        judged = gate._judge(route, post, self.length, genuine, caller, now)
        if type(judged) is Route:
            if self.other_expectation:
                return gate._refuse(route, EXPECTATION)
            if self.encoded:
                return gate._refuse(route, ENCODED)
        return judged


cdef inline bytes trimmed(bytes value):
    """The value without the spaces and tabs around it, which few have."""
    cdef const unsigned char *at = <const unsigned char *>PyBytes_AS_STRING(value)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(value)
    if size == 0 or (at[0] > c' ' and at[size - 1] > c' '):
        return value
    return value.strip(b" \t")


cdef bytes path_of(bytes target, bytes host):
    """The path in a target; None if it is not one: neither that form nor the absolute one with the Host's authority."""
    if target is None or b"#" in target:
        return None
    if not target.startswith(b"/"):
        scheme, _, rest = target.partition(b"://")
        if scheme.lower() not in (b"http", b"https"):
            return None
        authority, _, rest = rest.partition(b"/")
        if host is not None and authority.lower() != host.lower():
            return None
        target = b"/" + rest
    return target.partition(b"?")[0]


cdef int64_t plain_number(bytes text) noexcept:
    """The number that this is, if it is digits and nothing else (2**56 for any above that); else -1."""
    cdef const unsigned char *at = <const unsigned char *>PyBytes_AS_STRING(text)
    cdef Py_ssize_t i, size = PyBytes_GET_SIZE(text)
    cdef int64_t n = 0
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
