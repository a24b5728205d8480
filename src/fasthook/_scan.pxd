from libc.stdint cimport int32_t, int64_t

cdef extern from "_native.h":
    const int64_t MAX_UPDATE_ID "FH_MAX_UPDATE_ID"

cdef enum:
    N_KINDS = 24

cdef struct Scan:
    int64_t update_id
    int64_t chat_id
    int64_t user_id
    Py_ssize_t name_at    # where the kind's name stands in the body
    Py_ssize_t name_len
    int32_t kind          # index into KINDS; 0 is a kind this version does not know
    bint has_chat
    bint has_user
    bint has_id

cdef bint scan_update(const unsigned char *data, Py_ssize_t size, Scan *found) noexcept nogil

cdef class Admitted:
    cdef readonly int64_t update_id
    cdef readonly int64_t bot_id
    cdef readonly double received_at
    cdef readonly bytes raw
    cdef public int attempt
    cdef public bint redelivery
    cdef public object state
    cdef int64_t _chat_id
    cdef int64_t _user_id
    cdef Py_ssize_t _name_at
    cdef Py_ssize_t _name_len
    cdef int32_t _kind
    cdef bint _has_chat
    cdef bint _has_user
    cdef void _fill(self, const Scan *found, bytes raw) noexcept
