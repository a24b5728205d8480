"""Token buckets: the rate, the burst, and who has to go when the table is full."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference
from fasthook import TokenBuckets

SECOND = 10**9
TWO_TO_61 = 2**61


def test_a_burst_then_one_an_interval(core: Any) -> None:
    buckets = core.TokenBuckets(8, SECOND, 3)
    assert (buckets.size, buckets.interval, buckets.burst, len(buckets)) == (8, SECOND, 3, 0)
    assert [buckets.take(1, 0) for _ in range(5)] == [0, 0, 0, SECOND, SECOND]
    assert buckets.take(1, SECOND - 1) == 1
    assert buckets.take(1, SECOND) == 0
    assert buckets.take(1, SECOND) == SECOND
    assert len(buckets) == 1


def test_a_refusal_costs_nothing(core: Any) -> None:
    buckets = core.TokenBuckets(8, SECOND, 1)
    buckets.take(1, 0)
    for now in range(0, SECOND, SECOND // 100):
        assert buckets.take(1, now) == SECOND - now
    assert buckets.take(1, SECOND) == 0


def test_a_bucket_holds_no_more_than_its_burst(core: Any) -> None:
    buckets = core.TokenBuckets(8, SECOND, 2)
    buckets.take(1, 0)
    later = 1000 * SECOND
    assert [buckets.take(1, later) for _ in range(3)] == [0, 0, SECOND]


def test_each_key_has_a_bucket_of_its_own(core: Any) -> None:
    buckets = core.TokenBuckets(8, SECOND, 1)
    assert [buckets.take(key, 0) for key in (1, 2, 1, 2)] == [0, 0, SECOND, SECOND]


@pytest.mark.parametrize(("key", "same"), [(-1, 2**64 - 1), (0, 2**64), (-(2**63), 2**63)])
def test_a_key_is_64_bits(core: Any, key: int, same: int) -> None:
    buckets = core.TokenBuckets(8, SECOND, 1)
    assert buckets.take(key, 0) == 0
    assert buckets.take(same, 0) == SECOND
    assert len(buckets) == 1


def test_the_bucket_closest_to_full_makes_room(core: Any) -> None:
    buckets = core.TokenBuckets(3, SECOND, 5)
    for key, taken in ((1, 3), (2, 1), (3, 2)):
        assert [buckets.take(key, key) for _ in range(taken)] == [0] * taken
    assert buckets.take(4, 10) == 0  # in the place of 2
    assert len(buckets) == 3
    assert [buckets.take(1, 10) for _ in range(3)] == [0, 0, 5 * SECOND // 5 - 9]
    assert [buckets.take(3, 10) for _ in range(4)] == [0, 0, 0, SECOND - 7]


def test_an_attacker_with_many_addresses_frees_nobody_who_is_throttled(core: Any) -> None:
    buckets = core.TokenBuckets(4, SECOND, 3)
    while buckets.take(0, 0) == 0:
        pass
    for key in range(1, 1000):
        assert buckets.take(key, 0) == 0
    assert buckets.take(0, 0) == SECOND
    assert len(buckets) == 4


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_the_table_never_grows(core: Any, size: int) -> None:
    buckets = core.TokenBuckets(size, SECOND, 1)
    for key in range(3 * size):
        assert buckets.take(key, key) == 0
        assert len(buckets) == min(key + 1, size)


def test_the_slowest_rate_there_is(core: Any) -> None:
    buckets = core.TokenBuckets(2, TWO_TO_61, 1)
    assert buckets.take(1, 0) == 0
    assert buckets.take(1, 1) == TWO_TO_61 - 1
    buckets = core.TokenBuckets(2, 1, TWO_TO_61)
    assert [buckets.take(1, 5) for _ in range(100)] == [0] * 100


@pytest.mark.parametrize(
    ("size", "interval", "burst"),
    [
        (0, 1, 1),
        (-1, 1, 1),
        (2**28 + 1, 1, 1),
        (2**70, 1, 1),
        (1, 0, 1),
        (1, -1, 1),
        (1, 1, 0),
        (1, 1, -1),
        (1, TWO_TO_61 + 1, 1),
        (1, 2**31, 2**30 + 1),
        (1, 2**70, 2**70),
    ],
)
def test_out_of_range(core: Any, size: int, interval: int, burst: int) -> None:
    with pytest.raises((ValueError, OverflowError)):
        core.TokenBuckets(size, interval, burst)


# ---------------------------------------------------------------- against the twin

MOMENTS = 400  # more than there are steps in a test
steps = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 6)), max_size=MOMENTS - 1)


def moments(pauses: list[int], unit: int) -> list[int]:
    """A clock whose readings all differ modulo the interval, which is a multiple of `unit`.

    So no two buckets are ever equally close to full: which of two equals has to go is not promised.
    """
    now, readings = 0, []
    for number, pause in enumerate(pauses):
        now += pause * unit
        readings.append(now * MOMENTS + number)
    return readings


@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 5), steps)
def test_takes_agree_with_the_twins(size: int, interval: int, burst: int, work: list[tuple[int, int]]) -> None:
    buckets = TokenBuckets(size, interval * MOMENTS, burst)
    twin = reference.TokenBuckets(size, interval * MOMENTS, burst)
    clock = moments([pause for _, pause in work], 1)
    for (key, _), now in zip(work, clock, strict=True):
        assert buckets.take(key, now) == twin.take(key, now)
        assert len(buckets) == len(twin)


@given(st.integers(1, 2**30), st.integers(1, 20), st.lists(st.integers(0, 2**31), min_size=1, max_size=100))
def test_one_bucket_at_any_moments(interval: int, burst: int, pauses: list[int]) -> None:
    buckets, twin = TokenBuckets(1, interval, burst), reference.TokenBuckets(1, interval, burst)
    now = 0
    for pause in pauses:
        now += pause
        assert buckets.take(7, now) == twin.take(7, now)


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=300), st.integers(1, 40))
def test_many_keys_that_come_and_go(keys: list[int], size: int) -> None:
    buckets, twin = TokenBuckets(size, MOMENTS, 2), reference.TokenBuckets(size, MOMENTS, 2)
    for now, key in enumerate([*keys, *reversed(keys)][:MOMENTS]):
        assert buckets.take(key, now) == twin.take(key, now)


def test_a_full_table_of_thousands_against_the_twin() -> None:
    size, keys = 300, 900
    buckets, twin = TokenBuckets(size, 10 * keys, 3), reference.TokenBuckets(size, 10 * keys, 3)
    for now in range(3 * keys):
        key = now * now % keys
        assert buckets.take(key, now) == twin.take(key, now)
