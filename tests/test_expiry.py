"""Updates that outlived Telegram's interest in a downtime: dead letters, unless `--stale handle`."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path
from typing import Any

import pytest

from fasthook import Hook, Update
from fasthook._scan import restore
from fasthook.queues import Delivery
from fasthook.queues.deadletter import DeadLetter, DeadLetters
from fasthook.queues.journal import Journal, JournalQueue
from fasthook.queues.memory import MemoryQueue
from fasthook.testing import samples

PATIENCE = 60.0  # seconds


async def wait_on_disk(tmp_path: Path, queue: str, *kinds: tuple[str, float]) -> None:
    """Leave updates with ids from 1 on, of these kinds, that came so many seconds ago."""
    now = time.time()
    updates = [
        restore(Update, samples.update(number, kind), 0, now - age, 1)
        for number, (kind, age) in enumerate(kinds, start=1)
    ]
    if queue == "memory:":
        await MemoryQueue(tmp_path / "state" / "spill").close(map(Delivery, updates))
        return
    kept = JournalQueue(tmp_path / "journal", window=100, remember=100, limit=1 << 30)
    all_safe = asyncio.Event()
    await kept.open(
        lambda delivery: all_safe.set() if delivery.update is updates[-1] else None,
        lambda delivery: True,
        lambda update, outcome: None,
    )
    for update in updates:
        kept.put(update)
    await all_safe.wait()
    await kept.close([])


def after_a_downtime(
    tmp_path: Path, *kinds: tuple[str, float], queue: str, **settings: Any
) -> tuple[list[int], list[DeadLetter]]:
    """The ids that are handled at the next start, and the dead letters."""
    handled: list[int] = []

    async def handler(update: Update) -> None:
        handled.append(update.update_id)

    async def main() -> None:
        await wait_on_disk(tmp_path, queue, *kinds)
        place = f"journal:{tmp_path / 'journal'}" if queue == "journal:" else queue
        hook = Hook(handler, secret="secret", queue=place, state_dir=tmp_path / "state", **settings)
        await hook.receiver.start()
        await hook.receiver.stop()  # which drains

    asyncio.run(asyncio.wait_for(main(), PATIENCE))
    letters = DeadLetters(tmp_path / "state" / "dead")
    try:
        return handled, [letter for _, letter in letters.items()]
    finally:
        letters.close()


@pytest.fixture(params=["journal:", "memory:"])
def queue(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


QUERIES = [
    ("callback_query", 160.0),
    ("callback_query", 100.0),
    ("pre_checkout_query", 160.0),
    ("shipping_query", 160.0),
    ("inline_query", 40.0),
    ("inline_query", 1.0),
    ("message", 86_000.0),
]


def test_a_query_that_waited_too_long_is_a_dead_letter(tmp_path: Path, queue: str) -> None:
    handled, letters = after_a_downtime(tmp_path, *QUERIES, queue=queue)
    assert sorted(handled) == [2, 6, 7]
    assert sorted(letter.raw for letter in letters) == [samples.update(n, QUERIES[n - 1][0]) for n in (1, 3, 4, 5)]
    assert {letter.reason for letter in letters} == {"expired"}
    by_raw = {letter.raw: letter for letter in letters}
    letter = by_raw[samples.update(1, "callback_query")]
    assert re.search(r"it came 1\d\d s ago, and a callback_query is of use for 150 s", letter.traceback)
    assert letter.died_at - letter.received_at >= 160
    assert letter.attempts == 0  # no handler has seen it


def test_it_is_settled(tmp_path: Path) -> None:
    after_a_downtime(tmp_path, ("callback_query", 160.0), queue="journal:")
    opened = Journal(tmp_path / "journal")
    assert list(opened.items()) == []
    opened.close()


def test_stale_handle(tmp_path: Path, queue: str) -> None:
    handled, letters = after_a_downtime(tmp_path, *QUERIES, queue=queue, stale="handle")
    assert sorted(handled) == [1, 2, 3, 4, 5, 6, 7]
    assert letters == []


def test_messages_with_max_age(tmp_path: Path, queue: str) -> None:
    kinds = [("message", 3700.0), ("edited_message", 3500.0), ("poll", 3700.0), ("callback_query", 100.0)]
    handled, letters = after_a_downtime(tmp_path, *kinds, queue=queue, max_age="1h")
    assert sorted(handled) == [2, 4]
    assert [letter.reason for letter in letters] == ["expired", "expired"]


def test_a_clock_that_went_back(tmp_path: Path, queue: str) -> None:
    handled, letters = after_a_downtime(tmp_path, ("callback_query", -3600.0), queue=queue, max_age="1h")
    assert handled == [1]
    assert letters == []


def test_what_waited_on_disk_for_room_in_memory_has_not_outlived_a_downtime(tmp_path: Path) -> None:
    """It came to a server that was there, late in its turn or not."""
    handled: list[int] = []
    go = asyncio.Event()

    async def handler(update: Update) -> None:
        await go.wait()
        handled.append(update.update_id)

    async def main() -> None:
        hook = Hook(handler, secret="secret", queue=f"journal:{tmp_path / 'journal'}", state_dir=tmp_path / "state",
                    queue_size=2)  # fmt: skip
        await hook.receiver.start()
        queue: Any = hook.receiver._queue
        for number in range(1, 7):
            queue.put(restore(Update, samples.update(number, "callback_query"), 0, time.time() - 3600, 1))
        while queue.depth < 6:
            await asyncio.sleep(0)
        go.set()
        await hook.receiver.stop()

    asyncio.run(asyncio.wait_for(main(), PATIENCE))
    assert handled == [1, 2, 3, 4, 5, 6]
    assert not (tmp_path / "state" / "dead").exists()
