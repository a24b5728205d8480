"""The gate and its parts: the duplicate ring, token buckets, statistics. The scan is in `_scan`. No I/O.

The way through this file is the way of an update: `Gate.head` answers what can be known before
the body (path, method, size, secret), `Gate.body` what needs it (update_id, duplicate, flood, room).
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.time cimport monotonic, monotonic_ns, time
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from fasthook._scan cimport MAX_UPDATE_ID, N_KINDS, Admitted, Scan, scan_update

from fasthook._scan import KINDS, scan  # no-cython-lint: both are names of this module

cdef extern from "_native.h" nogil:
    int64_t fh_load(const int64_t *at) noexcept
    void fh_store(int64_t *at, int64_t value) noexcept
    int fh_log2(uint64_t value) noexcept


# ---------------------------------------------------------------- memory that outlives us

cdef class Block:
    """A writable buffer seen as 64-bit words; a private one where none is given."""

    cdef bint _attach(self, object buffer, Py_ssize_t words) except -1:
        """Take hold of `words` words of the buffer; True if it was never used before."""
        if buffer is None:
            buffer = bytearray(words * 8)
        PyObject_GetBuffer(buffer, &self._view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        self._held = True
        if self._view.len < words * 8:
            raise ValueError(f"the buffer has {self._view.len} bytes, {words * 8} are needed")
        if <size_t>self._view.buf % 8:
            raise ValueError("the buffer does not begin at a multiple of 8 bytes")
        self._words = <int64_t *>self._view.buf
        self._size = words
        return self._words[0] == 0

    def __dealloc__(self):
        if self._held:
            PyBuffer_Release(&self._view)


# ---------------------------------------------------------------- duplicates

cdef enum:
    FREE = 0
    FLYING = 1
    DONE = 2
    RING_HEADER = 8      # words: magic, capacity, limit, head, four to spare
    RING_MAGIC = 0x31474E49524846  # "FHRING1" in the order of the bytes


cdef inline uint64_t mix(uint64_t a, uint64_t b) noexcept nogil:
    cdef uint64_t h = a * 0x9E3779B97F4A7C15u ^ b
    h = (h ^ h >> 32) * 0xD6E8FEB86659FD93u
    h = (h ^ h >> 32) * 0xD6E8FEB86659FD93u
    return h ^ h >> 32


cdef inline uint32_t home_of(int64_t bot, int64_t update_id, uint32_t mask) noexcept nogil:
    """Where an id's search begins. Ids come one after another: eight neighbours share a cache line of the index."""
    return (<uint32_t>mix(<uint64_t>bot, <uint64_t>(update_id >> 3)) ^ <uint32_t>(update_id & 7) << 1) & mask


cdef inline uint32_t power_over(Py_ssize_t n) noexcept nogil:
    cdef uint32_t size = 8
    while size < n:
        size <<= 1
    return size


