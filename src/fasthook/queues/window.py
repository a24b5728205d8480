"""Which of a journal's waiting updates are in memory.

At most `size` are, and at most `share` of one lane, so that a flood in one chat leaves room for the others: what a lane
has beyond its share stays on disk, and only its numbers are known here. Several bots share the memory in the same way.
The order within a lane is that of the numbers, whatever is in memory.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator

from fasthook._core import Shares
from fasthook.update import Update

Lane = tuple[int, int]
Read = Callable[[int], Generator[tuple[int, bytes, Update | None], None, None]]
Get = Callable[[int], tuple[bytes, Update] | None]

_SLICE = 500  # updates that are read before the loop has its turn
_MOST_NUMBERS = 1_000_000  # of lanes beyond their share; what comes behind waits until there are fewer


class Window:
    """`read(behind)`: the waiting updates behind a number, None for one that cannot be read. `get(number)`: one of
    them, None if it is not there. `give`: takes an update into memory, with its record if it comes from disk. `shares`:
    the places of several bots.
    """

    def __init__(
        self,
        size: int,
        share: int,
        read: Read,
        get: Get,
        give: Callable[[int, Update, bytes | None], None],
        shares: Shares | None = None,
    ) -> None:
        self._size = size
        self._share = share
        self._read = read
        self._get = get
        self._give = give
        self._lanes: dict[Lane, int] = {}  # how many updates of a lane are in memory
        self._held: dict[Lane, deque[int]] = {}  # the numbers of those that are beyond its share
        self._numbers = 0  # how many such there are
        self._shares = shares
        self._starved: dict[int, deque[Lane]] = {}  # by bot, lanes of which nothing is in memory for want of its room
        self.inside = 0  # updates in memory
        self.scanned = 0  # the number up to which each update is inside, held or gone
        self.paused = False  # nothing is taken in from the disk
        self.behind = False  # there are updates beyond that number
        self.gone: set[int] = set()  # inside, or out of the queue and still on disk: not to be taken in again

    def offer(self, number: int, update: Update, record: bytes | None = None) -> None:
        """An update that has got the highest number is on disk. `record`: it was handled before."""
        if number <= self.scanned:
            return
        if self.behind or self.inside >= self._size:
            self.behind = True
            return
        self.scanned = number
        self._place(number, update, record)

    def left(self, lane: Lane) -> None:
        """An update of this lane is not in memory any more."""
        self.inside -= 1
        count = self._lanes[lane] - 1
        if count:
            self._lanes[lane] = count
        else:
            del self._lanes[lane]
        if self._shares is not None:
            self._shares.leave(lane[0])
            self.feed()
            count = self._lanes.get(lane, 0)
        if self._held and count <= self._share // 2 and lane in self._held and not self.paused:
            self._take_held(lane, count)

    def feed(self) -> None:
        """Take in what waits for room of its bot, as far as there is some."""
        if self._shares is None or self.paused:
            return
        for bot in list(self._starved):
            lanes = self._starved.pop(bot)
            while lanes and self.inside < self._size and self._shares.has_room(bot):
                lane = lanes.popleft()
                if lane in self._held and lane not in self._lanes:
                    self._take_held(lane, 0)
            if lanes:
                self._starved[bot] = lanes + self._starved.pop(bot, deque())

    def go_on(self) -> None:
        """Take in what was not taken in during a pause, as far as it is known by its number."""
        self.paused = False
        self._starved.clear()  # who gets nothing now is among them again
        for lane in list(self._held):
            self._take_held(lane, self._lanes.get(lane, 0))

    @property
    def wants(self) -> bool:
        """There is more on disk, and room for it."""
        return self.behind and not self.paused and self.inside <= self._size // 2 and self._numbers < _MOST_NUMBERS

    def scan(self, last: int) -> bool:
        """Take in what is on disk up to a number, a slice of it. Whether there is more to take in at once."""
        seen = 0
        if self.paused:
            return False
        with contextlib.closing(self._read(self.scanned)) as rows:
            for number, record, update in rows:
                if number > last:
                    break  # of a commit that is on disk, and not yet told of: it will be offered
                if self.inside >= self._size or self._numbers >= _MOST_NUMBERS:
                    return False
                if seen >= _SLICE:
                    return True
                seen += 1
                self.scanned = number
                if update is not None and number not in self.gone:
                    self._place(number, update, record)
        self.behind = False
        return False

    def _place(self, number: int, update: Update, record: bytes | None) -> None:
        lane = update.lane
        count = self._lanes.get(lane, 0)
        if (
            count < self._share
            and not (self._held and lane in self._held)
            and (self._shares is None or self._shares.take(lane[0]))
        ):
            self._lanes[lane] = count + 1
            self.inside += 1
            self.gone.add(number)
            self._give(number, update, record)
            return
        held = self._held.get(lane)
        if held is None:
            self._held[lane] = held = deque()
            if not count and self._shares is not None:
                self._starve(lane)
        held.append(number)
        self._numbers += 1

    def _starve(self, lane: Lane) -> None:
        self._starved.setdefault(lane[0], deque()).append(lane)

    def _take_held(self, lane: Lane, count: int) -> None:
        held = self._held[lane]
        while held and count < self._share and self.inside < self._size:
            number = held[0]
            found = None if number in self.gone else self._get(number)
            if found is not None and self._shares is not None and not self._shares.take(lane[0]):
                break
            held.popleft()
            self._numbers -= 1
            if found is not None:
                count += 1
                self._lanes[lane] = count
                self.inside += 1
                self.gone.add(number)
                self._give(number, found[1], found[0])
        if not held:
            del self._held[lane]
        elif not count and self._shares is not None:
            self._starve(lane)
