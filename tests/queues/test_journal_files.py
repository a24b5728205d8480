"""`journal:` on files and disks that cannot be used, or not any more."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import random
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import lmdb
import pytest

from fasthook.queues import QueueError
from fasthook.queues.journal import Journal
from fasthook.queues.probe import check
from fasthook.queues.rows import NUMBER
from fasthook.queues.settled_file import SettledFile
from queues.opened import BOT, FULL, KNOWN, PATIENCE, SAFE, Commits, Hold, Run, on_disk, opened, waiting

# ---------------------------------------------------------------- damaged, foreign and forbidden files


def filled(run: Run, directory: Path, count: int = 100) -> bytes:
    """The file of a journal where so many updates wait."""

    async def main() -> None:
        one = await opened(directory)
        await one.put(*range(count))
        await one.put(*range(count, count + 3), size=10_000)
        one.settle(*range(0, count, 10))
        await one.close()

    run(main())
    with tempfile.TemporaryDirectory(dir=directory.parent) as compact:
        with lmdb.open(str(directory), max_dbs=8, lock=False) as env:
            env.copy(compact, compact=True)  # without free pages: how many there are depends on how commits fell
        return (Path(compact) / "data.mdb").read_bytes()


def survives(run: Run, directory: Path, image: bytes) -> bool:
    """Open a directory with this file in it: whether it was set aside. It takes updates and gives them back."""
    shutil.rmtree(directory)
    directory.mkdir()
    (directory / "data.mdb").write_bytes(image)

    async def main() -> None:
        one = await opened(directory)
        assert one.ids == sorted(one.ids)
        old = one.ids
        if one.queue.trouble is None:
            assert await one.put(5000) == [SAFE]
        await one.close()
        one = await opened(directory)
        assert set(old) <= set(one.ids)
        assert one.ids == sorted(one.ids)
        assert await one.put(5001) == [SAFE]
        await one.close()

    run(main())
    aside = list(directory.glob("data.mdb.damaged-*"))
    for kept in aside:
        assert kept.read_bytes()[: len(image)] == image
        assert not kept.read_bytes()[len(image) :].strip(b"\0")
    return bool(aside)


def test_random_bytes_are_set_aside(run: Run, journal: Path, caplog: pytest.LogCaptureFixture) -> None:
    image = os.urandom(len(filled(run, journal)))
    assert survives(run, journal, image)
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    [aside] = journal.glob("data.mdb.damaged-*")
    assert record.getMessage().startswith(f"the journal {journal} is damaged (")
    assert record.getMessage().endswith(
        f"): its {len(image)} bytes are kept as {aside}; 0 waiting updates could be read, and are in the new one"
    )
    assert "\n" not in record.getMessage()


def test_a_file_that_is_cut_off_is_set_aside(run: Run, journal: Path) -> None:
    image = filled(run, journal)
    results = [survives(run, journal, image[:length]) for length in [1, 100, 4096, *range(8192, len(image), 12_288)]]
    assert all(results)


def test_a_length_that_cannot_be(run: Run, journal: Path) -> None:
    """The disk is not filled to give the file what it says that it has."""
    image = bytearray(filled(run, journal))
    page = os.sysconf("SC_PAGE_SIZE")
    for start in (16, 16 + page):
        struct.pack_into("<Q", image, start + 120, 1 << 24)  # mm_last_pg of a meta page (mdb.c: MDB_meta)
    assert survives(run, journal, bytes(image))


def test_a_page_of_zeros(run: Run, journal: Path) -> None:
    """What a file system may leave of a page after a power cut. The file opens without it, or is set aside."""
    image = filled(run, journal)
    page = os.sysconf("SC_PAGE_SIZE")
    results = [
        survives(run, journal, image[:start] + bytes(page) + image[start + page :])
        for start in range(0, len(image), page)
    ]
    assert any(results)


def test_a_list_of_free_pages_that_cannot_be(run: Run, journal: Path) -> None:
    """LMDB ends the process that commits; each start would end so, if none looked in another process first."""

    async def main() -> None:
        one = await opened(journal)
        for update_id in range(0, 300, 10):
            await one.put(*range(update_id, update_id + 10))
            one.settle(*one.ids[:5])
        await one.close()

    run(main())
    image = bytearray((journal / "data.mdb").read_bytes())
    page = os.sysconf("SC_PAGE_SIZE")
    # mm_dbs[0].md_root of the newer of the two meta pages, and the nodes of that page (mdb.c: MDB_meta, MDB_node)
    root = max((struct.unpack_from("<128xQ", image, start)[0], start) for start in (16, 16 + page))[1] + 24 + 40
    [free] = struct.unpack_from("<Q", image, root)
    (node,) = struct.unpack_from("<16xH", image, free * page)
    assert struct.unpack_from("<10xH", image, free * page)[0] & 0xF == 2  # a leaf
    struct.pack_into("<Q", image, free * page + node + 24, free)  # the first free page is said to be this one
    (journal / "data.mdb").write_bytes(image)
    with pytest.raises(lmdb.CorruptedError):
        check(journal / "data.mdb", ["meta", "ids", "waiting"])
    assert survives(run, journal, bytes(image))


@pytest.mark.parametrize("table", ["waiting", "replies"])
def test_a_table_that_is_missing(run: Run, journal: Path, table: str) -> None:
    """Its name was damaged, for instance: it would be empty, and what is in the file would be written over."""
    image = filled(run, journal)
    assert image.count(table.encode()) == 1
    assert survives(run, journal, image.replace(table.encode(), table[:-1].encode() + b"_"))


def test_damage_far_behind_closes_the_door(run: Run, journal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is before it is handled. The next start finds it, and sets the file aside."""
    monkeypatch.setattr("fasthook.queues.tables._PROBED", 10)
    image = bytearray(filled(run, journal, 200))
    page = os.sysconf("SC_PAGE_SIZE")
    pages = range(2 * page, len(image), page)
    leaves = {start // page for start in pages if b'"text":"125"' in image[start : start + page]}
    pointers = [
        (start + node)
        for start in pages
        if struct.unpack_from("<10xH", image, start)[0] & 0xF == 1  # a branch page
        for (node,) in struct.iter_unpack(
            "<H", image[start + 16 : start + struct.unpack_from("<12xH", image, start)[0]]
        )
        if struct.unpack_from("<IH", image, start + node) in {(leaf, 0) for leaf in leaves}
    ]
    assert pointers
    for pointer in pointers:
        struct.pack_into("<IH", image, pointer, 0x7FFFFFFF, 0)  # a page that isn't there
    (journal / "data.mdb").write_bytes(image)

    async def main() -> None:
        one = await opened(journal, window=5)
        handled = []
        while one.delivered:
            handled.append(one.ids[0])
            one.settle(one.ids[0])
        assert 100 <= len(handled) < 180
        assert handled == [n for n in range(200) if n % 10][: len(handled)]
        assert one.queue.trouble is not None
        assert one.queue.trouble.startswith(f"the journal {journal} is damaged behind number ")
        assert await one.put(5000) == [FULL]
        await one.close()
        one = await opened(journal)
        assert one.queue.trouble is None
        assert not set(one.ids) & set(handled)
        rest = [n for n in [*range(200), *range(200, 203)] if n % 10 or n >= 200]
        assert one.ids == [n for n in rest if n in one.ids]
        assert 202 in one.ids  # what is behind the damage could be read, too
        assert await one.put(5000) == [SAFE]
        await one.close()

    run(main())
    assert len(list(journal.glob("data.mdb.damaged-*"))) == 1


@pytest.mark.parametrize("seed", range(25))
def test_random_bits(journal: Path, seed: int) -> None:
    """It takes updates, at the latest after a restart, or is of a newer version; it never ends this process."""
    chosen = random.Random(seed)

    async def takes(update_id: int) -> bool:
        one = await opened(journal)
        [outcome] = await one.put(update_id)
        assert (outcome is FULL) == (one.queue.trouble is not None)
        one.settle(*one.ids)
        await one.put(update_id + 100)
        await one.close()
        return outcome is not FULL

    def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run(asyncio.wait_for(coroutine, PATIENCE))

    image = bytearray(filled(run, journal))
    for _ in range(chosen.choice([1, 10, 100])):
        image[chosen.randrange(len(image))] ^= 1 << chosen.randrange(8)
    (journal / "data.mdb").write_bytes(image)
    try:
        assert any(run(takes(update_id)) for update_id in (5000, 5001, 5002))
    except QueueError as error:
        said = str(error)
    else:
        said = "newer"
    assert "newer" in said
    for aside in journal.glob("data.mdb.damaged-*"):
        assert aside.stat().st_size >= len(image)


def test_what_can_be_read_of_a_damaged_file_is_kept(run: Run, journal: Path, caplog: pytest.LogCaptureFixture) -> None:
    image = bytearray(filled(run, journal, 200))
    page = os.sysconf("SC_PAGE_SIZE")
    for leaf in range(2 * page, len(image), page):
        if b'"text":"125"' in image[leaf : leaf + page]:
            image[leaf : leaf + page] = bytes(page)
    (journal / "data.mdb").write_bytes(image)

    async def main() -> None:
        one = await opened(journal)
        assert one.ids == [n for n in [*(n for n in range(200) if n % 10), 200, 201, 202] if n in one.ids]
        assert len(one.ids) >= 150
        assert {1, 199, 202} <= set(one.ids)
        assert 125 not in one.ids
        assert await one.put(1, 10, 125) == [KNOWN, KNOWN, SAFE]  # 10 was handled
        await one.close()

    run(main())
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert re.search(r"; 1\d\d waiting updates could be read, and are in the new one$", record.getMessage())


def test_rows_of_something_else_are_not_taken_for_handled_updates(run: Run, journal: Path) -> None:
    """LMDB has no checksums: a page may hold what belongs elsewhere."""
    filled(run, journal)
    before = Journal(journal)
    with before.env.begin(write=True) as txn:
        for number, row in enumerate((b"", b"short", b"{" * 24, b"{" * 240, NUMBER.pack(9) * 6), 1000):
            txn.put(NUMBER.pack(number), row, db=before.done)
        assert before.forget(txn, 100) > 10
        txn.abort()
    with before.env.begin(write=True) as txn:
        txn.put(NUMBER.pack(1000), b"{" * 240, db=before.done)
    waiting, _, highest = before.counts()
    before.suspect()
    before.close()
    after = Journal(journal)
    assert highest == 1000
    assert after.counts()[0] == waiting
    assert after.counts()[2] < 1000
    after.close()


def test_an_empty_file_is_a_new_journal(run: Run, journal: Path) -> None:
    filled(run, journal)
    assert not survives(run, journal, b"")


def test_another_format_is_refused(run: Run, journal: Path) -> None:
    filled(run, journal)
    with lmdb.open(str(journal), max_dbs=4, lock=False) as env, env.begin(write=True) as txn:
        txn.put(b"format", b"3", db=env.open_db(b"meta", txn=txn))
    image = (journal / "data.mdb").read_bytes()
    said = f"^the journal {journal} is of another fasthook \\(format 3\\): use that one, or set another --queue$"
    for _ in range(2):  # and it is given up, so that the other program can have it
        with pytest.raises(QueueError, match=said):
            Journal(journal)
    assert (journal / "data.mdb").read_bytes() == image
    assert not list(journal.glob("*damaged*"))


@contextlib.contextmanager
def ordinary_user() -> Iterator[None]:
    """The rights of root don't count in here."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.fixture
def shut(run: Run) -> Iterator[Path]:
    """A directory that anybody may read and nobody may write."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        filled(run, directory / "journal")
        for path in [*(directory / "journal").iterdir()]:
            path.chmod(0o444)
        (directory / "journal").chmod(0o555)
        directory.chmod(0o555)
        yield directory
        directory.chmod(0o755)
        (directory / "journal").chmod(0o755)


@pytest.mark.parametrize("name", ["journal", "another"])
def test_a_read_only_directory_is_refused(shut: Path, name: str) -> None:
    said = f"^the journal {shut / name} cannot be opened: Permission denied; set --queue to a directory that can be "
    with ordinary_user(), pytest.raises(QueueError, match=said):
        Journal(shut / name)


def test_a_file_that_may_not_be_written_is_not_damaged(shut: Path) -> None:
    directory = shut / "journal"
    image = (directory / "data.mdb").read_bytes()
    directory.chmod(0o777)
    (directory / "owner").chmod(0o666)
    with ordinary_user(), pytest.raises(QueueError, match=r"cannot be opened: .*Permission denied"):
        Journal(directory)
    assert (directory / "data.mdb").read_bytes() == image
    assert not list(directory.glob("*damaged*"))


def test_a_second_process_is_refused_with_the_number_of_the_first(run: Run, journal: Path) -> None:
    script = """
import pathlib, sys
from fasthook.queues import QueueError
from fasthook.queues.journal import Journal
try:
    Journal(pathlib.Path(sys.argv[1]))
except QueueError as error:
    print(error)
"""

    def second() -> str:
        command = [sys.executable, "-c", script, str(journal)]
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True).stdout

    async def main() -> None:
        one = await opened(journal)
        said = f"the journal {journal} is in use by process {os.getpid()}; stop it, or set another --queue"
        assert await asyncio.to_thread(second) == f"{said}\n"
        with pytest.raises(QueueError) as caught:
            await opened(journal)
        assert str(caught.value) == said
        assert await one.put(1) == [SAFE]
        await one.close()
        assert await asyncio.to_thread(second) == ""

    run(main())