cdef class DedupRing(Block):
    """The ids of the last updates, each *in flight* or *done*, in memory of a fixed size.

    `capacity`: an id is not forgotten before this many newer ones have been claimed.
    `in_flight`: how many may be in flight at once (default: `capacity`); such an id is never evicted.
    `buffer`: at least `nbytes(capacity, in_flight)` writable bytes that hold the ring, a mapped file for
    instance: zeros for a new ring, else a ring of the same sizes, which is taken up as it is. Only one
    process may write to it, and a crash between any two of its writes leaves a valid ring.

    ValueError: sizes out of range (1 to 2**28 together), a buffer too small, or one that holds something else.
    """

    # An entry is two words: the bot, and update_id * 4 + state. The second is written last, in one
    # store: it is what makes the entry true. The index over the entries is private and made on attach.

    @staticmethod
    def nbytes(capacity: int, in_flight: int | None = None) -> int:
        """The bytes that a buffer for these sizes needs."""
        return 8 * (RING_HEADER + 2 * (capacity + (capacity if in_flight is None else in_flight)))

    def __cinit__(self, Py_ssize_t capacity, in_flight: int | None = None, buffer: object = None):
        cdef Py_ssize_t limit = capacity if in_flight is None else in_flight
        if capacity < 1 or limit < 1 or capacity > 1 << 28 or limit > 1 << 28 or capacity + limit > 1 << 28:
            raise ValueError("capacity and in_flight must be at least 1, and together at most 2**28")
        self.capacity = capacity
        self.limit = limit
        self._slots = capacity + limit
        cdef bint fresh = self._attach(buffer, RING_HEADER + 2 * self._slots)
        if fresh:
            self._words[1] = self.capacity
            self._words[2] = self.limit
            self._words[3] = 0
            fh_store(&self._words[0], RING_MAGIC)
        elif self._words[0] != RING_MAGIC:
            raise ValueError("the buffer does not hold a ring")
        elif self._words[1] != self.capacity or self._words[2] != self.limit:
            raise ValueError(f"the buffer holds a ring of other sizes: {self._words[1]} and {self._words[2]}")
        elif not 0 <= self._words[3] < self._slots:
            raise ValueError("the ring in the buffer is damaged")
        self._ring = self._words + RING_HEADER
        self._mask = power_over(2 * self._slots) - 1
        self._index = <uint32_t *>calloc(<size_t>self._mask + 1, sizeof(uint32_t))
        if self._index == NULL:
            raise MemoryError
        self._rebuild()

    def __dealloc__(self):
        free(self._index)

    cdef bint _rebuild(self) except -1:
        cdef Py_ssize_t slot
        cdef int64_t word
        cdef uint32_t at
        for slot in range(self._slots):
            word = self._ring[2 * slot + 1]
            if word == FREE:
                continue
            if word & 3 not in (FLYING, DONE) or word < 0:
                raise ValueError("the ring in the buffer is damaged")
            at = self._find(self._ring[2 * slot], word >> 2)
            if self._index[at]:
                raise ValueError("the ring in the buffer is damaged")
            self._index[at] = <uint32_t>(slot + 1)
            self.in_flight += word & 3 == FLYING
        if self.in_flight > self.limit:
            raise ValueError("the ring in the buffer is damaged")
        return True

    cdef uint32_t _find(self, int64_t bot, int64_t update_id) noexcept nogil:
        """The place in the index where this id is, or where it would go."""
        cdef uint32_t at = home_of(bot, update_id, self._mask)
        cdef uint32_t slot
        while True:
            slot = self._index[at]
            if slot == 0 or (
                self._ring[2 * (slot - 1) + 1] >> 2 == update_id and self._ring[2 * (slot - 1)] == bot
            ):
                return at
            at = (at + 1) & self._mask

    cdef void _forget(self, uint32_t at) noexcept nogil:
        """Free an entry, and move up those that were pushed behind it in the index."""
        cdef uint32_t gap = at, home
        cdef int64_t *entry = self._ring + 2 * (self._index[at] - 1)
        fh_store(&entry[1], FREE)
        while True:
            at = (at + 1) & self._mask
            if self._index[at] == 0:
                break
            entry = self._ring + 2 * (self._index[at] - 1)
            home = home_of(entry[0], entry[1] >> 2, self._mask)
            if ((at - home) & self._mask) >= ((at - gap) & self._mask):
                self._index[gap] = self._index[at]
                gap = at
        self._index[gap] = 0

    cdef Claim _claim(self, int64_t bot, int64_t update_id) noexcept nogil:
        cdef uint32_t at = self._find(bot, update_id)
        cdef int64_t *entry
        cdef int64_t head
        if self._index[at]:
            return CLAIM_DONE if self._ring[2 * (self._index[at] - 1) + 1] & 3 == DONE else CLAIM_IN_FLIGHT
        if self.in_flight >= self.limit:
            return FULL
        head = self._words[3]
        # There are `limit` slots more than `capacity`, so at most `limit` - 1 are passed over here.
        while self._ring[2 * head + 1] & 3 == FLYING:
            head = head + 1 if head + 1 < self._slots else 0
        entry = self._ring + 2 * head
        if entry[1] != FREE:
            self._forget(self._find(entry[0], entry[1] >> 2))
            at = self._find(bot, update_id)
        fh_store(&entry[0], bot)
        fh_store(&entry[1], update_id << 2 | FLYING)
        self._index[at] = <uint32_t>(head + 1)
        self._words[3] = head + 1 if head + 1 < self._slots else 0
        self.in_flight += 1
        return NEW

    cdef bint _settle(self, int64_t bot, int64_t update_id) noexcept nogil:
        cdef uint32_t slot = self._index[self._find(bot, update_id)]
        if slot == 0 or self._ring[2 * (slot - 1) + 1] & 3 != FLYING:
            return False
        fh_store(&self._ring[2 * (slot - 1) + 1], update_id << 2 | DONE)
        self.in_flight -= 1
        return True

    cdef bint _release(self, int64_t bot, int64_t update_id) noexcept nogil:
        cdef uint32_t at = self._find(bot, update_id)
        cdef uint32_t slot = self._index[at]
        if slot == 0 or self._ring[2 * (slot - 1) + 1] & 3 != FLYING:
            return False
        self._forget(at)
        self.in_flight -= 1
        if self._words[3] == slot or (self._words[3] == 0 and slot == self._slots):
            self._words[3] = slot - 1  # the newest: give its slot back, so that refusals push nothing out
        return True

    def claim(self, bot: int, update_id: int) -> int:
        """0 new (and now in flight), 1 in flight already, 2 done already, 3 new but `limit` are in flight."""
        return self._claim(bot, check_id(update_id))

    def settle(self, bot: int, update_id: int) -> bool:
        """In flight becomes done. False if it was not in flight."""
        return self._settle(bot, check_id(update_id))

    def release(self, bot: int, update_id: int) -> bool:
        """In flight becomes unknown, so that the next claim is new. False if it was not in flight."""
        return self._release(bot, check_id(update_id))

    def release_all(self) -> int:
        """Release what a process that is gone left in flight; how many those were."""
        cdef int64_t *entry
        cdef Py_ssize_t slot, n = 0
        for slot in range(self._slots):
            entry = self._ring + 2 * slot
            if entry[1] & 3 == FLYING:
                n += self._release(entry[0], entry[1] >> 2)
        return n

    def items(self) -> list[tuple[int, int, bool]]:
        """`(bot, update_id, done)` of each id known, in the order of the slots from the oldest."""
        found = []
        cdef Py_ssize_t i, slot
        for i in range(self._slots):
            slot = (self._words[3] + i) % self._slots
            if self._ring[2 * slot + 1] != FREE:
                found.append(
                    (self._ring[2 * slot], self._ring[2 * slot + 1] >> 2, self._ring[2 * slot + 1] & 3 == DONE)
                )
        return found


