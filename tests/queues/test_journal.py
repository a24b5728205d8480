"""`journal:`: what it says is safe is on disk, whatever happens to the process, the disk and the file."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import lmdb
import pytest

from fasthook import Update
from fasthook._scan import restore
from fasthook.queues import Delivery, Outcome, QueueError
from fasthook.queues.journal import Journal, JournalQueue
from fasthook.queues.store import unpack_update
from fasthook.testing import samples

PATIENCE = 20.0  # seconds
BOT = 123456789
Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a coroutine to its end in a loop of each kind."""
    factory = pytest.importorskip("uvloop").new_event_loop if request.param == "uvloop" else None

    def run_it(coroutine: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(asyncio.wait_for(coroutine, PATIENCE))

    return run_it


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def made(update_id: int, *, size: int | None = None) -> Update:
    """An admitted update."""
    return restore(Update, samples.update(update_id, text=str(update_id), size=size), BOT, time.time(), 1)


class Opened:
    """A queue that is open: what it delivered, and what it said of each id."""

    def __init__(self, directory: Path, *, window: int = 1000, remember: int = 1000, limit: int = 1 << 30) -> None:
        self.queue = JournalQueue(directory, window=window, remember=remember, limit=limit)
        self.delivered: list[Delivery] = []
        self.said: list[tuple[int, Outcome]] = []
        self.at_answer: Callable[[int, Outcome], None] = lambda update_id, outcome: None
        self._changed = asyncio.Event()

    async def open(self) -> Opened:
        self.waited = await self.queue.open(self._deliver, self._redeliver, self._answered)
        return self

    def _deliver(self, delivery: Delivery) -> None:
        self.delivered.append(delivery)
        self._changed.set()

    def _redeliver(self, delivery: Delivery) -> bool:
        self._deliver(delivery)
        return True

    def _answered(self, update: Update, outcome: Outcome) -> None:
        self.said.append((update.update_id, outcome))
        self.at_answer(update.update_id, outcome)
        self._changed.set()

    async def until(self, what: Callable[[], bool]) -> None:
        while not what():
            self._changed.clear()
            await self._changed.wait()

    async def put(self, *update_ids: int, size: int | None = None) -> list[Outcome]:
        """Put these at once, and wait for what becomes of them."""
        seen = len(self.said)
        for update_id in update_ids:
            assert self.queue.put(made(update_id, size=size)) is False
        await self.until(lambda: len(self.said) >= seen + len(update_ids))
        outcomes = dict(self.said[seen:])
        return [outcomes[update_id] for update_id in update_ids]

    def settle(self, *update_ids: int, forget: bool = False) -> None:
        for delivery in [delivery for delivery in self.delivered if delivery.update.update_id in update_ids]:
            self.delivered.remove(delivery)
            self.queue.settle(delivery, forget=forget)

    @property
    def ids(self) -> list[int]:
        """What was delivered and not settled."""
        return [delivery.update.update_id for delivery in self.delivered]

    async def close(self) -> int:
        return await self.queue.close(self.delivered)


SAFE, KNOWN, FULL = Outcome.SAFE, Outcome.KNOWN, Outcome.FULL


async def opened(directory: Path, **options: int) -> Opened:
    return await Opened(directory, **options).open()


def on_disk(directory: Path, scratch: Path) -> list[int]:
    """The ids that wait, in order, in a copy of a journal: what a crash at this moment would leave."""
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(directory, scratch)
    return waiting(scratch)


def waiting(directory: Path) -> list[int]:
    opened = Journal(directory)
    try:
        return [unpack_update(record).update_id for _, record in opened.items()]
    finally:
        opened.close()


# ---------------------------------------------------------------- a hand on the commits

Commit = Callable[[], None]


class _Txn:
    def __init__(self, txn: Any, commits: Commits) -> None:
        self._txn = txn
        self._commits = commits

    def __enter__(self) -> Any:
        return self._txn.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._txn.__exit__(*error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._txn, name)

    def commit(self) -> None:
        self._commits.commit(self._txn.commit, self._txn.abort)


class _Env:
    def __init__(self, env: lmdb.Environment, commits: Commits) -> None:
        self._env = env
        self._commits = commits

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)

    def begin(self, *args: Any, **options: Any) -> Any:
        txn = self._env.begin(*args, **options)
        return _Txn(txn, self._commits) if options.get("write") else txn


class Commits:
    """Counts the commits, and holds them up, or lets them fail."""

    def __init__(self) -> None:
        self.count = 0
        self.errors: list[Exception] = []  # the next commits fail with these
        self.before: Callable[[], None] = lambda: None
        self.after: Callable[[], None] = lambda: None

    def commit(self, commit: Commit, abort: Commit) -> None:
        self.count += 1
        self.before()
        if self.errors:
            abort()
            raise self.errors.pop(0)
        commit()
        self.after()


@pytest.fixture
def commits(monkeypatch: pytest.MonkeyPatch) -> Commits:
    found, real = Commits(), lmdb.open
    monkeypatch.setattr(lmdb, "open", lambda *args, **options: _Env(real(*args, **options), found))
    return found


class Hold:
    """Something for a writer's thread to stop at."""

    def __init__(self) -> None:
        self._reached = threading.Event()
        self._go = threading.Event()

    def __call__(self) -> None:
        self._reached.set()
        assert self._go.wait(PATIENCE)

    async def reached(self) -> None:
        assert await asyncio.to_thread(self._reached.wait, PATIENCE)

    def go(self) -> None:
        self._go.set()


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
        assert await one.put(*range(3, 10)) == [KNOWN] * 7
        one.settle(6)
        assert await one.put(11) == [SAFE]
        assert await one.put(4, 5, 6) == [KNOWN] * 3
        assert await one.put(3) == [SAFE]
        await one.close()
        one = await opened(journal, remember=1)
        assert one.ids == [7, 8, 9, 10, 11, 3]
        one.settle(7)
        assert await one.put(12) == [SAFE]
        assert await one.put(7) == [KNOWN]
        assert await one.put(4, 5, 6) == [SAFE] * 3
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
    return (directory / "data.mdb").read_bytes()


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
    assert all(results[:4])
    assert sum(results) >= len(results) // 2  # the rest lost only pages that are free


def test_a_page_of_zeros(run: Run, journal: Path) -> None:
    """What a file system may leave of a page after a power cut. The file opens without it, or is set aside."""
    image = filled(run, journal)
    page = os.sysconf("SC_PAGE_SIZE")
    results = [
        survives(run, journal, image[:start] + bytes(page) + image[start + page :])
        for start in range(0, len(image), page)
    ]
    assert any(results)


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


def test_an_empty_file_is_a_new_journal(run: Run, journal: Path) -> None:
    filled(run, journal)
    assert not survives(run, journal, b"")


def test_a_newer_format_is_refused(run: Run, journal: Path) -> None:
    filled(run, journal)
    with lmdb.open(str(journal), max_dbs=4, lock=False) as env, env.begin(write=True) as txn:
        txn.put(b"format", b"2", db=env.open_db(b"meta", txn=txn))
    image = (journal / "data.mdb").read_bytes()
    said = f"^the journal {journal} is of a newer fasthook \\(format 2\\): use that one, or set another --queue$"
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
        assert waiting(journal) == [2]

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
        assert one.ids == [1]
        assert await one.put(2) == [SAFE]
        await one.close()

    run(main())
