"""`journal:DIR`: updates wait on local disk. What was acknowledged survives a `kill -9` and a power cut.

An LMDB file with three tables: `waiting`, in the order of arrival; `ids`, the known (bot, update_id), each with the
number it got on arrival; `done`, the numbers of handled updates, oldest first, so that their ids can be forgotten.
Updates that come while a commit is under way go into the next one. The loop's thread fills a transaction, the writer's
thread commits it, so the loop goes on while the disk works. LMDB's own lock file is not used: it would tie a
transaction to one thread, and the journal's lock says already that nobody else is here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import lmdb

from fasthook.queues import Answered, Deliver, Delivery, Outcome, QueueError, Redeliver
from fasthook.queues.store import pack_update, set_aside, unpack_update
from fasthook.state import Lock, StateError
from fasthook.update import Update

log = logging.getLogger("fasthook.queue")

_FORMAT = b"1"
_NUMBER = struct.Struct(">Q")
_ID = struct.Struct(">qQ")
_BATCH = 1000  # updates in one commit
_FIRST_SIZE = 16 << 20  # bytes of the map at the beginning
_SPARE = 4 << 20  # bytes of the map beyond the limit: LMDB copies pages to take something out of a full journal
_ROW = 128  # bytes that an update takes beside its own
_PAUSE = 0.02  # seconds that what was handled waits for a commit of new updates to go along with
_AGAIN = 1.0  # seconds between tries to write while it fails
_PROBED = 10_000  # waiting updates that are read at the opening, to see whether they can be
# LMDB ends the process that walks into a damaged page (assert, SIGBUS), so one that we can spare goes first. A file
# that is shorter than it says may have been cut off, or not: it is read whole.
_PROBE = """
import itertools, os, sys
import lmdb
print("begun", flush=True)
directory, most = sys.argv[1], int(sys.argv[2])
try:
    with lmdb.open(directory, max_dbs=4, lock=False, create=False) as env:
        env.set_mapsize(env.info()["map_size"] + (1 << 20))
        txn = env.begin(write=True)
        length = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
        whole = most < 0 or os.path.getsize(os.path.join(directory, "data.mdb")) < length
        for name in b"meta", b"ids", b"done", b"waiting":
            try:
                table = env.open_db(name, txn=txn, create=False)
            except lmdb.NotFoundError:
                continue
            with txn.cursor(db=table) as cursor:
                for _ in itertools.islice(cursor, None if whole or name != b"waiting" else most):
                    pass
                cursor.last()
            if name == b"meta":
                txn.put(b"probe", bytes(1 << 16), db=table)  # takes free pages
        txn.abort()
except (lmdb.InvalidError, lmdb.CorruptedError, lmdb.VersionMismatchError, lmdb.PageNotFoundError) as error:
    print(error)
    sys.exit(9)
except (OSError, lmdb.Error):
    pass  # that the file may not be written, for instance: whoever opens it next will say so
