"""How late a loop gets to what is due: a timer that looks twice a second."""

from __future__ import annotations

import asyncio
from time import monotonic

from fasthook.ops.blocks import Counts

PERIOD = 0.5  # seconds


class Beat:
    """Runs in the loop that made it, until it is stopped."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts
        self._loop = asyncio.get_running_loop()
        self._next()

    def _next(self) -> None:
        self._due = monotonic() + PERIOD
        self._counts.due(self._due)
        self._timer = self._loop.call_later(PERIOD, self._beat)

    def _beat(self) -> None:
        self._counts.late(max(0.0, monotonic() - self._due))
        self._counts.handling.set_clocks()
        self._next()

    def stop(self) -> None:
        self._timer.cancel()
        self._counts.due(0.0)
