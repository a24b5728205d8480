"""The dispatcher gives updates to a handler in this loop: one at a time within a chat, many chats at once.

A *runner* is a task that goes from one lane to the next for as long as there is work. A handler that doesn't wait for
anything costs no task of its own; as soon as one does wait, the runner stays with it and another one goes on.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any, Protocol

from fasthook._core import OUTCOMES, Handling
from fasthook.lanes import GaveUp, Lanes, RunsOn
from fasthook.queues import Delivery
from fasthook.update import Update

Call = Callable[[Update], Awaitable[Any]]

_SLICE = 0.005  # seconds that a runner keeps the loop to itself
_BURIAL = 10.0  # seconds that a stop waits for dead letters being written
_HANDLED, _FAILED, _TIMEOUT, _STOPPED = (OUTCOMES.index(name) for name in ("handled", "failed", "timeout", "stopped"))


class Runs(Protocol):
    """Counts the runs of handlers, as `Handling` does."""

    def started(self, update: Update, since: float, now: float) -> None: ...

    def ended(self, update: Update, began: float, outcome: int) -> float: ...


class HandlerTimeout(TimeoutError):
    """A handler that ran past its deadline and was cancelled."""

    reason = "timeout"


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


class Dispatcher(Lanes):
    """Lanes whose updates are handled here.

    `call`: the handler. `concurrency`: updates in handlers at once; with `turns`, its shares say it. `timeout`: seconds
    before a handler is cancelled. `handling`: counts the runs. `policy`: what `Lanes` takes.
    """

    def __init__(
        self, call: Call, *, concurrency: int, timeout: float, handling: Runs | None = None, **policy: Any
    ) -> None:
        super().__init__(**policy)
        self._call = call
        self._concurrency = concurrency
        self._timeout = timeout
        self._handling: Runs = handling or Handling.alone()
        self._runners: set[_Runner] = set()  # of them `_awake` will look at the ready lanes by themselves
        self._parked: asyncio.Future[None] | None = None  # set by `_wake`: an idle runner waits for it
        self._looking = False  # a look at whether a runner is missing is scheduled
        self._reaper: asyncio.TimerHandle | None = None
        self._run_on: list[Delivery] = []

    def start(self) -> None:
        self._context = contextvars.copy_context()
        super().start()
        self._reap()

    @property
    def in_flight(self) -> int:
        return sum(runner.busy for runner in self._runners)

    @property
    def stuck(self) -> int:
        return sum(runner.busy and self._stopped for runner in self._runners)

    @property
    def run_on(self) -> set[Delivery]:
        """What was not settled at the end of a drain because its handler could not be stopped, and goes on."""
        stuck = (runner.delivery for runner in self._runners if runner.busy and self._stopped)
        return {*self._run_on, *filter(None, stuck)}

    # ------------------------------------------------------------ runners

    def _wake(self) -> None:
        """Let one more runner look at the ready lanes: the idle one, or a new one."""
        if self._parked is not None:
            if not self._parked.done():
                self._parked.set_result(None)
            self._parked = None
            self._awake += 1
        elif self._ready and not self._stopped and (len(self._runners) < self._concurrency or self._turns is not None):
            runner = _Runner()
            self._runners.add(runner)
            self._awake += 1
            runner.task = self._loop.create_task(self._run(runner), context=self._context.copy())
            runner.task.add_done_callback(lambda _: self._not_begun(runner))

    def _look(self) -> None:
        self._looking = False
        if not self._awake:
            self._wake()

    async def _run(self, runner: _Runner) -> None:
        try:
            while await self._work(runner) and self._parked is None and not self._stopped:
                await self._park()
        finally:
            self._leave(runner)

    def _leave(self, runner: _Runner) -> None:
        self._runners.discard(runner)
        if not self._awake:
            self._wake()

    def _not_begun(self, runner: _Runner) -> None:
        """A task that is cancelled before its first step does not leave by itself."""
        if runner in self._runners:
            self._awake -= 1
            self._leave(runner)

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
        ready, call, timeout, turns = self._ready, self._call, self._timeout, self._turns
        started, ended = self._handling.started, self._handling.ended
        now = monotonic()
        pause = now + _SLICE
        while ready and not self._stopped:
            if now > pause:
                now = await self._yield()
                pause = now + _SLICE
                continue
            lane = ready.popleft()
            if ready and not self._awake and not self._looking:
                self._looking = True
                self._loop.call_soon(self._look)
            delivery = lane.first
            if delivery.failure is None:
                runner.deadline = now + timeout
                runner.delivery = delivery
                runner.busy = True
                started(delivery.update, delivery.since, now)
                try:
                    result = await call(delivery.update)
                    now = ended(delivery.update, now, _HANDLED)  # and the next begins
                    if result is not None:
                        runner.busy = False  # the deadline is the handler's; a reply may have to wait for Telegram
                        runner.replying = True
                        sending = self._reply(delivery.update, result)
                        if sending is not None:
                            await sending
                            now = monotonic()
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
                self._explain(runner, delivery)
                if delivery.failure is not None:
                    await self._failed(lane)
                now = monotonic()
            if turns is not None:
                turns.left(lane)
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
        """Let the loop do the rest of its work; when that was done."""
        self._awake += 1
        try:
            await asyncio.sleep(0)
        finally:
            self._awake -= 1
        return monotonic()

    def _explain(self, runner: _Runner, delivery: Delivery) -> None:
        """What a failure was that the dispatcher itself brought about."""
        cancelled = isinstance(delivery.failure, asyncio.CancelledError)
        if self._stopped and not runner.replying:
            if isinstance(delivery.failure, RunsOn):
                self._run_on.append(delivery)
            delivery.failure = None  # cut short by the stop: it is left, as if it had not been tried
        elif self._stopped and cancelled:
            delivery.failure = GaveUp("the server stopped before Telegram had the reply", "reply failed")
        elif runner.late and cancelled:
            delivery.failure = HandlerTimeout(f"the handler ran longer than {self._timeout:g} s and was cancelled")

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
            await asyncio.wait(writing, timeout=_BURIAL)
