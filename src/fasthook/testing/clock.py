"""A clock whose seconds may be shorter than real ones, and which can be put forward."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable


class Timer:
    """Something that happens at a time of the clock, unless it is cancelled before."""

    __slots__ = ("call", "when")

    def __init__(self, when: float, call: Callable[[], None]) -> None:
        self.when = when
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        self.call = None


class Clock:
    """Seconds since its start, each of which lasts 1/`speed` real seconds.

    `speed` 0: it stands still, and moves by `advance` and `skip` only. It belongs to the event loop it is made in.
    ValueError: `speed` is negative.
    """

    def __init__(self, speed: float = 1.0) -> None:
        if speed < 0:
            raise ValueError("the speed of a clock is not negative")
        self.speed = speed
        self._loop = asyncio.get_running_loop()
        self._anchor = self._loop.time()
        self._added = 0.0
        self._epoch = time.time()
        self._timers: list[tuple[float, int, Timer]] = []
        self._numbers = itertools.count()
        self._alarm: asyncio.TimerHandle | None = None
        self._sleepers: set[asyncio.Future[None]] = set()

    def now(self) -> float:
        """Seconds since the start."""
        return self._added + (self._loop.time() - self._anchor) * self.speed

    def unix(self) -> int:
        """Seconds since 1970, as Telegram dates a message."""
        return int(self._epoch + self.now())

    def at(self, when: float, call: Callable[[], None]) -> Timer:
        """Call something at a time of this clock."""
        timer = Timer(when, call)
        heapq.heappush(self._timers, (when, next(self._numbers), timer))
        if self._timers[0][2] is timer:
            self._set_alarm()
        return timer

    def after(self, seconds: float, call: Callable[[], None]) -> Timer:
        """Call something in so many seconds of this clock."""
        return self.at(self.now() + seconds, call)

    async def sleep(self, seconds: float) -> None:
        """Wait for so many seconds of this clock."""
        done: asyncio.Future[None] = self._loop.create_future()
        timer = self.after(seconds, lambda: _wake(done))
        self._sleepers.add(done)
        try:
            await done
        finally:
            self._sleepers.discard(done)
            timer.cancel()

    async def until(self, when: float) -> None:
        """Wait for a time of this clock; where that is over, let the loop do the rest of its work."""
        if (wait := when - self.now()) > 0:
            await self.sleep(wait)
        else:
            await asyncio.sleep(0)

    def advance(self, seconds: float) -> None:
        """Put it forward. What falls due on the way happens in its order, each at its own time."""
        until = self.now() + seconds
        while self._next() is not None and self._timers[0][0] <= until:
            when, _, timer = heapq.heappop(self._timers)
            self._added += max(0.0, when - self.now())
            if timer.call is not None:
                timer.call()
        self._added += max(0.0, until - self.now())
        self._set_alarm()

    def skip(self) -> bool:
        """Put it forward to the next thing that happens; False if nothing will."""
        timer = self._next()
        if timer is None:
            return False
        self.advance(max(0.0, timer.when - self.now()))
        return True

    def stop(self) -> None:
        """Nothing happens any more; who sleeps is woken."""
        self._timers.clear()
        for done in self._sleepers:
            _wake(done)
        self._set_alarm()

    def _next(self) -> Timer | None:
        while self._timers and self._timers[0][2].call is None:
            heapq.heappop(self._timers)
        return self._timers[0][2] if self._timers else None

    def _set_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        timer = self._next()
        if timer is not None and self.speed > 0:
            real = max(0.0, timer.when - self.now()) / self.speed
            self._alarm = self._loop.call_later(real, self._ring)

    def _ring(self) -> None:
        self._alarm = None
        now = self.now()
        while (timer := self._next()) is not None and timer.when <= now:
            heapq.heappop(self._timers)
            call, timer.call = timer.call, None
            if call is not None:
                call()
        self._set_alarm()


def _wake(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)
