"""What a person takes out while it waits: never what a handler has."""

from __future__ import annotations

import asyncio

from dispatch.recorded import Recorded, Run, turns
from fasthook import Update
from fasthook.queues import Delivery
from updates import update


def seen(recorded: Recorded) -> dict[int, bool]:
    """The ids of what is not settled, and whether a handler has it."""
    return {delivery.update.update_id: in_hand for delivery, in_hand in recorded.dispatcher.deliveries()}


def take(recorded: Recorded, *ids: int) -> list[int]:
    def match(delivery: Delivery) -> bool:
        return delivery.update.update_id in ids

    return sorted(delivery.update.update_id for delivery in recorded.dispatcher.take_out(match))


def test_what_waits_is_taken_and_the_rest_goes_on_in_order(run: Run) -> None:
    async def main() -> None:
        gate = asyncio.Event()

        async def handler(update: Update) -> None:
            await gate.wait()

        recorded = Recorded(handler, concurrency=1)
        recorded.submit(*(update(n, chat=n % 2) for n in range(8)))
        await turns(5)
        assert seen(recorded) == {n: n == 0 for n in range(8)}
        assert take(recorded, 0, 1, 4, 7) == [1, 4, 7]  # 1 is the first of a lane that no runner has
        assert seen(recorded) == {0: True, 2: False, 6: False, 3: False, 5: False}
        gate.set()
        await recorded.until_settled(5)
        assert [n for n in recorded.settled if n % 2 == 0] == [0, 2, 6]
        assert [n for n in recorded.settled if n % 2] == [3, 5]
        assert await recorded.drain(0) == []

    run(main())


def test_a_whole_lane(run: Run) -> None:
    async def main() -> None:
        gate = asyncio.Event()

        async def handler(update: Update) -> None:
            await gate.wait()

        recorded = Recorded(handler, concurrency=1)
        recorded.submit(update(0, chat=0), update(1, chat=1), update(2, chat=1))
        await turns(5)
        assert take(recorded, 1, 2) == [1, 2]
        assert seen(recorded) == {0: True}
        recorded.submit(update(3, chat=1))
        gate.set()
        await recorded.until_settled(2)
        assert recorded.settled == [0, 3]
        assert await recorded.drain(30) == []

    run(main())


def test_what_waits_for_its_next_try_is_taken_and_its_lane_goes_on(run: Run) -> None:
    async def main() -> None:
        failed = asyncio.Event()

        async def handler(update: Update) -> None:
            if update.update_id == 1:
                failed.set()
                raise ValueError

        recorded = Recorded(handler, first_retry=1000.0)
        recorded.submit(update(1, chat=1), update(2, chat=1))
        await failed.wait()
        await turns(5)
        assert seen(recorded) == {1: False, 2: False}
        assert take(recorded, 1) == [1]
        await recorded.until_settled(1)
        assert recorded.settled == [2]
        assert await recorded.drain(30) == []

    run(main())


def test_a_drain_ends_when_the_last_is_taken_out(run: Run) -> None:
    async def main() -> None:
        async def handler(update: Update) -> None:
            raise ValueError

        recorded = Recorded(handler, first_retry=1000.0)
        recorded.submit(update(1))
        await turns(5)
        draining = asyncio.ensure_future(recorded.drain(1000))
        await turns(2)
        assert take(recorded, 1) == [1]
        assert await draining == []

    run(main())


def test_without_order(run: Run) -> None:
    async def main() -> None:
        gate = asyncio.Event()

        async def handler(update: Update) -> None:
            await gate.wait()

        recorded = Recorded(handler, concurrency=2, ordered=False)
        recorded.submit(*(update(n, chat=1) for n in range(5)))
        await turns(5)
        assert seen(recorded) == {n: n < 2 for n in range(5)}
        assert take(recorded, 0, 3) == [3]
        gate.set()
        await recorded.until_settled(4)
        assert sorted(recorded.settled) == [0, 1, 2, 4]
        assert await recorded.drain(0) == []

    run(main())
