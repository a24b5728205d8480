"""Lanes: the updates of each chat, in order, and what follows when one was handled or has failed.

*How* an update is handled is not known here: `dispatch.py` does it in this loop, `workers.py` in other processes.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any

from fasthook.queues import Delivery
from fasthook.turns import Turns
from fasthook.update import Update, fields
from fasthook.wording import one_line

log = logging.getLogger("fasthook.dispatch")

Reply = Callable[[Update, Any], Awaitable[None] | None]

_FIRST_RETRY = 1.0  # seconds; each further one waits twice as long
_LAST_RETRY = 60.0


class GaveUp(Exception):
    """A failure that no second try can mend. `reason`: what the dead letter says."""

    def __init__(self, message: str, reason: str = "failed") -> None:
        super().__init__(message)
        self.reason = reason


class RunsOn(GaveUp):
    """A run that was to end and cannot be stopped: its thread goes on."""


class Reported(Exception):
    """A failure in another process.

    `line`: the error in one line. `reason`: what the dead letter says. `final`: no second try can mend it. `trace`: its
    traceback, as text.
    """

    def __init__(self, *, line: str, reason: str, final: bool, trace: str) -> None:
        super().__init__(line)
        self.line = line
        self.reason = reason
        self.final = final
        self.trace = trace


class Lane:
    """The updates of one chat, in order; the first is the one being handled."""

    waiting: deque[Delivery] | None = None
    timer: asyncio.TimerHandle | None = None  # runs out when the next try is due
    worker: Any = None  # the process that has the chat, if processes handle the updates
    bot = 0  # whose chat it is, where there are several bots

    def __init__(self, key: object, first: Delivery) -> None:
        self.key = key
        self.first = first


class BotsLane(Lane):
    """One of several bots'."""

    def __init__(self, key: object, first: Delivery) -> None:
        super().__init__(key, first)
        self.bot = first.update.bot_id


