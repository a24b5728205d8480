"""`journal:DIR`: updates wait on local disk. What was acknowledged survives a `kill -9` and a power cut.

An LMDB file with two tables: `waiting`, in the order of arrival, and `ids`, the known (bot, update_id), each with the
number it got on arrival. Updates that come while a commit is under way go into the next one. The loop's thread fills
a transaction, the writer's thread commits it, so the interpreter is free while the disk works. LMDB's own lock file is
not used: it ties a transaction to one thread, and the directory's lock says already that nobody else is here.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lmdb

from fasthook.queues import Answered, Deliver, Delivery, Outcome, QueueError, Waiter
from fasthook.queues.store import pack_update, set_aside, unpack_update
from fasthook.state import Lock, StateError
from fasthook.update import Update

log = logging.getLogger("fasthook.queue")

_FORMAT = b"1"
_NUMBER = struct.Struct(">Q")
_ID = struct.Struct(">qQ")
_BATCH = 1000  # updates in one commit
_FIRST_SIZE = 16 << 20
_PAUSE = 0.02  # seconds that what was handled waits for a commit of new updates to go along with


class Journal:
    """The tables of a journal. Made by one process for itself; `readonly` looks at one that nobody serves.

    QueueError: it cannot be opened; a damaged or newer file is left as it is, or set aside under a name that is told.
    """

    def __init__(self, directory: Path, limit: int = 1 << 30) -> None:
        self.directory = directory
        self.limit = limit
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = Lock(directory / "owner", f"the journal {directory}")
        except (OSError, StateError) as error:
            raise QueueError(str(error) if isinstance(error, StateError) else _cannot(directory, error)) from None
        try:
            self._open()
        except BaseException:
            self._lock.close()
            raise

    def _open(self) -> None:
        try:
            self._open_tables()
        except (lmdb.InvalidError, lmdb.CorruptedError, lmdb.VersionMismatchError, lmdb.PageNotFoundError) as error:
            file = set_aside(self.directory / "data.mdb")
            log.error("the journal %s is damaged (%s): it is kept as %s, and an empty one is begun", self.directory, error, file)
            self._open_tables()
        except (OSError, lmdb.Error) as error:
            raise QueueError(_cannot(self.directory, error)) from None

    def _open_tables(self) -> None:
        size = max(_FIRST_SIZE, _size_of(self.directory / "data.mdb"))
        self.env = lmdb.open(str(self.directory), map_size=size, max_dbs=3, mode=0o600, lock=False)
        try:
            meta = self.env.open_db(b"meta")
            self.waiting = self.env.open_db(b"waiting")
            self.ids = self.env.open_db(b"ids")
            with self.env.begin(write=True) as txn:
                version = txn.get(b"format", db=meta) or _FORMAT
                if version == _FORMAT:
                    txn.put(b"format", _FORMAT, db=meta)
            if version != _FORMAT:
                raise QueueError(
                    f"the journal {self.directory} has format {version.decode('ascii', 'replace')}, made by a newer "
                    f"fasthook: use that one, or set another --queue"
                )
        except BaseException:
            self.env.close()
            raise

    def close(self) -> None:
        self.env.close()
        self._lock.close()

    def items(self, behind: int = 0) -> Iterator[tuple[int, bytes]]:
        """The waiting updates behind a number, in order: the number and the record."""
        with self.env.begin(db=self.waiting) as txn, txn.cursor() as cursor:
            if cursor.set_range(_NUMBER.pack(behind + 1)):
                for key, record in cursor:
                    yield _NUMBER.unpack(key)[0], record

    def last_number(self) -> int:
        """The highest number ever given that is still known."""
        highest = 0
        with self.env.begin(db=self.waiting) as txn, txn.cursor() as cursor:
            if cursor.last():
                highest = _NUMBER.unpack(cursor.key())[0]
        return max([highest, *(number for number, _ in self.known())])

    def known(self) -> list[tuple[int, bytes]]:
        """The known ids, in the order of arrival: the number and the key."""
        with self.env.begin(db=self.ids) as txn, txn.cursor() as cursor:
            return sorted((_NUMBER.unpack(number)[0], key) for key, number in cursor)

    def grow(self) -> bool:
        """Make the file's limit twice as large; False if it is as large as it may be."""
        size = self.env.info()["map_size"]
        if size >= self.limit:
            return False
        self.env.set_mapsize(min(self.limit, size * 2))
        return True


