"""`journal:`: what it says is safe is on disk, whatever happens to the process, the disk and the file."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import shutil
import time
from pathlib import Path

import pytest

from fasthook import Update
from fasthook._scan import restore
from fasthook.queues import Outcome
from fasthook.testing import samples
from queues.opened import BOT, FULL, KNOWN, SAFE, Commits, Hold, Run, made, on_disk, opened, waiting

# ---------------------------------------------------------------- safe is on disk


def test_safe_is_on_disk(run: Run, journal: Path, tmp_path: Path) -> None:
    async def main() -> None:
        one = await opened(journal)
        missing = []

        def look(update_id: int, outcome: Outcome) -> None:
            assert outcome is SAFE
            if update_id not in on_disk(journal, tmp_path / "copy"):
                missing.append(update_id)

        one.at_answer = look
        for wave in range(10):
            await one.put(*range(wave * 10, wave * 10 + wave))
        assert missing == []
        assert one.ids == [update_id for update_id, _ in one.said]
        assert await one.close() == 45

    run(main())


def test_what_comes_during_a_commit_shares_the_next(run: Run, journal: Path, commits: Commits) -> None:
    async def main() -> None:
        one = await opened(journal)
        commits.before = hold = Hold()
        first = asyncio.ensure_future(one.put(0))
        await hold.reached()
        rest = asyncio.ensure_future(one.put(*range(1, 51)))
        await asyncio.sleep(0)
        assert one.said == []
        hold.go()
        assert await first == [SAFE]
        assert await rest == [SAFE] * 50
        assert commits.count == 2
        assert one.ids == list(range(51))
        await one.close()
        assert commits.count == 2

    run(main())


def test_what_comes_in_one_turn_of_the_loop_shares_a_commit(run: Run, journal: Path, commits: Commits) -> None:
    async def main() -> None:
        one = await opened(journal)
        assert await one.put(*range(20)) == [SAFE] * 20
        assert commits.count == 1
        one.settle(*range(20))
        await one.close()
        assert commits.count == 2

    run(main())


def test_a_crash_around_any_commit(run: Run, journal: Path, commits: Commits, tmp_path: Path) -> None:
    """The file as it was before and after each commit, and with any part of the pages of one but not its last page."""
    images: list[tuple[bytes, bytes, set[int], set[int]]] = []
    chosen = random.Random(1)

    async def main() -> None:
        one = await opened(journal)
        safe, settled = set[int](), set[int]()
        before = b""

        def image() -> bytes:
            return (journal / "data.mdb").read_bytes()

        def keep() -> None:
            nonlocal before
            before = image()

        commits.before = keep
        commits.after = lambda: images.append((before, image(), set(safe), set(settled)))
        one.at_answer = lambda update_id, outcome: safe.add(update_id)
        for wave in range(30):
            await one.put(*range(wave * 5, wave * 5 + 5), size=chosen.choice([500, 6000]))
            done = chosen.sample(one.ids, 3)
            settled.update(done)
            one.settle(*done)
        await one.close()

    run(main())

    def left(image: bytes) -> list[int]:
        shutil.rmtree(tmp_path / "crash", ignore_errors=True)
        (tmp_path / "crash").mkdir()
        (tmp_path / "crash" / "data.mdb").write_bytes(image)
        found = waiting(tmp_path / "crash")
        assert not list((tmp_path / "crash").glob("*damaged*"))
        return found

    page = os.sysconf("SC_PAGE_SIZE")
    for before, after, safe, settled in images:
        old = left(before)
        assert old == sorted(old)
        assert safe - settled <= set(old)
        new = left(after)
        assert new == sorted(new)
        assert safe - settled <= set(new)
        torn = bytearray(before.ljust(len(after), b"\0"))
        for start in range(2 * page, len(after), page):
            if chosen.random() < 0.5:
                torn[start : start + page] = after[start : start + page]
        assert left(bytes(torn)) == old
    assert len(images) >= 30


# ---------------------------------------------------------------- known ids


def test_a_duplicate_is_known(run: Run, journal: Path) -> None:
    async def main() -> None:
        one = await opened(journal)
        assert await one.put(1, 2) == [SAFE, SAFE]
        assert await one.put(2, 3) == [KNOWN, SAFE]
        one.settle(1)
        assert await one.put(1) == [KNOWN]
        assert one.ids == [2, 3]
        await one.close()
        one = await opened(journal)
        assert await one.put(1, 2, 3, 4) == [KNOWN, KNOWN, KNOWN, SAFE]
        assert one.ids == [2, 3, 4]
        await one.close()

    run(main())


def test_the_same_id_of_another_bot_is_another_update(run: Run, journal: Path) -> None:
    async def main() -> None:
        one = await opened(journal)
        assert await one.put(7) == [SAFE]
        assert not one.queue.put(restore(Update, samples.update(7), BOT + 1, time.time(), 1))
        await one.until(lambda: len(one.said) == 2)
        assert one.said[1] == (7, SAFE)
        await one.close()

    run(main())


def test_the_oldest_ids_are_forgotten_in_order(run: Run, journal: Path) -> None:
    async def main() -> None:
        one = await opened(journal, remember=3)
        await one.put(*range(10))
        one.settle(*range(6))
        assert await one.put(10) == [SAFE]  # goes along with what was settled
        for settled in (6, 7):
            one.settle(settled)
            assert await one.put(settled + 5) == [SAFE]
            assert await one.put(*range(10)) == [KNOWN] * 10  # those of one commit are forgotten together
        one.settle(8)
        assert await one.put(13) == [SAFE]
        assert await one.put(6, 7, 8) == [KNOWN] * 3
        assert await one.put(*range(6)) == [SAFE] * 6
        await one.close()
        one = await opened(journal, remember=1)
        assert one.ids == [9, 10, 11, 12, 13, *range(6)]
        one.settle(9)
        assert await one.put(14) == [SAFE]
        assert await one.put(9) == [KNOWN]
        assert await one.put(6, 7, 8) == [SAFE] * 3
        await one.close()

    run(main())


def test_an_update_that_waits_again_is_not_forgotten_with_its_first_time(run: Run, journal: Path) -> None:
    async def main() -> None:
        one = await opened(journal, remember=1)
        await one.put(*range(4))
        first = one.delivered[0].update
        one.settle(0)
        await one.put(4)
        assert await one.queue.again([first]) == 1
        for settled in (1, 2, 3):
            one.settle(settled)
            await one.put(10 + settled)
        assert await one.put(1) == [SAFE]  # forgotten, and so is the first time of 0
        assert await one.put(0) == [KNOWN]
        await one.close()

    run(main())


def test_a_forgotten_id_is_new_again(run: Run, journal: Path) -> None:
    async def main() -> None:
        one = await opened(journal)
        await one.put(1, 2)
        one.settle(2, forget=True)
        assert await one.put(2) == [SAFE]
        assert one.ids == [1, 2]
        assert one.queue.depth == 2
        one.settle(1, 2, forget=True)
        assert one.queue.depth == 0
        await one.close()
        one = await opened(journal)
        assert one.waited == 0
        assert await one.put(1, 2) == [SAFE, SAFE]
        await one.close()

    run(main())


# ---------------------------------------------------------------- the window


@pytest.mark.parametrize("window", [1, 2, 7])
def test_more_updates_than_the_window(run: Run, journal: Path, window: int) -> None:
    async def main() -> None:
        one = await opened(journal, window=window)
        handled: list[int] = []
        assert await one.put(*range(30)) == [SAFE] * 30
        assert one.ids == list(range(window))
        assert one.queue.depth == 30
        new = iter(range(30, 60))
        while one.delivered:
            assert len(one.delivered) <= window
            handled.append(one.ids[0])
            one.settle(one.ids[0])
            if (update_id := next(new, None)) is not None:
                assert await one.put(update_id) == [SAFE]
        assert handled == list(range(60))
        assert one.queue.depth == 0
        await one.close()
        assert waiting(journal) == []

    run(main())


def test_reading_on_while_a_commit_ends_delivers_nothing_twice(run: Run, journal: Path, commits: Commits) -> None:
    """What a commit wrote can be read before the loop is told of its end."""

    async def main() -> None:
        one = await opened(journal, window=2)
        await one.put(1, 2, 3)
        commits.after = hold = Hold()
        fourth = asyncio.ensure_future(one.put(4))
        await hold.reached()
        one.settle(1)
        one.settle(2)
        assert one.ids == [3]
        hold.go()
        assert await fourth == [SAFE]
        await one.until(lambda: len(one.ids) > 1)
        assert await one.put(5) == [SAFE]
        one.settle(3)
        assert one.ids == [4, 5]
        await one.close()

    run(main())


# ---------------------------------------------------------------- the next start


def test_what_waits_comes_first_at_the_next_start(run: Run, journal: Path) -> None:
    async def main() -> None:
        one = await opened(journal)
        await one.put(*range(20, 0, -1))
        one.settle(20, 5, 17)
        assert await one.close() == 17
        one = await opened(journal, window=4)
        left = [update_id for update_id in range(20, 0, -1) if update_id not in (20, 5, 17)]
        assert one.waited == one.queue.depth == 17
        assert one.ids == left[:4]
        await one.put(100, 101)
        handled = []
        while one.delivered:
            handled.append(one.ids[0])
            one.settle(one.ids[0])
        assert handled == [*left, 100, 101]
        await one.close()

    run(main())


def test_an_update_comes_back_as_it_was(run: Run, journal: Path) -> None:
    original = restore(Update, samples.update(9, "pre_checkout_query", invoice_payload=b"\xff\xfe"), BOT, 1.5, 3)

    async def main() -> None:
        one = await opened(journal)
        one.queue.put(original)
        await one.until(lambda: one.said != [])
        await one.close()
        one = await opened(journal)
        [found] = [delivery.update for delivery in one.delivered]
        assert (found.raw, found.update_id, found.kind) == (original.raw, 9, "pre_checkout_query")
        assert (found.bot_id, found.received_at, found.attempt) == (BOT, 1.5, 3)
        await one.close()

    run(main())


def test_a_crash_at_any_moment(run: Run, journal: Path, tmp_path: Path) -> None:
    """The directory is copied at each answer; each copy goes on as if the process had died there."""
    copies: list[tuple[Path, list[int]]] = []

    async def main() -> None:
        one = await opened(journal)
        safe: list[int] = []
        settled: set[int] = set()

        def crash(update_id: int, outcome: Outcome) -> None:
            safe.append(update_id)
            copy = tmp_path / f"copy{len(copies)}"
            shutil.copytree(journal, copy)
            copies.append((copy, [update_id for update_id in safe if update_id not in settled]))

        one.at_answer = crash
        for wave in range(8):
            await one.put(*range(100 - wave * 10, 110 - wave * 10, 2))
            settled.update(one.ids[::3])
            one.settle(*one.ids[::3])
        await one.close()
        for copy, must in copies:
            again = await opened(copy, window=10)
            await again.put(500)
            handled = []
            while again.delivered:
                handled.append(again.ids[0])
                again.settle(again.ids[0])
            assert [update_id for update_id in handled if update_id in must] == must
            assert handled[-1] == 500
            assert len(handled) == len(set(handled))
            await again.close()

    run(main())


# ---------------------------------------------------------------- more was handled than goes into a commit


def test_what_goes_back_to_telegram_may_come_again_at_once(run: Run, journal: Path) -> None:
    async def main() -> None:
        one = await opened(journal, keep=3600.0)
        assert await one.put(1, 2, 3, size=500_000) == [SAFE] * 3
        assert await one.put(4) == [SAFE]
        one.settle(1, 2, 3)
        one.settle(4, forget=True)
        assert await one.put(4) == [SAFE]
        one.settle(4)
        await one.close()
        assert waiting(journal) == []

    run(main())


def test_what_is_still_on_disk_may_be_retried_at_once(run: Run, journal: Path) -> None:
    """It was handled, and a person lets it be handled again before that is on disk."""

    async def main() -> None:
        one = await opened(journal, keep=3600.0)
        assert await one.put(1, 2, 3, size=500_000) == [SAFE] * 3
        assert await one.put(4) == [SAFE]
        one.settle(1, 2, 3, 4)
        assert await one.queue.again([made(4)]) == 1
        await one.until(lambda: one.ids == [4])
        assert await one.close() == 1
        assert waiting(journal) == [4]

    run(main())


# ---------------------------------------------------------------- the file is gone


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_a_file_that_is_not_there_any_more(run: Run, journal: Path, caplog: pytest.LogCaptureFixture, how: str) -> None:
    """What would not be found again is not accepted; when the file is back, all goes on."""

    async def main() -> None:
        one = await opened(journal)
        assert await one.put(1) == [SAFE]
        (journal / "data.mdb").rename(journal / "elsewhere")
        if how == "replaced":
            (journal / "data.mdb").touch()
        assert await one.put(2) == [FULL]
        assert one.queue.trouble
        (journal / "elsewhere").rename(journal / "data.mdb")
        assert await one.put(2) == [SAFE]
        assert one.queue.trouble is None
        await one.close()
        assert waiting(journal) == [1, 2]

    run(main())
    [error] = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert "its data.mdb was removed or replaced; put it back, or start the server again; new updates get" in error


# ---------------------------------------------------------------- room


def test_a_full_journal(run: Run, journal: Path, caplog: pytest.LogCaptureFixture) -> None:
    """New updates are refused, those that wait are handled, and then there is room, again and again."""
    caplog.set_level(logging.INFO)

    async def main() -> None:
        one = await opened(journal, window=50, remember=10, limit=1 << 20)
        update_id = 0
        for _ in range(5):
            safe: list[int] = []
            while True:
                outcomes = await one.put(*range(update_id, update_id + 10), size=4000)
                if FULL in outcomes:
                    assert outcomes == [FULL] * 10
                    break
                safe += range(update_id, update_id + 10)
                update_id += 10
            assert one.queue.trouble == f"the journal {journal} has reached --journal-max (1048576 bytes)"
            assert (journal / "data.mdb").stat().st_size < 2 << 20
            assert len(safe) >= 100
            handled = []
            while one.delivered:
                handled.append(one.ids[0])
                one.settle(one.ids[0])
            assert handled == safe
            while (outcome := (await one.put(update_id, size=4000))[0]) is not SAFE:  # however often one asks
                assert outcome is FULL
            one.settle(update_id)
            update_id += 1
            assert one.queue.trouble is None
        await one.close()
        assert waiting(journal) == []

    run(main())
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 5
    assert errors[0].getMessage().endswith("--journal-max (1048576 bytes); new updates get 503 and stay with Telegram")


def test_a_full_journal_reopened_with_more_room(run: Run, journal: Path) -> None:
    async def main() -> None:
        one = await opened(journal, limit=1 << 20)
        count = 0
        while await one.put(count, size=60_000) == [SAFE]:
            count += 1
        await one.close()
        one = await opened(journal, limit=8 << 20)
        assert one.waited == count
        assert await one.put(*range(1000, 1050), size=60_000) == [SAFE] * 50
        await one.close()

    run(main())


def test_the_file_grows_by_itself(run: Run, journal: Path) -> None:
    async def main() -> None:
        one = await opened(journal)
        assert await one.put(*range(60), size=500_000) == [SAFE] * 60
        await one.close()
        one = await opened(journal)
        assert one.ids == list(range(60))
        assert one.delivered[59].update.raw == made(59, size=500_000).raw
        await one.close()

    run(main())
