"""Counters and latency histograms in memory that two can see."""

from __future__ import annotations

import ctypes
import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference
from fasthook import Stats

MICROSECOND, SECOND = 10**3, 10**9
LONGEST = 100 * SECOND
LAST_BOUND = 2**37  # ns: what is above counts in the last bucket
nanoseconds = st.integers(MICROSECOND, LONGEST) | st.floats(3, 11).map(lambda power: int(10**power))


# ---------------------------------------------------------------- counters


def test_counters_count(core: Any) -> None:
    stats = core.Stats(3, 0)
    stats.add(0)
    stats.add(2, 40)
    stats.add(2, 2)
    assert [stats.counter(counter) for counter in range(3)] == [1, 0, 42]
    assert (stats.counters, stats.histograms) == (3, 0)


@pytest.mark.parametrize("number", [-1, 3, 2**62])
def test_there_is_no_such_counter(core: Any, number: int) -> None:
    stats = core.Stats(3, 3)
    for method in (stats.add, stats.counter, stats.histogram):
        with pytest.raises(IndexError):
            method(number)
    with pytest.raises(IndexError):
        stats.observe(number, 1)
    with pytest.raises(IndexError):
        stats.quantile(number, 0.5)


# ---------------------------------------------------------------- histograms


def test_a_histogram_tells_the_sum_and_its_buckets(core: Any) -> None:
    stats = core.Stats(0, 2)
    for ns in (1, 511, 512, 543, 544, LAST_BOUND - 1, LAST_BOUND, 2**50):
        stats.observe(1, ns)
    total, counts = stats.histogram(1)
    assert total == 1 + 511 + 512 + 543 + 544 + 2 * LAST_BOUND - 1 + 2**50
    assert counts == [(512, 2), (544, 2), (576, 1), (LAST_BOUND, 1), (2**63 - 1, 2)]
    assert stats.histogram(0) == (0, [])


def test_a_clock_that_went_back_counts_as_nothing(core: Any) -> None:
    stats = core.Stats(0, 1)
    stats.observe(0, -5)
    assert stats.histogram(0) == (0, [(512, 1)])


def test_no_value_has_no_quantile(core: Any) -> None:
    assert core.Stats(0, 1).quantile(0, 0.5) is None


@pytest.mark.parametrize("q", [-0.1, 1.1, math.nan, math.inf])
def test_a_quantile_is_a_share(core: Any, q: float) -> None:
    with pytest.raises(ValueError):
        core.Stats(0, 1).quantile(0, q)


@pytest.mark.parametrize("ns", [1000, 1001, 1023, 1024, 2047, 2048, 10**6, SECOND, LONGEST - 1, LONGEST])
@pytest.mark.parametrize("q", [0, 0.5, 1])
def test_one_value_within_five_percent(core: Any, ns: int, q: float) -> None:
    stats = core.Stats(0, 1)
    stats.observe(0, ns)
    assert stats.quantile(0, q) == pytest.approx(ns, rel=0.05)


@pytest.mark.parametrize("ns", [MICROSECOND, 1023])
def test_a_microsecond_within_five_percent(ns: int) -> None:
    stats = Stats(0, 1)
    stats.observe(0, ns)
    assert stats.quantile(0, 0.5) == pytest.approx(ns, rel=0.05)


@given(st.lists(nanoseconds.filter(lambda ns: ns >= 1000), min_size=1, max_size=50), st.floats(0, 1))
def test_quantiles_within_five_percent(values: list[int], q: float) -> None:
    stats = Stats(0, 1)
    for ns in values:
        stats.observe(0, ns)
    rank = next(rank for rank in range(1, len(values) + 1) if rank >= q * len(values))
    assert stats.quantile(0, q) == pytest.approx(sorted(values)[rank - 1], rel=0.05)


def test_many_values_within_five_percent() -> None:
    rng = random.Random(23)
    values = sorted(int(rng.lognormvariate(12, 3)) for _ in range(20_000))
    stats = Stats(0, 1)
    for ns in values:
        stats.observe(0, ns)
    for q in (0.25, 0.5, 0.9, 0.99, 0.999):
        assert stats.quantile(0, q) == pytest.approx(values[math.ceil(q * len(values)) - 1], rel=0.05)