# ---------------------------------------------------------------- a disk that fails

NO_SPACE = f"data.mdb: {os.strerror(errno.ENOSPC)}"
IO_ERROR = f"mdb_txn_commit: {os.strerror(errno.EIO)}"


def test_a_full_disk_and_room_again(
    run: Run, journal: Path, commits: Commits, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.INFO)

    async def main() -> None:
        one = await opened(journal)
        await one.put(1, 2)
        commits.errors = [lmdb.DiskError(NO_SPACE), lmdb.DiskError(NO_SPACE)]
        one.settle(1)
        assert await one.put(3, 4) == [FULL, FULL]
        assert one.queue.trouble == f"the journal {journal} cannot be written: {NO_SPACE}"
        assert await one.put(3) == [FULL]
        assert on_disk(journal, tmp_path / "copy") == [1, 2]
        assert one.queue.depth == 1
        assert await one.put(3) == [SAFE]
        assert one.queue.trouble is None
        assert one.ids == [2, 3]
        assert on_disk(journal, tmp_path / "copy") == [2, 3]
        assert await one.put(1, 4) == [KNOWN, SAFE]
        await one.close()

    run(main())
    assert [record.getMessage() for record in caplog.records] == [
        f"the journal {journal} cannot be written: {NO_SPACE}; new updates get 503 and stay with Telegram",
        f"the journal {journal} can be written again",
    ]


