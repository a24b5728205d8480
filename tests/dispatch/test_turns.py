"""Several bots: each has its part of the handlers, and those that wait for the common part take turns."""

from __future__ import annotations

import asyncio

from dispatch.recorded import Recorded, Run, turns
from fasthook import Update
from fasthook._core import Shares
from fasthook._scan import restore
from fasthook.testing import samples
from fasthook.turns import Turns


def made(bot: int, update_id: int) -> Update:
    return restore(Update, samples.update(update_id, chat_id=update_id), bot, 1.5, 1)


def shared(handler: object, bots: tuple[int, ...], concurrency: int) -> Recorded:
    shares = Shares(concurrency, bots)
    return Recorded(handler, concurrency=concurrency, turns=Turns(bots, shares))  # type: ignore[arg-type]


def test_each_has_its_part(run: Run) -> None:
    async def main() -> None:
        busy: dict[int, int] = {1: 0, 2: 0}
        release = asyncio.Event()

        async def handler(update: Update) -> None:
            busy[update.bot_id] += 1
            if update.bot_id == 1:
                await release.wait()

        recorded = shared(handler, (1, 2), 8)
        recorded.submit(*(made(1, n) for n in range(100)))
        await turns(50)
        assert busy == {1: 6, 2: 0}
        recorded.submit(*(made(2, 1000 + n) for n in range(100)))
        await recorded.until_settled(100)
        assert busy == {1: 6, 2: 100}
        release.set()
        await recorded.until_settled(200)

    run(main())


def test_the_common_part_goes_round(run: Run) -> None:
    """Two bots with more than there is room for: neither waits until the other has nothing left."""
    order: list[int] = []

    async def main() -> None:
        async def handler(update: Update) -> None:
            order.append(update.bot_id)
            await turns(3)

        recorded = shared(handler, (1, 2), 4)
        recorded.submit(*(made(1, n) for n in range(50)))
        recorded.submit(*(made(2, 1000 + n) for n in range(50)))
        await recorded.until_settled(100)

    run(main())
    assert order[:60].count(2) >= 25


def test_a_bot_that_goes_and_comes_back(run: Run) -> None:
    """What it has waits meanwhile, and a drain doesn't wait for it."""

    async def main() -> None:
        handled: list[int] = []

        async def handler(update: Update) -> None:
            handled.append(update.update_id)

        recorded = shared(handler, (1, 2), 4)
        recorded.dispatcher.set_bots((1,))
        recorded.submit(made(2, 5), made(1, 6), made(2, 7))
        await recorded.until_settled(1)
        assert handled == [6]
        recorded.dispatcher.set_bots((1, 2))
        await recorded.until_settled(3)
        recorded.dispatcher.set_bots((1,))
        recorded.submit(made(2, 8), made(1, 9))
        assert await recorded.drain(60.0) == [8]
        assert handled == [6, 5, 7, 9]

    run(main())


def test_taken_out_while_it_waits(run: Run) -> None:
    async def main() -> None:
        release = asyncio.Event()

        async def handler(update: Update) -> None:
            await release.wait()

        recorded = shared(handler, (1, 2), 4)
        recorded.submit(*(made(1, n) for n in range(10)))
        await turns(50)
        taken = recorded.dispatcher.take_out(lambda delivery: delivery.update.update_id >= 5)
        assert sorted(one.update.update_id for one in taken) == [5, 6, 7, 8, 9]
        release.set()
        await recorded.until_settled(5)

    run(main())
