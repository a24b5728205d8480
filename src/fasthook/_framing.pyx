"""Where a head, a chunked body and a head that repeats end. What is valid in them, llhttp says."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t
from libc.string cimport memcmp

from fasthook._core cimport Route
from fasthook._head cimport is_hex, same_name

cdef enum:
    MAX_CHUNK_DIGITS = 16
    MAX_LENGTH_DIGITS = 7  # of a Content-Length whose head is remembered


# ---------------------------------------------------------------- a head

cdef Py_ssize_t measure_head(HeadMeter *m, const unsigned char *at, Py_ssize_t size, Py_ssize_t limit) noexcept:
    """How many of these bytes belong to a head: up to CR LF CR LF, and no more than one beyond the limit."""
    cdef Py_ssize_t i = 0, room = limit + 1 - m.size
    cdef int line_end = m.line_end
    if size > room:
        size = room
    while i < size and line_end < 4:
        if at[i] == c'\r':
            line_end = 3 if line_end == 2 else 1
        elif at[i] == c'\n' and (line_end == 1 or line_end == 3):
            line_end += 1
        else:
            line_end = 0
        if not m.line_over:
            measure_line(m, at[i], line_end)
        i += 1
    m.line_end = line_end
    m.size += i
    return i


cdef inline void measure_line(HeadMeter *m, unsigned char b, int line_end) noexcept:
    """Count a byte of the request line; one that is empty doesn't count."""
    cdef const char *head = b"HEAD "
    if m.line_size == m.like_head and m.like_head < 5 and b == <unsigned char>head[m.like_head]:
        m.like_head += 1
    m.last[m.line_size % LAST] = b
    m.line_size += 1
    if b == c'\n':
        m.line_over = m.line_size > 2 or (line_end != 2 and line_end != 4)
        if not m.line_over:
            m.line_size = 0


cdef bint asks_for_head(const HeadMeter *m) noexcept:
    """Whether the method is HEAD, as far as it has come: its answer has no body, whatever else is wrong."""
    return m.like_head == 5


cdef bint plain_request_line(const HeadMeter *m, Py_ssize_t method, Py_ssize_t target) noexcept:
    """Whether the line is a method, a target and HTTP/d.d with one space between: llhttp takes more than that."""
    cdef const char *name = b"HTTP/"
    cdef Py_ssize_t i
    if m.line_size != method + target + 12:
        return False
    for i in range(5):
        if m.last[(m.line_size - 10 + i) % LAST] != <unsigned char>name[i]:
            return False
    return True


# ---------------------------------------------------------------- a chunked body

cdef Py_ssize_t measure_chunks(ChunkMeter *m, const unsigned char *at, Py_ssize_t size) noexcept:
    """How many of these bytes belong to a chunked body."""
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


# ---------------------------------------------------------------- a head that repeats

cdef class Memory:
    """A head that was accepted: what stands before and behind the digits of its Content-Length, and what it meant."""

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


cdef Memory remember(const unsigned char *head, Py_ssize_t size, Route route, int64_t generation, object caller):
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
            memory.caller = caller
            return memory
    return None
