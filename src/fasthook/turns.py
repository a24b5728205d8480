"""Ready lanes of several bots: the bots take turns, and none takes the places that are another's."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from fasthook._core import Shares

if TYPE_CHECKING:
    from fasthook.lanes import Lane


class Turns:
    """Stands where one bot has a plain deque of ready lanes.

    `shares`: places in handlers, of which a lane takes one with `popleft` and leaves it with `left`; None where they
    are counted elsewhere. Lanes of a bot that is not among `bots` wait until it is.
    """

    def __init__(self, bots: Iterable[int], shares: Shares | None = None) -> None:
        self._shares = shares
        self._waiting: dict[int, deque[Lane]] = {}  # by bot, who is next first
        self.set_bots(bots)

    def set_bots(self, bots: Iterable[int]) -> None:
        """From now on there are these."""
        self.bots = frozenset(bots)
        if self._shares is not None:
            self._shares.set_bots(self.bots)

    def append(self, lane: Lane) -> None:
        self._of(lane).append(lane)

    def appendleft(self, lane: Lane) -> None:
        self._of(lane).appendleft(lane)

    def extendleft(self, lanes: Iterable[Lane]) -> None:
        for lane in lanes:
            self.appendleft(lane)

    def remove(self, lane: Lane) -> None:
        """ValueError: it is not there."""
        waiting = self._of(lane)
        waiting.remove(lane)
        if not waiting:
            del self._waiting[lane.bot]

    def popleft(self) -> Lane:
        """The next lane that may go. IndexError: there is none."""
        for bot in self._waiting:
            if self._may(bot):
                break
        else:
            raise IndexError("no lane may go")
        waiting = self._waiting.pop(bot)
        lane = waiting.popleft()
        if waiting:
            self._waiting[bot] = waiting  # behind the others
        if self._shares is not None:
            self._shares.take(bot)
        return lane

    def left(self, lane: Lane) -> None:
        """A lane that was given out is out of its handler."""
        if self._shares is not None:
            self._shares.leave(lane.bot)

    def __bool__(self) -> bool:
        """Whether a lane may go."""
        return any(self._may(bot) for bot in self._waiting)

    def __contains__(self, lane: Lane) -> bool:
        return lane in self._waiting.get(lane.bot, ())

    def __iter__(self) -> Iterator[Lane]:
        for waiting in self._waiting.values():
            yield from waiting

    @property
    def shut_out(self) -> int:
        """Lanes of bots that there are not."""
        return sum(len(waiting) for bot, waiting in self._waiting.items() if bot not in self.bots)

    def _may(self, bot: int) -> bool:
        return self._shares.has_room(bot) if self._shares is not None else bot in self.bots

    def _of(self, lane: Lane) -> deque[Lane]:
        waiting = self._waiting.get(lane.bot)
        if waiting is None:
            waiting = self._waiting[lane.bot] = deque()
        return waiting
