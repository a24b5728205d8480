"""Which of a journal's waiting updates are in memory, where they are those of several bots.

Each bot has a window of its own, as large as what it has in memory and what `Shares` would give it now, and its own
place on the disk up to which it has read. So a bot that has its places full waits alone: what came for the others
behind it is read all the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from fasthook._core import Shares
from fasthook.queues.window import SLICE, Get, Lane, Read, Window
from fasthook.update import Update


class SharedWindow:
    """Stands where one bot has a `Window`, and is told the same. `shares`: the places of all, as many as there are."""

    def __init__(
        self, shares: Shares, share: int, read: Read, get: Get, give: Callable[[int, Update, bytes | None], None]
    ) -> None:
        self._share = share
        self._read = read
        self._get = get
        self._give = give
        self._shares = shares
        self._windows: dict[int, Window] = {}
        self._late: dict[int, Window] = {}  # those for which there is something on disk that they have not read
        self._starved: dict[int, Window] = {}
        self._reading: dict[int, Window] = {}  # those that are filled by a scan that goes on
        self._paused = False
        self.inside = 0
        self.scanned = 0  # the number up to which was read last
        self.gone: set[int] = set()
        self.feed()

    def feed(self) -> None:
        """Other bots share the places now. What is on disk for those that are new was not read."""
        for bot in self._shares.bots:
            if bot not in self._windows:
                self._add(bot)
        self._feed()

    def _add(self, bot: int) -> Window:
        def give(number: int, update: Update, record: bytes | None) -> None:
            self._shares.force(bot)
            self.inside += 1
            self._give(number, update, record)

        self._windows[bot] = window = Window(0, self._share, self._read, self._get, give)
        window.gone, window.paused, window.behind = self.gone, self._paused, True
        self._late[bot] = window
        return window

    def _sized(self, bot: int, window: Window) -> Window:
        """The window as large as it may be now."""
        window.size = window.inside + max(0, min(self._shares.room(bot), self._shares.size - self.inside))
        return window

    def offer(self, number: int, update: Update, record: bytes | None = None) -> None:
        bot = update.bot_id
        window = self._windows.get(bot) or self._add(bot)
        self._sized(bot, window).offer(number, update, record)
        if window.behind:
            self._late[bot] = window

    def left(self, lane: Lane) -> None:
        bot = lane[0]
        window = self._windows[bot]
        self.inside -= 1
        self._shares.leave(bot)
        self._sized(bot, window)
        window.size -= 1  # the window has not left it yet
        window.left(lane)
        if window.starves:
            self._starved[bot] = window
        if self._starved:
            self._feed()

    def _feed(self) -> None:
        for bot, window in list(self._starved.items()):
            if not self._paused:
                self._sized(bot, window).feed()
            if not window.starves:
                del self._starved[bot]

    def go_on(self) -> None:
        self._paused = False
        for bot, window in self._windows.items():
            self._sized(bot, window).go_on()
            if window.starves:
                self._starved[bot] = window

    @property
    def paused(self) -> bool:
        return self._paused

    @paused.setter
    def paused(self, paused: bool) -> None:
        self._paused = paused
        for window in self._windows.values():
            window.paused = paused

    @property
    def behind(self) -> bool:
        """There is something on disk that was not read for one of them."""
        return bool(self._late)

    @behind.setter
    def behind(self, behind: bool) -> None:
        for window in self._windows.values():
            window.behind = behind
        self._late = dict(self._windows) if behind else {}
        self._reading.clear()

    @property
    def wants(self) -> bool:
        return any(self._wants(bot, window) for bot, window in self._late.items())

    def _wants(self, bot: int, window: Window) -> bool:
        self._sized(bot, window)
        return window.size > 0 and window.wants

    def scan(self, last: int) -> bool:
        """One pass for all bots that want more; who is full, or has read it all, takes no part in it any more."""
        if self._paused:
            self._reading.clear()
            return False
        for bot, window in self._late.items():
            if bot not in self._reading and self._wants(bot, window):
                self._reading[bot] = window
        if not self._reading:
            return False
        self.scanned = min(window.scanned for window in self._reading.values())
        with contextlib.closing(self._read(self.scanned)) as rows:
            more = self._take_in(rows, last)
        if more:
            for window in self._reading.values():
                window.scanned = max(window.scanned, self.scanned)
            return True
        for bot, window in self._reading.items():
            window.scanned = max(window.scanned, self.scanned)
            window.behind = False
            del self._late[bot]
        self._reading.clear()
        return False

    def _take_in(self, rows: Any, last: int) -> bool:
        """A slice of the rows. False: there are no more, or nobody who takes them."""
        seen = 0
        for number, record, update in rows:
            if number > last or not self._reading:
                break
            if seen >= SLICE:
                return True
            seen += 1
            self.scanned = number
            if update is None:
                continue
            bot = update.bot_id
            window = self._reading.get(bot)
            if window is None or number <= window.scanned:
                continue
            if self._sized(bot, window).full:
                del self._reading[bot]  # and reads on from where it is
            else:
                window.take_in(number, update, record)
        return False
