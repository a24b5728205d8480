"""One at a time within a chat, many chats at once, bounded."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict

import pytest

from dispatch.recorded import Recorded, Run, turns
from fasthook import Update
from updates import update


def test_order_within_a_chat(run: Run) -> None:
    chosen = random.Random(1)
    began: dict[int, list[int]] = defaultdict(list)
    busy: set[int] = set()

    async def handler(update: Update) -> None:
        assert update.chat_id is not None
        assert update.chat_id not in busy
        busy.add(update.chat_id)
        began[update.chat_id].append(update.update_id)
        await turns(chosen.randrange(4))
        busy.remove(update.chat_id)

    async def main() -> None:
        recorded = Recorded(handler)
        for n in range(1000):
            recorded.submit(update(n, chat=n % 20))
            if n % 7 == 0:
                await asyncio.sleep(0)
        await recorded.until_settled(1000)

    run(main())
    assert began == {chat: list(range(chat, 1000, 20)) for chat in range(20)}


def test_many_chats_at_once(run: Run) -> None:
    async def main() -> None:
        barrier = asyncio.Barrier(50)

        async def handler(update: Update) -> None:
            await barrier.wait()

        recorded = Recorded(handler)
        recorded.submit(*(update(n, chat=n) for n in range(50)))
        await recorded.until_settled(50)

    run(main())


def test_order_none_handles_a_chat_at_once(run: Run) -> None:
    async def main() -> None:
        barrier = asyncio.Barrier(10)

        async def handler(update: Update) -> None:
            await barrier.wait()

        recorded = Recorded(handler, ordered=False)
        recorded.submit(*(update(n, chat=1) for n in range(10)))
        await recorded.until_settled(10)

    run(main())


@pytest.mark.parametrize("bound", [1, 7])
def test_concurrency_is_reached_and_never_exceeded(run: Run, bound: int) -> None:
    async def main() -> None:
        seen: list[int] = []

        async def handler(update: Update) -> None:
            seen.append(recorded.dispatcher.in_flight)
            await turns(3)
            seen.append(recorded.dispatcher.in_flight)

        recorded = Recorded(handler, concurrency=bound)
        recorded.submit(*(update(n, chat=n % 40) for n in range(200)))
        await recorded.until_settled(200)
        assert max(seen) == bound
        assert recorded.dispatcher.in_flight == 0

    run(main())


def test_one_slow_handler_costs_the_others_nothing(run: Run) -> None:
    async def main() -> None:
        gate = asyncio.Event()

        async def handler(update: Update) -> None:
            if update.update_id == 0:
                await gate.wait()

        recorded = Recorded(handler, concurrency=2)
        recorded.submit(update(0, chat=1), update(1, chat=1))
        recorded.submit(*(update(n, chat=n) for n in range(2, 1000)))
        await recorded.until_settled(998)
        assert not {0, 1} & set(recorded.settled)
        gate.set()
        await recorded.until_settled(1000)
        assert recorded.settled[-2:] == [0, 1]

    run(main())


def test_what_is_submitted_before_the_start_waits_for_it(run: Run) -> None:
    async def handler(update: Update) -> None:
        handled.append(update.update_id)

    handled: list[int] = []

    async def main() -> None:
        recorded = Recorded(handler, start=False)
        recorded.submit(*(update(n, chat=n % 2) for n in range(6)))
        await turns(3)
        assert handled == []
        recorded.dispatcher.start()
        await recorded.until_settled(6)

    run(main())
    assert sorted(handled) == list(range(6))


def test_updates_without_a_chat_keep_the_order_of_their_user(run: Run) -> None:
    handled: list[int] = []

    async def handler(update: Update) -> None:
        await turns(update.update_id % 3)
        handled.append(update.update_id)

    async def main() -> None:
        recorded = Recorded(handler)
        recorded.submit(*(update(n, "inline_query") for n in range(20)))
        await recorded.until_settled(20)

    run(main())
    assert handled == list(range(20))
