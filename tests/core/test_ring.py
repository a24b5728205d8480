"""The duplicate ring: what it promises to remember, and that nothing in its memory can make it crash."""

from __future__ import annotations

import ctypes
import mmap
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference
from fasthook import DedupRing

NEW, IN_FLIGHT, DUPLICATE, FULL = range(4)
WORD = 8
HEADER = 8 * WORD
ENTRY = 2 * WORD


class Ring(Protocol):
    @property
    def in_flight(self) -> int: ...
    def claim(self, bot: int, update_id: int) -> int: ...
    def settle(self, bot: int, update_id: int) -> bool: ...
    def release(self, bot: int, update_id: int) -> bool: ...
    def release_all(self) -> int: ...
    def items(self) -> list[tuple[int, int, bool]]: ...


def done(ring: Ring, *ids: int) -> None:
    for update_id in ids:
        assert ring.claim(1, update_id) == NEW
        assert ring.settle(1, update_id)


def state(ring: Ring) -> object:
    return ring.in_flight, ring.items()


# ---------------------------------------------------------------- one id


def test_the_life_of_an_id(core: Any) -> None:
    ring = core.DedupRing(4)
    assert (ring.capacity, ring.limit, ring.in_flight) == (4, 4, 0)
    assert ring.claim(1, 7) == NEW
    assert ring.claim(1, 7) == IN_FLIGHT
    assert ring.in_flight == 1
    assert ring.items() == [(1, 7, False)]
    assert ring.settle(1, 7)
    assert ring.claim(1, 7) == DUPLICATE
    assert ring.in_flight == 0
    assert ring.items() == [(1, 7, True)]


def test_a_released_id_is_new_again(core: Any) -> None:
    ring = core.DedupRing(4)
    ring.claim(1, 7)
    assert ring.release(1, 7)
    assert (ring.in_flight, ring.items()) == (0, [])
    assert ring.claim(1, 7) == NEW


def test_only_what_is_in_flight_is_settled_or_released(core: Any) -> None:
    ring = core.DedupRing(4)
    assert not ring.settle(1, 7)
    assert not ring.release(1, 7)
    done(ring, 7)
    assert not ring.settle(1, 7)
    assert not ring.release(1, 7)
    assert ring.claim(1, 7) == DUPLICATE


def test_each_bot_has_ids_of_its_own(core: Any) -> None:
    ring = core.DedupRing(4)
    done(ring, 7)
    assert ring.claim(2, 7) == NEW
    assert ring.claim(-(2**63), 7) == NEW
    assert ring.claim(2**63 - 1, 7) == NEW
    assert ring.in_flight == 3


@pytest.mark.parametrize("update_id", [0, 1, 2**53 - 1])
def test_the_range_of_ids(core: Any, update_id: int) -> None:
    ring = core.DedupRing(1)
    done(ring, update_id)
    assert ring.items() == [(1, update_id, True)]


@pytest.mark.parametrize("update_id", [-1, 2**53])
@pytest.mark.parametrize("method", ["claim", "settle", "release"])
def test_ids_out_of_range(core: Any, method: str, update_id: int) -> None:
    with pytest.raises(ValueError):
        getattr(core.DedupRing(1), method)(1, update_id)


# ---------------------------------------------------------------- what is remembered


@pytest.mark.parametrize(("capacity", "limit"), [(1, 1), (1, 5), (5, 1), (8, 8)])
def test_an_id_is_remembered_until_capacity_newer_ones_came(core: Any, capacity: int, limit: int) -> None:
    ring = core.DedupRing(capacity, limit)
    for newest in range(50):
        done(ring, newest)
        for known in range(max(0, newest - capacity + 1), newest + 1):
            assert ring.claim(1, known) == DUPLICATE
    assert len(ring.items()) == capacity + limit
    assert ring.claim(1, 0) == NEW


