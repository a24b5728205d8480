"""What can be done with updates in a journal beside handling them: look, purge, keep what was handled, replay it."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import lmdb
import pytest

from fasthook.queues import QueueError
from fasthook.queues.journal import Journal
from fasthook.queues.memory import MemoryQueue
from fasthook.queues.store import unpack_update
from queues.opened import BOT, FULL, KNOWN, SAFE, Commits, Opened, Run, opened, waiting


def handled(directory: Path) -> list[int]:
    """The ids of the handled updates that are kept."""
    journal = Journal(directory)
    try:
        return [unpack_update(record).update_id for _, _, record in journal.handled_items()]
    finally:
        journal.close()


async def written(one: Opened) -> None:
    """Wait until what was settled is on disk."""
    await one.put(10_000 + len(one.said))


# ---------------------------------------------------------------- kept


def test_handled_updates_are_kept_and_dead_ones_not(run: Run, journal: Path) -> None:
    async def main() -> None:
        before = time.time()
        one = await opened(journal, keep=60.0)
        await one.put(1, 2, 3, 4)
        one.delivered[1].failure = ValueError("it is a dead letter")
        one.settle(1, 2)
        one.settle(3, forget=True)
        await written(one)
        [(number, at, record)] = one.queue.handled_snapshot(0, 10)
        assert (number, unpack_update(record).update_id) == (1, 1)
        assert before <= at <= time.time()
        assert one.queue.handled_snapshot(1, 10) == []
        await one.close()

    run(main())
    assert handled(journal) == [1]


def test_they_are_dropped_when_they_are_old(run: Run, journal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        one = await opened(journal, keep=60.0)
        await one.put(1, 2)
        one.settle(1)
        await written(one)
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + 50)
        one.settle(2)
        await written(one)
        assert [number for number, _, _ in one.queue.handled_snapshot(0, 10)] == [1, 2]
        monkeypatch.setattr(time, "time", lambda: now + 100)
        await written(one)
        assert [number for number, _, _ in one.queue.handled_snapshot(0, 10)] == [2]
        await one.close()

    run(main())


def test_a_clock_that_was_ahead_does_not_keep_what_is_behind(
    run: Run, journal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        now = time.time()

        async def handle(update_id: int, at: float) -> None:
            monkeypatch.setattr(time, "time", lambda: now + at)
            one.settle(update_id)
            await written(one)

        one = await opened(journal, keep=60.0)
        await one.put(1, 2, 3, 4, 5)
        await handle(1, 1_000_000)
        await handle(2, 1_000_000)
        await handle(3, 0)
        await handle(4, 50)
        assert [number for number, _, _ in one.queue.handled_snapshot(0, 10)] == [1, 2, 3, 4]
        await handle(5, 100)
        assert [number for number, _, _ in one.queue.handled_snapshot(0, 10)] == [4, 5]
        await one.close()

    run(main())


def test_they_make_room_for_new_ones(run: Run, journal: Path) -> None:
    async def main() -> None:
        one = await opened(journal, keep=3600.0, limit=1 << 20)
        for update_id in range(200):
            assert await one.put(update_id, size=20_000) == [SAFE]
            one.settle(update_id)
        kept = one.queue.handled_snapshot(0, 1000)
        assert 5 < len(kept) < 60
        assert kept[-1][0] >= 199
        await one.close()

    run(main())


# ---------------------------------------------------------------- replayed


def test_a_replayed_update_is_handled_again(run: Run, journal: Path) -> None:
    async def main() -> None:
        one = await opened(journal, keep=60.0)
        await one.put(1, 2, 3)
        one.settle(1, 2)
        await written(one)
        assert await one.queue.requeue([1, 2, 77]) == 2
        assert one.ids == [3, 10_003, 1, 2]
        assert one.queue.depth == 4
        assert [delivery.before for delivery in one.delivered] == [False] * 4
        assert await one.put(1) == [KNOWN]
        one.settle(1, 2, 3)
        assert await one.put(2, 4) == [KNOWN, SAFE]
        await one.close()
        one = await opened(journal)
        assert one.ids == [10_003, 4]
        assert await one.put(1, 2, 3) == [KNOWN] * 3
        await one.close()

    run(main())


def test_a_replayed_update_survives_a_crash_and_is_not_too_old(run: Run, journal: Path) -> None:
    async def main() -> None:
        one = await opened(journal, keep=60.0)
        await one.put(1, 2)
        one.settle(1)
        await written(one)
        assert await one.queue.requeue([1]) == 1
        await one.close()
        one = await opened(journal, keep=60.0)
        assert one.ids == [2, 10_002, 1]
        assert [delivery.before for delivery in one.delivered] == [True, True, False]
        await one.close()

    run(main())


def test_replay_while_no_server_runs(run: Run, journal: Path) -> None:
    async def main() -> None:
        one = await opened(journal, keep=60.0)
        await one.put(*range(5))
        one.settle(0, 1, 2)
        await one.close()
        files = Journal(journal)
        numbers = [number for number, _, _ in files.handled_items()]
        assert files.requeue([*numbers[1:], 1000]) == 2
        files.close()
        assert waiting(journal) == [3, 4, 1, 2]
        assert handled(journal) == [0]
        one = await opened(journal)
        assert await one.put(1, 2) == [KNOWN, KNOWN]
        one.settle(*range(5))
        assert await one.put(1, 2, 5) == [KNOWN, KNOWN, SAFE]
        await one.close()

    run(main())


def test_a_replay_that_cannot_be_written(run: Run, journal: Path, commits: Commits) -> None:

    async def main() -> None:
        one = await opened(journal, keep=60.0)
        await one.put(1)
        one.settle(1)
        await written(one)
        commits.errors = [lmdb.DiskError("data.mdb: No space left on device")]
        with pytest.raises(QueueError, match=r"cannot be written: data\.mdb: No space left on device$"):
            await one.queue.requeue([1])
        assert await one.queue.requeue([1]) == 1
        commits.errors = [lmdb.DiskError("mdb_txn_commit: Input/output error")]
        assert await one.put(7) == [FULL]
        with pytest.raises(QueueError, match=r"nothing is accepted until a restart$"):
            await one.queue.requeue([1])
        await one.close()

    run(main())


def test_memory_cannot_replay(tmp_path: Path) -> None:
    async def main() -> None:
        queue = MemoryQueue(tmp_path / "spill")
        await queue.open(lambda delivery: None, lambda delivery: True, lambda update, outcome: None)
        with pytest.raises(QueueError, match="--keep-handled"):
            await queue.requeue([1])
        assert (await queue.purge(lambda update: True), queue.snapshot(0, 9), queue.oldest, queue.bytes) == (
            0, [], None, 0,
        )  # fmt: skip
        await queue.close([])

    asyncio.run(main())


# ---------------------------------------------------------------- looked at, and purged


def test_a_look_at_what_waits(run: Run, journal: Path) -> None:
    async def main() -> None:
        one = await opened(journal, window=2)
        assert one.queue.oldest is None
        await one.put(*range(6))
        one.settle(0)
        assert [unpack_update(record).update_id for _, record in one.queue.snapshot(0, 3)] == [1, 2, 3]
        assert [number for number, _ in one.queue.snapshot(4, 3)] == [5, 6]
        assert one.queue.oldest == pytest.approx(time.time(), abs=20)
        assert one.queue.bytes == (journal / "data.mdb").stat().st_size > 0
        assert await one.put(6) == [SAFE]  # the look is over
        await one.close()

    run(main())


@pytest.mark.parametrize("share", [1, 3, None])
def test_purge_takes_what_is_on_disk_only(run: Run, journal: Path, share: int | None) -> None:
    async def main() -> None:
        one = await opened(journal, window=3, share=share)
        await one.put(*range(20), chat=5)
        inside = one.ids
        assert await one.queue.purge(lambda update: update.update_id % 2 == 0) == 10 - sum(n % 2 == 0 for n in inside)
        assert one.queue.depth == 10 + sum(n % 2 == 0 for n in inside)
        done = []
        while one.delivered:
            done.append(one.ids[0])
            one.settle(one.ids[0])
        assert done == sorted({*inside, *range(1, 20, 2)})
        assert one.queue.depth == 0
        assert await one.put(4, 100) == [KNOWN, SAFE]  # what was purged was acknowledged: it is not new
        await one.close()

    run(main())
    assert waiting(journal) == [100]


def test_purge_while_no_server_runs(run: Run, journal: Path) -> None:
    async def main() -> None:
        one = await opened(journal)
        await one.put(*range(5))
        await one.close()
        files = Journal(journal)
        assert files.purge([1, 3, 99]) == 2
        files.close()
        one = await opened(journal)
        assert one.ids == [1, 3, 4]
        assert await one.put(0, 2) == [KNOWN, KNOWN]
        await one.close()

    run(main())


# ---------------------------------------------------------------- replies


def test_replies_stay_known_as_long_as_the_ids(run: Run, journal: Path) -> None:
    async def main() -> None:
        one = await opened(journal, remember=3)
        await one.put(*range(1, 6))
        for delivery in one.delivered[:4]:
            delivery.reply = b"{%d}" % delivery.update.update_id
        for update_id in range(1, 6):
            one.settle(update_id)
            await one.put(10 + update_id)
        await one.close()
        one = await opened(journal, remember=3)
        assert [(name[1], reply) for name, reply in one.queue.replies()] == [(3, b"{3}"), (4, b"{4}")]
        await one.close()

    run(main())


def test_old_replies_stay_on_disk(run: Run, journal: Path) -> None:
    """In memory, at a start, is no more than 16 MiB of the newest."""

    async def main() -> None:
        one = await opened(journal)
        await one.put(*range(40))
        for delivery in one.delivered:
            delivery.reply = b"x" * 1_000_000
        one.settle(*range(40))
        await one.close()
        one = await opened(journal)
        assert [name[1] for name, _ in one.queue.replies()] == list(range(24, 40))
        assert one.queue.reply(BOT, 0) == b"x" * 1_000_000
        assert one.queue.reply(BOT, 40) is None
        assert one.queue.reply(BOT + 1, 0) is None
        await one.close()

    run(main())


def test_replies_take_a_quarter_of_the_journal(run: Run, journal: Path) -> None:
    async def main() -> None:
        one = await opened(journal, limit=16 << 20)
        for update_id in range(100):
            assert await one.put(update_id) == [SAFE]
            one.delivered[0].reply = b"x" * 100_000
            one.settle(update_id)
        await one.put(1000)
        known = [one.queue.reply(BOT, update_id) is not None for update_id in range(100)]
        assert 35 <= sum(known) <= 42
        assert known == sorted(known)
        assert await one.put(0) == [KNOWN]
        await one.close()

    run(main())


# ---------------------------------------------------------------- a flood in one chat


def test_a_flood_in_one_chat_leaves_room_for_others(run: Run, journal: Path) -> None:
    async def main() -> None:
        one = await opened(journal, window=20, share=4)
        await one.put(*range(1000), chat=1)
        assert one.ids == [0, 1, 2, 3]
        await one.put(5000, chat=2)
        await one.put(5001, chat=3)
        assert one.ids == [0, 1, 2, 3, 5000, 5001]
        one.settle(5000, 5001)
        await one.put(*range(1000, 1100), chat=1)
        await one.put(5002, chat=2)
        flood = []
        while await one.any_left():
            assert len(one.delivered) <= 20
            if one.delivered[0].update.chat_id == 1:
                flood.append(one.ids[0])
            one.settle(one.ids[0])
        assert flood == list(range(1100))
        await one.close()

    run(main())


def test_a_flood_before_the_start_leaves_room_for_others(run: Run, journal: Path) -> None:
    async def main() -> None:
        one = await opened(journal)
        await one.put(*range(900), chat=1)
        await one.put(*range(1000, 1010), chat=2)
        await one.close()
        one = await opened(journal, window=20, share=4)
        assert one.ids == [0, 1, 2, 3, 1000, 1001, 1002, 1003]
        order: dict[int | None, list[int]] = {1: [], 2: []}
        while await one.any_left():
            delivery = one.delivered[-1]
            first = next(other for other in one.delivered if other.update.chat_id == delivery.update.chat_id)
            order[first.update.chat_id].append(first.update.update_id)
            one.settle(first.update.update_id)
        assert order == {1: list(range(900)), 2: list(range(1000, 1010))}
        await one.close()

    run(main())


def test_many_floods(run: Run, journal: Path) -> None:
    """More than the window has shares for: each chat's order is kept, and each comes to an end."""

    async def main() -> None:
        one = await opened(journal, window=10, share=4)
        for n in range(50):
            for chat in range(1, 7):
                await one.put(chat * 1000 + n, chat=chat)
        order: dict[int | None, list[int]] = {chat: [] for chat in range(1, 7)}
        while await one.any_left():
            assert len(one.delivered) <= 10
            delivery = one.delivered[0]
            order[delivery.update.chat_id].append(delivery.update.update_id)
            one.settle(delivery.update.update_id)
        assert order == {chat: [chat * 1000 + n for n in range(50)] for chat in range(1, 7)}
        await one.close()

    run(main())


def test_too_little_room_for_the_ids_is_said(run: Run, journal: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        one = await opened(journal, remember=1_000_000, limit=1 << 20)
        update_id = 0
        for _ in range(200):  # and it goes on: the oldest ids are forgotten
            assert await one.put(*range(update_id, update_id + 100)) == [SAFE] * 100
            one.settle(*range(update_id, update_id + 100))
            update_id += 100
        assert await one.put(update_id - 1, update_id) == [KNOWN, SAFE]
        await one.close()

    run(main())
    [record] = caplog.records
    assert record.getMessage() == (
        "--journal-max (1048576 bytes) has no room for --dedup-size (1000000) ids beside updates: fewer are "
        "remembered; set it to 320000000 or more"
    )
