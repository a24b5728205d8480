"""A dispatcher whose effects are kept."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from fasthook import Update
from fasthook.dispatch import Call, Dispatcher
from fasthook.queues import Delivery

Run = Callable[[Coroutine[Any, Any, None]], None]


class Recorded:
    """`call` behind a dispatcher; what became of each update is in the lists."""

    def __init__(self, call: Call, *, start: bool = True, **options: Any) -> None:
        self.settled: list[int] = []
        self.buried: dict[int, BaseException | None] = {}
        self.replies: list[tuple[int, Any]] = []
        self._change = asyncio.Event()
        wanted = {"concurrency": 256, "timeout": 60.0, "retries": 3, "first_retry": 0.001, **options}
        self.dispatcher = Dispatcher(
            call, **{"reply": self._reply, "bury": self._bury, "settled": self._settled, **wanted}
        )
        if start:
            self.dispatcher.start()

    def submit(self, *updates: Update) -> None:
        for update in updates:
            self.dispatcher.submit(Delivery(update))

    async def until_settled(self, count: int) -> None:
        """Wait until so many are done with, and then some: no more than these may be."""
        while len(self.settled) < count:
            self._change.clear()
            await self._change.wait()
        await turns(5)
        assert len(self.settled) == count

    async def drain(self, seconds: float) -> list[int]:
        return [delivery.update.update_id for delivery in await self.dispatcher.drain(seconds)]

    async def _reply(self, update: Update, result: Any) -> None:
        self.replies.append((update.update_id, result))

    async def _bury(self, delivery: Delivery) -> None:
        self.buried[delivery.update.update_id] = delivery.failure

    def _settled(self, delivery: Delivery) -> None:
        self.settled.append(delivery.update.update_id)
        self._change.set()


async def turns(count: int) -> None:
    """Let the loop go round so often."""
    for _ in range(count):
        await asyncio.sleep(0)
