"""`journal:DIR`: updates wait on local disk. What was acknowledged survives a `kill -9` and a power cut.

Updates that come while a commit is under way go into the next one. The loop's thread fills a transaction, the writer's
thread commits it, so the loop goes on while the disk works. What is on disk is in `tables.py`, what of it is in memory
in `window.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lmdb

from fasthook._core import Shares
from fasthook.queues import (
    REPLY_BYTES,
    Answered,
    Deliver,
    Delivery,
    Match,
    Outcome,
    QueueError,
    Record,
    Redeliver,
    Reply,
)
from fasthook.queues.probe import DAMAGE
from fasthook.queues.store import pack_update, received_at, replayed, unpack_update, words
from fasthook.queues.tables import ID, NUMBER, Journal
from fasthook.queues.window import Window
from fasthook.update import Update

__all__ = ["Journal", "JournalQueue"]

log = logging.getLogger("fasthook.queue")

_BATCH = 1000  # updates in one commit
_ROW = 128  # bytes that an update takes beside its own
_KNOWN = 160  # bytes that a known id takes at most, in both of its tables
_PAUSE = 0.02  # seconds that what was handled waits for a commit of new updates to go along with
_AGAIN = 1.0  # seconds between tries to write while it fails
_SLICE = 500  # updates that are looked at before the loop has its turn
_STEP = 16  # handled updates that make room for new ones at a time

# number, id, whether the id is to be forgotten at once, when it was handled if the update is kept, and the reply
_Done = tuple[int, bytes, bool, float | None, bytes | None]


@dataclass(slots=True)
class _Requeue:
    """Handled updates by their numbers, and dead ones, that somebody wants to be handled again."""

    wanted: list[int | Update]
    moved: asyncio.Future[int]
    count: int = 0


@dataclass(slots=True)
class _Batch:
    """What one commit writes."""

    new: list[Update]
    done: list[_Done]
    requeue: list[_Requeue] = field(default_factory=list)
    again: list[tuple[int, Update]] = field(default_factory=list)  # were handled, and wait once more
    kept: list[tuple[int, Update]] = field(default_factory=list)
    known: list[Update] = field(default_factory=list)
    refused: list[Update] = field(default_factory=list)  # there is no room for them
    roomy: bool = True  # there is room for more than a few others
    remembered: int = 0  # how many ids of handled updates there are afterwards
    replies: int = 0  # bytes of replies there are afterwards


class JournalQueue:
    """The queue over a journal.

    `window`: how many updates are in memory at most; the others wait on disk. `share`: how many of one chat, None for
    as many. `remember`: how many ids of handled updates stay known. `limit`: bytes that the file may grow to. `keep`:
    seconds that handled updates are kept, None for not at all. `committed`: told how many seconds each commit took.
    `shares`: divides the window among several bots.
    """

    durable = True

    def __init__(
        self,
        directory: Path,
        *,
        window: int,
        remember: int,
        limit: int,
        share: int | None = None,
        keep: float | None = None,
        committed: Callable[[float], None] = lambda seconds: None,
        shares: Shares | None = None,
    ) -> None:
        self.depth = 0
        self.used = 0
        self._committed = committed
        self.trouble: str | None = None
        self._directory = directory
        self._remember = remember
        self._limit = limit
        self._keep = keep
        self._broken = False  # a sync has failed: never again on this file
        self._damaged = False  # what waits cannot be read: no more is taken
        self._failing = False  # the last commit did
        self._number = 0  # the last that was given
        self._begun = 0  # the last that was given before this start
        self._remembered = 0
        self._reply_bytes = 0
        self._window = Window(window, share or window, self._read, self._get, self._enter, shares)
        self._new: deque[Update] = deque()
        self._done: list[_Done] = []
        self._committing: list[_Done] = []
        self._requeue: list[_Requeue] = []
        self._commit_ends: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._scanning: asyncio.Handle | None = None
        self._writer = ThreadPoolExecutor(1, "fasthook-journal")
        self._journal: Journal
        self._opened = False

    async def open(self, deliver: Deliver, redeliver: Redeliver, answered: Answered) -> int:
        self._loop = asyncio.get_running_loop()
        self._deliver = deliver
        self._redeliver = redeliver
        self._answered = answered
        self._journal = await asyncio.to_thread(Journal, self._directory, self._limit)
        self._opened = True
        self.depth, self._remembered, self._number = self._journal.counts()
        self._begun = self._number
        self._keeps = self._keep is not None or bool(self.handled_snapshot(0, 1))
        self._replies = self._journal.known_replies()
        self._reply_bytes = sum(len(reply) for _, reply in self._replies)
        if self._remember * _KNOWN > self._limit // 2:
            log.warning(
                "--journal-max (%d bytes) has no room for --dedup-size (%d) ids beside updates: fewer are remembered; "
                "set it to %d or more",
                self._limit, self._remember, 2 * self._remember * _KNOWN,
            )  # fmt: skip
        self._window.behind = self.depth > 0
        while self._scan():
            pass  # nothing else is to be done before it is full
        return self.depth

    def replies(self) -> list[Reply]:
        return self._replies

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
        handled_at = time.time() if self._keep is not None and delivery.failure is None and not forget else None
        name = ID.pack(update.bot_id, update.update_id)
        self._done.append((delivery.place, name, forget, handled_at, delivery.reply))
        self.depth -= 1
        try:
            self._window.left(update.lane)
        except DAMAGE as error:
            self._is_damaged(error)
        if self._window.behind and self._scanning is None and self._window.wants:
            self._scan_on()
        self._commit_soon(_PAUSE)

    def bots_changed(self) -> None:
        try:
            self._window.feed()
        except DAMAGE as error:
            self._is_damaged(error)

    async def requeue(self, numbers: Iterable[int]) -> int:
        return await self._wait_again(list(numbers))

    async def again(self, updates: Iterable[Update]) -> int:
        return await self._wait_again(list(updates))

    async def _wait_again(self, wanted: list[Any]) -> int:
        moved = 0
        for start in range(0, len(wanted), _SLICE):
            if self._broken or self._damaged:
                raise QueueError(self.trouble or f"the journal {self._directory} cannot be written")
            part = _Requeue(wanted[start : start + _SLICE], self._loop.create_future())
            self._requeue.append(part)
            self._commit_soon(0.0)
            moved += await part.moved
        return moved

    async def purge(self, match: Match) -> int:
        behind, purged = 0, set[int]()
        while rows := self._look(behind, _SLICE):
            for number, record in rows:
                behind = number
                if number in self._window.gone:
                    continue
                with contextlib.suppress(ValueError):  # it cannot be read, so that nobody knows whether it matches
                    update = unpack_update(record)
                    if match(update):
                        self._window.gone.add(number)
                        purged.add(number)
                        name = ID.pack(update.bot_id, update.update_id)
                        self._done.append((number, name, False, None, None))
                        self.depth -= 1
            await asyncio.sleep(0)
        while not purged.isdisjoint(self._window.gone):
            self._commit_soon(0.0)
            if self._commit_ends is not None:
                await asyncio.shield(self._commit_ends)
            if self._failing or self._broken or self._damaged:
                raise QueueError(self.trouble or f"the journal {self._directory} cannot be written")
        return len(purged)

    # ------------------------------------------------------------ group commit

    def _commit_soon(self, delay: float) -> None:
        """Begin a commit, or let what is new go into the one that follows the one under way."""
        if self._commit_ends is not None or self._broken or self._damaged:
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
        self._committing, self._done = self._done, []
        batch = _Batch(new, self._committing, self._requeue)
        self._requeue = []
        try:
            txn = self._fill(batch)
        except (OSError, lmdb.Error) as error:
            self._ended(batch, error)
            return
        size = sum(len(update.raw) + _ROW for update in batch.new)
        commit = self._loop.run_in_executor(self._writer, self._finish, txn, size)
        commit.add_done_callback(lambda ended: self._timed(batch, ended))

    def _timed(self, batch: _Batch, ended: asyncio.Future[float]) -> None:
        error = ended.exception()
        if error is None:
            self._committed(ended.result())
        self._ended(batch, error)

    def _finish(self, txn: Any, size: int) -> float:
        """Commit, in the writer's thread; the seconds that it took."""
        began = time.monotonic()
        self._journal.make_room(size)
        try:
            txn.commit()
        except lmdb.PanicError:
            raise
        except lmdb.Error as error:
            if _may_be_sync(error) and self._journal.no_room is not None:
                raise self._journal.no_room from None
            raise
        return time.monotonic() - began

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
                if not batch.new and not batch.requeue:
                    raise
                batch.refused += batch.new  # what was handled goes out without them, so that there is room again
                batch.new = []
                for part in batch.requeue:
                    part.moved.set_exception(QueueError(self._too_full))
                batch.requeue = []
            except BaseException:
                txn.abort()
                raise

    def _write(self, txn: Any, batch: _Batch) -> None:
        journal = self._journal
        batch.again, batch.kept, batch.known = [], [], []
        self._write_done(txn, batch)
        number = self._number
        for part in batch.requeue:
            part.count = 0
            for one in part.wanted:
                new = number + 1
                update = journal.put_back(txn, one, new) if isinstance(one, int) else journal.put_again(txn, one, new)
                if update is not None:
                    number = new
                    part.count += 1
                    batch.again.append((number, update))
        if batch.new and not self._has_room(txn, batch, sum(len(update.raw) + _ROW for update in batch.new)):
            batch.refused += batch.new
            batch.new = []
        for update in batch.new:
            key = NUMBER.pack(number + 1)
            if txn.put(ID.pack(update.bot_id, update.update_id), key, db=journal.ids, overwrite=False):
                number += 1
                txn.put(key, pack_update(update), db=journal.waiting, append=True)
                batch.kept.append((number, update))
            else:
                batch.known.append(update)
        self.used = journal.pages(txn)[0]
        if self.trouble:
            batch.roomy = self._has_room(txn, batch, self._limit // 16)

    def _write_done(self, txn: Any, batch: _Batch) -> None:
        """Take out what was handled, and forget what is too old."""
        journal = self._journal
        waiting, done, pack = journal.waiting, journal.done, NUMBER.pack
        batch.remembered, batch.replies = self._remembered, self._reply_bytes
        for number, name, forget, handled_at, reply in batch.done:
            if forget:
                txn.delete(NUMBER.pack(number), db=journal.waiting)
                txn.delete(name, db=journal.ids)
                continue
            batch.remembered += 1
            if handled_at is None and reply is None:
                key = pack(number)
                txn.delete(key, db=waiting)
                txn.put(key, name, db=done)
                continue
            journal.take_out(txn, number, name, handled_at, reply)
            batch.replies += len(reply) if reply else 0
        if batch.remembered > self._remember:
            batch.remembered -= journal.forget(txn, batch.remembered - self._remember)
        if batch.replies > REPLY_BYTES:
            batch.replies -= journal.drop_replies(txn, batch.replies - REPLY_BYTES)
        if self._keeps:
            journal.drop_handled(txn, time.time() - (self._keep or 0.0), 2 * len(batch.done) + _SLICE)

    def _has_room(self, txn: Any, batch: _Batch, more: int) -> bool:
        """Whether so many bytes more fit below the limit; ids and updates that were handled make room for new ones."""
        journal = self._journal
        used, known = journal.pages(txn)
        while known > self._limit // 2 and (forgotten := journal.forget(txn, _BATCH)):
            batch.remembered -= forgotten
            used, known = journal.pages(txn)
        while used + more > self._limit and journal.drop_handled(txn, float("inf"), _STEP):
            used, known = journal.pages(txn)
        return used + more <= self._limit

    def _ended(self, batch: _Batch, error: BaseException | None) -> None:
        """A commit has ended: acknowledge what it made safe, and begin the next."""
        ends, self._commit_ends = self._commit_ends, None
        self._committing = []
        if error is not None:
            self._failed(batch, error)
            if ends is not None:
                ends.set_result(None)
            return
        if ends is not None:
            ends.set_result(None)
        self._failing = False
        if batch.refused and not self._damaged:
            self._in_trouble(self._too_full)
        elif self.trouble and batch.roomy and not self._damaged:
            log.info("the journal %s can be written again", self._directory)
            self.trouble = None
        self._remembered, self._reply_bytes = batch.remembered, batch.replies
        self._window.gone.difference_update([done[0] for done in batch.done])
        self._number += len(batch.again) + len(batch.kept)
        self.depth += len(batch.again) + len(batch.kept)
        if self._damaged:
            batch.refused += self._new  # damage was seen while this commit was under way: there is no other
            self._new.clear()
        if self._new or self._requeue:
            self._commit_soon(0.0)
        elif self._done:
            self._commit_soon(_PAUSE)
        for number, update in batch.again:
            self._window.offer(number, update, pack_update(update))
        for number, update in batch.kept:
            self._answered(update, Outcome.SAFE)
            self._window.offer(number, update)
        for update in batch.known:
            self._answered(update, Outcome.KNOWN)
        for update in batch.refused:
            self._answered(update, Outcome.FULL)
        for part in batch.requeue:
            if not part.moved.done():
                part.moved.set_result(part.count)

    def _failed(self, batch: _Batch, error: BaseException) -> None:
        """Nothing of this batch is on disk: what was new stays with Telegram, what was handled is taken out later."""
        self._failing = True
        self._done = batch.done + self._done
        if isinstance(error, DAMAGE) and not self._damaged:
            self._is_damaged(error)
        trouble = f"the journal {self._directory} cannot be written: {words(error)}"
        if _may_be_sync(error):
            self._broken = True
            trouble += "; what the disk has is uncertain now: nothing is accepted until a restart"
        if not self._damaged:
            self._in_trouble(trouble)
        refused = batch.refused + batch.new + list(self._new)
        self._new.clear()
        for update in refused:
            self._answered(update, Outcome.FULL)
        for part in batch.requeue + self._requeue:
            if not part.moved.done():
                part.moved.set_exception(QueueError(trouble))
        self._requeue = []
        if self._done and not self._damaged:
            self._commit_soon(_AGAIN)

    @property
    def _too_full(self) -> str:
        return f"the journal {self._directory} has reached --journal-max ({self._limit} bytes)"

    def _in_trouble(self, why: str) -> None:
        if why != self.trouble:
            log.error("%s; new updates get 503 and stay with Telegram", why)
        self.trouble = why

    # ------------------------------------------------------------ out

    def _read(self, behind: int) -> Generator[tuple[int, bytes, Update | None], None, None]:
        with contextlib.closing(self._journal.items(behind)) as items:
            for number, record in items:
                yield number, record, self._unpacked(number, record)

    def _get(self, number: int) -> tuple[bytes, Update] | None:
        record = self._journal.get(number)
        update = None if record is None else self._unpacked(number, record)
        return None if record is None or update is None else (record, update)

    def _unpacked(self, number: int, record: bytes) -> Update | None:
        try:
            return unpack_update(record)
        except ValueError as error:
            log.error("update number %d in the journal cannot be read (%s): it stays there", number, error)
            return None

    def _enter(self, number: int, update: Update, record: bytes | None) -> None:
        """Give an update to the dispatcher."""
        delivery = Delivery(update, number)
        if record is None:
            self._deliver(delivery)
            return
        delivery.before = number <= self._begun and not replayed(record)
        self._redeliver(delivery)

    def _scan_on(self) -> None:
        """Fill the window from the disk, in order, a slice in each turn of the loop."""
        self._scanning = self._loop.call_soon(self._scan_on) if self._scan() else None

    def _scan(self) -> bool:
        try:
            return self._window.scan(self._number)
        except DAMAGE as error:
            self._is_damaged(error)
            return False

    def _is_damaged(self, error: BaseException) -> None:
        self._damaged, self._window.behind = True, False
        self._journal.suspect()
        self._in_trouble(
            f"the journal {self._directory} is damaged behind number {self._window.scanned} ({words(error)}): "
            "nothing is accepted until a restart, which sets it aside"
        )

    # ------------------------------------------------------------ what is in it

    @property
    def oldest(self) -> float | None:
        rows = self._look(0, 1)
        return received_at(rows[0][1]) if rows else None

    @property
    def bytes(self) -> int:
        try:
            return (self._directory / "data.mdb").stat().st_size
        except OSError:
            return 0

    def snapshot(self, behind: int, most: int) -> list[tuple[int, Record]]:
        return self._look(behind, most)

    def _look(self, behind: int, most: int) -> list[tuple[int, Record]]:
        gone = {done[0] for done in self._done + self._committing}  # still on disk
        found: list[tuple[int, Record]] = []
        try:
            with contextlib.closing(self._journal.items(behind)) as items:
                for number, record in items:
                    if len(found) == most or number > self._number:
                        break
                    if number not in gone:
                        found.append((number, record))
        except DAMAGE as error:
            self._is_damaged(error)
        return found

    def handled_snapshot(self, behind: int, most: int) -> list[tuple[int, float, Record]]:
        found: list[tuple[int, float, Record]] = []
        try:
            with contextlib.closing(self._journal.handled_items(behind)) as items:
                for row in items:
                    if len(found) == most:
                        break
                    found.append(row)
        except DAMAGE as error:
            self._is_damaged(error)
        return found

    # ------------------------------------------------------------ the end

    async def abandon(self) -> None:
        self._writer.shutdown()
        if self._scanning:
            self._scanning.cancel()
        if self._timer:
            self._timer.cancel()
        if self._opened:
            self._journal.close()

    async def close(self, left: Iterable[Delivery], replies: Sequence[Reply] = ()) -> int:
        """What was not settled stays where it is, on disk; so does what was returned."""
        self._failing = self._broken or self._damaged  # else one more try
        while self._commit_ends is not None or (self._done and not self._failing):
            self._commit_soon(0.0)
            if self._commit_ends is not None:
                await asyncio.shield(self._commit_ends)
        if self._timer:
            self._timer.cancel()
        if self._scanning:
            self._scanning.cancel()
        self._writer.shutdown()
        if self._damaged:
            self._journal.suspect(done[0] for done in self._done)
        self._journal.close()
        return self.depth


def _may_be_sync(error: BaseException) -> bool:
    """Whether an error may be a failed fsync: the kernel may have dropped the pages, and a second fsync would lie."""
    return isinstance(error, lmdb.PanicError) or "Input/output error" in str(error)