def test_what_is_in_flight_is_never_evicted(core: Any) -> None:
    ring = core.DedupRing(3, 2)
    assert ring.claim(1, 100) == NEW
    done(ring, *range(20))
    assert ring.claim(1, 100) == IN_FLIGHT
    assert [update_id for _, update_id, settled in ring.items() if settled] == [16, 17, 18, 19]


def test_the_one_in_flight_too_many(core: Any) -> None:
    ring = core.DedupRing(8, 2)
    done(ring, 5)
    assert [ring.claim(1, update_id) for update_id in (1, 2, 3)] == [NEW, NEW, FULL]
    assert [ring.claim(1, update_id) for update_id in (1, 2, 5)] == [IN_FLIGHT, IN_FLIGHT, DUPLICATE]
    ring.settle(1, 1)
    assert ring.claim(1, 3) == NEW


def test_refusals_push_nothing_out(core: Any) -> None:
    ring = core.DedupRing(4, 1)
    done(ring, 1, 2, 3, 4, 5)
    for refused in range(100, 200):
        assert ring.claim(1, refused) == NEW
        assert ring.release(1, refused)
    assert [ring.claim(1, update_id) for update_id in (2, 3, 4, 5)] == [DUPLICATE] * 4


def test_what_a_dead_process_left_is_released(core: Any) -> None:
    ring = core.DedupRing(4)
    done(ring, 1)
    for update_id in (2, 3, 4):
        ring.claim(1, update_id)
    assert ring.release_all() == 3
    assert ring.release_all() == 0
    assert (ring.in_flight, ring.items()) == (0, [(1, 1, True)])
    assert [ring.claim(1, update_id) for update_id in (1, 2, 3, 4)] == [DUPLICATE, NEW, NEW, NEW]


# ---------------------------------------------------------------- promises, a million times


class Promises:
    """What the ring must answer, told by its documentation alone: no slots, no head."""

    def __init__(self, capacity: int, limit: int) -> None:
        self.capacity, self.limit = capacity, limit
        self.claims = 0
        self.flying: dict[tuple[int, int], int] = {}  # the number of its claim
        self.done: dict[tuple[int, int], int] = {}

    def check_claim(self, key: tuple[int, int], answer: int) -> None:
        if key in self.flying:
            assert answer == IN_FLIGHT
            return
        if key in self.done:
            if answer == DUPLICATE:
                return
            assert self.claims - self.done[key] >= self.capacity, "forgotten too early"
        assert answer == (NEW if len(self.flying) < self.limit else FULL)
        if answer == NEW:
            self.done.pop(key, None)
            self.claims += 1
            self.flying[key] = self.claims

    def check_settle(self, key: tuple[int, int], answer: bool) -> None:
        assert answer == (key in self.flying)
        if answer:
            self.done[key] = self.flying.pop(key)

    def check_release(self, key: tuple[int, int], answer: bool) -> None:
        assert answer == (key in self.flying)
        self.flying.pop(key, None)


def mapped(path: Path, size: int) -> mmap.mmap:
    with path.open("w+b") as file:
        file.truncate(size)
        return mmap.mmap(file.fileno(), size)


def test_a_million_operations_keep_the_promises(tmp_path: Path) -> None:
    capacity, limit = 700, 90
    memory = mapped(tmp_path / "ring", DedupRing.nbytes(capacity, limit))
    ring, model, rng = DedupRing(capacity, limit, memory), Promises(capacity, limit), random.Random(20)
    pick, below = rng.random, rng.randrange
    for step in range(1_000_000):
        if step % 20_000 == 0:
            ring = reattached(ring, capacity, limit, memory)
            assert ring.in_flight == len(model.flying)
            assert len(ring.items()) <= capacity + limit
            often_claimed = (0.4, 0.5, 0.6)[below(3)]  # the flight is empty, hovers, is full
        choice, key = pick(), (below(2), below(1200))
        if choice < often_claimed:
            model.check_claim(key, ring.claim(*key))
            continue
        if model.flying and choice < 0.97:
            key = next(iter(model.flying)) if step % 3 else list(model.flying)[-1]
        if choice < 0.9:
            model.check_settle(key, ring.settle(*key))
        else:
            model.check_release(key, ring.release(*key))


