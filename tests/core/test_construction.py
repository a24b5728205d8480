"""Objects that could not be made: a clean error, and nothing left behind that crashes or holds memory."""

from __future__ import annotations

import gc
import subprocess
import sys
from typing import Any

import pytest

from fasthook import DedupRing, Gate, Stats, TokenBuckets, Verdict
from fasthook._core import Route

SIZED: dict[str, tuple[Any, tuple[int, int]]] = {"ring": (DedupRing, (4, 4)), "stats": (Stats, (4, 4))}


# ---------------------------------------------------------------- sizes and types

Errors = type[Exception] | tuple[type[Exception], ...]
TOO_MUCH = (MemoryError, OverflowError, ValueError)

BAD: dict[str, tuple[Any, tuple[Any, ...], Errors]] = {
    "ring: no capacity": (DedupRing, (0,), ValueError),
    "ring: negative capacity": (DedupRing, (-1,), ValueError),
    "ring: none in flight": (DedupRing, (1, 0), ValueError),
    "ring: negative in flight": (DedupRing, (5, -1), ValueError),
    "ring: too large together": (DedupRing, (2**28, 1), ValueError),
    "ring: far too large": (DedupRing, (2**80,), TOO_MUCH),
    "ring: a text": (DedupRing, ("4",), TypeError),
    "ring: a fraction": (DedupRing, (1.5,), TypeError),
    "ring: None": (DedupRing, (None,), TypeError),
    "ring: nothing": (DedupRing, (), TypeError),
    "ring: no buffer": (DedupRing, (2, 2, 5), TypeError),
    "ring: a text for a buffer": (DedupRing, (2, 2, "x" * 500), TypeError),
    "ring: read-only": (DedupRing, (2, 2, b"x" * 500), BufferError),
    "ring: too small": (DedupRing, (2, 2, bytearray(DedupRing.nbytes(2, 2) - 1)), ValueError),
    "ring: no bytes": (DedupRing, (2, 2, bytearray()), ValueError),
    "ring: not aligned": (DedupRing, (2, 2, memoryview(bytearray(500))[1:]), ValueError),
    "ring: of something else": (DedupRing, (2, 2, bytearray(b"x" * 500)), ValueError),
    "stats: negative counters": (Stats, (-1, 0), ValueError),
    "stats: negative histograms": (Stats, (0, -1), ValueError),
    "stats: more bytes than a word counts": (Stats, (2**61, 0), TOO_MUCH),
    "stats: the same by histograms": (Stats, (0, 2**60), TOO_MUCH),
    "stats: far too large": (Stats, (2**70, 0), TOO_MUCH),
    "stats: a text": (Stats, ("4", 0), TypeError),
    "stats: a fraction": (Stats, (1.5, 0), TypeError),
    "stats: read-only": (Stats, (1, 0, b"x" * 500), BufferError),
    "stats: too small": (Stats, (4, 0, bytearray(Stats.nbytes(4, 0) - 1)), ValueError),
    "stats: not aligned": (Stats, (1, 0, memoryview(bytearray(500))[1:]), ValueError),
    "buckets: no size": (TokenBuckets, (0, 1, 1), ValueError),
    "buckets: a text": (TokenBuckets, (1, "1", 1), TypeError),
    "buckets: a fraction": (TokenBuckets, (1.5, 1, 1), TypeError),
    "buckets: nothing": (TokenBuckets, (), TypeError),
    "route: no secret": (Route, (b"/", 1, (), 1), ValueError),
    "route: an empty secret": (Route, (b"/", 1, (b"",), 1), ValueError),
    "route: an empty second secret": (Route, (b"/", 1, (b"a", b""), 1), ValueError),
    "route: three secrets": (Route, (b"/", 1, (b"a", b"b", b"c"), 1), ValueError),
    "route: a text as a secret": (Route, (b"/", 1, ("a",), 1), TypeError),
    "route: a secret that is not in a tuple": (Route, (b"/", 1, b"a", 1), TypeError),
    "route: a text as a path": (Route, ("/", 1, (b"a",), 1), TypeError),
    "verdict: beyond the table": (Verdict, (1000,), IndexError),
    "gate: no ring": (Gate, (None, Stats(0, 0)), TypeError),
    "gate: no stats": (Gate, (DedupRing(1), None), TypeError),
    "gate: exchanged": (Gate, (Stats(0, 0), DedupRing(1)), TypeError),
    "gate: no row for what is at no path": (Gate, (DedupRing(1), Stats(0, 0)), ValueError),
}


@pytest.mark.parametrize("case", BAD)
def test_a_clean_error(case: str) -> None:
    cls, arguments, error = BAD[case]
    with pytest.raises(error):
        cls(*arguments)


@pytest.mark.parametrize("case", [case for case in BAD if case.startswith(("ring", "stats", "buckets"))])
def test_tried_twice_and_thrown_away(case: str) -> None:
    cls, arguments, error = BAD[case]
    for _ in range(2):
        with pytest.raises(error):
            cls(*arguments)
    gc.collect()