def test_a_full_disk_during_a_commit_refuses_what_waited_for_the_next(
    run: Run, journal: Path, commits: Commits
) -> None:
    async def main() -> None:
        one = await opened(journal)
        commits.before = hold = Hold()
        commits.errors = [lmdb.DiskError(NO_SPACE)]
        first = asyncio.ensure_future(one.put(1))
        await hold.reached()
        second = asyncio.ensure_future(one.put(2))
        await asyncio.sleep(0)
        hold.go()
        assert await first == [FULL]
        assert await second == [FULL]
        assert await one.put(1, 2) == [SAFE, SAFE]
        await one.close()

    run(main())


def test_what_was_handled_is_written_by_itself_when_the_disk_has_room(
    run: Run, journal: Path, commits: Commits, tmp_path: Path
) -> None:
    async def main() -> None:
        one = await opened(journal)
        await one.put(1, 2)
        commits.errors = [lmdb.DiskError(NO_SPACE)]
        one.settle(1)
        again = Hold()
        again.go()
        commits.after = again
        await again.reached()
        await one.close()
        assert waiting(journal) == [2]

    run(main())


def test_a_stop_tries_once_more_to_write_what_was_handled(run: Run, journal: Path, commits: Commits) -> None:
    async def main() -> None:
        one = await opened(journal)
        await one.put(1, 2)
        commits.errors = [lmdb.DiskError(NO_SPACE)]
        one.settle(1)
        assert await one.put(3) == [FULL]
        assert await one.close() == 1
        assert waiting(journal) == [2]
        one = await opened(journal)
        commits.errors = [lmdb.DiskError(NO_SPACE)] * 2
        one.settle(2)
        assert await one.put(4) == [FULL]
        await one.close()  # and not for ever
        assert (journal / "settled").exists()
        assert waiting(journal) == []

    run(main())
    assert not (journal / "settled").exists()