def reattached(ring: DedupRing, capacity: int, limit: int, memory: Any) -> DedupRing:
    again = DedupRing(capacity, limit, memory)
    assert state(again) == state(ring)
    return again


operations = st.lists(
    st.tuples(st.sampled_from(["claim", "claim", "claim", "settle", "settle", "release"]), st.integers(0, 30)),
    max_size=200,
)


@given(st.integers(1, 8), st.integers(1, 8), operations, st.integers(0, 200))
def test_the_bytes_agree_with_the_twins(capacity: int, limit: int, work: list[tuple[str, int]], halt: int) -> None:
    size = DedupRing.nbytes(capacity, limit)
    memory, other = bytearray(size), bytearray(size)
    ring, twin = DedupRing(capacity, limit, memory), reference.DedupRing(capacity, limit, other)
    for step, (method, number) in enumerate(work):
        if step == halt:
            assert ring.release_all() == twin.release_all()
            ring, twin = DedupRing(capacity, limit, memory), reference.DedupRing(capacity, limit, other)
        key = number % 2, number
        assert getattr(ring, method)(*key) == getattr(twin, method)(*key)
        assert state(ring) == state(twin)
    assert normal(memory) == normal(other)


def normal(memory: bytearray) -> list[int]:
    """The words of a ring, without the bots of free entries, which mean nothing."""
    words = memoryview(memory).cast("q").tolist()
    return [word if at < 8 or at % 2 or words[at + 1] else 0 for at, word in enumerate(words)]


# ---------------------------------------------------------------- memory that outlives it


def test_a_ring_is_taken_up_as_it_is(core: Any) -> None:
    memory = bytearray(core.DedupRing.nbytes(4, 2))
    ring = core.DedupRing(4, 2, memory)
    done(ring, *range(9))
    ring.claim(3, 100)
    again = core.DedupRing(4, 2, memory)
    assert state(again) == state(ring)
    assert again.claim(1, 8) == DUPLICATE
    assert again.claim(3, 100) == IN_FLIGHT


def test_either_takes_up_what_the_other_left() -> None:
    memory = bytearray(DedupRing.nbytes(4, 2))
    ring = DedupRing(4, 2, memory)
    done(ring, *range(9))
    twin = reference.DedupRing(4, 2, memory)
    assert state(twin) == state(ring)
    done(twin, *range(20, 25))
    assert state(DedupRing(4, 2, memory)) == state(twin)


def test_a_buffer_may_be_longer(core: Any) -> None:
    memory = bytearray(core.DedupRing.nbytes(4) + 100)
    done(core.DedupRing(4, None, memory), *range(20))
    assert not any(memory[core.DedupRing.nbytes(4) :])