cdef inline int64_t check_id(int64_t update_id) except -1:
    if not 0 <= update_id <= MAX_UPDATE_ID:
        raise ValueError("update_id must be from 0 to 2**53 - 1")
    return update_id


# ---------------------------------------------------------------- rates

cdef class TokenBuckets:
    """A table of `size` token buckets, each of `burst` tokens, one new token every `interval` ns.

    A bucket is its key and the time at which it will be full again (the "theoretical arrival time" of the
    generic cell rate algorithm, ITU-T I.371), so nothing has to be refilled. A heap keeps the one that is
    closest to full on top: it is evicted when a new key finds the table full.

    ValueError: size not in 1 to 2**28, interval or burst below 1, or interval * burst over 2**61 ns.
    """

    def __cinit__(self, Py_ssize_t size, interval: int, burst: int):
        if not 1 <= size <= 1 << 28:
            raise ValueError("size must be from 1 to 2**28")
        if interval < 1 or burst < 1 or interval * burst > 1 << 61:
            raise ValueError("interval and burst must be at least 1, and their product at most 2**61 ns")
        self.size = size
        self.interval = interval
        self.burst = burst
        self._mask = power_over(2 * self.size) - 1
        self._keys = <uint64_t *>calloc(self.size, sizeof(uint64_t))
        self._full_at = <int64_t *>calloc(self.size, sizeof(int64_t))
        self._heap = <uint32_t *>calloc(self.size, sizeof(uint32_t))
        self._place = <uint32_t *>calloc(self.size, sizeof(uint32_t))
        self._index = <uint32_t *>calloc(<size_t>self._mask + 1, sizeof(uint32_t))
        if not (self._keys and self._full_at and self._heap and self._place and self._index):
            raise MemoryError

    def __dealloc__(self):
        free(self._keys)
        free(self._full_at)
        free(self._heap)
        free(self._place)
        free(self._index)

    cdef uint32_t _find(self, uint64_t key) noexcept nogil:
        cdef uint32_t at = <uint32_t>mix(key, 0) & self._mask
        while self._index[at] and self._keys[self._index[at] - 1] != key:
            at = (at + 1) & self._mask
        return at

    cdef void _forget(self, uint32_t at) noexcept nogil:
        cdef uint32_t gap = at, home
        while True:
            at = (at + 1) & self._mask
            if self._index[at] == 0:
                break
            home = <uint32_t>mix(self._keys[self._index[at] - 1], 0) & self._mask
            if ((at - home) & self._mask) >= ((at - gap) & self._mask):
                self._index[gap] = self._index[at]
                gap = at
        self._index[gap] = 0

    cdef void _sift(self, Py_ssize_t at) noexcept nogil:
        """Put the bucket at this place of the heap where it belongs, up or down."""
        cdef uint32_t bucket = self._heap[at]
        cdef int64_t when = self._full_at[bucket]
        cdef Py_ssize_t child
        while at > 0 and self._full_at[self._heap[(at - 1) // 2]] > when:
            self._heap[at] = self._heap[(at - 1) // 2]
            self._place[self._heap[at]] = <uint32_t>at
            at = (at - 1) // 2
        while True:
            child = 2 * at + 1
            if child >= self._used:
                break
            if child + 1 < self._used and self._full_at[self._heap[child + 1]] < self._full_at[self._heap[child]]:
                child += 1
            if self._full_at[self._heap[child]] >= when:
                break
            self._heap[at] = self._heap[child]
            self._place[self._heap[at]] = <uint32_t>at
            at = child
        self._heap[at] = bucket
        self._place[bucket] = <uint32_t>at

    cdef int64_t _take(self, uint64_t key, int64_t now) noexcept nogil:
        cdef uint32_t at = self._find(key)
        cdef uint32_t bucket
        cdef int64_t full_at = now, wait
        if self._index[at]:
            bucket = self._index[at] - 1
            if self._full_at[bucket] > now:
                full_at = self._full_at[bucket]
            wait = full_at - now - self.interval * (self.burst - 1)
            if wait > 0:
                return wait
        else:
            if self._used < self.size:
                bucket = <uint32_t>self._used
                self._place[bucket] = bucket
                self._heap[bucket] = bucket
                self._used += 1
            else:
                bucket = self._heap[0]
                self._forget(self._find(self._keys[bucket]))
                at = self._find(key)
            self._keys[bucket] = key
            self._index[at] = bucket + 1
        self._full_at[bucket] = full_at + self.interval
        self._sift(self._place[bucket])
        return 0

    def take(self, key: int, now: int) -> int:
        """Take a token of `key` (64 bits) at `now` (ns of a monotonic clock): 0, or the ns to wait for one."""
        if not 0 <= now < 1 << 61:
            raise ValueError("now must be from 0 to 2**61 ns")
        return self._take(<uint64_t>(key & 0xFFFFFFFFFFFFFFFF), now)

    def __len__(self) -> int:
        return self._used


# ---------------------------------------------------------------- statistics

cdef enum:
    STATS_HEADER = 8                 # words: magic, counters, histograms, five to spare
    STATS_MAGIC = 0x31544154534846   # "FHSTAT1" in the order of the bytes
    FIRST_OCTAVE = 9                 # 512 ns
    OCTAVES = 28                     # up to 2**37 ns, 137 s
    STEPS = 16                       # a bucket is at most 1/16 of its value wide, its middle within 1/32
    BUCKETS = 1 + OCTAVES * STEPS + 1
    ROW = 1 + BUCKETS                # the sum of all values, then the buckets

cdef int64_t MOST = 0x7FFFFFFFFFFFFFFF
cdef int64_t LOWEST = <int64_t>1 << FIRST_OCTAVE
cdef int64_t HIGHEST = <int64_t>1 << (FIRST_OCTAVE + OCTAVES)


cdef inline int64_t sum_within(int64_t a, int64_t b) noexcept nogil:
    """The sum, or the nearest that a word holds."""
    if b >= 0:
        return a + b if a <= MOST - b else MOST
    return a + b if a >= -MOST - b else -MOST


cdef class Stats(Block):
    """Counters and latency histograms that one process writes and any may read.

    A histogram's buckets are log-linear: a quantile is within 5 % of the value, from 1 µs to 100 s; what is
    below or above counts in the first or last bucket. `buffer`: at least `nbytes(counters, histograms)`
    writable bytes, zeros or a block of the same sizes, whose counts go on.

    ValueError: a size out of range, a buffer too small, or one that holds something else.
    """

    @staticmethod
    def nbytes(counters: int, histograms: int) -> int:
        """The bytes that a buffer for these sizes needs."""
        return 8 * (STATS_HEADER + counters + histograms * ROW)

    def __cinit__(self, Py_ssize_t counters, Py_ssize_t histograms, buffer: object = None):
        if not (0 <= counters <= 1 << 28 and 0 <= histograms <= 1 << 18):
            raise ValueError("counters must be from 0 to 2**28, histograms from 0 to 2**18")
        self.counters = counters
        self.histograms = histograms
        cdef bint fresh = self._attach(buffer, STATS_HEADER + self.counters + self.histograms * ROW)
        if fresh:
            self._words[1] = self.counters
            self._words[2] = self.histograms
            fh_store(&self._words[0], STATS_MAGIC)
        elif self._words[0] != STATS_MAGIC or self._words[1] != self.counters or self._words[2] != self.histograms:
            raise ValueError("the buffer does not hold statistics of these sizes")

    cdef int64_t *_row(self, Py_ssize_t histogram) noexcept nogil:
        return self._words + STATS_HEADER + self.counters + histogram * ROW

    cdef void _add(self, Py_ssize_t counter, int64_t n) noexcept nogil:
        cdef int64_t *at = self._words + STATS_HEADER + counter
        fh_store(at, sum_within(at[0], n))

    cdef void _observe(self, Py_ssize_t histogram, int64_t ns) noexcept nogil:
        cdef int64_t *row = self._row(histogram)
        cdef int64_t *bucket
        cdef int octave
        if ns < LOWEST:
            bucket = row + 1
            ns = ns if ns > 0 else 0
        else:
            octave = fh_log2(<uint64_t>ns) - FIRST_OCTAVE
            if octave >= OCTAVES:
                bucket = row + BUCKETS
            else:
                bucket = row + 2 + octave * STEPS + (ns >> (octave + FIRST_OCTAVE - 4) & (STEPS - 1))
        fh_store(bucket, bucket[0] + 1)
        fh_store(row, sum_within(row[0], ns))

    def add(self, counter: int, n: int = 1) -> None:
        """Add `n` to a counter. IndexError if there is no such counter."""
        if not 0 <= counter < self.counters:
            raise IndexError(counter)
        self._add(counter, n)

    def counter(self, counter: int) -> int:
        """What a counter stands at."""
        if not 0 <= counter < self.counters:
            raise IndexError(counter)
        return fh_load(self._words + STATS_HEADER + <Py_ssize_t>counter)

    def observe(self, histogram: int, ns: int) -> None:
        """Count one value, in nanoseconds."""
        if not 0 <= histogram < self.histograms:
            raise IndexError(histogram)
        self._observe(histogram, ns)

    def histogram(self, histogram: int) -> tuple[int, list[tuple[int, int]]]:
        """The sum of all values in ns, and `(upper bound in ns, count)` of each bucket that is not empty.

        A bound is exclusive; that of the last bucket is 2**63 - 1.
        """
        if not 0 <= histogram < self.histograms:
            raise IndexError(histogram)
        cdef int64_t *row = self._row(histogram)
        counts = []
        cdef Py_ssize_t i
        cdef int64_t count
        for i in range(BUCKETS):
            count = fh_load(row + 1 + i)
            if count:
                counts.append((upper_bound(i), count))
        return fh_load(row), counts

    def quantile(self, histogram: int, q: float) -> float | None:
        """The value in ns below which a share `q` (0 to 1) lies, None if nothing was counted.

        The middle of the bucket that holds it.
        """
        if not 0 <= q <= 1:
            raise ValueError("q must be from 0 to 1")
        _, counts = self.histogram(histogram)
        total = sum(count for _, count in counts)
        seen = 0
        for upper, count in counts:
            seen += count
            if seen >= q * total:
                if upper <= LOWEST:
                    return upper / 2
                if upper > HIGHEST:
                    return float(HIGHEST)
                return upper - (<int64_t>1 << (fh_log2(upper - 1) - 4)) / 2
        return None


cdef int64_t upper_bound(Py_ssize_t bucket) noexcept:
    cdef int64_t step
    if bucket == 0:
        return LOWEST
    if bucket == BUCKETS - 1:
        return MOST
    step = bucket - 1
    return <int64_t>(STEPS + step % STEPS + 1) << (FIRST_OCTAVE - 4 + step // STEPS)


# ---------------------------------------------------------------- what handlers take

#: What becomes of a run of a handler: it returned, it raised, its deadline passed, or the server stopped.
OUTCOMES = ("handled", "failed", "timeout", "stopped")

cdef enum:
    N_OUTCOMES = 4


@cython.final
cdef class Handling:
    """Counts the runs of handlers: how many there are now, how long their updates waited, how long they take.

    `in_flight`: a counter of `stats`. `wait`: a histogram. `first`: the first of `Handling.histograms()` histograms, by
    kind in the order of `KINDS`, and of each kind by outcome in the order of `OUTCOMES`. IndexError: there are fewer.
    """

    def __cinit__(self, Stats stats not None, in_flight: int, wait: int, first: int):
        last = first + N_KINDS * N_OUTCOMES
        if not (0 <= in_flight < stats.counters and 0 <= wait < stats.histograms
                and 0 <= first <= last <= stats.histograms):
            raise IndexError("the statistics have no such counter or histograms")
        self.stats = stats
        self._in_flight = in_flight
        self._wait = wait
        self._first = first
        self.set_clocks()

    @staticmethod
    def histograms() -> int:
        """How many histograms the runs of a bot's handlers need."""
        return N_KINDS * N_OUTCOMES

    @staticmethod
    def alone() -> Handling:
        """One with statistics of its own, which nobody else reads."""
        return Handling(Stats(1, 1 + N_KINDS * N_OUTCOMES), 0, 0, 1)

    cpdef void set_clocks(self):
        """Look how far the wall clock is from the monotonic one; to be called now and then, for it may be set."""
        self._offset = time() - monotonic()

    cpdef void started(self, Admitted update, double since, double now):
        """A run begins at `now` (monotonic s).

        `since`: when the update was acknowledged, in s since the epoch; 0: when it was received; below 0: the run is
        not the first.
        """
        cdef double waited
        if update.attempt == 1 and since >= 0:
            waited = now + self._offset - (since if since else update.received_at)
            self.stats._observe(self._wait, <int64_t>(waited * 1e9))
        self.stats._add(self._in_flight, 1)

    cpdef double ended(self, Admitted update, double began, int outcome):
        """A run is over, at the time that is returned (monotonic s). `outcome`: a place in `OUTCOMES`."""
        cdef int64_t now = monotonic_ns()
        self.stats._add(self._in_flight, -1)
        if 0 <= outcome < N_OUTCOMES:
            self.stats._observe(self._first + update._kind * N_OUTCOMES + outcome, now - <int64_t>(began * 1e9))
        return now * 1e-9


# ---------------------------------------------------------------- several bots

@cython.final
cdef class Shares:
    """Divides `size` places among bots: `each` has as many for itself alone, the others are for who comes first.

    Half of the places are divided in equal parts. A bot that is not, or no more, among `bots` gets no place; those that
    it has count until it leaves them. ValueError: there are more bots than places.
    """

    def __cinit__(self, size: int, bots: Iterable[int]):
        self.size = size
        self._taken = {}
        self.set_bots(bots)

    def set_bots(self, bots: Iterable[int]) -> None:
        """Divide among these from now on. ValueError: they are more than the places."""
        cdef Py_ssize_t taken
        among = frozenset(bots)
        if len(among) > self.size:
            raise ValueError(f"{len(among)} bots cannot share {self.size} places")
        self.bots = among
        self.each = max(1, self.size // (2 * len(among))) if among else 0
        self._open = self.size - self.each * len(among)
        self._borrowed = 0
        for bot, taken in self._taken.items():
            self._borrowed += max(0, taken - (self.each if bot in among else 0))

    def taken(self, bot: int) -> int:
        """How many places a bot has."""
        return self._taken.get(bot, 0)

    cpdef bint has_room(self, bot):
        """Whether a bot may have one more."""
        if bot not in self.bots:
            return False
        return self._borrowed < self._open or <Py_ssize_t>self._taken.get(bot, 0) < self.each

    cpdef bint take(self, bot):
        """Give a bot one more. False: it may not have it."""
        if not self.has_room(bot):
            return False
        self.force(bot)
        return True

    cpdef void force(self, bot):
        """Give a bot one more, whether it may have it or not."""
        cdef Py_ssize_t taken = self._taken.get(bot, 0)
        if taken >= self.each or bot not in self.bots:
            self._borrowed += 1
        self._taken[bot] = taken + 1

    cpdef void leave(self, bot):
        """A bot has one less."""
        cdef Py_ssize_t taken = self._taken.get(bot, 0)
        if taken == 0:
            return
        if taken > self.each or bot not in self.bots:
            self._borrowed -= 1
        if taken == 1:
            del self._taken[bot]
        else:
            self._taken[bot] = taken - 1


# ---------------------------------------------------------------- the gate

#: Each verdict's name, status, reason phrase, whether it closes the connection, and what a person reads.
VERDICTS = (
    ("accepted", 200, b"OK", False, b""),
    ("duplicate", 200, b"OK", False, b""),
    ("in_flight", 200, b"OK", False, b""),
    ("flood", 200, b"OK", False, b""),
    ("invalid", 200, b"OK", False, b""),
    ("not_found", 404, b"Not Found", False, b"no hook is at this path\n"),
    ("bad_method", 405, b"Method Not Allowed", False, b"updates come by POST\n"),
    ("too_large", 413, b"Content Too Large", True, b"the body is larger than max-body\n"),
    ("unauthorized", 401, b"Unauthorized", False, b"the header X-Telegram-Bot-Api-Secret-Token is missing or wrong\n"),
    ("throttled", 429, b"Too Many Requests", True, b"too many requests with a wrong secret\n"),
    ("busy", 503, b"Service Unavailable", False, b"the queue is full\n"),
    ("draining", 503, b"Service Unavailable", True, b"the server is stopping\n"),
    ("forbidden", 403, b"Forbidden", True, b"this address is not in allow-ip\n"),
    ("bad_request", 400, b"Bad Request", True, b"not a valid HTTP request\n"),
    ("bad_version", 505, b"HTTP Version Not Supported", True, b"HTTP/1.1 or HTTP/1.0\n"),
    ("target_too_long", 414, b"URI Too Long", True, b"the request target is longer than max-target\n"),
    ("head_too_large", 431, b"Request Header Fields Too Large", True,
     b"the head is larger than max-head or max-headers\n"),
    ("tunnel", 405, b"Method Not Allowed", True, b"updates come by POST\n"),
    ("expectation", 417, b"Expectation Failed", True, b"the only expectation that is met is 100-continue\n"),
    ("encoded", 415, b"Unsupported Media Type", False, b"the body must come without a content-encoding\n"),
    ("timeout", 408, b"Request Timeout", True, b"the request did not come in time\n"),
    ("crowded", 503, b"Service Unavailable", True, b"too many connections\n"),
    ("failed", 500, b"Internal Server Error", False, b"the handler failed\n"),
)

#: A verdict's code, by its name.
CODES = {verdict[0]: code for code, verdict in enumerate(VERDICTS)}

cdef enum:
    MAX_RETRY_AFTER = 60
    DUPLICATES = N_CODES + N_KINDS  # behind the verdicts and the kinds
    COUNTERS_PER_ROW = DUPLICATES + 1

# Retry-After, s, by kind: never past what it has to live (30 s for an inline query, 150 s for the other queries).
SHORT_LIVED = frozenset(
    {"callback_query", "inline_query", "chosen_inline_result", "shipping_query", "pre_checkout_query"}
)
cdef int retry_after_of[N_KINDS]
for _i in range(N_KINDS):
    retry_after_of[_i] = 1 if KINDS[_i] in SHORT_LIVED else 3


@cython.final
cdef class Verdict:
    """An answer of the gate: its name, the status, and the whole response as bytes made in advance."""

    def __init__(self, code: int, retry_after: int = 0, json: bytes | None = None):
        name, status, _, closes, body = VERDICTS[code]
        body = body if json is None else json
        headers = [(b"content-length", b"%d" % len(body))]
        if body:
            headers.append((b"content-type", b"text/plain" if json is None else b"application/json"))
        if status == 405:
            headers.append((b"allow", b"POST"))
        if retry_after:
            headers.append((b"retry-after", b"%d" % retry_after))
        if closes:
            headers.append((b"connection", b"close"))
        self.code = code
        self.name = name
        self.status = status
        self.retry_after = retry_after
        self.closes = closes
        self.headers = tuple(headers)
        self.body = body
        self.response = self._render(False, False, False)

    cdef bytes _render(self, bint close, bint http10, bint bare):
        """The response as bytes: with `connection: close`, for an HTTP/1.0 peer that stays, without its body (HEAD)."""
        headers = list(self.headers)
        if close and not self.closes:
            headers.append((b"connection", b"close"))
        elif http10 and not self.closes:
            headers.append((b"connection", b"keep-alive"))
        head = b"".join([b"%s: %s\r\n" % pair for pair in headers])
        return b"HTTP/1.1 %d %s\r\n%s\r\n%s" % (self.status, VERDICTS[self.code][2], head, b"" if bare else self.body)

    def __repr__(self) -> str:
        return f"<Verdict {self.status} {self.name}>"


cdef tuple _verdicts = tuple([Verdict(code, code == CROWDED) for code in range(N_CODES)])
cdef tuple _throttled = tuple([Verdict(THROTTLED, seconds) for seconds in range(1, MAX_RETRY_AFTER + 1)])
cdef tuple _busy = tuple([Verdict(BUSY, retry_after_of[kind]) for kind in range(N_KINDS)])
cdef tuple _draining = tuple([Verdict(DRAINING, retry_after_of[kind]) for kind in range(N_KINDS)])


@cython.final
cdef class Route:
    """A hook path: the bot behind it, its one or two valid secrets, its row in the statistics."""

    def __cinit__(self, bytes path not None, bot_id: int, tuple secrets not None, Py_ssize_t row):
        if not all([isinstance(secret, bytes) for secret in secrets]):
            raise TypeError("a secret is bytes")
        if not 1 <= len(secrets) <= 2 or not all(secrets):
            raise ValueError("a path has one secret, or two while one replaces the other")
        self.path = path
        self.bot_id = bot_id
        self.secrets = secrets
        self.row = row

    cdef bint genuine(self, bytes secret) noexcept:
        """Compare in a time that depends on the length of what came and on nothing else."""
        cdef bint valid = False
        cdef bytes known
        for known in self.secrets:
            valid |= same_secret(secret, known)
        return valid


cdef bint same_secret(bytes given, bytes known) noexcept:
    cdef Py_ssize_t i, size = PyBytes_GET_SIZE(given)
    cdef bint wrong_size = size != PyBytes_GET_SIZE(known)
    cdef const unsigned char *a = <const unsigned char *>PyBytes_AS_STRING(given)
    cdef const unsigned char *b = a if wrong_size else <const unsigned char *>PyBytes_AS_STRING(known)
    cdef unsigned char difference = wrong_size
    for i in range(size):
        difference |= a[i] ^ b[i]
    return difference == 0


cdef class Gate:
    """Admits or refuses. `head` and `body` answer in the order of cost; each answer is counted.

    `ring`: the ids seen; its `limit` is how many updates may be waiting and running.
    `stats`: at least `Gate.counters(paths)` counters; row 0 counts requests for no hook, each path has a row
    of its own: the verdicts in the order of `VERDICTS`, then the admitted updates by kind, then the updates that
    were known. With `answers_later` a door counts the verdict on what it was given an update for, when it is known.
    `auth`: buckets of callers whose secret was wrong, None: no limit. `chats`: buckets of chats, None: no limit.
    `shares`: divides the room among several bots. `generation` changes whenever a path or a secret does. `max_body`:
    bytes. `update`: the class that admitted updates are made of, `Admitted` or one derived from it.
    """

    def __cinit__(self, DedupRing ring not None, Stats stats not None, *, TokenBuckets auth = None,
                  TokenBuckets chats = None, max_body: int = 1048576, update: type = Admitted, Shares shares = None):
        if not issubclass(update, Admitted):
            raise TypeError("update must be derived from Admitted")
        if stats.counters < COUNTERS_PER_ROW:
            raise ValueError(f"the statistics need {COUNTERS_PER_ROW} counters for each row")
        self.ring = ring
        self.stats = stats
        self.auth = auth
        self.chats = chats
        self.max_body = max_body
        self.shares = shares
        self.rows = {}
        self._update = update
        self._routes = {}

    @staticmethod
    def counters(paths: int) -> int:
        """How many counters a gate with so many paths needs."""
        return COUNTERS_PER_ROW * (1 + paths)

    def add(self, path: bytes, bot_id: int, secrets: tuple[bytes, ...]) -> Route:
        """Open a hook path. ValueError if it is taken, or if the statistics have no row left for it.

        A bot that had a path before goes on counting in its row: `rows` has that of each bot.
        """
        row = self.rows.get(bot_id, self._rows + 1)
        if path in self._routes:
            raise ValueError(f"two hooks on one path: {path.decode('latin-1')}")
        if self.stats.counters < COUNTERS_PER_ROW * (row + 1):
            raise ValueError("no row left in the statistics")
        route = self._routes[path] = Route(path, bot_id, secrets, row)
        self.rows[bot_id] = row
        self._rows = max(self._rows, row)
        self.generation += 1
        return route

    def rotate(self, path: bytes, secrets: tuple[bytes, ...]) -> Route:
        """Give an open path other secrets. KeyError: it is not open."""
        cdef Route old = self._routes[path]
        route = self._routes[path] = Route(path, old.bot_id, secrets, old.row)
        self.generation += 1
        return route

    def remove(self, path: bytes) -> None:
        """Close a path. KeyError: it is not open."""
        del self._routes[path]
        self.generation += 1

    def count(self, Route route not None, code: int) -> None:
        """Count a verdict that was found later. IndexError: no such code."""
        if not 0 <= code < N_CODES:
            raise IndexError(code)
        self._count(route.row, code)

    def known(self, bot_id: int) -> None:
        """Count a duplicate of an update of this bot that the ring had forgotten."""
        cdef Route route
        for route in self._routes.values():
            if route.bot_id == bot_id:
                self._count(route.row, DUPLICATES)
                return

    cdef void _count(self, Py_ssize_t row, int code) noexcept:
        if not 0 <= row <= self._rows:
            row = 0  # a route of another gate
        self.stats._add(row * COUNTERS_PER_ROW + code, 1)

    def refuse(self, Route route, int code):
        """The verdict of this code, counted; `route` None where the path is not known. IndexError: no such code."""
        if not 0 <= code < N_CODES:
            raise IndexError(code)
        return self._refuse(route, code)

    cdef Verdict _refuse(self, Route route, int code):
        self._count(0 if route is None else route.row, code)
        return <Verdict>_verdicts[code]

    cpdef object head(self, bytes path, bint post, int64_t length, bytes secret, object caller, int64_t now):
        """What can be said before the body: a Verdict, or the Route to give the body to.

        `length`: the declared size, -1 if none is. `secret`: the header's value, None if absent.
        `caller`: hashable, the address that a wrong secret is charged to. `now`: monotonic ns.
        """
        cdef Route route = self._find(path)
        cdef bint genuine = route is not None and secret is not None and route.genuine(secret)
        return self._judge(route, post, length, genuine, caller, now)

    cdef Route _find(self, bytes path):
        return <Route>self._routes.get(path)

    cdef object _judge(self, Route route, bint post, int64_t length, bint genuine, object caller, int64_t now):
        """`head`, for a door that found the route and compared the secret as they came."""
        cdef int64_t wait
        if route is None:
            return self._refuse(None, NOT_FOUND)
        if not post:
            return self._refuse(route, BAD_METHOD)
        if length > self.max_body:
            return self._refuse(route, TOO_LARGE)
        if not genuine:
            wait = self.auth._take(<uint64_t><Py_ssize_t>hash(caller), now) if self.auth is not None else 0
            if wait == 0:
                return self._refuse(route, UNAUTHORIZED)
            self._count(route.row, THROTTLED)
            wait = (wait + 999999999) // 1000000000
            return _throttled[(wait if wait < MAX_RETRY_AFTER else MAX_RETRY_AFTER) - 1]
        return route

    cpdef object body(self, Route route, bytes raw, double wall, int64_t now):
        """What the body decides: a Verdict, or the admitted update, in flight until it is settled or released.

        With `joins_running` (`joins_done`) an update that is in flight (done) already is given too, its `redelivery`
        set. `wall`: seconds since the epoch, for `received_at`. `now`: monotonic ns.
        """
        cdef Scan found
        cdef Claim claim
        if route is None or raw is None:
            raise TypeError("a route and the bytes of a body are needed")
        if not scan_update(<const unsigned char *>PyBytes_AS_STRING(raw), PyBytes_GET_SIZE(raw), &found):
            return self._refuse(route, INVALID)
        claim = self.ring._claim(route.bot_id, found.update_id)
        if claim == NEW:
            if self.draining:
                self.ring._release(route.bot_id, found.update_id)
                self._count(route.row, DRAINING)
                return _draining[found.kind]
            if self.shares is not None and not self.shares.take(route.bot_id):
                self.ring._release(route.bot_id, found.update_id)
                self._count(route.row, BUSY)
                return _busy[found.kind]
            # after the room: an update that gets 503 comes again, and must not have paid for it
            if self.chats is not None and found.has_chat and self.chats._take(
                mix(<uint64_t>route.bot_id, <uint64_t>found.chat_id), now
            ):
                self.ring._settle(route.bot_id, found.update_id)
                if self.shares is not None:
                    self.shares.leave(route.bot_id)
                return self._refuse(route, FLOOD)
            if not self.answers_later:
                self._count(route.row, ACCEPTED)
            self._count(route.row, N_CODES + found.kind)
            return self._admitted(route, &found, raw, wall)
        if claim != FULL:
            self._count(route.row, DUPLICATES)
        if claim == CLAIM_DONE:
            if self.joins_done:
                return self._redelivered(route, &found, raw, wall, DUPLICATE)
            return self._refuse(route, DUPLICATE)
        if claim == CLAIM_IN_FLIGHT:
            if self.joins_running:
                return self._redelivered(route, &found, raw, wall, IN_FLIGHT)
            return self._refuse(route, IN_FLIGHT)
        self._count(route.row, BUSY)
        return _busy[found.kind]

    cdef Admitted _admitted(self, Route route, const Scan *found, bytes raw, double wall):
        cdef Admitted update = <Admitted?>self._update.__new__(self._update)
        update._fill(found, raw)
        update.bot_id = route.bot_id
        update.received_at = wall
        return update

    cdef object _redelivered(self, Route route, const Scan *found, bytes raw, double wall, int code):
        cdef Admitted update = self._admitted(route, found, raw, wall)
        if not self.answers_later:
            self._count(route.row, code)
        update.redelivery = True
        return update

    def settle(self, update: Admitted) -> bool:
        """The update is done with: its id is a duplicate from now on. False if it was not in flight."""
        cdef bint was = self.ring._settle(update.bot_id, update.update_id)
        if was and self.shares is not None:
            self.shares.leave(update.bot_id)
        return was

    def release(self, update: Admitted) -> bool:
        """The update was not taken after all: its id is new again. False if it was not in flight."""
        cdef bint was = self.ring._release(update.bot_id, update.update_id)
        if was and self.shares is not None:
            self.shares.leave(update.bot_id)
        return was

    def claim(self, update: Admitted) -> int:
        """Put an update from before this start in flight, whatever room its bot has: what `DedupRing.claim` says."""
        cdef Claim claim = self.ring._claim(update.bot_id, update.update_id)
        if claim == NEW and self.shares is not None:
            self.shares.force(update.bot_id)
        return claim