class JournalQueue:
    """The queue over a journal.

    `window`: how many updates are in memory at most; the others wait on disk. `remember`: how many ids of handled
    updates stay known.
    """

    def __init__(self, directory: Path, *, window: int, remember: int, limit: int) -> None:
        self._directory = directory
        self._limit = limit
        self._window = window
        self._remember = remember
        self.depth = 0
        self.trouble: str | None = None  # why it cannot be written, while it cannot
        self._broken = False  # an fsync has failed: never again on this file
        self._loaded = 0  # the number of the last update that was given to the dispatcher
        self._in_memory = 0
        self._behind = False  # updates wait on disk that are not in memory
        self._new: deque[tuple[Update, Waiter]] = deque()
        self._done: list[int] = []  # the numbers of what was settled since the last commit
        self._finished: deque[tuple[int, bytes]] = deque()  # ids of settled updates, oldest first
        self._committing = False
        self._timer: asyncio.TimerHandle | None = None
        self._idle: asyncio.Event = asyncio.Event()
        self._writer = ThreadPoolExecutor(1, "fasthook-journal")

    async def open(self, deliver: Deliver, answered: Answered, wanted: Callable[[Update], bool]) -> int:
        self._loop = asyncio.get_running_loop()
        self._deliver = deliver
        self._answered = answered
        self._wanted = wanted
        self._journal = await asyncio.to_thread(Journal, self._directory, self._limit)
        await asyncio.to_thread(self._look)
        self._behind = self.depth > 0
        self._idle.set()
        self._load()
        return self.depth

    def _look(self) -> None:
        """What is there from before: how many wait, which ids are known, the last number."""
        journal = self._journal
        known = journal.known()
        with journal.env.begin() as txn:
            self.depth = txn.stat(journal.waiting)["entries"]
            with txn.cursor(db=journal.waiting) as cursor:
                first = _NUMBER.unpack(cursor.key())[0] if cursor.first() else None
                last = _NUMBER.unpack(cursor.key())[0] if cursor.last() else 0
            for number, key in known:
                if first is None or number < first or txn.get(_NUMBER.pack(number), db=journal.waiting) is None:
                    self._finished.append((number, key))
        self._number = max(last, known[-1][0] if known else 0)

    # ------------------------------------------------------------ in

    def put(self, update: Update, waiter: Waiter) -> bool:
        if self._broken:
            self._loop.call_soon(self._answered, update, waiter, Outcome.FULL)
            return False
        self._new.append((update, waiter))
        if not self._committing:
            self._commit()
        return False

    def settle(self, delivery: Delivery) -> None:
        self._done.append(delivery.place)
        self._finished.append((delivery.place, _ID.pack(delivery.update.bot_id, delivery.update.update_id)))
        self.depth -= 1
        self._in_memory -= 1
        if self._behind and self._in_memory <= self._window // 2:
            self._load()
        if not self._committing and self._timer is None:
            self._timer = self._loop.call_later(_PAUSE, self._commit)

    # ------------------------------------------------------------ group commit

    def _commit(self) -> None:
        """Begin a commit of all that is new or done."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        if self._committing or self._broken or not (self._new or self._done):
            return
        batch = [self._new.popleft() for _ in range(min(len(self._new), _BATCH))]
        try:
            txn, kept, known = self._fill(batch)
        except (OSError, lmdb.Error) as error:
            self._failed(batch, error)
            return
        done, self._done = self._done, []
        self._committing = True
        self._idle.clear()
        future = self._loop.run_in_executor(self._writer, txn.commit)
        future.add_done_callback(lambda ended: self._committed(ended, kept, known, done))

    def _fill(
        self, batch: list[tuple[Update, Waiter]]
    ) -> tuple[Any, list[tuple[int, Update, Waiter]], list[tuple[Update, Waiter]]]:
        """A transaction with all of it: what was new, and what was known already."""
        journal = self._journal
        while True:
            txn = journal.env.begin(write=True)
            try:
                return txn, *self._write(txn, batch)
            except lmdb.MapFullError:
                txn.abort()
                if not journal.grow():
                    raise
            except BaseException:
                txn.abort()
                raise

    def _write(
        self, txn: Any, batch: list[tuple[Update, Waiter]]
    ) -> tuple[list[tuple[int, Update, Waiter]], list[tuple[Update, Waiter]]]:
        waiting, ids = self._journal.waiting, self._journal.ids
        for number in self._done:
            txn.delete(_NUMBER.pack(number), db=waiting)
        for i in range(len(self._finished) - self._remember):
            txn.delete(self._finished[i][1], db=ids)
        kept: list[tuple[int, Update, Waiter]] = []
        known: list[tuple[Update, Waiter]] = []
        number = self._number
        for update, waiter in batch:
            key = _NUMBER.pack(number + 1)
            if txn.put(_ID.pack(update.bot_id, update.update_id), key, db=ids, overwrite=False):
                number += 1
                txn.put(key, pack_update(update), db=waiting, append=True)
                kept.append((number, update, waiter))
            else:
                known.append((update, waiter))
        return kept, known

    def _committed(
        self,
        ended: asyncio.Future[None],
        kept: list[tuple[int, Update, Waiter]],
        known: list[tuple[Update, Waiter]],
        done: list[int],
    ) -> None:
        """A commit has ended: acknowledge what it made safe, and begin the next."""
        self._committing = False
        self._idle.set()
        error = ended.exception()
        if error is not None:
            self._done = done + self._done
            self._failed([(update, waiter) for _, update, waiter in kept] + known, error)
            return
        self.trouble = None
        while len(self._finished) > self._remember:
            self._finished.popleft()
        if kept:
            self._number = kept[-1][0]
        self.depth += len(kept)
        for number, update, waiter in kept:
            self._answered(update, waiter, Outcome.SAFE)
            self._offer(number, update)
        for update, waiter in known:
            self._answered(update, waiter, Outcome.KNOWN)
        if self._new or self._done:
            self._commit()

    def _failed(self, batch: list[tuple[Update, Waiter]], error: BaseException) -> None:
        """Nothing of this batch is on disk: it stays with Telegram."""
        full = isinstance(error, lmdb.MapFullError)
        if full:
            trouble = f"the journal {self._directory} has reached --journal-max ({self._limit} bytes)"
        else:
            trouble = f"the journal {self._directory} cannot be written: {error}"
        self._broken = _lost_pages(error)
        if self._broken:
            trouble += "; the disk may have lost what was written: no update is accepted until a restart"
        if trouble != self.trouble:
            log.error("%s; new updates get 503 and stay with Telegram", trouble)
        self.trouble = trouble
        batch = batch + list(self._new)
        self._new.clear()
        for update, waiter in batch:
            self._answered(update, waiter, Outcome.FULL)
        if self._done and not self._broken and self._timer is None:
            self._timer = self._loop.call_later(1.0, self._commit)  # what was handled is still to be taken out

    # ------------------------------------------------------------ out

    def _offer(self, number: int, update: Update) -> None:
        """Give a committed update to the dispatcher, unless older ones still wait on disk or memory is full."""
        if self._behind or self._in_memory >= self._window:
            self._behind = True
            return
        self._loaded = number
        self._in_memory += 1
        self._deliver(Delivery(update, number))

    def _load(self) -> None:
        """Fill the window from the disk, in order."""
        done = set(self._done)
        for number, record in self._journal.items(behind=self._loaded):
            if self._in_memory >= self._window:
                return
            self._loaded = number
            if number in done:
                continue
            update = unpack_update(record)
            self._in_memory += 1
            self._wanted(update)
            self._deliver(Delivery(update, number))
        self._behind = False

    # ------------------------------------------------------------ the end

    async def close(self, left: Iterable[Delivery]) -> int:
        """What was not settled stays where it is, on disk."""
        await self._idle.wait()
        if not self._broken:
            self._commit()
            await self._idle.wait()
        if self._timer:
            self._timer.cancel()
        self._writer.shutdown()
        self._journal.close()
        return self.depth


def _lost_pages(error: BaseException) -> bool:
    """Whether an error of a commit may be a failed fsync: the kernel may have dropped the pages, and a second one lies."""
    return errno.EIO in getattr(error, "args", ()) or "Input/output error" in str(error)


def _size_of(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _cannot(directory: Path, error: BaseException) -> str:
    words = getattr(error, "strerror", None) or str(error)
    return f"the journal {directory} cannot be opened: {words}; set --queue to a directory that can be written"
