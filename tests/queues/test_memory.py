"""`memory:` and its spill."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from fasthook import Update
from fasthook._scan import restore
from fasthook.queues import Delivery, Outcome, QueueError, open_queue
from fasthook.queues.memory import MemoryQueue
from fasthook.queues.store import Store, pack_update, unpack_update
from fasthook.settings import load
from fasthook.testing import samples
from queues.opened import PATIENCE
from updates import of, update


def nobody(_: Update, outcome: Outcome) -> None:
    raise AssertionError(f"memory: answers at once, not {outcome}")


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, PATIENCE))


async def opened(directory: Path, settled: tuple[int, ...] = ()) -> tuple[MemoryQueue, list[Delivery]]:
    queue, delivered = MemoryQueue(directory / "spill"), list[Delivery]()

    def redeliver(delivery: Delivery) -> bool:
        if delivery.update.update_id in settled:
            return False
        delivered.append(delivery)
        return True

    count = await queue.open(delivered.append, redeliver, nobody)
    assert count == len(delivered) == queue.depth
    return queue, delivered


def ids(deliveries: list[Delivery]) -> list[int]:
    return [delivery.update.update_id for delivery in deliveries]


def spill(directory: Path, *updates: Update) -> None:
    """Stop with these left."""

    async def main() -> None:
        queue, _ = await opened(directory)
        assert await queue.close(map(Delivery, updates)) == len(updates)

    run(main())


def test_its_url(tmp_path: Path) -> None:
    settings = load({"queue": "memory:", "state_dir": tmp_path}, {})
    assert isinstance(open_queue(settings), MemoryQueue)
    with pytest.raises(ValueError, match="no queue is named by 'disk:'"):
        open_queue(dataclasses.replace(settings, queue="disk:"))


def test_what_is_put_is_delivered_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        queue, delivered = await opened(tmp_path)
        assert all(queue.put(update(n)) for n in range(3))
        assert ids(delivered) == [0, 1, 2]
        assert queue.depth == 3
        for delivery in delivered:
            queue.settle(delivery)
        assert queue.depth == 0
        assert await queue.close([]) == 0

    run(main())
    assert list(tmp_path.iterdir()) == []


def test_what_is_left_comes_first_at_the_next_start(tmp_path: Path) -> None:
    left = [update(n, chat=n % 2, attempt=n + 1) for n in range(5, 0, -1)]
    left.append(of(samples.update(9, "pre_checkout_query", invoice_payload=b"\xff\xfe")))
    spill(tmp_path, *left)

    async def main() -> None:
        _, delivered = await opened(tmp_path)
        for delivery, original in zip(delivered, left, strict=True):
            found = delivery.update
            assert found.raw == original.raw
            assert (found.update_id, found.kind, found.chat_id, found.user_id) == (
                original.update_id, original.kind, original.chat_id, original.user_id,
            )  # fmt: skip
            assert (found.bot_id, found.received_at, found.attempt) == (original.bot_id, 1.5, original.attempt)

    run(main())


def test_the_oldest_comes_first(tmp_path: Path) -> None:
    """A stop leaves them chat by chat. Where the clock was set back meanwhile, the order of a chat is kept."""
    came = {1: 1.0, 4: 4.0, 7: 7.0, 2: 2.0, 5: 5.0, 8: 1.5, 3: 3.0, 6: 6.0}
    spill(tmp_path, *(at(when, update(n, chat=1 + (n - 1) % 3)) for n, when in came.items()))

    async def main() -> None:
        assert ids((await opened(tmp_path))[1]) == [1, 2, 3, 4, 5, 8, 6, 7]

    run(main())


def at(when: float, one: Update) -> Update:
    """The same, received at this time."""
    return restore(Update, one.raw, one.bot_id, when, one.attempt)


def test_the_spill_outlives_a_crash_until_an_orderly_stop(tmp_path: Path) -> None:
    spill(tmp_path, update(1), update(2), update(3))

    async def main() -> None:
        _, delivered = await opened(tmp_path)  # and then the process dies
        assert ids(delivered) == [1, 2, 3]
        queue, delivered = await opened(tmp_path, settled=(1,))
        assert ids(delivered) == [2, 3]
        assert await queue.close([]) == 0
        _, delivered = await opened(tmp_path)
        assert delivered == []

    run(main())


def test_a_later_spill_takes_the_place_of_the_first(tmp_path: Path) -> None:
    spill(tmp_path, update(1), update(2))
    spill(tmp_path, update(3))

    async def main() -> None:
        assert ids((await opened(tmp_path))[1]) == [3]

    run(main())


def test_a_large_spill(tmp_path: Path) -> None:
    """More than the file's first size."""
    left = [of(samples.update(n, size=500_000)) for n in range(60)]
    spill(tmp_path, *left)

    async def main() -> None:
        assert [delivery.update.raw for delivery in (await opened(tmp_path))[1]] == [update.raw for update in left]

    run(main())


def test_a_spill_that_cannot_be_written_says_what_is_lost(tmp_path: Path) -> None:
    async def main() -> None:
        queue, _ = await opened(tmp_path)
        (tmp_path / "spill").write_text("in the way")
        with pytest.raises(QueueError, match=r"^2 updates are lost: .*spill: cannot be opened: File exists$"):
            await queue.close([Delivery(update(1)), Delivery(update(2))])

    run(main())


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def overwrite(file: Path) -> None:
    file.write_bytes(os.urandom(file.stat().st_size))


@pytest.mark.parametrize("damage", [truncate, overwrite])
def test_a_damaged_spill_is_set_aside(tmp_path: Path, damage: Any, caplog: pytest.LogCaptureFixture) -> None:
    spill(tmp_path, *(update(n) for n in range(1000)))
    damage(tmp_path / "spill" / "data.mdb")

    async def main() -> None:
        queue, delivered = await opened(tmp_path)
        assert ids(delivered) == list(range(len(delivered)))
        queue.put(update(5000))
        assert await queue.close([Delivery(update(5000))]) == 1
        assert ids((await opened(tmp_path))[1]) == [5000]

    run(main())
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.getMessage().startswith("the spill is damaged (")
    assert "\n" not in record.getMessage()
    [aside] = tmp_path.glob("spill.damaged-*")
    assert record.getMessage().endswith(f"it is kept as {aside}")


def test_a_spill_of_a_newer_version_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(tmp_path / "spill")
    store.append([pack_update(update(1)), b"\x02" + pack_update(update(2))[1:]])
    store.close()

    async def main() -> None:
        assert ids((await opened(tmp_path))[1]) == [1]

    run(main())
    assert "the record has version 2, this program knows 1" in caplog.text


@pytest.mark.parametrize("cut", [0, 10, 23])
def test_a_record_that_is_cut_off(cut: int) -> None:
    with pytest.raises(ValueError, match="cut off"):
        unpack_update(pack_update(update(1))[:cut])
