"""The end: what runs may finish for a while, what is left is handed back in order."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from dispatch.recorded import Recorded, Run
from fasthook import Update
from fasthook.queues import Delivery
from updates import update


def test_a_drain_waits_for_what_is_there(run: Run) -> None:
    async def main() -> None:
        gate = asyncio.Event()

        async def handler(update: Update) -> None:
            await gate.wait()

        recorded = Recorded(handler, concurrency=2)
        recorded.submit(*(update(n, chat=n % 3) for n in range(9)))
        draining = asyncio.ensure_future(recorded.drain(30))
        await asyncio.sleep(0)
        assert not draining.done()
        gate.set()
        assert await draining == []
        assert sorted(recorded.settled) == list(range(9))

    run(main())


def test_a_drain_of_nothing_ends_at_once(run: Run) -> None:
    async def handler(update: Update) -> None:
        pass

    async def main() -> None:
        assert await Recorded(handler).drain(30) == []

    run(main())


def test_what_is_left_at_the_end_comes_back_in_order(run: Run) -> None:
    cancelled: list[int] = []

    async def handler(update: Update) -> None:
        if update.chat_id == 3:
            return
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(update.update_id)
            raise

    async def main() -> None:
        recorded = Recorded(handler)
        recorded.submit(*(update(n, chat=n % 4) for n in range(12)))
        while len(recorded.settled) < 3 or recorded.dispatcher.in_flight < 3:
            await asyncio.sleep(0)
        left = await recorded.dispatcher.drain(0.05)
        assert [delivery.update.update_id for delivery in left] == [0, 4, 8, 1, 5, 9, 2, 6, 10]
        assert recorded.settled == [3, 7, 11]
        assert all(delivery.failure is None and delivery.update.attempt == 1 for delivery in left)

    run(main())
    assert sorted(cancelled) == [0, 1, 2]


def test_what_was_never_begun_comes_back_too(run: Run) -> None:
    handled: list[int] = []

    async def handler(update: Update) -> None:
        handled.append(update.update_id)
        await asyncio.Event().wait()

    async def main() -> None:
        recorded = Recorded(handler, concurrency=1)
        recorded.submit(*(update(n, chat=n) for n in range(5)))
        assert await recorded.drain(0) == list(range(5))
        handled.clear()
        await asyncio.sleep(0.01)
        assert handled == []

    run(main())


def test_an_update_that_waits_for_its_next_try_comes_back(run: Run) -> None:
    async def main() -> None:
        failed = asyncio.Event()

        async def handler(update: Update) -> None:
            failed.set()
            raise ValueError

        recorded = Recorded(handler, first_retry=60.0)
        recorded.submit(update(1), update(2))
        await failed.wait()
        left = await recorded.dispatcher.drain(0.01)
        assert [(delivery.update.update_id, delivery.update.attempt) for delivery in left] == [(1, 2), (2, 1)]

    run(main())


def test_a_cancelled_handler_that_fails_is_left_as_if_not_tried(run: Run) -> None:
    async def main() -> None:
        began = asyncio.Event()

        async def handler(update: Update) -> None:
            began.set()
            try:
                await asyncio.Event().wait()
            finally:
                raise ValueError("while it is cleaned up")

        recorded = Recorded(handler, retries=0)
        recorded.submit(update(1))
        await began.wait()
        [left] = await recorded.dispatcher.drain(0)
        assert left.update.attempt == 1
        assert left.failure is None
        assert not recorded.buried

    run(main())


def test_hurry_ends_a_drain(run: Run) -> None:
    async def main() -> None:
        began = asyncio.Event()

        async def handler(update: Update) -> None:
            began.set()
            await asyncio.Event().wait()

        recorded = Recorded(handler)
        recorded.submit(update(1))
        await began.wait()
        draining = asyncio.ensure_future(recorded.drain(3600))
        await asyncio.sleep(0)
        recorded.dispatcher.hurry()
        assert await draining == [1]

    run(main())


def test_hurry_before_the_drain_holds(run: Run) -> None:
    """The second signal may come while the server still closes its connections."""

    async def main() -> None:
        began = asyncio.Event()

        async def handler(update: Update) -> None:
            began.set()
            await asyncio.Event().wait()

        recorded = Recorded(handler)
        recorded.submit(update(1))
        await began.wait()
        recorded.dispatcher.hurry()
        assert await recorded.drain(3600) == [1]

    run(main())


def test_a_handler_that_swallows_its_cancellation_does_not_hold_the_end(run: Run) -> None:
    async def main() -> None:
        began, let_go = asyncio.Event(), asyncio.Event()

        async def handler(update: Update) -> None:
            began.set()
            while not let_go.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await let_go.wait()

        recorded = Recorded(handler)
        recorded.submit(update(1))
        await began.wait()
        assert await recorded.drain(0) == [1]
        let_go.set()

    run(main())


def test_a_dead_letter_under_way_at_the_end_is_written_or_the_update_is_left(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fasthook.dispatch._BURIAL", 0.1)

    async def main() -> None:
        began = asyncio.Event()

        async def handler(update: Update) -> None:
            raise ValueError

        async def bury(delivery: Delivery) -> None:
            began.set()
            await asyncio.Event().wait()

        recorded = Recorded(handler, retries=0, bury=bury)
        recorded.submit(update(1))
        await began.wait()
        assert await recorded.drain(0) == [1]

    run(main())