@pytest.mark.parametrize("wrong", [{"auth": 5}, {"chats": 5}, {"update": int}, {"update": 5}, {"max_body": "1"}])
def test_a_gates_options(wrong: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        Gate(DedupRing(1), Stats(Gate.counters(0), 0), **wrong)


# ---------------------------------------------------------------- made once, let go of


@pytest.mark.parametrize("kind", SIZED)
def test_a_second_init_changes_nothing(kind: str) -> None:
    cls, sizes = SIZED[kind]
    memory = bytearray(cls.nbytes(*sizes))
    made = cls(*sizes, memory)
    made.__init__(8, 8)
    del made
    cls(*sizes, memory)  # still whole, and of the same sizes


def test_a_subclass_that_forgets_to_init_is_whole() -> None:
    class Forgetful(TokenBuckets):
        def __init__(self, *_: int) -> None:
            return

    assert Forgetful(4, 1, 1).take(1, 0) == 0


@pytest.mark.parametrize("kind", SIZED)
def test_the_buffer_is_held_and_let_go(kind: str) -> None:
    cls, sizes = SIZED[kind]
    memory = bytearray(cls.nbytes(*sizes))
    made = cls(*sizes, memory)
    with pytest.raises(BufferError):
        memory.clear()
    del made
    memory.clear()


@pytest.mark.parametrize("kind", SIZED)
@pytest.mark.parametrize("memory", [bytearray(8), bytearray(b"x" * 20_000)], ids=["too small", "something else"])
def test_a_refused_buffer_is_let_go(kind: str, memory: bytearray) -> None:
    cls, sizes = SIZED[kind]
    memory = bytearray(memory)
    with pytest.raises(ValueError):
        cls(*sizes, memory)
    memory.clear()


def test_a_ring_that_is_damaged_lets_its_buffer_go() -> None:
    memory = bytearray(DedupRing.nbytes(4, 4))
    DedupRing(4, 4, memory)
    memoryview(memory).cast("q")[9] = 3
    with pytest.raises(ValueError):
        DedupRing(4, 4, memory)
    memory.clear()


# ---------------------------------------------------------------- misuse is an error, never a crash

MISUSE = {
    "a ring that was never made": "DedupRing.__new__(DedupRing).claim(1, 1)",
    "a ring that was never made, settle": "DedupRing.__new__(DedupRing).settle(1, 1)",
    "a ring that could not be made": "halfway(DedupRing, 4, 4, bytearray(8)).claim(1, 1)",
    "a table that was never made": "TokenBuckets.__new__(TokenBuckets).take(1, 1)",
    "a block that was never made": "Stats.__new__(Stats).counter(0)",
    "a block that could not be made": "halfway(Stats, 4, 0, bytearray(8)).counter(0)",
    "a block of 2**61 counters": "Stats(2**61, 0).add(10**9)",
    "a gate that was never made, head": "Gate.__new__(Gate).head(b'/', True, 1, b'x', None, 1)",
    "a gate that was never made, refuse": "Gate.__new__(Gate).refuse(None, 5)",
    "a ring that was never made, in a gate": "admit(Gate(DedupRing.__new__(DedupRing), stats()))",
    "statistics without a row": "[Gate(DedupRing(1), Stats(0, 0)).refuse(None, 5) for _ in range(1000)]",
    "statistics that were never made": "Gate(DedupRing(1), Stats.__new__(Stats)).refuse(None, 5)",
    "a verdict beyond the table": "gate().refuse(None, 10**6)",
    "a verdict before the table": "gate().refuse(None, -(10**6))",
    "a verdict of its own before the table": "Verdict(-(10**6))",
    "no route": "gate().body(None, b'{\"update_id\":1}', 0.0, 1)",
    "a route of another gate": "gate().body(Route(b'/', 1, (b'x',), 10**9), b'{\"update_id\":1}', 0.0, 1)",
    "no body": "admit(gate(), None)",
    "a secret that is not bytes": "g = gate(); g.add(b'/', 1, ('x',)); g.head(b'/', True, 1, b'x', None, 1)",
    "an update class that makes something else": "admit(gate(update=Impostor))",
    "the same where it is restored": "restore(Impostor, b'{\"update_id\":1}', 1, 0.0, 1)",
    "the largest value twice": "s = Stats(1, 1); s.observe(0, M); s.observe(0, M); assert s.histogram(0)[0] > 0",
    "a counter beyond its word": "s = Stats(1, 1); s.add(0, M); s.add(0, M); assert s.counter(0) > 0",
    "a clock at both ends": "b = TokenBuckets(2, 1, 2); b.take(1, M); b.take(1, M); b.take(1, -M); b.take(2, -M)",
}

PRELUDE = """
from fasthook import *
from fasthook._core import Route
from fasthook._scan import Admitted, restore
M = 2**63 - 1
class Impostor(Admitted):
    def __new__(cls):
        return object()
def halfway(cls, *arguments):
    made = cls.__new__(cls)
    try:
        made.__init__(*arguments)
    except ValueError:
        return made
def stats():
    return Stats(Gate.counters(1), 0)
def gate(**options):
    return Gate(DedupRing(4), stats(), **options)
def admit(gate, raw=b'{"update_id":1}'):
    return gate.body(gate.add(b"/", 1, (b"x",)), raw, 0.0, 1)
"""


@pytest.mark.parametrize("case", MISUSE)
def test_misuse_does_not_crash(case: str) -> None:
    """In a process of its own: an exception is well, and so is an answer; a signal is not."""
    attempt = f"{PRELUDE}\ntry:\n    {MISUSE[case]}\nexcept AssertionError:\n    raise\nexcept Exception:\n    pass\n"
    child = subprocess.run([sys.executable, "-c", attempt], capture_output=True, text=True, check=False, timeout=120)
    assert (child.returncode, child.stderr) == (0, "")
