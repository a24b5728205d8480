"""A simulator whose clock stands still, a webhook, and what moves both on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fasthook.testing import Rules, Simulator, User
from fasthook.testing.account import Account
from fasthook.testing.clock import Clock
from fasthook.testing.delivery import Attempt
from fasthook.testing.parameters import Parameters, Upload
from testing.hook import PATIENCE, Hook

ANN = User(7)


@dataclass
class Stage:
    """`advance` and `until` are the only things that move the clock."""

    simulator: Simulator
    hook: Hook

    @property
    def bot(self) -> Account:
        return self.simulator.bot

    @property
    def clock(self) -> Clock:
        return self.simulator.clock

    @property
    def attempts(self) -> list[Attempt]:
        return list(self.bot.attempts)

    @property
    def times(self) -> list[float]:
        """When each attempt was made, from the first on, by the clock."""
        return [round(attempt.sent_at - self.attempts[0].sent_at, 3) for attempt in self.attempts]

    async def set(self, url: str = "", **params: Any) -> None:
        """Set the webhook, a second after the last time."""
        self.clock.advance(1)
        await self.simulator.set_webhook(url or self.hook.url, **params)

    async def call(self, method: str, files: dict[str, bytes] | None = None, **params: Any) -> Any:
        """The whole answer to a method."""
        uploads = {name: Upload(name, data) for name, data in (files or {}).items()}
        answer = await self.bot.call(method, Parameters(params, uploads))
        return json.loads(answer.body)

    async def info(self) -> dict[str, Any]:
        found: dict[str, Any] = (await self.call("getWebhookInfo"))["result"]
        return found

    def message(self, chat: int = 7, text: str = "hello", **more: Any) -> int:
        """An update with a message: its number."""
        event = {"message_id": 1, "from": ANN.event(), "chat": {"id": chat, "type": "private"},
                 "date": self.clock.unix(), "text": text, **more}  # fmt: skip
        return self.add("message", event)

    def add(self, kind: str, event: dict[str, Any] | None = None, **more: Any) -> int:
        facts = {"id": "1", "from": ANN.event(), "chat": {"id": 7}, "date": self.clock.unix()}
        update_id = self.bot.add(kind, facts if event is None else event, **more)
        assert update_id is not None
        return update_id

    async def until(self, done: Callable[[], bool]) -> None:
        """Go on, from one thing that happens to the next, until something is so."""
        while not done():
            delivery = self.bot.delivery
            if delivery is not None and delivery.in_flight:
                await asyncio.wait_for(self.bot.changed(), PATIENCE)
            else:
                assert self.clock.skip(), "nothing more happens"

    async def until_attempted(self, count: int) -> None:
        await self.until(lambda: len(self.bot.attempts) >= count)

    async def until_settled(self) -> None:
        await self.until(lambda: not len(self.bot.updates))

    async def warm(self, connections: int) -> None:
        """Open so many connections, which needs a success and as many chats."""
        first = len(self.bot.attempts)
        self.message(chat=999)
        await self.until_settled()
        held = self.hook.hold()
        for chat in range(connections):
            self.message(chat=1000 + chat)
        while len(self.hook.requests) < first + 1 + connections:
            asked = len(self.hook.requests)
            self.clock.advance(0.5)
            await self.hook.until(lambda hook, asked=asked: len(hook.requests) > asked)  # type: ignore[misc]
        held.set()
        self.hook.held = None
        await self.until_settled()


@asynccontextmanager
async def stage(rules: Rules | None = None, speed: float = 0.0) -> AsyncIterator[Stage]:
    hook = Hook()
    await hook.start()
    try:
        async with Simulator(speed=speed, rules=rules, seed=3) as simulator:
            yield Stage(simulator, hook)
    finally:
        await hook.stop()


def played(test: Callable[[Stage], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """A test that is a coroutine with a stage."""

    async def main() -> None:
        async with stage() as made:
            await asyncio.wait_for(test(made), 2 * PATIENCE)

    def run() -> None:
        asyncio.run(main())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    run.__module__ = test.__module__
    return run