def test_memory_that_ends_where_the_ring_ends() -> None:
    """For the sanitizer: the last word of the ring is the last word there is."""
    memory = (ctypes.c_int64 * (DedupRing.nbytes(5, 3) // WORD))()
    ring = DedupRing(5, 3, memory)
    done(ring, *range(30))
    for update_id in (100, 101, 102, 103):
        ring.claim(1, update_id)
    assert state(DedupRing(5, 3, memory)) == state(ring)


@pytest.mark.parametrize("capacity", [1, 2, 100, 5000])
def test_the_size_of_the_buffer(core: Any, capacity: int) -> None:
    for limit in (None, 1, 7):
        slots = capacity + (capacity if limit is None else limit)
        assert core.DedupRing.nbytes(capacity, limit) == HEADER + ENTRY * slots


# ---------------------------------------------------------------- damage

CAPACITY, LIMIT = 6, 3
SLOTS = CAPACITY + LIMIT


def used() -> bytearray:
    """The memory of a ring with done, flying and free entries, its head somewhere in the middle."""
    memory = bytearray(DedupRing.nbytes(CAPACITY, LIMIT))
    ring = DedupRing(CAPACITY, LIMIT, memory)
    done(ring, *range(1000, 1013))
    for update_id in (2000, 2001, 2002):
        ring.claim(2, update_id)
    ring.release(2, 2001)
    return memory


def put(memory: bytearray, word: int, value: int) -> bytearray:
    memoryview(memory).cast("q")[word] = value
    return memory


def state_word(memory: bytearray, state: int) -> int:
    """The first word that says an entry is in this state."""
    words = memoryview(memory).cast("q").tolist()
    return next(at for at in range(9, len(words), 2) if words[at] & 3 == state and words[at])


DAMAGES: dict[str, Callable[[bytearray], object]] = {
    "another magic": lambda memory: put(memory, 0, 1),
    "another version": lambda memory: put(memory, 0, int.from_bytes(b"FHRING2\0", "little")),
    "another capacity": lambda memory: put(memory, 1, CAPACITY + 1),
    "another limit": lambda memory: put(memory, 2, LIMIT - 1),
    "sizes exchanged": lambda memory: put(put(memory, 1, LIMIT), 2, CAPACITY),
    "head at the end": lambda memory: put(memory, 3, SLOTS),
    "head far away": lambda memory: put(memory, 3, 2**62),
    "head negative": lambda memory: put(memory, 3, -1),
    "a state there is not": lambda memory: put(memory, 9, 1000 << 2 | 3),
    "a free entry with an id": lambda memory: put(memory, 9, 1000 << 2),
    "a negative id": lambda memory: put(memory, 9, -(1000 << 2) | 2),
    "one id twice": lambda memory: put(put(memory, 9, 5 << 2 | 2), 8, 1) and put(put(memory, 11, 5 << 2 | 1), 10, 1),
    "too many in flight": lambda memory: [put(memory, 9 + 2 * slot, slot << 2 | 1) for slot in range(SLOTS)],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found(core: Any, damage: str) -> None:
    memory = used()
    DAMAGES[damage](memory)
    with pytest.raises(ValueError):
        core.DedupRing(CAPACITY, LIMIT, memory)


def changes(rng: random.Random) -> Iterator[bytearray]:
    """Memory with a bit turned, then with some bytes written over, then with a word written over."""
    for _ in range(1500):
        memory = used()
        at = rng.randrange(len(memory))
        memory[at] ^= 1 << rng.randrange(8)
        yield memory
        memory = used()
        at, size = rng.randrange(len(memory)), rng.randrange(1, 40)
        memory[at : at + size] = rng.randbytes(len(memory[at : at + size]))
        yield memory
        yield put(used(), rng.randrange(len(memory) // WORD), rng.choice([0, 1, 2, 3, -1, 2**63 - 1, -(2**63), 4001]))


def test_damaged_memory_is_refused_or_works() -> None:
    rng = random.Random(21)
    refused = 0
    for memory in changes(rng):
        try:
            ring = DedupRing(CAPACITY, LIMIT, memory)
        except ValueError:
            refused += 1
            with pytest.raises(ValueError):
                reference.DedupRing(CAPACITY, LIMIT, bytearray(memory))
            continue
        assert state(ring) == state(reference.DedupRing(CAPACITY, LIMIT, bytearray(memory)))
        work_hard(ring, rng)
    assert 1000 < refused < 4000


def work_hard(ring: DedupRing, rng: random.Random) -> None:
    for _ in range(40):
        update_id = rng.choice([rng.randrange(1000, 1020), rng.randrange(2000, 2010)])
        rng.choice([ring.claim, ring.claim, ring.settle, ring.release])(rng.randrange(1, 3), update_id)
        assert 0 <= ring.in_flight <= LIMIT
    assert len(ring.items()) <= SLOTS
    in_flight = ring.in_flight
    assert ring.release_all() == in_flight
    assert ring.in_flight == 0


@given(st.binary(min_size=DedupRing.nbytes(2, 1), max_size=DedupRing.nbytes(2, 1)))
def test_any_memory_behind_a_good_head(noise: bytes) -> None:
    memory = bytearray(noise)
    for word, value in enumerate((int.from_bytes(b"FHRING1\0", "little"), 2, 1)):
        put(memory, word, value)
    try:
        ring = DedupRing(2, 1, memory)
    except ValueError:
        return
    assert 0 <= ring.in_flight <= 1
    done(ring, *range(100 if ring.in_flight == 0 else 0))


# ---------------------------------------------------------------- a crash between two writes


def torn(before: bytes, after: bytes) -> Iterator[bytearray]:
    """The memory after each write from `before` to `after`, in the order that the ring keeps.

    An entry's second word is cleared, its first is written, then its second; the header comes last.
    """
    memory = bytearray(before)
    old, new = memoryview(before).cast("q"), memoryview(after).cast("q")
    for at in range(8, len(new), 2):
        if old[at : at + 2] != new[at : at + 2]:
            if old[at] != new[at]:
                yield bytearray(put(memory, at + 1, 0))
                yield bytearray(put(memory, at, new[at]))
            yield bytearray(put(memory, at + 1, new[at + 1]))
    yield bytearray(put(memory, 3, new[3]))
    assert memory == after


def test_a_torn_write_leaves_a_valid_ring() -> None:
    rng = random.Random(22)
    memory = bytearray(DedupRing.nbytes(CAPACITY, LIMIT))
    ring = DedupRing(CAPACITY, LIMIT, memory)
    for _ in range(2000):
        before, known = bytes(memory), set(ring.items())
        key = rng.randrange(1, 3), rng.randrange(20)
        rng.choice([ring.claim, ring.claim, ring.settle, ring.release])(*key)
        for halfway in torn(before, bytes(memory)):
            left = DedupRing(CAPACITY, LIMIT, halfway)
            others = {item for item in left.items() if item[:2] != key}
            assert others <= known  # nothing is known that was not, but for the id in hand
            assert len(known - others) <= 2  # nor forgotten, but for that one and the one whose place it takes
            work_hard(left, rng)


def test_a_header_torn_at_birth_is_no_ring_yet(core: Any) -> None:
    memory = bytearray(core.DedupRing.nbytes(4, 2))
    put(put(memory, 1, 99), 2, 98)  # sizes written, the magic not
    ring = core.DedupRing(4, 2, memory)
    done(ring, 1)
    assert state(core.DedupRing(4, 2, memory)) == state(ring)


VICTIM = """
import mmap, sys
from fasthook import DedupRing
with open(sys.argv[1], "r+b") as file:
    memory = mmap.mmap(file.fileno(), 0)
ring = DedupRing(500, 20, memory)
ring.release_all()
update_id = int(sys.argv[2])
while True:
    ring.claim(1, update_id)
    if update_id % 7 == 0:
        ring.release(1, update_id)
    elif update_id % 3:
        ring.settle(1, update_id)
    ring.settle(1, update_id - 30)  # the third of them that are late
    update_id += 1
    if update_id % 100 == 0:
        print(update_id, flush=True)
"""


def killed_at_work(path: Path, first: int, lines: int) -> int:
    """Let a process work on the ring until it has said so many times how far it is, kill it; how far it was."""
    command = [sys.executable, "-c", VICTIM, str(path), str(first)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as victim:
        assert victim.stdout is not None
        said = [victim.stdout.readline() for _ in range(lines)]
        victim.kill()
        said += victim.stdout.readlines()
    whole = [line for line in said if line.endswith("\n")]
    return int(whole[-1])


def test_a_kill_leaves_a_valid_ring(tmp_path: Path) -> None:
    path, last = tmp_path / "ring", 1000
    memory = mapped(path, DedupRing.nbytes(500, 20))
    for lines in (1, 7, 23):
        last = killed_at_work(path, last, lines)
        ring = DedupRing(500, 20, memory)
        assert ring.in_flight == sum(not settled for _, _, settled in ring.items())
        known = {update_id for _, update_id, settled in ring.items() if settled}
        assert {update_id for update_id in range(last - 100, last) if update_id % 3 and update_id % 7} <= known
