"""Which updates of several bots are in memory: nothing is lost, no order is broken, no bot's own places are taken."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Generator

import pytest

from fasthook import Update
from fasthook._core import Shares
from fasthook._scan import restore
from fasthook.queues.shared_window import SharedWindow
from fasthook.queues.window import Lane, Window
from fasthook.testing import samples

SIZE, SHARE, BOTS = 6, 3, (1, 2, 3)


class Disk:
    """What waits, by number, and a window over it; `given` is what came out, in order."""

    def __init__(
        self, bots: tuple[int, ...] = BOTS, *, alone: bool = False, size: int = SIZE, share: int = SHARE
    ) -> None:
        self.waiting: dict[int, Update] = {}
        self.inside: dict[int, Update] = {}
        self.given: dict[Lane, list[int]] = defaultdict(list)
        self.last = 0
        self.shares = Shares(size, bots)
        ways = share, self._read, self._get, self._give
        self.window = Window(size, *ways) if alone else SharedWindow(self.shares, *ways)
        self.window.behind = False
        self.read = 0

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

    def settle_all(self) -> None:
        while self.inside:
            self.settle(min(self.inside))

    def go_on(self) -> None:
        self.window.go_on()
        self._scan()

    def set_bots(self, *bots: int) -> None:
        self.shares.set_bots(bots)
        self.window.feed()
        self._scan()

    def _scan(self) -> None:
        if self.window.wants:
            while self.window.scan(self.last):
                pass

    def count(self, bot: int) -> int:
        return sum(update.bot_id == bot for update in self.inside.values())

    def _read(self, behind: int) -> Generator[tuple[int, bytes, Update | None], None, None]:
        for number in sorted(self.waiting):
            if number > behind:
                self.read += 1
                yield number, b"", self.waiting[number]

    def _get(self, number: int) -> tuple[bytes, Update] | None:
        return (b"", self.waiting[number]) if number in self.waiting else None

    def _give(self, number: int, update: Update, record: bytes | None) -> None:
        self.inside[number] = update
        self.given[update.lane].append(number)


@pytest.mark.parametrize("bots", [(1,), BOTS])
@pytest.mark.parametrize("seed", range(30))
def test_all_come_out_once_and_in_order(seed: int, bots: tuple[int, ...]) -> None:
    """Whoever comes, goes, pauses; with several bots their number changes, too."""
    chosen = random.Random(seed)
    disk, expected = Disk(bots, alone=len(bots) == 1), defaultdict[Lane, list[int]](list)
    for _ in range(300):
        if chosen.random() < 0.6:
            lane = chosen.choices(bots, (8, 1, 1)[: len(bots)])[0], chosen.randint(1, 10)
            disk.put(*lane)
            expected[lane].append(disk.last)
        elif disk.inside:
            disk.settle(chosen.choice(sorted(disk.inside)))
        if chosen.random() < 0.05:
            disk.window.paused = True
        elif disk.window.paused and chosen.random() < 0.2:
            disk.go_on()
        if len(bots) > 1 and seed % 2 and chosen.random() < 0.05:
            disk.set_bots(*chosen.sample(bots, chosen.randint(1, 3)))
        assert len(disk.inside) == disk.window.inside <= SIZE
        assert seed % 2 or len(bots) == 1 or all(disk.count(bot) <= SIZE - 2 * disk.shares.each for bot in bots)
    disk.set_bots(*bots)
    disk.go_on()
    disk.settle_all()
    assert not disk.waiting
    assert disk.given == expected


def test_what_comes_while_all_is_full_waits_for_its_own_bot_only() -> None:
    """One holds its part and the common one and settles nothing; who has filled its own goes on all the same."""
    disk = Disk()
    for chat in range(1, 101):
        disk.put(1, chat)
    for chat in range(1, 31):
        for bot in (2, 3):
            disk.put(bot, chat)
    while mine := [number for number, update in disk.inside.items() if update.bot_id != 1]:
        disk.settle(min(mine))
    assert len(disk.waiting) == 100
    assert disk.count(1) == SIZE - 2 * disk.shares.each


def test_a_restart_behind_anothers_backlog() -> None:
    """The first bot's window is full of what the disk has first; the others' is found behind it, in one pass."""
    disk, alone = Disk(bots=()), 3000
    for chat in range(alone):
        disk.put(1, chat)
    for bot in (2, 3):
        disk.put(bot, 1)
    disk.set_bots(*BOTS)
    assert [disk.count(bot) for bot in BOTS] == [4, 1, 1]
    assert disk.read < 1.1 * alone


def test_held_numbers_of_one_bot_do_not_keep_another_from_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fasthook.queues.window._MOST_NUMBERS", 10)
    disk = Disk(bots=())
    for _ in range(50):
        disk.put(1, 1)
    disk.put(2, 1)
    disk.set_bots(1, 2)
    assert disk.count(2) == 1


def test_a_chat_that_gets_nothing_after_a_pause() -> None:
    """More chats than there is room for wait with their numbers known: none of them is forgotten."""
    disk = Disk((1,), alone=True, size=101, share=32)
    for chat in range(1, 6):
        for _ in range(33):
            disk.put(1, chat)
        for number in list(disk.inside)[-15:] if chat < 5 else []:
            disk.settle(number)
    for chat in range(1, 6):
        for _ in range(40):
            disk.put(1, chat)
    disk.window.paused = True
    disk.settle_all()
    disk.go_on()
    assert {update.chat_id for update in disk.inside.values()} == {1, 2, 3, 4}
    disk.settle_all()
    assert not disk.waiting


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
    disk.set_bots(1, 2)
    assert (disk.count(1), disk.count(2)) == (3, 3)
