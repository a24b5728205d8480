"""`--handler-timeout`."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from dispatch.recorded import Recorded, Run, turns
from fasthook import Update
from fasthook.dispatch import HandlerTimeout
from updates import update


async def forever() -> None:
    await asyncio.Event().wait()


def test_a_handler_past_its_deadline_is_cancelled_and_tried_again(run: Run) -> None:
    attempts: list[int] = []

    async def handler(update: Update) -> None:
        attempts.append(update.attempt)
        if update.attempt == 1:
            await forever()

    async def main() -> None:
        recorded = Recorded(handler, timeout=0.02)
        recorded.submit(update(1), update(2))
        await recorded.until_settled(2)
        assert recorded.settled == [1, 2]
        assert not recorded.buried

    run(main())
    assert attempts == [1, 2, 1, 2]


def test_a_handler_that_always_hangs_becomes_a_dead_letter(run: Run) -> None:
    async def handler(update: Update) -> None:
        if update.chat_id == 1:
            await forever()

    async def main() -> None:
        recorded = Recorded(handler, timeout=0.02, retries=1)
        recorded.submit(update(1, chat=1), update(2, chat=2), update(3, chat=3))
        await recorded.until_settled(3)
        assert recorded.settled == [2, 3, 1]
        failure = recorded.buried.pop(1)
        assert isinstance(failure, HandlerTimeout)
        assert failure.reason == "timeout"
        assert "0.02 s" in str(failure)
        assert not recorded.buried

    run(main())


class Clock:
    """A clock that handlers set, where `Handling` has one: however slow the machine is, they take what they say."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def started(self, update: Update, since: float, now: float) -> None:
        pass

    def ended(self, update: Update, began: float, outcome: int) -> float:
        return self.now


def test_the_deadline_is_each_handlers_own(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Updates of one chat that take long together are not late."""
    clock = Clock()
    monkeypatch.setattr("fasthook.dispatch.monotonic", clock)

    async def handler(update: Update) -> None:
        clock.now += 0.15
        await asyncio.sleep(0.02)  # in which the dispatcher looks who is late

    async def main() -> None:
        recorded = Recorded(handler, timeout=0.2, retries=0, handling=clock)
        recorded.submit(*(update(n) for n in range(20)))
        await recorded.until_settled(20)
        assert not recorded.buried

    run(main())


def test_a_handler_that_ends_well_when_cancelled_has_succeeded(run: Run) -> None:
    async def handler(update: Update) -> None:
        try:
            await forever()
        except asyncio.CancelledError:
            await turns(2)

    async def main() -> None:
        recorded = Recorded(handler, timeout=0.02)
        recorded.submit(update(1))
        await recorded.until_settled(1)
        assert not recorded.buried

    run(main())


def test_a_handler_that_swallows_its_cancellation_is_cancelled_again(run: Run) -> None:
    cancelling: list[int] = []

    async def handler(update: Update) -> None:
        task = asyncio.current_task()
        assert task is not None
        cancelling.append(task.cancelling())
        for _ in range(3 if update.update_id == 1 else 0):
            with contextlib.suppress(asyncio.CancelledError):
                await forever()

    async def main() -> None:
        recorded = Recorded(handler, timeout=0.02, concurrency=1)
        recorded.submit(update(1), update(2))
        await recorded.until_settled(2)
        assert not recorded.buried

    run(main())
    assert cancelling == [0, 0]


def test_a_reply_may_wait_past_the_deadline(run: Run) -> None:
    async def handler(update: Update) -> dict[str, str]:
        return {"method": "sendMessage"}

    async def main() -> None:
        sent: list[int] = []

        async def reply(update: Update, result: object) -> None:
            await asyncio.sleep(0.2)
            sent.append(update.update_id)

        recorded = Recorded(handler, timeout=0.02, reply=reply)
        recorded.submit(update(1))
        await recorded.until_settled(1)
        assert sent == [1]
        assert not recorded.buried

    run(main())
