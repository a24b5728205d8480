"""The duplicate ring, beside an OrderedDict that drops its oldest."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest

from fasthook import DedupRing

BOT = 42
CAPACITY = 65_536  # the default of --dedup-size
ITEMS = 5000
GOAL = "60 ns"


class PlainRing:
    """What a careful bot author writes: bounded, with a state for what is still in flight."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.seen: OrderedDict[tuple[int, int], bool] = OrderedDict()

    def claim(self, bot: int, update_id: int) -> int:
        key = bot, update_id
        done = self.seen.get(key)
        if done is not None:
            return 2 if done else 1
        self.seen[key] = False
        if len(self.seen) > self.capacity:
            self.seen.popitem(last=False)
        return 0

    def settle(self, bot: int, update_id: int) -> None:
        self.seen[bot, update_id] = True


@pytest.fixture
def rings() -> tuple[DedupRing, PlainRing]:
    """Both full, so that each new id pushes an old one out."""
    ring, plain = DedupRing(CAPACITY), PlainRing(2 * CAPACITY)
    for update_id in range(2 * CAPACITY):
        for each in (ring, plain):
            each.claim(BOT, update_id)
            each.settle(BOT, update_id)
    return ring, plain


def new_ids() -> Iterator[range]:
    return (range(first, first + ITEMS) for first in count(2 * CAPACITY, ITEMS))


def claim_all(ring: Any, ids: range) -> None:
    claim = ring.claim
    for update_id in ids:
        claim(BOT, update_id)


def claim_and_settle_all(ring: Any, ids: range) -> None:
    claim, settle = ring.claim, ring.settle
    for update_id in ids:
        claim(BOT, update_id)
        settle(BOT, update_id)


def test_claim_new(beside: Any, rings: tuple[DedupRing, PlainRing]) -> None:
    ring, plain = rings
    ids = new_ids()
    last = range(0)

    def prepare() -> range:
        nonlocal last
        for update_id in last:
            ring.settle(BOT, update_id)
        last = next(ids)
        return last

    beside(
        "claim, new",
        lambda ids: claim_all(ring, ids),
        lambda ids: claim_all(plain, ids),
        prepare=prepare,
        items=ITEMS,
        than="OrderedDict",
        goal=GOAL,
    )


def test_claim_duplicate(beside: Any, rings: tuple[DedupRing, PlainRing]) -> None:
    ring, plain = rings
    beside(
        "claim, duplicate",
        lambda ids: claim_all(ring, ids),
        lambda ids: claim_all(plain, ids),
        prepare=lambda: range(CAPACITY, CAPACITY + ITEMS),
        items=ITEMS,
        than="OrderedDict",
        goal=GOAL,
    )


def test_claim_and_settle(beside: Any, rings: tuple[DedupRing, PlainRing]) -> None:
    ring, plain = rings
    ids = new_ids()
    beside(
        "claim and settle, new",
        lambda ids: claim_and_settle_all(ring, ids),
        lambda ids: claim_and_settle_all(plain, ids),
        prepare=lambda: next(ids),
        items=ITEMS,
        than="OrderedDict",
    )
