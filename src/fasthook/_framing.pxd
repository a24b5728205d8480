from libc.stdint cimport int64_t

from fasthook._core cimport Route

cdef enum:
    LAST = 16  # bytes of a request line that are kept to look at its end

cdef struct HeadMeter:  # all zero at the beginning of a head
    Py_ssize_t size           # bytes
    Py_ssize_t line_size      # of the request line, with its CR LF
    bint line_over            # it has ended
    unsigned char last[LAST]  # its last bytes, each at its place modulo LAST
    int line_end              # how much of CR LF CR LF the last bytes were
    int like_head             # how much of "HEAD " the first ones were

cdef Py_ssize_t measure_head(HeadMeter *m, const unsigned char *at, Py_ssize_t size, Py_ssize_t limit) noexcept
cdef bint asks_for_head(const HeadMeter *m) noexcept
cdef bint plain_request_line(const HeadMeter *m, Py_ssize_t method, Py_ssize_t target) noexcept

cdef enum:  # the parts of a chunked body
    SIZE, EXTENSION, DATA, DATA_END, TRAILER, TRAILER_LINE, ENDED, OVERLONG

cdef struct ChunkMeter:  # all zero at the beginning of a body
    int part
    int64_t left      # bytes of data before the chunk ends
    int digits        # of a chunk's size
    Py_ssize_t extra  # bytes of extensions and trailers

cdef Py_ssize_t measure_chunks(ChunkMeter *m, const unsigned char *at, Py_ssize_t size) noexcept

cdef class Memory:
    cdef bytes before
    cdef bytes behind
    cdef Route route
    cdef int64_t generation
    cdef object caller
    cdef Py_ssize_t match(self, const unsigned char *at, Py_ssize_t size, int64_t *length) noexcept

cdef Memory remember(const unsigned char *head, Py_ssize_t size, Route route, int64_t generation, object caller)