class Lanes(abc.ABC):
    """Order, retries, dead letters and the drain. Who handles the updates makes a class of this with `_wake`.

    `reply`: gets what a handler returned, if that isn't None; None if that was all, else to be awaited; raises GaveUp
    or nothing. `bury`: makes a dead letter of a delivery that has `failure` set, and raises if it could not.
    `settled`: told of each delivery that is done with, handled or buried. `hand_back`: asked of each failure that is
    worth another try; True if somebody else will try. `retries`: tries after the first. `ordered`: False gives up the
    order within a chat. `retried`: told of each failure after which the update is tried again. `tried`: told
    of each update that waits for its next try here. `turns`: of several bots.
    """

    def __init__(
        self,
        *,
        reply: Reply,
        bury: Callable[[Delivery], Awaitable[None]],
        settled: Callable[[Delivery], None],
        hand_back: Callable[[Delivery], bool] = lambda delivery: False,
        retries: int,
        ordered: bool = True,
        first_retry: float = _FIRST_RETRY,
        retried: Callable[[], None] = lambda: None,
        tried: Callable[[Delivery], None] = lambda delivery: None,
        turns: Turns | None = None,
    ) -> None:
        self._reply = reply
        self._bury = bury
        self._settled = settled
        self._hand_back = hand_back
        self._retries = retries
        self._ordered = ordered
        self._first_retry = first_retry
        self._retried = retried
        self._tried = tried
        self._lanes: dict[object, Lane] = {}
        self._turns = turns
        self._lane = Lane if turns is None else BotsLane
        self._ready: deque[Lane] | Turns = deque() if turns is None else turns
        self._awake = 0  # how many will look at the ready lanes by themselves
        self._stopped = True  # until `start`, and again from the end of a drain
        self._draining = False
        self._hurried = False
        self._empty: asyncio.Event = asyncio.Event()

    def start(self) -> None:
        """Begin to handle what is submitted, in the running loop."""
        self._loop = asyncio.get_running_loop()
        self._stopped = False
        self._wake()

    def submit(self, delivery: Delivery) -> None:
        """Take a delivery. It is handled after those of its chat that came before."""
        key = delivery.update.lane if self._ordered else delivery
        lane = self._lanes.get(key)
        if lane is None:
            self._lanes[key] = lane = self._lane(key, delivery)
            self._ready.append(lane)
            if not self._awake:
                self._wake()
        elif lane.waiting is None:
            lane.waiting = deque((delivery,))
        else:
            lane.waiting.append(delivery)

    @property
    def oldest(self) -> float | None:
        """When the oldest update that is not settled was received, s since the epoch. Any thread may ask."""
        lanes = list(self._lanes.values())  # one step for the interpreter
        if self._turns is not None:
            lanes = [lane for lane in lanes if lane.bot in self._turns.bots]
        return min((lane.first.update.received_at for lane in lanes), default=None)

    def set_bots(self, bots: Iterable[int]) -> None:
        """From now on there are these bots; updates of others wait, those in hand go on."""
        assert self._turns is not None
        self._turns.set_bots(bots)
        if not self._awake:
            self._wake()

    def has_in_hand(self, bot: int) -> bool:
        """Whether a handler has an update of this bot."""
        return any(in_hand and delivery.update.bot_id == bot for delivery, in_hand in self.deliveries())

    def deliveries(self) -> Iterator[tuple[Delivery, bool]]:
        """All that were submitted and aren't settled; True with those that a handler has, or had and is not yet done
        with. What waits for its next try is in nobody's hand."""
        ready = self._in_no_hand()
        for lane in list(self._lanes.values()):
            yield lane.first, lane.timer is None and lane not in ready
            for delivery in lane.waiting or ():
                yield delivery, False

    def take_out(self, match: Callable[[Delivery], bool]) -> list[Delivery]:
        """Give up the deliveries that match and that no handler has; nobody is told of them."""
        ready = self._in_no_hand()
        taken: list[Delivery] = []
        for lane in list(self._lanes.values()):
            left: list[Delivery] = []
            for delivery in lane.waiting or ():
                (taken if match(delivery) else left).append(delivery)
            if lane.waiting:
                lane.waiting = deque(left)
            if (lane.timer is not None or lane in ready) and match(lane.first):
                taken.append(lane.first)
                self._skip_first(lane)
        return taken

    def _skip_first(self, lane: Lane) -> None:
        """The first of a lane that nobody has is not there any more."""
        if lane.timer is not None:
            lane.timer.cancel()
            lane.timer = None
        else:
            self._pick(lane)
        self._next(lane)
        if not self._awake:
            self._wake()

    async def drain(self, seconds: float) -> list[Delivery]:
        """Handle what is there, for so many seconds at most; then cancel what runs.

        What was not settled, in order within each chat.
        """
        self._draining = True
        if not self._is_empty() and not self._hurried:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._empty.wait(), seconds)
        await self._stop()
        for lane in self._lanes.values():
            if lane.timer:
                lane.timer.cancel()
        return self._left()

    def _is_empty(self) -> bool:
        """There is nothing that could be handled."""
        return len(self._lanes) == (0 if self._turns is None else self._turns.shut_out)

    def hurry(self) -> None:
        """End a drain, under way or to come: what isn't handled by now is left."""
        self._hurried = True
        self._empty.set()

    # ------------------------------------------------------------ of those who handle

    @property
    @abc.abstractmethod
    def in_flight(self) -> int:
        """Updates in the handler now."""

    @property
    @abc.abstractmethod
    def stuck(self) -> int:
        """Handlers that go on although they were cancelled; known at the end of a drain."""

    def _in_no_hand(self) -> set[Lane]:
        """Lanes whose first update waits for its turn."""
        return set(self._ready)

    def _pick(self, lane: Lane) -> None:
        """Take such a lane from where it waits."""
        self._ready.remove(lane)

    @abc.abstractmethod
    def _wake(self) -> None:
        """Let one more look at the ready lanes."""

    @abc.abstractmethod
    async def _stop(self) -> None:
        """Handle nothing more, and end what runs."""

    # ------------------------------------------------------------ what became of an update

    def _advance(self, lane: Lane) -> None:
        """The first update of a lane is done with: tell, and go on to the next."""
        self._settled(lane.first)
        self._next(lane)

    def _next(self, lane: Lane) -> None:
        if lane.waiting:
            lane.first = lane.waiting.popleft()
            self._ready.append(lane)
        else:
            del self._lanes[lane.key]
        if self._draining and (not self._lanes or self._turns is not None) and self._is_empty():
            self._empty.set()

    async def _failed(self, lane: Lane) -> None:
        """The first update of a lane has `failure` set: try it again later, or bury it. Meanwhile the lane waits."""
        delivery = lane.first
        update = delivery.update
        delay = min(_LAST_RETRY, self._first_retry * 2.0 ** (update.attempt - 1)) * random.uniform(0.75, 1.25)
        if update.attempt <= self._retries and not _is_final(delivery.failure):
            self._retried()
            if self._hand_back(delivery):
                log.warning("update %d (%s): attempt %d failed, Telegram will send it again: %s",
                            update.update_id, update.kind, update.attempt, _line(delivery.failure),
                            extra=fields(update))  # fmt: skip
                self._next(lane)
                return
            log.warning(
                "update %d (%s): attempt %d of %d failed, the next is in %.1f s: %s",
                update.update_id, update.kind, update.attempt, self._retries + 1, delay, _line(delivery.failure),
                extra=fields(update),
            )  # fmt: skip
            update.attempt += 1
            delivery.failure = None
            self._tried(delivery)
        elif await self._give_up(delivery):
            self._advance(lane)
            return
        if not self._stopped:
            lane.timer = self._loop.call_later(delay, self._again, lane)

    async def _give_up(self, delivery: Delivery) -> bool:
        burial = asyncio.ensure_future(self._bury(delivery))
        while not burial.done():
            with contextlib.suppress(asyncio.CancelledError):  # a stop waits for a letter that is being written
                await asyncio.wait([burial])
        error = asyncio.CancelledError() if burial.cancelled() else burial.exception()
        if error is not None:
            update = delivery.update
            log.error(
                "update %d stays in the queue: no dead letter could be written: %s", update.update_id, one_line(error),
                extra=fields(update),
            )  # fmt: skip
        return error is None

    def _again(self, lane: Lane) -> None:
        lane.timer = None
        self._ready.append(lane)
        if self._draining and self._is_empty():
            self._empty.set()
        if not self._awake:
            self._wake()

    def _left(self) -> list[Delivery]:
        left: list[Delivery] = []
        for lane in self._lanes.values():
            left.append(lane.first)
            left.extend(lane.waiting or ())
        return left


def _is_final(error: BaseException | None) -> bool:
    return isinstance(error, GaveUp) or (isinstance(error, Reported) and error.final)


def _line(error: BaseException | None) -> str:
    return error.line if isinstance(error, Reported) else one_line(error)