@pytest.mark.parametrize(("ns", "said"), [(0, 256.0), (5, 256.0), (LAST_BOUND, 2.0**37), (2**62, 2.0**37)])
def test_what_is_below_or_above_counts_in_the_first_or_last_bucket(core: Any, ns: int, said: float) -> None:
    stats = core.Stats(0, 1)
    stats.observe(0, ns)
    assert stats.quantile(0, 0.5) == said


any_ns = st.integers(-10, 2**45) | st.integers(1000, 1100) | st.sampled_from([2**37 - 1, 2**37, 2**53])


@given(st.lists(any_ns, max_size=60), st.floats(0, 1))
def test_histograms_agree_with_the_twins(values: list[int], q: float) -> None:
    stats, twin = Stats(1, 1), reference.Stats(1, 1)
    for ns in values:
        stats.observe(0, ns)
        twin.observe(0, ns)
    assert stats.histogram(0) == twin.histogram(0)
    assert stats.quantile(0, q) == twin.quantile(0, q)


@pytest.mark.parametrize("power", range(10, 38))
def test_every_bucket_has_the_bounds_it_tells(power: int) -> None:
    for bound in range(2**power, 2 ** (power + 1), 2 ** (power - 4)):
        below, at = Stats(0, 1), Stats(0, 1)
        below.observe(0, bound - 1)
        at.observe(0, bound)
        last = bound > LAST_BOUND
        assert below.histogram(0)[1] == [(2**63 - 1 if last else bound, 1)]
        assert at.histogram(0) == reference_histogram(bound)


def reference_histogram(ns: int) -> tuple[int, list[tuple[int, int]]]:
    twin = reference.Stats(0, 1)
    twin.observe(0, ns)
    return twin.histogram(0)


# ---------------------------------------------------------------- memory that another sees


def test_two_see_the_same(core: Any) -> None:
    memory = bytearray(core.Stats.nbytes(2, 2))
    writer, reader = core.Stats(2, 2, memory), core.Stats(2, 2, memory)
    writer.add(1, 5)
    writer.observe(1, 5000)
    assert reader.counter(1) == 5
    assert reader.histogram(1) == writer.histogram(1) == (5000, [(5120, 1)])
    assert (reader.counter(0), reader.histogram(0)) == (0, (0, []))


def test_counts_go_on(core: Any) -> None:
    memory = bytearray(core.Stats.nbytes(1, 0))
    for n in range(1, 4):
        stats = core.Stats(1, 0, memory)
        stats.add(0)
        assert stats.counter(0) == n


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2**40)), max_size=40),
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 2**40)), max_size=40),
)
def test_the_bytes_agree_with_the_twins(added: list[tuple[int, int]], observed: list[tuple[int, int]]) -> None:
    memory, other = bytearray(Stats.nbytes(3, 2)), bytearray(Stats.nbytes(3, 2))
    stats, twin = Stats(3, 2, memory), reference.Stats(3, 2, other)
    for counter, n in added:
        stats.add(counter, n)
        twin.add(counter, n)
    for histogram, ns in observed:
        stats.observe(histogram, ns)
        twin.observe(histogram, ns)
    assert memory == other


def test_memory_that_ends_where_the_block_ends() -> None:
    """For the sanitizer: the last bucket of the last histogram is the last word there is."""
    memory = (ctypes.c_int64 * (Stats.nbytes(3, 2) // 8))()
    stats = Stats(3, 2, memory)
    for ns in (0, 5000, LAST_BOUND - 1, LAST_BOUND, 2**62):
        stats.observe(1, ns)
    assert memory[len(memory) - 1] == 2
    assert stats.histogram(1)[1][-1] == (2**63 - 1, 2)


@pytest.mark.parametrize(("counters", "histograms"), [(2, 1), (3, 2), (1, 1), (3, 0)])
def test_other_sizes_are_refused(core: Any, counters: int, histograms: int) -> None:
    memory = bytearray(10 * core.Stats.nbytes(3, 3))
    core.Stats(3, 1, memory)
    with pytest.raises(ValueError):
        core.Stats(counters, histograms, memory)


def test_something_else_is_refused(core: Any) -> None:
    memory = bytearray(core.Stats.nbytes(3, 1))
    memory[:8] = b"FHRING1\0"
    with pytest.raises(ValueError):
        core.Stats(3, 1, memory)
