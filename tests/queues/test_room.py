"""`journal:` at the borders of its map and of `--journal-max`: nothing stops for good, what was handled goes out."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import lmdb
import pytest

from fasthook._scan import restore
from fasthook.queues import Outcome
from fasthook.queues.tables import Journal
from fasthook.testing import samples
from fasthook.update import Update
from queues.opened import BOT, FULL, PATIENCE, SAFE, Commits, Opened, opened, waiting

MIB = 1 << 20
BODY = samples.update(0, size=500)
HEAD = BODY.index(b"0,")  # of update_id, the first number in it


def small(update_id: int) -> Update:
    return restore(Update, b"%s%d%s" % (BODY[:HEAD], update_id, BODY[HEAD + 1 :]), BOT, time.time(), 1)


async def put_small(one: Opened, start: int, count: int) -> set[Outcome]:
    seen = len(one.said)
    for update_id in range(start, start + count):
        one.queue.put(small(update_id))
    await one.until(lambda: len(one.said) >= seen + count)
    return {outcome for _, outcome in one.said[seen:]}


@pytest.fixture(params=["ahead", "only when it must"])
def growing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The map grows before a commit needs it, or LMDB says at the commit that it has no room."""
    if request.param != "ahead":
        monkeypatch.setattr(Journal, "grow_ahead", lambda self, more: None)


@pytest.mark.usefixtures("growing")
@pytest.mark.parametrize("batch", [1, 37, 90])
def test_the_map_grows_under_small_commits(journal: Path, batch: int) -> None:
    async def main() -> None:
        one = await opened(journal, window=100)
        count = 0
        for size, until in ((900, 13 * MIB), (100, 15.3 * MIB), (batch, 16.3 * MIB)):  # the map has 16 MiB at first
            while one.queue.used < until:
                assert await put_small(one, count, size) == {SAFE}
                count += size
        assert one.queue.trouble is None
        assert await one.close() == count
        assert waiting(journal) == list(range(count))

    asyncio.run(asyncio.wait_for(main(), 3 * PATIENCE))


@pytest.mark.usefixtures("growing")
@pytest.mark.parametrize(("batch", "rounds"), [(1, 1), (37, 3), (90, 3)])  # a commit of one syncs for each update
def test_full_and_room_again_under_small_commits(journal: Path, batch: int, rounds: int) -> None:
    async def main() -> None:
        one = await opened(journal, window=100_000, limit=2 * MIB, remember=100)
        count = 0
        for _ in range(rounds):
            while one.queue.used < 1.7 * MIB:
                assert await put_small(one, count, 90) == {SAFE}
                count += 90
            while await put_small(one, count, batch) == {SAFE}:
                count += batch
            assert one.queue.trouble is not None
            assert len(one.ids) > 2000
            left = one.ids[-10:]
            for delivery in one.delivered[:-10]:
                one.queue.settle(delivery)
            del one.delivered[:-10]
            while await put_small(one, count, batch) == {FULL}:
                pass
            assert one.ids == [*left, *range(count, count + batch)]
            count += batch
            assert one.queue.trouble is None
        await one.close()

    asyncio.run(asyncio.wait_for(main(), 3 * PATIENCE))


def test_a_full_map_at_a_commit_loses_nothing(journal: Path, commits: Commits) -> None:
    """What is in the commit goes into the next try, whatever comes meanwhile."""

    async def main() -> None:
        one = await opened(journal)
        await one.put(1, 2)
        commits.errors = [lmdb.MapFullError("mdb_txn_commit: MDB_MAP_FULL")] * 2
        one.settle(1)
        assert await one.put(3, 4) == [SAFE, SAFE]
        assert one.ids == [2, 3, 4]
        await one.close()
        assert waiting(journal) == [2, 3, 4]

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


@pytest.mark.usefixtures("growing")
@pytest.mark.parametrize("size", [1200, 9000])
def test_a_full_journal_that_keeps_what_was_handled(journal: Path, size: int) -> None:
    """All of it is handled, what is kept makes room for new updates, and nothing is handled again after a restart."""

    async def main() -> None:
        one = await opened(journal, window=100_000, limit=8 * MIB, keep=3600.0)
        count = 0
        while await one.put(*range(count, count + 20), size=size) == [SAFE] * 20:
            count += 20
        assert len(one.ids) == count
        one.settle(*range(count))
        while await one.put(count, size=size) == [FULL]:
            pass
        assert one.queue.trouble is None
        await one.close()
        one = await opened(journal, window=100_000, limit=8 * MIB, keep=3600.0)
        assert one.ids == [count]
        assert len(one.queue.handled_snapshot(0, 1_000_000)) > count // 3
        assert one.queue.used <= 8 * MIB
        await one.close()

    asyncio.run(asyncio.wait_for(main(), 3 * PATIENCE))


@pytest.mark.usefixtures("growing")
@pytest.mark.parametrize("what", ["every other", "the first half"])
def test_purge_in_a_full_journal(journal: Path, what: str) -> None:
    """Of pages that are half empty, there is room again when the other half is handled."""

    async def main() -> None:
        one = await opened(journal, window=20, share=20, limit=16 * MIB)
        count = 0
        while await put_small(one, count, 500) == {SAFE}:
            count += 500
        inside = set(one.ids)
        gone = {n for n in range(count) if (n % 2 == 0 if what == "every other" else n < count // 2)}
        assert await one.queue.purge(lambda update: update.update_id in gone) == len(gone - inside)
        left = [n for n in range(count) if n not in gone or n in inside]
        assert one.queue.depth == len(left)
        if what == "every other":
            for n in left[:-10]:
                assert one.ids[0] == n
                one.settle(n)
            left = left[-10:]
        while await put_small(one, count, 500) == {FULL}:
            pass
        await one.close()
        assert waiting(journal) == [*left, *range(count, count + 500)]

    asyncio.run(asyncio.wait_for(main(), 3 * PATIENCE))


def test_what_is_purged_is_told(journal: Path) -> None:
    async def main() -> None:
        one = await opened(journal, window=3)
        await one.put(*range(10))
        one.said.clear()
        assert await one.queue.purge(lambda update: update.update_id % 2 == 1) == 4
        assert one.said == [(n, Outcome.PURGED) for n in (3, 5, 7, 9)]
        await one.close()

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


def test_an_unexpected_failure_of_a_commit_is_not_the_end(
    journal: Path, commits: Commits, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        one = await opened(journal)
        commits.errors = [RuntimeError("nobody thought of it")]
        assert await one.put(1) == [FULL]
        assert one.queue.trouble == f"the journal {journal} cannot be written: nobody thought of it"
        assert await one.put(1) == [SAFE]
        assert one.queue.trouble is None
        await one.close()

    asyncio.run(asyncio.wait_for(main(), PATIENCE))
    assert any(record.exc_info for record in caplog.records)


def test_an_unexpected_failure_of_filling_is_not_the_end(journal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        one = await opened(journal)
        with monkeypatch.context() as broken:
            broken.setattr("fasthook.queues.batch.pack_update", lambda update: 1 / 0)
            assert await one.put(1) == [FULL]
        assert await one.put(1) == [SAFE]
        await one.close()

    asyncio.run(asyncio.wait_for(main(), PATIENCE))
