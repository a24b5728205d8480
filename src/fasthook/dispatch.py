"""The dispatcher gives updates to the handler: one at a time within a chat, many chats at once.

A *runner* is a task that goes from one lane to the next for as long as there is work. A handler that doesn't wait for
anything costs no task of its own; as soon as one does wait, the runner stays with it and another one goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any

from fasthook._core import OUTCOMES, Handling
from fasthook.queues import Delivery
from fasthook.update import Update, fields

log = logging.getLogger("fasthook.dispatch")

Call = Callable[[Update], Awaitable[Any]]

_SLICE = 0.005  # seconds that a runner keeps the loop to itself
_FIRST_RETRY = 1.0  # seconds; each further one waits twice as long
_LAST_RETRY = 60.0
_HANDLED, _FAILED, _TIMEOUT, _STOPPED = (OUTCOMES.index(name) for name in ("handled", "failed", "timeout", "stopped"))


class GaveUp(Exception):
    """A failure that no second try can mend. `reason`: what the dead letter says."""

    def __init__(self, message: str, reason: str = "failed") -> None:
        super().__init__(message)
        self.reason = reason


class HandlerTimeout(TimeoutError):
    """A handler that ran past its deadline and was cancelled."""

    reason = "timeout"


class Lane:
    """The updates of one chat, in order; the first is the one being handled."""

    waiting: deque[Delivery] | None = None
    timer: asyncio.TimerHandle | None = None  # runs out when the next try is due

    def __init__(self, key: object, first: Delivery) -> None:
        self.key = key
        self.first = first


class _Runner:
    """One task of the dispatcher, and the update it has in hand."""

    __slots__ = ("busy", "deadline", "delivery", "late", "replying", "task")

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        self.delivery: Delivery | None = None
        self.busy = False  # in the handler
        self.deadline = 0.0
        self.replying = False  # the handler is done, and what it returned is on its way
        self.late = False  # cancelled because the deadline passed


class Dispatcher:
    """Order, concurrency, deadlines, retries.

    `call`: the handler. `reply`: gets what it returned, if that isn't None; raises GaveUp or nothing. `bury`: makes a
    dead letter of a delivery that has `failure` set, and raises if it could not. `settled`: told of each delivery that
    is done with, handled or buried. `hand_back`: asked of each failure that is worth another try; True if somebody
    else will try. `concurrency`: updates in handlers at once. `timeout`: seconds before a handler is
    cancelled. `retries`: tries after the first. `ordered`: False gives up the order within a chat. `handling`: counts
    the runs. `retried`: told of each failed one that is tried again.
    """

    def __init__(
        self,
        call: Call,
        *,
        reply: Callable[[Update, Any], Awaitable[None]],
        bury: Callable[[Delivery], Awaitable[None]],
        settled: Callable[[Delivery], None],
        hand_back: Callable[[Delivery], bool] = lambda delivery: False,
        concurrency: int,
        timeout: float,
        retries: int,
        ordered: bool = True,
        first_retry: float = _FIRST_RETRY,
        handling: Handling | None = None,
        retried: Callable[[], None] = lambda: None,
    ) -> None:
        self._call = call
        self._reply = reply
        self._bury = bury
        self._settled = settled
        self._hand_back = hand_back
        self._concurrency = concurrency
        self._timeout = timeout
        self._retries = retries
        self._ordered = ordered
        self._first_retry = first_retry
        self._handling = handling or Handling.alone()
        self._retried = retried
        self._lanes: dict[object, Lane] = {}
        self._ready: deque[Lane] = deque()
        self._runners: set[_Runner] = set()
        self._awake = 0  # runners that will look at the ready lanes by themselves
        self._parked: asyncio.Future[None] | None = None  # set by `_wake`: an idle runner waits for it
        self._looking = False  # a look at whether a runner is missing is scheduled
        self._stopped = True  # until `start`, and again from the end of a drain
        self._draining = False
        self._hurried = False
        self._empty: asyncio.Event = asyncio.Event()
        self._reaper: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to handle what is submitted, in the running loop."""
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self._stopped = False
        self._reap()
        self._wake()

    def submit(self, delivery: Delivery) -> None:
        """Take a delivery. It is handled after those of its chat that came before."""
        key = delivery.update.lane if self._ordered else delivery
        lane = self._lanes.get(key)
        if lane is None:
            self._lanes[key] = lane = Lane(key, delivery)
            self._ready.append(lane)
            if not self._awake:
                self._wake()
        elif lane.waiting is None:
            lane.waiting = deque((delivery,))
        else:
            lane.waiting.append(delivery)

    @property
    def in_flight(self) -> int:
        """Updates in the handler now."""
        return sum(runner.busy for runner in self._runners)

    @property
    def stuck(self) -> int:
        """Handlers that go on although they were cancelled; known at the end of a drain."""
        return sum(runner.busy and self._stopped for runner in self._runners)

    async def drain(self, seconds: float) -> list[Delivery]:
        """Handle what is there, for so many seconds at most; then cancel what runs.

        What was not settled, in order within each chat.
        """
        self._draining = True
        if self._lanes and not self._hurried:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._empty.wait(), seconds)
        await self._stop()
        return self._left()

    def hurry(self) -> None:
        """End a drain, under way or to come: what isn't handled by now is left."""
        self._hurried = True
        self._empty.set()

    # ------------------------------------------------------------ runners

    def _wake(self) -> None:
        """Let one more runner look at the ready lanes: the idle one, or a new one."""
        if self._parked is not None:
            if not self._parked.done():
                self._parked.set_result(None)
            self._parked = None
            self._awake += 1
        elif self._ready and len(self._runners) < self._concurrency and not self._stopped:
            runner = _Runner()
            self._runners.add(runner)
            self._awake += 1
            runner.task = self._loop.create_task(self._run(runner), context=self._context.copy())

    def _look(self) -> None:
        self._looking = False
        if not self._awake:
            self._wake()

    async def _run(self, runner: _Runner) -> None:
        try:
            while await self._work(runner) and self._parked is None and not self._stopped:
                await self._park()
        finally:
            self._runners.discard(runner)
            if not self._awake:
                self._wake()

    async def _park(self) -> None:
        """Wait, idle, until there is something ready."""
        self._parked = parked = self._loop.create_future()
        try:
            await parked
        except asyncio.CancelledError:  # by the end of the loop: nobody may count on this runner
            if self._parked is parked:
                self._parked = None
            else:
                self._awake -= 1
            raise

    async def _work(self, runner: _Runner) -> bool:
        """Handle what is ready. False: this runner's task is not fit for another update."""
        self._awake -= 1
        clean, task = contextvars.copy_context(), asyncio.current_task()
        assert task is not None
        ready, call, timeout = self._ready, self._call, self._timeout
        started, ended = self._handling.started, self._handling.ended
        pause = monotonic() + _SLICE
        while ready and not self._stopped:
            now = monotonic()
            if now > pause:
                pause = await self._yield()
                continue
            lane = ready.popleft()
            if ready and not self._awake and not self._looking:
                self._looking = True
                self._loop.call_soon(self._look)
            delivery = lane.first
            if delivery.failure is None:
                runner.deadline = now + timeout
                runner.busy = True
                started(delivery.update, delivery.since, now)
                try:
                    result = await call(delivery.update)
                    ended(delivery.update, now, _HANDLED)
                    if result is not None:
                        runner.busy = False  # the deadline is the handler's; a reply may have to wait for Telegram
                        runner.replying = True
                        await self._reply(delivery.update, result)
                except GeneratorExit:
                    raise
                except BaseException as error:
                    delivery.failure = error
                    if not runner.replying:
                        ended(delivery.update, now, self._outcome(runner, error))
                runner.busy = False
            if delivery.failure is None:
                self._advance(lane)
            else:
                await self._failed(runner, lane)
            runner.replying = False
            if task.cancelling() or contextvars.copy_context() != clean:
                return False  # the handler left something in its task or its context: the next one gets fresh ones
        return True

    def _outcome(self, runner: _Runner, error: BaseException) -> int:
        """What became of a run that raised."""
        if runner.late or getattr(error, "reason", None) == "timeout":
            return _TIMEOUT
        return _STOPPED if self._stopped else _FAILED

    async def _yield(self) -> float:
        """Let the loop do the rest of its work; when the next pause is due."""
        self._awake += 1
        try:
            await asyncio.sleep(0)
        finally:
            self._awake -= 1
        return monotonic() + _SLICE

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
            if self._draining and not self._lanes:
                self._empty.set()

    # ------------------------------------------------------------ failures

    async def _failed(self, runner: _Runner, lane: Lane) -> None:
        """The first update of a lane has `failure` set: try it again later, or bury it. Meanwhile the lane waits."""
        delivery = lane.first
        update = delivery.update
        if self._stopped and not runner.replying:
            delivery.failure = None  # cut short by the stop: it is left, as if it had not been tried
        elif self._stopped and isinstance(delivery.failure, asyncio.CancelledError):
            delivery.failure = GaveUp("the server stopped before Telegram had the reply", "reply failed")
        elif runner.late and isinstance(delivery.failure, asyncio.CancelledError):
            delivery.failure = HandlerTimeout(f"the handler ran longer than {self._timeout:g} s and was cancelled")
        if delivery.failure is None:
            return
        delay = min(_LAST_RETRY, self._first_retry * 2.0 ** (update.attempt - 1)) * random.uniform(0.75, 1.25)
        if update.attempt <= self._retries and not isinstance(delivery.failure, GaveUp):
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
                "update %d stays in the queue: no dead letter could be written: %s", update.update_id, _line(error),
                extra=fields(update),
            )  # fmt: skip
        return error is None

    def _again(self, lane: Lane) -> None:
        lane.timer = None
        self._ready.append(lane)
        if not self._awake:
            self._wake()

    # ------------------------------------------------------------ deadlines and the end

    def _reap(self) -> None:
        """Cancel the handlers that are past their deadline. Runs about twenty times in a timeout."""
        now = monotonic()
        for runner in self._runners:
            if runner.busy and now > runner.deadline and runner.task:
                runner.late = True
                runner.deadline = now + self._timeout
                runner.task.cancel()
        self._reaper = self._loop.call_later(min(1.0, self._timeout / 20), self._reap)

    async def _stop(self) -> None:
        self._stopped = True
        if self._reaper:
            self._reaper.cancel()
        tasks = [runner.task for runner in self._runners if runner.task]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)  # a handler that swallows its cancellation doesn't hold the stop
        writing = [runner.task for runner in self._runners if runner.task and not runner.busy]
        if writing:
            await asyncio.wait(writing, timeout=10.0)
        for lane in self._lanes.values():
            if lane.timer:
                lane.timer.cancel()

    def _left(self) -> list[Delivery]:
        left: list[Delivery] = []
        for lane in self._lanes.values():
            left.append(lane.first)
            left.extend(lane.waiting or ())
        return left


def _line(error: BaseException | None) -> str:
    name = type(error).__name__
    try:
        words = " ".join(str(error).split())
    except Exception:
        words = "(its text cannot be made)"
    text = f"{name}: {words}" if words else name
    return text if len(text) <= 300 else text[:300] + "…"
