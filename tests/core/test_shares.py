"""`Shares` beside a slow twin, and the promises that it makes whatever happens."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fasthook._core import Shares


class Twin:
    """The rule, written out."""

    def __init__(self, size: int, bots: set[int]) -> None:
        self.size, self.bots, self.taken = size, bots, Counter[int]()

    def take(self, bot: int) -> bool:
        each = max(1, self.size // (2 * len(self.bots))) if self.bots else 0
        common = self.size - each * len(self.bots)
        beyond = sum(max(0, count - (each if one in self.bots else 0)) for one, count in self.taken.items())
        may = bot in self.bots and (self.taken[bot] < each or beyond < common)
        self.taken[bot] += may
        return may

    def leave(self, bot: int) -> None:
        self.taken[bot] = max(0, self.taken[bot] - 1)


BOT = st.integers(1, 4)
STEPS = st.lists(
    st.one_of(st.tuples(st.sampled_from(["take", "leave"]), BOT), st.tuples(st.just("bots"), st.sets(BOT)))
)


@given(st.integers(4, 30), st.sets(BOT), STEPS)
def test_as_the_twin(size: int, bots: set[int], steps: list[tuple[str, int | set[int]]]) -> None:
    shares, twin = Shares(size, bots), Twin(size, bots)
    for what, value in steps:
        if isinstance(value, set):
            shares.set_bots(value)
            twin.bots = value
        elif what == "take":
            assert shares.take(value) is twin.take(value)
        else:
            shares.leave(value)
            twin.leave(value)
        assert [shares.taken(bot) for bot in range(1, 5)] == [twin.taken[bot] for bot in range(1, 5)]


@pytest.mark.parametrize(("size", "bots", "each"), [(256, 2, 64), (2, 2, 1), (7, 3, 1), (10, 1, 5)])
def test_no_flood_takes_what_is_anothers(size: int, bots: int, each: int) -> None:
    shares = Shares(size, range(bots))
    assert shares.each == each
    while shares.take(0):
        pass
    assert shares.taken(0) == size - each * (bots - 1)
    for bot in range(1, bots):
        assert [shares.take(bot) for _ in range(each + 1)] == [True] * each + [False]
    assert sum(shares.taken(bot) for bot in range(bots)) == size


def test_more_bots_than_places() -> None:
    with pytest.raises(ValueError, match="3 bots cannot share 2 places"):
        Shares(2, range(3))
