"""What an update costs the front door on its way to a worker process and back, beside pickling it."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fasthook import Update
from fasthook._scan import restore
from fasthook.frames import Kind, frame
from fasthook.link import Worker
from fasthook.ops.blocks import Blocks, Layout
from fasthook.queues import Delivery
from fasthook.settings import Settings
from fasthook.testing import samples
from fasthook.workers import Workers

ITEMS = 10_000
CHATS = 1000
GOAL = "≤ 5,000 ns"

Work = list[Delivery]


class Sink:
    """A transport that keeps nothing."""

    def is_closing(self) -> bool:
        return False

    def set_write_buffer_limits(self, high: int) -> None: ...

    def write(self, data: bytes) -> None: ...


async def unused(*_: object) -> None:
    raise AssertionError("nothing fails")


async def to_workers(work: Work) -> None:
    """Through the lanes into the buffers of two workers, and their outcomes back, read from the socket in one go."""
    lanes = Workers(
        "bot:handler",
        Settings(workers=2),
        blocks=Blocks(None, Layout(paths=1)),
        failed=lambda error: None,
        reply=unused,
        bury=unused,
        settled=lambda delivery: None,
        retries=3,
    )
    lanes.start()
    workers = [Worker(lanes.crew, number, 272, None) for number in (1, 2)]
    for worker in workers:
        worker.connection_made(Sink())  # type: ignore[arg-type]
        worker.ready = worker.writable = True
        lanes.joined(worker)
    for delivery in work:
        lanes.submit(delivery)
    while lanes._lanes:
        await asyncio.sleep(0)
        for worker in workers:
            worker.data_received(b"".join(frame(Kind.DONE, number) for number in worker.in_hand))


def pickled(work: Work) -> None:
    """What multiprocessing does at the least: no order, no window, no answer."""
    for delivery in work:
        update = delivery.update
        pickle.loads(pickle.dumps((update.update_id, update.bot_id, update.received_at, update.attempt, update.raw)))


@pytest.fixture
def run() -> Iterator[Callable[[Any], Callable[[Work], None]]]:
    with asyncio.Runner(loop_factory=pytest.importorskip("uvloop").new_event_loop) as runner:
        yield lambda way: lambda work: runner.run(way(work))


def test_to_a_worker_and_back(beside: Any, run: Any) -> None:
    updates = [restore(Update, samples.update(n, chat_id=n % CHATS + 1), 5, 1.5, 1) for n in range(ITEMS)]
    beside(
        "to a worker and back, at the door",
        run(to_workers),
        pickled,
        prepare=lambda: [Delivery(update) for update in updates],
        items=ITEMS,
        than="pickle",
        goal=GOAL,
        rounds=30,
    )