"""
_SUSPECT = "suspect"  # a file that says so: the next opening reads all
_DAMAGE = (lmdb.InvalidError, lmdb.CorruptedError, lmdb.VersionMismatchError, lmdb.PageNotFoundError, struct.error)


class Journal:
    """The tables. One process at a time has them.

    A damaged file is set aside under a name that the log tells, and an empty one begun. QueueError: one line.
    """

    def __init__(self, directory: Path, limit: int = 1 << 30) -> None:
        self.directory = directory
        self.limit = limit
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = Lock(directory / "owner", f"the journal {directory}")
        except StateError as error:
            raise QueueError(f"{error}, or set another --queue") from None
        except OSError as error:
            raise QueueError(_cannot(directory, error)) from None
        try:
            self._open()
        except BaseException:
            self._lock.close()
            raise

    def _open(self) -> None:
        file = self.directory / "data.mdb"
        try:
            _probe(self.directory, file)
            self._open_tables(file)
        except _DAMAGE as error:
            aside = set_aside(file)
            log.error("the journal %s is damaged (%s): it is kept as %s, and begun anew", self.directory, error, aside)
            self._open_tables(file)
        except (OSError, lmdb.Error) as error:
            raise QueueError(_cannot(self.directory, error)) from None

    def _open_tables(self, file: Path) -> None:
        size = file.stat().st_size if file.exists() else 0
        self.env = lmdb.open(
            str(self.directory),
            map_size=max(min(_FIRST_SIZE, self.limit), size),
            max_dbs=4,
            mode=0o600,
            lock=False,
            readahead=False,
        )
        try:
            _whole(self.env, file)
            meta = self.env.open_db(b"meta")
            self.waiting = self.env.open_db(b"waiting")
            self.ids = self.env.open_db(b"ids")
            self.done = self.env.open_db(b"done")
            with self.env.begin(write=True) as txn:
                version = txn.get(b"format", db=meta)
                if version is None:
                    txn.put(b"format", _FORMAT, db=meta)
                elif version != _FORMAT:
                    raise QueueError(
                        f"the journal {self.directory} is of a newer fasthook (format {version.decode('latin-1')}): "
                        "use that one, or set another --queue"
                    )
            self.counts()
        except BaseException:
            self.env.close()
            raise
        _sync_directory(self.directory)

    def close(self) -> None:
        self.env.close()
        self._lock.close()

    def items(self, behind: int = 0) -> Generator[tuple[int, bytes], None, None]:
        """The waiting updates behind a number, in order: the number and the record."""
        with self.env.begin(db=self.waiting) as txn, txn.cursor() as cursor:
            if cursor.set_range(_NUMBER.pack(behind + 1)):
                for key, record in cursor:
                    yield _NUMBER.unpack(key)[0], record

    def counts(self) -> tuple[int, int, int]:
        """How many updates wait, how many handled ones are known, and the highest number that was given."""
        highest = 0
        with self.env.begin() as txn:
            for table in (self.waiting, self.done):
                with txn.cursor(db=table) as cursor:
                    if cursor.last():
                        highest = max(highest, _NUMBER.unpack(cursor.key())[0])
            return txn.stat(self.waiting)["entries"], txn.stat(self.done)["entries"], highest

    def has_room(self, txn: Any, more: int) -> bool:
        """Whether so many bytes more fit below the limit. What is free inside the file counts as room."""
        return self.used(txn) + more <= self.limit

    def used(self, txn: Any) -> int:
        """Bytes of the file that are in use."""
        page = self.env.stat()["psize"]
        stats = [txn.stat(table) for table in (self.waiting, self.ids, self.done)]
        used = sum(stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"] for stat in stats)
        return int(used) * int(page)

    def grow(self) -> bool:
        """Make the map larger; False if it is as large as it may be."""
        size = self.env.info()["map_size"]
        largest = self.limit + _SPARE
        if size >= largest:
            return False
        self.env.set_mapsize(min(largest, size * 2))
        return True


@dataclass(slots=True)
class _Batch:
    """What one commit writes."""

    new: list[Update]
    done: list[tuple[int, bytes, bool]]  # number, id, and whether the id is to be forgotten at once
    kept: list[tuple[int, Update]] = field(default_factory=list)
    known: list[Update] = field(default_factory=list)
    refused: list[Update] = field(default_factory=list)  # there is no room for them
    roomy: bool = True  # there is room for more than a few others
    remembered: int = 0  # how many ids of handled updates there are afterwards


class JournalQueue:
    """The queue over a journal.

    `window`: how many updates are in memory at most; the others wait on disk. `remember`: how many ids of handled
    updates stay known. `limit`: bytes that the file may grow to. `committed`: told how many seconds each commit took.
    """

    durable = True

    def __init__(
        self,
        directory: Path,
        *,
        window: int,
        remember: int,
        limit: int,
        committed: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self.depth = 0
        self.bytes = 0
        self._held: dict[Delivery, None] = {}  # what is in memory and not settled, in order
        self._committed = committed
        self.trouble: str | None = None
        self._directory = directory
        self._window = window
        self._remember = remember
        self._limit = limit
        self._broken = False  # a sync has failed: never again on this file
        self._damaged = False  # what waits cannot be read: no more is taken
        self._failing = False  # the last commit did
        self._number = 0  # the last that was given
        self._remembered = 0
        self._loaded = 0  # the number of the last update that was given to the dispatcher
        self._in_memory = 0
        self._behind = False  # updates wait on disk that are not in memory
        self._new: deque[Update] = deque()
        self._done: list[tuple[int, bytes, bool]] = []
        self._commit_ends: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._writer = ThreadPoolExecutor(1, "fasthook-journal")

    async def open(self, deliver: Deliver, redeliver: Redeliver, answered: Answered) -> int:
        self._loop = asyncio.get_running_loop()
        self._deliver = deliver
        self._redeliver = redeliver
        self._answered = answered
        self._journal = await asyncio.to_thread(Journal, self._directory, self._limit)
        self.depth, self._remembered, self._number = self._journal.counts()
        self._behind = self.depth > 0
        self._load()
        return self.depth

    @property
    def oldest(self) -> float | None:
        held = tuple(self._held)  # one step for the interpreter: another thread may ask
        return held[0].update.received_at if held else None

    # ------------------------------------------------------------ in

    def put(self, update: Update) -> bool:
        if self._broken or self._damaged:
            self._loop.call_soon(self._answered, update, Outcome.FULL)
            return False
        self._new.append(update)
        self._commit_soon(0.0)
        return False

    def settle(self, delivery: Delivery, *, forget: bool = False) -> None:
        update = delivery.update
        self._done.append((delivery.place, _ID.pack(update.bot_id, update.update_id), forget))
        self.depth -= 1
        self._in_memory -= 1
        self._held.pop(delivery, None)
        if self._behind and self._in_memory <= self._window // 2:
            self._load()
        self._commit_soon(_PAUSE)

    # ------------------------------------------------------------ group commit

    def _commit_soon(self, delay: float) -> None:
        """Begin a commit, or let what is new go into the one that follows the one under way."""
        if self._commit_ends is not None or self._broken:
            return
        if delay == 0.0:
            if self._timer is not None:
                self._timer.cancel()
            # at the end of this turn of the loop: all requests of the turn share a commit
            self._commit_ends = self._loop.create_future()
            self._loop.call_soon(self._commit)
        elif self._timer is None:
            self._timer = self._loop.call_later(delay, self._commit_soon, 0.0)

    def _commit(self) -> None:
        self._timer = None
        new = [self._new.popleft() for _ in range(min(len(self._new), _BATCH))]
        done, self._done = self._done, []
        batch = _Batch(new, done)
        try:
            txn = self._fill(batch)
        except (OSError, lmdb.Error) as error:
            self._ended(batch, error)
            return
        commit = self._loop.run_in_executor(self._writer, _commit, txn)
        commit.add_done_callback(lambda ended: self._timed(batch, ended))

    def _timed(self, batch: _Batch, ended: asyncio.Future[float]) -> None:
        error = ended.exception()
        if error is None:
            self._committed(ended.result())
        self._ended(batch, error)

    def _fill(self, batch: _Batch) -> Any:
        """A transaction with all of a batch in it, but for what there is no room for."""
        journal = self._journal
        while True:
            txn = journal.env.begin(write=True)
            try:
                self._write(txn, batch)
                return txn
            except lmdb.MapFullError:
                txn.abort()
                if journal.grow():
                    continue
                if not batch.new:
                    raise
                batch.refused += batch.new  # what was handled goes out without them, so that there is room again
                batch.new = []
            except BaseException:
                txn.abort()
                raise

    def _write(self, txn: Any, batch: _Batch) -> None:
        journal = self._journal
        batch.kept, batch.known = [], []
        batch.remembered = self._remembered
        for number, name, forget in batch.done:
            key = _NUMBER.pack(number)
            txn.delete(key, db=journal.waiting)
            if forget:
                txn.delete(name, db=journal.ids)
            else:
                txn.put(key, name, db=journal.done)
                batch.remembered += 1
        if batch.remembered > self._remember:
            self._forget_oldest(txn, batch)
        if batch.new and not journal.has_room(txn, sum(len(update.raw) + _ROW for update in batch.new)):
            batch.refused += batch.new
            batch.new = []
        number = self._number
        for update in batch.new:
            key = _NUMBER.pack(number + 1)
            if txn.put(_ID.pack(update.bot_id, update.update_id), key, db=journal.ids, overwrite=False):
                number += 1
                txn.put(key, pack_update(update), db=journal.waiting, append=True)
                batch.kept.append((number, update))
            else:
                batch.known.append(update)
        self.bytes = journal.used(txn)
        if self.trouble:
            batch.roomy = journal.has_room(txn, self._limit // 16)

    def _forget_oldest(self, txn: Any, batch: _Batch) -> None:
        with txn.cursor(db=self._journal.done) as cursor:
            cursor.first()
            while batch.remembered > self._remember:
                txn.delete(cursor.value(), db=self._journal.ids)
                cursor.delete()
                batch.remembered -= 1

    def _ended(self, batch: _Batch, error: BaseException | None) -> None:
        """A commit has ended: acknowledge what it made safe, and begin the next."""
        ends, self._commit_ends = self._commit_ends, None
        if ends is not None:
            ends.set_result(None)
        if error is not None:
            self._failed(batch, error)
            return
        self._failing = False
        if batch.refused:
            self._in_trouble(f"the journal {self._directory} has reached --journal-max ({self._limit} bytes)")
        elif self.trouble and batch.roomy and not self._damaged:
            log.info("the journal %s can be written again", self._directory)
            self.trouble = None
        self._remembered = batch.remembered
        if batch.kept:
            self._number = batch.kept[-1][0]
            self.depth += len(batch.kept)
        if self._new:
            self._commit_soon(0.0)
        elif self._done:
            self._commit_soon(_PAUSE)
        for number, update in batch.kept:
            self._answered(update, Outcome.SAFE)
            self._offer(number, update)
        for update in batch.known:
            self._answered(update, Outcome.KNOWN)
        for update in batch.refused:
            self._answered(update, Outcome.FULL)

    def _failed(self, batch: _Batch, error: BaseException) -> None:
        """Nothing of this batch is on disk: what was new stays with Telegram, what was handled is taken out later."""
        self._failing = True
        self._done = batch.done + self._done
        trouble = f"the journal {self._directory} cannot be written: {error}"
        if _may_be_sync(error):
            self._broken = True
            trouble += "; what the disk has is uncertain now: nothing is accepted until a restart"
        self._in_trouble(trouble)
        refused = batch.refused + batch.new + list(self._new)
        self._new.clear()
        for update in refused:
            self._answered(update, Outcome.FULL)
        if self._done:
            self._commit_soon(_AGAIN)

    def _in_trouble(self, why: str) -> None:
        if why != self.trouble:
            log.error("%s; new updates get 503 and stay with Telegram", why)
        self.trouble = why

    # ------------------------------------------------------------ out

    def _offer(self, number: int, update: Update) -> None:
        """Give a committed update to the dispatcher, unless older ones wait on disk or memory is full."""
        if self._behind or self._in_memory >= self._window:
            self._behind = True
            return
        self._loaded = number
        self._in_memory += 1
        delivery = Delivery(update, number)
        self._held[delivery] = None
        self._deliver(delivery)

    def _load(self) -> None:
        """Fill the window from the disk, in order."""
        try:
            self._behind = self._read_on()
        except _DAMAGE as error:
            self._damaged, self._behind = True, False
            with contextlib.suppress(OSError):
                (self._directory / _SUSPECT).touch()
            self._in_trouble(
                f"the journal {self._directory} is damaged behind number {self._loaded} ({error}): "
                "nothing is accepted until a restart, which sets it aside"
            )

    def _read_on(self) -> bool:
        """Whether there is more to read."""
        with contextlib.closing(self._journal.items(behind=self._loaded)) as items:
            for number, record in items:
                if self._in_memory >= self._window:
                    return True
                if number > self._number:
                    return False  # of a commit that is on disk, and not yet told of: `_ended` offers it
                self._loaded = number
                try:
                    update = unpack_update(record)
                except ValueError as error:
                    log.error("update number %d in the journal cannot be read (%s): it stays there", number, error)
                    continue
                self._in_memory += 1
                delivery = Delivery(update, number)
                self._held[delivery] = None
                self._redeliver(delivery)
        return False

    # ------------------------------------------------------------ the end

    async def close(self, left: Iterable[Delivery]) -> int:
        """What was not settled stays where it is, on disk."""
        self._failing = self._broken  # else one more try
        while self._commit_ends is not None or (self._done and not self._failing):
            self._commit_soon(0.0)
            if self._commit_ends is not None:
                await asyncio.shield(self._commit_ends)
        if self._timer:
            self._timer.cancel()
        self._writer.shutdown()
        self._journal.close()
        return self.depth


def _commit(txn: Any) -> float:
    """The seconds that it took."""
    began = monotonic()
    txn.commit()
    return monotonic() - began


def _may_be_sync(error: BaseException) -> bool:
    """Whether an error may be a failed fsync: the kernel may have dropped the pages, and a second fsync would lie."""
    return "Input/output error" in str(error)


def _probe(directory: Path, file: Path) -> None:
    """Let another process read the file first. CorruptedError: that was its end."""
    ours = Path(sys.executable or "").name.startswith("python")  # not a server that has an interpreter inside
    if not ours or not file.exists() or file.stat().st_size == 0:
        return
    suspect = directory / _SUSPECT
    command = [sys.executable, "-P", "-c", _PROBE, str(directory), "-1" if suspect.exists() else str(_PROBED)]
    ended = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False
    )
    begun, _, words = ended.stdout.decode("utf-8", "replace").partition("\n")
    if begun and ended.returncode == 9:
        raise lmdb.CorruptedError(words.strip())
    if begun and -ended.returncode in (signal.SIGABRT, signal.SIGBUS, signal.SIGSEGV, signal.SIGFPE):
        raise lmdb.CorruptedError(f"reading it ends in {signal.Signals(-ended.returncode).name}")
    suspect.unlink(missing_ok=True)


def _whole(env: lmdb.Environment, file: Path) -> None:
    """Touching a page behind the end of a file that was cut off is a bus error: make those pages zeros."""
    length = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
    if file.stat().st_size < length and hasattr(os, "posix_fallocate"):
        with file.open("r+b") as handle:
            os.posix_fallocate(handle.fileno(), 0, length)


def _sync_directory(directory: Path) -> None:
    """A new file survives a power cut only with its name."""
    if os.name == "nt":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cannot(directory: Path, error: BaseException) -> str:
    words = getattr(error, "strerror", None) or str(error)
    return f"the journal {directory} cannot be opened: {words}; set --queue to a directory that can be written"
