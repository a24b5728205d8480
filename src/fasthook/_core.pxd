from libc.stdint cimport int64_t, uint32_t, uint64_t

from fasthook._scan cimport Admitted, Scan

cdef enum Code:  # the verdicts, in the order of the table VERDICTS in _core.pyx
    ACCEPTED, DUPLICATE, IN_FLIGHT, FLOOD, INVALID
    NOT_FOUND, BAD_METHOD, TOO_LARGE, UNAUTHORIZED, THROTTLED, BUSY, DRAINING
    FORBIDDEN, BAD_REQUEST, BAD_VERSION, TARGET_TOO_LONG, HEAD_TOO_LARGE, TUNNEL, EXPECTATION, ENCODED, TIMEOUT, CROWDED
    FAILED
    N_CODES

cdef enum Claim:
    NEW, CLAIM_IN_FLIGHT, CLAIM_DONE, FULL

cdef class Block:
    cdef Py_buffer _view
    cdef int64_t *_words
    cdef Py_ssize_t _size
    cdef bint _held
    cdef bint _attach(self, object buffer, Py_ssize_t words) except -1

cdef class DedupRing(Block):
    cdef readonly Py_ssize_t capacity
    cdef readonly Py_ssize_t limit
    cdef readonly Py_ssize_t in_flight
    cdef Py_ssize_t _slots
    cdef int64_t *_ring
    cdef uint32_t *_index
    cdef uint32_t _mask
    cdef uint32_t _find(self, int64_t bot, int64_t update_id) noexcept nogil
    cdef void _forget(self, uint32_t at) noexcept nogil
    cdef Claim _claim(self, int64_t bot, int64_t update_id) noexcept nogil
    cdef bint _settle(self, int64_t bot, int64_t update_id) noexcept nogil
    cdef bint _release(self, int64_t bot, int64_t update_id) noexcept nogil
    cdef bint _rebuild(self) except -1

cdef class TokenBuckets:
    cdef readonly Py_ssize_t size
    cdef readonly int64_t interval
    cdef readonly int64_t burst
    cdef Py_ssize_t _used
    cdef uint64_t *_keys
    cdef int64_t *_full_at
    cdef uint32_t *_heap
    cdef uint32_t *_place
    cdef uint32_t *_index
    cdef uint32_t _mask
    cdef uint32_t _find(self, uint64_t key) noexcept nogil
    cdef void _forget(self, uint32_t at) noexcept nogil
    cdef void _sift(self, Py_ssize_t at) noexcept nogil
    cdef int64_t _take(self, uint64_t key, int64_t now) noexcept nogil

cdef class Stats(Block):
    cdef readonly Py_ssize_t counters
    cdef readonly Py_ssize_t histograms
    cdef int64_t *_row(self, Py_ssize_t histogram) noexcept nogil
    cdef void _add(self, Py_ssize_t counter, int64_t n) noexcept nogil
    cdef void _observe(self, Py_ssize_t histogram, int64_t ns) noexcept nogil

cdef class Handling:
    cdef readonly Stats stats
    cdef Py_ssize_t _in_flight, _wait, _first
    cdef double _offset
    cpdef void set_clocks(self)
    cpdef void started(self, Admitted update, double since, double now)
    cpdef double ended(self, Admitted update, double began, int outcome)

cdef class Shares:
    cdef readonly Py_ssize_t size
    cdef readonly Py_ssize_t each
    cdef readonly frozenset bots
    cdef Py_ssize_t _open, _borrowed
    cdef dict _taken
    cpdef bint has_room(self, bot)
    cpdef bint take(self, bot)
    cpdef void force(self, bot)
    cpdef void leave(self, bot)

cdef class Verdict:
    cdef readonly int code
    cdef readonly str name
    cdef readonly int status
    cdef readonly int retry_after
    cdef readonly bint closes
    cdef readonly tuple headers
    cdef readonly bytes body
    cdef readonly bytes response
    cdef bytes _render(self, bint close, bint http10, bint bare)

cdef class Route:
    cdef readonly bytes path
    cdef readonly int64_t bot_id
    cdef readonly Py_ssize_t row
    cdef readonly tuple secrets
    cdef bint genuine(self, bytes secret) noexcept

cdef class Gate:
    cdef readonly DedupRing ring
    cdef readonly Stats stats
    cdef readonly TokenBuckets auth
    cdef readonly TokenBuckets chats
    cdef readonly int64_t max_body
    cdef public bint draining
    cdef public bint joins_running
    cdef public bint joins_done
    cdef public bint answers_later
    cdef readonly int64_t generation
    cdef readonly Shares shares
    cdef readonly dict rows
    cdef dict _routes
    cdef Py_ssize_t _rows
    cdef type _update
    cdef void _count(self, Py_ssize_t row, int code) noexcept
    cdef Route _find(self, bytes path)
    cdef object _redelivered(self, Route route, const Scan *found, bytes raw, double wall, int code)
    cdef Admitted _admitted(self, Route route, const Scan *found, bytes raw, double wall)
    cdef object _judge(self, Route route, bint post, int64_t length, bint genuine, object caller, int64_t now)
    cpdef object head(self, bytes path, bint post, int64_t length, bytes secret, object caller, int64_t now)
    cpdef object body(self, Route route, bytes raw, double wall, int64_t now)
    cdef Verdict _refuse(self, Route route, int code)
