from libc.stdint cimport int64_t

from fasthook._core cimport Gate, Route

cdef inline bint is_hex(unsigned char b) noexcept:
    return c'0' <= b <= c'9' or c'a' <= b | 0x20 <= c'f'

cdef inline bint same_name(const unsigned char *name, const char *lower, Py_ssize_t size) noexcept:
    """Whether a header's name is this one. Names are tokens, in which setting bit 5 only changes letters."""
    cdef Py_ssize_t i
    for i in range(size):
        if name[i] | 0x20 != <unsigned char>lower[i]:
            return False
    return True

cdef class Head:
    cdef bytes host
    cdef bytes secret
    cdef bytes forwarded      # the first line of X-Forwarded-For
    cdef list forwarded_more  # the others
    cdef bytes connection     # the last line of Connection
    cdef bint closed_before   # a line of it before that asks for the end
    cdef int headers, hosts, lengths, codings
    cdef int64_t length       # declared, -1: none
    cdef bint chunked         # the last coding is chunked
    cdef bint expects, other_expectation, encoded, upgrades
    cdef bint two_secrets     # that differ
    cdef void clear(self) noexcept
    cdef int add(self, bytes name, bytes value) except -1
    cdef bint closes(self) except -1
    cdef str sources(self)
    cdef int fault(self, bint tunnel, bint http10, bytes path, int max_headers) except -1
    cdef object judge(self, Gate gate, Route route, bint post, object caller, int64_t now)

cdef bytes path_of(bytes target, bytes host)