def test_what_was_handled_is_not_handled_again_after_a_stop_with_a_bad_disk(
    run: Run, journal: Path, commits: Commits, caplog: pytest.LogCaptureFixture
) -> None:
    """And no more of what waits on disk is handled while what was handled cannot be taken out."""

    async def main() -> None:
        one = await opened(journal, window=10, share=5, keep=60.0)
        await one.put(*range(100), chat=1)
        await one.put(*range(100, 200), chat=2)
        commits.errors = [lmdb.DiskError(IO_ERROR)]
        assert await one.put(500) == [FULL]
        one.delivered[0].reply = b'{"method":"x"}'
        handled = one.ids
        assert len(handled) == 10
        one.settle(*handled[:9])
        one.settle(handled[9], forget=True)
        assert one.ids == []
        await one.close()
        [line] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert line == (
            "10 handled updates could not be taken out of the journal: they are in "
            f"{journal / 'settled'}, and the next start takes them out"
        )
        one = await opened(journal, window=1000)
        left = [n for n in range(200) if n not in handled]
        assert one.ids == left
        assert one.waited == one.queue.depth == len(left)
        assert len(one.queue.handled_snapshot(0, 100)) == 9
        assert one.queue.replies() == [((BOT, handled[0]), b'{"method":"x"}')]
        assert await one.put(handled[0], handled[9]) == [KNOWN, SAFE]
        await one.close()

    run(main())
    assert not (journal / "settled").exists()


