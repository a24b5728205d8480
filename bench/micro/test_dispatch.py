"""The dispatcher with a coroutine that does nothing, beside a task for each update and beside a worker on a queue."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from fasthook import Update
from fasthook._scan import restore
from fasthook.dispatch import Dispatcher
from fasthook.queues import Delivery
from fasthook.testing import samples

ITEMS = 10_000
CHATS = 1000
GOAL = "≤ 1,500 ns"

Work = list[Delivery]
Way = Callable[[Work], Coroutine[Any, Any, None]]


async def handler(update: Update) -> None:
    pass


async def unused(*_: object) -> None:
    raise AssertionError("nothing fails and nothing is returned")


def settled(delivery: Delivery) -> None:
    pass


async def dispatched(work: Work) -> None:
    """In order in each chat, bounded, with a deadline for each."""
    dispatcher = Dispatcher(
        handler, reply=unused, bury=unused, settled=settled, concurrency=256, timeout=60.0, retries=3
    )
    dispatcher.start()
    for delivery in work:
        dispatcher.submit(delivery)
    assert await dispatcher.drain(60.0) == []


async def a_task_each(work: Work) -> None:
    """No order, no bound, no deadline."""
    running = set()
    for delivery in work:
        task = asyncio.create_task(handler(delivery.update))
        running.add(task)  # a task that nobody holds may be collected
        task.add_done_callback(running.discard)
    await asyncio.wait(running)


async def a_worker(work: Work) -> None:
    """One after the other, no deadline."""
    queue: asyncio.Queue[Delivery] = asyncio.Queue()

    async def run() -> None:
        while True:
            delivery = await queue.get()
            await handler(delivery.update)
            queue.task_done()

    worker = asyncio.create_task(run())
    for delivery in work:
        queue.put_nowait(delivery)
    await queue.join()
    worker.cancel()


@pytest.fixture(params=["uvloop", "asyncio"])
def run(request: pytest.FixtureRequest) -> Iterator[Callable[[Way], Callable[[Work], None]]]:
    """Makes of a coroutine function one that runs it in a loop that is there already."""
    factory = pytest.importorskip("uvloop").new_event_loop if request.param == "uvloop" else None
    with asyncio.Runner(loop_factory=factory) as runner:
        yield lambda way: lambda work: runner.run(way(work))


@pytest.mark.parametrize(("plain", "than"), [(a_task_each, "a task each"), (a_worker, "asyncio.Queue")])
def test_dispatch(beside: Any, run: Any, plain: Way, than: str, request: pytest.FixtureRequest) -> None:
    updates = [restore(Update, samples.update(n, chat_id=n % CHATS + 1), 5, 1.5, 1) for n in range(ITEMS)]
    beside(
        f"dispatch, no-op, {request.node.callspec.params['run']}",
        run(dispatched),
        run(plain),
        prepare=lambda: [Delivery(update) for update in updates],
        items=ITEMS,
        than=than,
        goal=GOAL,
        rounds=30,
    )
