"""Which updates of several bots are in memory: nothing is lost, no order is broken, no bot's own places are taken."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Generator

import pytest

from fasthook import Update
from fasthook._core import Shares
from fasthook._scan import restore
from fasthook.queues.window import Lane, Window
from fasthook.testing import samples

SIZE, SHARE, BOTS = 6, 3, (1, 2, 3)


class Disk:
    """What waits, by number, and a window over it; `given` is what came out, in order."""

    def __init__(self, bots: tuple[int, ...] = BOTS) -> None:
        self.waiting: dict[int, Update] = {}
        self.inside: dict[int, Update] = {}
        self.given: dict[Lane, list[int]] = defaultdict(list)
        self.last = 0
        self.shares = Shares(SIZE, bots)
        self.window = Window(SIZE, SHARE, self._read, self._get, self._give, self.shares)

    def put(self, bot: int, chat: int) -> None:
        self.last += 1
        update = restore(Update, samples.update(self.last, chat_id=chat, user_id=chat), bot, 1.5, 1)
        self.waiting[self.last] = update
        self.window.offer(self.last, update)

    def settle(self, number: int) -> None:
        update = self.inside.pop(number)
        del self.waiting[number]
        self.window.gone.discard(number)
        left = len(self.inside)
        self.window.left(update.lane)
        self._scan()
        assert not self.window.paused or len(self.inside) == left

    def go_on(self) -> None:
        self.window.go_on()
        self._scan()

    def _scan(self) -> None:
        while self.window.wants and self.window.scan(self.last):
            pass

    def count(self, bot: int) -> int:
        return sum(update.bot_id == bot for update in self.inside.values())

    def _read(self, behind: int) -> Generator[tuple[int, bytes, Update | None], None, None]:
        yield from ((number, b"", self.waiting[number]) for number in sorted(self.waiting) if number > behind)

    def _get(self, number: int) -> tuple[bytes, Update] | None:
        return (b"", self.waiting[number]) if number in self.waiting else None

    def _give(self, number: int, update: Update, record: bytes | None) -> None:
        self.inside[number] = update
        self.given[update.lane].append(number)


@pytest.mark.parametrize("seed", range(30))
def test_all_come_out_once_and_in_order(seed: int) -> None:
    chosen = random.Random(seed)
    disk, expected = Disk(), defaultdict[Lane, list[int]](list)
    for _ in range(300):
        if chosen.random() < 0.6:
            lane = chosen.choices(BOTS, (8, 1, 1))[0], chosen.randint(1, 10)
            disk.put(*lane)
            expected[lane].append(disk.last)
        elif disk.inside:
            disk.settle(chosen.choice(sorted(disk.inside)))
        if chosen.random() < 0.05:
            disk.window.paused = True
        elif disk.window.paused and chosen.random() < 0.2:
            disk.go_on()
        assert len(disk.inside) == disk.window.inside <= SIZE
        assert all(disk.count(bot) <= SIZE - 2 * disk.shares.each for bot in BOTS)
    disk.go_on()
    while disk.inside:
        disk.settle(min(disk.inside))
    assert not disk.waiting
    assert disk.given == expected


def test_a_flood_of_many_chats_leaves_the_others_their_places() -> None:
    disk = Disk()
    for chat in range(1, 101):
        disk.put(1, chat)
    assert disk.count(1) == SIZE - 2 * disk.shares.each
    for bot in (2, 3):
        for chat in range(1, 4):
            disk.put(bot, chat)
    assert (disk.count(2), disk.count(3)) == (disk.shares.each, disk.shares.each)


def test_what_waits_for_a_bot_that_there_is_not() -> None:
    disk = Disk(bots=(1,))
    for chat in range(1, 4):
        disk.put(2, chat)
        disk.put(1, chat)
    assert (disk.count(1), disk.count(2)) == (3, 0)
    disk.shares.set_bots((1, 2))
    disk.window.feed()
    assert (disk.count(1), disk.count(2)) == (3, 3)