def test_what_was_put_aside_while_the_disk_stays_bad(run: Run, journal: Path, commits: Commits) -> None:
    async def main() -> None:
        one = await opened(journal)
        await one.put(1, 2, 3)
        commits.errors = [lmdb.DiskError(NO_SPACE)] * 2
        one.settle(1)
        assert await one.put(4) == [FULL]
        await one.close()
        full = lmdb.DiskError(NO_SPACE)
        with pytest.MonkeyPatch.context() as bad:
            bad.setattr("fasthook.queues.tables.Journal._take_out_rows", lambda *arguments: failing(full))
            one = await opened(journal)
            commits.errors = [full] * 2
            assert one.ids == [2, 3]
            assert one.queue.depth == 2
            one.settle(2)
            await one.close()
            commits.errors = []
            one = await opened(journal)
            assert one.ids == [3]
            assert await one.put(5) == [SAFE]
            assert not (journal / "settled").exists()
            await one.close()
        assert waiting(journal) == [3, 5]

    run(main())


def test_the_list_of_what_was_put_aside_cannot_be_removed(
    run: Run, journal: Path, commits: Commits, caplog: pytest.LogCaptureFixture
) -> None:
    """Commits go on, one of them removes it in the end; a start that finds it goes no further without."""

    async def main() -> None:
        one = await opened(journal)
        await one.put(1, 2, 3, 4)
        commits.errors = [lmdb.DiskError(NO_SPACE)] * 2
        one.settle(1)
        assert await one.put(5) == [FULL]
        await one.close()
        commits.errors = []
        bad = OSError(errno.EIO, "Input/output error")
        full = lmdb.DiskError(NO_SPACE)
        with pytest.MonkeyPatch.context() as patch:
            with pytest.MonkeyPatch.context() as worse:
                worse.setattr("fasthook.queues.tables.Journal._take_out_rows", lambda *arguments: failing(full))
                one = await opened(journal)
            patch.setattr("fasthook.queues.settled_file.sync_directory", lambda *arguments: failing(bad))
            one.settle(2)
            assert await one.put(6) == [SAFE]
            one.settle(3)
            assert await one.put(7) == [SAFE]
        [first, *_] = [line for line in caplog.messages if line.endswith("cannot be removed: Input/output error")]
        assert first.startswith(f"{journal / 'settled'}, a list of what was handled and is taken out now, ")
        one.settle(4)
        assert await one.put(8) == [SAFE]
        assert not (journal / "settled").exists()
        await one.close()
        assert waiting(journal) == [6, 7, 8]
        (journal / "settled").write_text("[1,false,0.0,null]\n")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("fasthook.queues.settled_file.sync_directory", lambda *arguments: failing(bad))
            with pytest.raises(QueueError, match=r"cannot be opened: Input/output error; set --queue to "):
                await opened(journal)

    run(main())


def failing(error: Exception) -> None:
    raise error


