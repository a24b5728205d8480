"""Token buckets, beside a dict of tokens and times that drops its least recently used."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from itertools import count
from typing import Any

from fasthook import TokenBuckets

SIZE = 4096
INTERVAL = 10**9
BURST = 1000
ITEMS = 5000


class PlainBuckets:
    def __init__(self, size: int, interval: int, burst: int) -> None:
        self.size, self.interval, self.burst = size, interval, burst
        self.buckets: OrderedDict[int, tuple[float, int]] = OrderedDict()

    def take(self, key: int, now: int) -> float:
        tokens, at = self.buckets.get(key, (self.burst, now))
        tokens = min(self.burst, tokens + (now - at) / self.interval)
        if tokens < 1:
            return (1 - tokens) * self.interval
        self.buckets[key] = tokens - 1, now
        self.buckets.move_to_end(key)
        if len(self.buckets) > self.size:
            self.buckets.popitem(last=False)
        return 0


def take_all(buckets: Any, work: tuple[int, Iterable[int]]) -> None:
    now, keys = work
    take = buckets.take
    for key in keys:
        take(key, now)


def test_take_of_a_known_key(beside: Any) -> None:
    buckets, plain = TokenBuckets(SIZE, INTERVAL, BURST), PlainBuckets(SIZE, INTERVAL, BURST)
    rounds = count()
    keys = [number % (SIZE // 2) for number in range(ITEMS)]
    beside(
        "take, a known key",
        lambda work: take_all(buckets, work),
        lambda work: take_all(plain, work),
        prepare=lambda: (next(rounds) * INTERVAL, keys),
        items=ITEMS,
        than="OrderedDict",
    )


def test_take_of_a_new_key_from_a_full_table(beside: Any) -> None:
    buckets, plain = TokenBuckets(SIZE, INTERVAL, BURST), PlainBuckets(SIZE, INTERVAL, BURST)
    rounds = count()

    def prepare() -> tuple[int, range]:
        number = next(rounds)
        return number * INTERVAL, range(number * ITEMS, (number + 1) * ITEMS)

    beside(
        "take, a new key, table full",
        lambda work: take_all(buckets, work),
        lambda work: take_all(plain, work),
        prepare=prepare,
        items=ITEMS,
        than="OrderedDict",
    )


def test_take_that_is_refused(beside: Any) -> None:
    buckets, plain = TokenBuckets(SIZE, INTERVAL, 1), PlainBuckets(SIZE, INTERVAL, 1)
    keys = [number % SIZE for number in range(ITEMS)]
    for each in (buckets, plain):
        take_all(each, (0, keys))
    beside(
        "take, refused",
        lambda work: take_all(buckets, work),
        lambda work: take_all(plain, work),
        prepare=lambda: (1, keys),
        items=ITEMS,
        than="OrderedDict",
    )