def test_what_was_handled_and_can_be_written_nowhere(
    run: Run, journal: Path, commits: Commits, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        one = await opened(journal)
        await one.put(1, 2, 3)
        commits.errors = [lmdb.DiskError(NO_SPACE)] * 2
        one.settle(1, 2)
        assert await one.put(4) == [FULL]
        monkeypatch.setattr(SettledFile, "write", lambda *arguments: failing(OSError(errno.ENOSPC, "No space")))
        with pytest.raises(QueueError, match=r"^2 updates were handled and cannot be taken out .*: No sp"):
            await one.close()
        assert waiting(journal) == [1, 2, 3]

    run(main())


def test_more_is_taken_in_when_the_disk_is_well_again(run: Run, journal: Path, commits: Commits) -> None:
    async def main() -> None:
        one = await opened(journal, window=10, share=5)
        await one.put(*range(100), chat=1)
        await one.put(*range(100, 200), chat=2)
        commits.errors = [lmdb.DiskError(NO_SPACE)] * 3
        handled = one.ids
        assert await one.put(500) == [FULL]
        one.settle(*handled)
        assert one.ids == []
        while one.delivered or one.queue.depth:
            await one.until(lambda: one.delivered != [])
            handled.append(one.ids[0])
            one.settle(one.ids[0])
        assert sorted(handled) == list(range(200))
        await one.close()
        assert waiting(journal) == []

    run(main())


def test_attempts_outlive_the_process(run: Run, journal: Path) -> None:
    async def main() -> None:
        one = await opened(journal)
        await one.put(1, 2)
        for _ in range(2):
            one.delivered[0].update.attempt += 1
            one.queue.tried(one.delivered[0])
        await one.close()
        one = await opened(journal)
        assert [delivery.update.attempt for delivery in one.delivered] == [3, 1]
        one.queue.tried(one.delivered[1])
        one.settle(2)  # before that is written
        await one.close()
        assert waiting(journal) == [1]

    run(main())


def test_after_a_failed_sync_nothing_is_accepted_until_it_is_opened_anew(
    run: Run, journal: Path, commits: Commits
) -> None:
    async def main() -> None:
        one = await opened(journal)
        await one.put(1)
        commits.errors = [lmdb.DiskError(IO_ERROR)]
        assert await one.put(2) == [FULL]
        count = commits.count
        assert await one.put(2, 3) == [FULL, FULL]
        one.settle(1)
        assert await one.put(4) == [FULL]
        assert one.queue.trouble == (
            f"the journal {journal} cannot be written: {IO_ERROR}; what the disk has is uncertain now: "
            "nothing is accepted until a restart"
        )
        await one.close()
        assert commits.count == count
        one = await opened(journal)
        assert one.queue.trouble is None
        assert one.ids == []
        assert await one.put(1, 2) == [KNOWN, SAFE]
        await one.close()

    run(main())


# ---------------------------------------------------------------- damage that is seen at the end


def unreadable(*arguments: object) -> None:
    raise lmdb.CorruptedError("a page that isn't there")


def test_damage_seen_by_the_last_commits_ends_a_stop(
    run: Run, journal: Path, commits: Commits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More was handled than goes into the commit after which it is seen: the rest is told to the next start."""

    async def main() -> None:
        one = await opened(journal, window=10, share=5)
        await one.put(*range(100), chat=1)
        await one.put(*range(100, 200), chat=2)
        commits.errors = [lmdb.DiskError(NO_SPACE)]
        assert await one.put(500) == [FULL]
        handled = one.ids
        one.settle(*handled)
        with monkeypatch.context() as bad:
            bad.setattr("fasthook.queues.journal._DONE", 3)
            bad.setattr(Journal, "get", unreadable)  # what waits for its turn
            await one.close()
        one = await opened(journal)
        assert one.ids == [n for n in range(200) if n not in handled]
        await one.close()

    run(main())


def test_damage_seen_during_a_commit_refuses_what_is_to_be_handled_again(
    run: Run, journal: Path, commits: Commits, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        one = await opened(journal, window=10, share=5, keep=60.0)
        await one.put(*range(20), chat=1)
        commits.before = hold = Hold()
        first = asyncio.ensure_future(one.put(500, chat=2))
        await hold.reached()
        replay = asyncio.ensure_future(one.queue.requeue([1]))
        await asyncio.sleep(0)
        with monkeypatch.context() as bad:
            bad.setattr(Journal, "get", unreadable)
            one.settle(*one.ids)
            hold.go()
            assert await first == [SAFE]
            with pytest.raises(QueueError, match="is damaged behind number "):
                await replay
        await one.close()

    run(main())
