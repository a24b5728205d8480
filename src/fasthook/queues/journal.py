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
from pathlib import Path
from typing import Any

import lmdb

from fasthook._core import Shares
from fasthook.queues import (
    REPLY_BYTES,
    Answered,
    Deliver,
    Delivery,
    Json,
    Match,
    Outcome,
    QueueError,
    Record,
    Redeliver,
    Reply,
)
from fasthook.queues.batch import BATCH, ROW, Batch, Done, Requeue, Writing
from fasthook.queues.probe import DAMAGE
from fasthook.queues.rows import ID
from fasthook.queues.settled import Settled
from fasthook.queues.shared_window import SharedWindow
from fasthook.queues.store import is_full, may_be_sync, pack_update, received_at, replayed, unpack_update, words
from fasthook.queues.tables import Journal
from fasthook.queues.window import Window
from fasthook.queues.writer import Writer
from fasthook.update import Update

__all__ = ["Journal", "JournalQueue"]

log = logging.getLogger("fasthook.queue")

_KNOWN = 160  # bytes that a known id takes at most, in both of its tables
_PAUSE = 0.02  # seconds that what was handled waits for a commit of new updates to go along with
_TURNS = 4  # turns of the loop that a commit is put off for, at most
_AGAIN = 1.0  # seconds between tries to write while it fails
_SLICE = 500  # updates that are looked at before the loop has its turn
_DONE = 2000  # handled updates in one commit
_FEW = 32  # while the disk is full
_MOVED = 1 << 20  # bytes of handled updates that are kept, and of replies, in one commit


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
        self._several, ways = shares is not None, (share or window, self._read, self._get, self._enter)
        self._window = Window(window, *ways) if shares is None else SharedWindow(shares, *ways)
        self._new: deque[Update] = deque()
        self._done = Settled()
        self._committing: list[Done] = []
        self._requeue: list[Requeue] = []
        self._tried: dict[int, Update] = {}  # what has failed once more since it was written
        self._aside: set[int] = set()  # of what was handled, what is in a file of its own
        self._commit_ends: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._scanning: asyncio.Handle | None = None
        self._writer: Writer | None = None
        self._journal: Journal
        self._opened = False

    async def open(self, deliver: Deliver, redeliver: Redeliver, answered: Answered) -> int:
        self._loop = asyncio.get_running_loop()
        self._deliver = deliver
        self._redeliver = redeliver
        self._answered = answered
        self._journal = await asyncio.to_thread(Journal, self._directory, self._limit)
        self._writer = Writer(self._loop)
        self._opened = True
        self.depth, remembered, self._begun = self._journal.counts()
        self._number = self._begun
        self._writing = Writing(
            self._journal, remember=self._remember, remembered=remembered, keep=self._keep,
            keeps=self._keep is not None or bool(self.handled_snapshot(0, 1)),
        )  # fmt: skip
        self._replies = self._journal.known_replies(REPLY_BYTES)
        self._take_in_settled()
        if self._remember * _KNOWN > self._limit // 2:
            log.warning(
                "--journal-max (%d bytes) has no room for --dedup-size (%d) ids beside updates: fewer are remembered; "
                "set it to %d or more",
                self._limit, self._remember, 2 * self._remember * _KNOWN,
            )  # fmt: skip
        self._window.behind = self.depth > 0
        if self._several:
            self._scan_on()  # a bot with little behind another's flood is not full before the end of that
        while not self._several and self._scan():
            pass  # nothing else is to be done before it is full
        return self.depth

    def reply(self, bot_id: int, update_id: int) -> Json | None:
        try:
            return self._journal.reply(ID.pack(bot_id, update_id))
        except DAMAGE as error:
            self._is_damaged(error)
            return None

    def _take_in_settled(self) -> None:
        """What was handled before the last stop is taken out as soon as the file can be written."""
        rows = []
        for number, forget, handled_at, reply in self._journal.settled:
            record = self._journal.get(number)
            update = None if record is None else self._unpacked(number, record)
            if update is not None:
                name = ID.pack(update.bot_id, update.update_id)
                rows.append((number, name, forget, handled_at, reply, len(update.raw) + ROW))
                self._window.gone.add(number)
                self.depth -= 1
        self._aside = {row[0] for row in rows}
        self._done.put_back(rows)
        if rows:
            self._commit_soon(0.0)

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
        size = 0
        if handled_at is not None or delivery.reply is not None:
            size = (len(update.raw) + ROW if handled_at is not None else 0) + len(delivery.reply or b"")
            self._done.size += size
        self._done.rows.append((delivery.place, name, forget, handled_at, delivery.reply, size))
        self.depth -= 1
        try:
            self._window.left(update.lane)
        except DAMAGE as error:
            self._is_damaged(error)
        if self._window.behind and self._scanning is None and self._window.wants:
            self._scan_on()
        self._commit_soon(_PAUSE)

    def tried(self, delivery: Delivery) -> None:
        self._tried[delivery.place] = delivery.update
        self._commit_soon(_PAUSE)

    def bots_changed(self) -> None:
        self._fill_window(self._window.feed)

    async def requeue(self, numbers: Iterable[int]) -> int:
        return await self._wait_again(list(numbers))

    async def again(self, updates: Iterable[Update]) -> int:
        return await self._wait_again(list(updates))

    async def _wait_again(self, wanted: list[int] | list[Update]) -> int:
        moved = 0
        for start in range(0, len(wanted), _SLICE):
            if self._broken or self._damaged:
                raise QueueError(self.trouble or f"the journal {self._directory} cannot be written")
            part = Requeue(wanted[start : start + _SLICE], self._loop.create_future())
            self._requeue.append(part)
            self._commit_soon(0.0)
            moved += await part.moved
        return moved

    async def purge(self, match: Match) -> int:
        behind, count = 0, 0
        while rows := self._look(behind, _SLICE):
            behind = rows[-1][0]
            purged = {number for number, record in rows if self._purge_one(number, record, match)}
            count += len(purged)
            await self._taken_out(purged)
        return count

    def _purge_one(self, number: int, record: bytes, match: Match) -> bool:
        if number in self._window.gone:
            return False
        try:
            update = unpack_update(record)
        except ValueError:  # nobody knows whether it matches
            return False
        if not match(update):
            return False
        self._window.gone.add(number)
        self._done.rows.append((number, ID.pack(update.bot_id, update.update_id), False, None, None, 0))
        self.depth -= 1
        self._answered(update, Outcome.PURGED)
        return True

    async def _taken_out(self, numbers: set[int]) -> None:
        """Wait until these are not on disk any more."""
        await asyncio.sleep(0)
        while not numbers.isdisjoint(self._window.gone):
            self._commit_soon(0.0)
            if self._commit_ends is not None:
                await asyncio.shield(self._commit_ends)
            if self._gives_up:
                raise QueueError(self.trouble or f"the journal {self._directory} cannot be written")

    # ------------------------------------------------------------ group commit

    def _commit_soon(self, delay: float) -> None:
        """Begin a commit, or let what is new go into the one that follows the one under way."""
        if self._commit_ends is not None or self._broken or self._damaged:
            return
        if delay == 0.0:
            if self._timer is not None:
                self._timer.cancel()
            self._commit_ends = self._loop.create_future()
            self._loop.call_soon(self._gather, len(self._new), _TURNS)
        elif self._timer is None:
            self._timer = self._loop.call_later(delay, self._commit_soon, 0.0)

    def _gather(self, had: int, turns: int) -> None:
        """Let all that comes in this turn of the loop share a commit, and what comes in the next ones if it was more
        than one: a commit costs as much CPU as thirty updates.
        """
        if had < len(self._new) < BATCH and turns:
            self._loop.call_soon(self._gather, len(self._new), turns - 1)
        else:
            self._commit()

    def _commit(self) -> None:
        self._timer = None
        new = [self._new.popleft() for _ in range(min(len(self._new), BATCH))]
        self._committing = self._done.take(_DONE if self._journal.no_room is None else _FEW, _MOVED)
        rest = frozenset([row[0] for row in self._done.rows])
        batch = Batch(new, self._committing, self._requeue, self._tried, rest=rest)
        self._requeue, self._tried = [], {}
        self._begin_commit(batch)

    def _begin_commit(self, batch: Batch) -> None:
        try:
            txn = self._fill(batch)
        except Exception as error:
            self._ended(batch, error)
            return
        assert self._writer is not None
        self._writer.submit(
            lambda: self._finish(txn, batch),
            lambda seconds, error: self._timed(batch, seconds, error),
        )

    def _timed(self, batch: Batch, seconds: float, error: BaseException | None) -> None:
        try:
            if isinstance(error, lmdb.MapFullError):  # LMDB has no room for its list of free pages: nothing was written
                self._make_way(batch)
                self._begin_commit(batch)
                return
            full = self._journal.no_room
            if full is not None and error is full and self._leave_out(batch, self._cannot_be_written(full)):
                self._begin_commit(batch)
                return
        except (OSError, MemoryError, lmdb.Error) as failure:
            error = failure
        if error is None:
            self._committed(seconds)
        self._ended(batch, error)

    def _finish(self, txn: Any, batch: Batch) -> float:
        """Commit, in the writer's thread; the seconds that it took."""
        began = time.monotonic()
        try:
            self._journal.make_room(batch.size, len(batch.done), self.used, spare=bool(batch.new or batch.requeue))
        except OSError:
            txn.abort()
            raise
        try:
            txn.commit()
        except lmdb.PanicError:
            raise
        except lmdb.Error as error:
            if is_full(error) and self._journal.no_room is not None:
                raise self._journal.no_room from None
            raise
        return time.monotonic() - began

    def _fill(self, batch: Batch) -> Any:
        """A transaction with all of a batch in it, but for what there is no room for."""
        journal = self._journal
        journal.grow_ahead(batch.size)
        while True:
            txn = journal.env.begin(write=True)
            try:
                self._writing.write(txn, batch, self._number, troubled=self.trouble is not None)
                self.used = batch.used
                return txn
            except lmdb.MapFullError:
                txn.abort()
                self._make_way(batch)
            except BaseException:
                txn.abort()
                raise

    def _make_way(self, batch: Batch) -> None:
        """The map is too small for a batch: make it larger, or the batch smaller. What was handled always goes out."""
        if not (self._journal.grow() or self._leave_out(batch, self._too_full)):
            self._journal.grow(beyond=True)

    def _leave_out(self, batch: Batch, why: str) -> bool:
        """There is no room: a batch without what is new, or with half of what was handled. False: it is too small."""
        if batch.new or batch.requeue:
            batch.why = why
            batch.refused += batch.new
            batch.new = []
            while batch.requeue:
                batch.requeue.pop().refuse(why)
        elif len(batch.done) > 1:
            half = len(batch.done) // 2
            self._done.put_back(batch.done[half:])
            batch.rest |= {row[0] for row in batch.done[half:]}
            self._committing = batch.done = batch.done[:half]
        else:
            return False
        return True

    def _ended(self, batch: Batch, error: BaseException | None) -> None:
        """A commit has ended: acknowledge what it made safe, and begin the next."""
        ends, self._commit_ends = self._commit_ends, None
        self._committing = []
        if ends is not None:
            ends.set_result(None)  # first: who waits for it goes on whatever follows
        if error is not None:
            self._failed(batch, error)
            return
        self._failing = False
        if self._journal.settled:
            self._aside.difference_update([done[0] for done in batch.done])
            if not self._aside and self._journal.settled_file.removed():
                self._journal.settled = []
        if batch.refused and not self._damaged:
            self._in_trouble(batch.why or self._too_full)
        elif self.trouble and batch.roomy and not self._damaged and (batch.kept or self._journal.no_room is None):
            log.info("the journal %s can be written again", self._directory)
            self.trouble = None
        self._writing.remembered = batch.remembered
        self._window.gone.difference_update([done[0] for done in batch.done])
        self._number = batch.last
        self.depth += len(batch.again) + len(batch.kept)
        if self._damaged:  # that was seen while this commit was under way: there is no other
            batch.refused += self._new
            self._new.clear()
            while self._requeue:
                self._requeue.pop().refuse(self.trouble or "")
        if self._new or self._requeue or batch.rest:
            self._commit_soon(0.0)
        elif self._done.rows or self._tried:
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
        if self._window.paused and not self._damaged:
            self._fill_window(self._window.go_on)  # it can be written again: what is handled from now on is taken out

    def _fill_window(self, fill: Callable[[], None]) -> None:
        try:
            fill()
        except DAMAGE as error:
            self._is_damaged(error)
        if self._window.wants and self._scanning is None:
            self._scan_on()

    def _failed(self, batch: Batch, error: BaseException) -> None:
        """Nothing of this batch is on disk: what was new stays with Telegram, what was handled is taken out later."""
        self._failing = self._window.paused = True  # what is handled cannot be taken out: no more is
        self._done.put_back(batch.done)
        self._tried = batch.tried | self._tried
        if not isinstance(error, (OSError, lmdb.Error, MemoryError)):
            log.error("a commit of the journal failed in an unexpected way", exc_info=error)
        if isinstance(error, DAMAGE) and not self._damaged:
            self._is_damaged(error)
        trouble = self._cannot_be_written(error)
        if may_be_sync(error):
            self._broken = True
            trouble += "; what the disk has is uncertain now: nothing is accepted until a restart"
        if not self._damaged:
            self._in_trouble(trouble)
        refused = batch.refused + batch.new + list(self._new)
        self._new.clear()
        for update in refused:
            self._answered(update, Outcome.FULL)
        for part in batch.requeue + self._requeue:
            part.refuse(trouble)
        self._requeue = []
        if (self._done.rows or self._tried) and not self._damaged:
            self._commit_soon(_AGAIN)

    def _cannot_be_written(self, error: BaseException) -> str:
        return f"the journal {self._directory} cannot be written: {words(error)}"

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
        gone = {done[0] for done in self._done.rows + self._committing}  # still on disk
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
        self._end()
        if self._opened:
            self._journal.close()

    async def close(self, left: Iterable[Delivery], replies: Sequence[Reply] = ()) -> int:
        """What was not settled stays where it is, on disk; so does what was returned."""
        self._failing = False  # one more try
        while self._commit_ends is not None or ((self._done.rows or self._tried) and not self._gives_up):
            self._commit_soon(0.0)
            if self._commit_ends is not None:
                await asyncio.shield(self._commit_ends)
        self._end()
        if self._damaged:
            self._journal.suspect(done[0] for done in self._done.rows)
        try:
            if self._done.rows and not self._damaged:
                self._put_aside()
        finally:
            self._journal.close()
        return self.depth

    def _end(self) -> None:
        for handle in (self._timer, self._scanning):
            if handle:
                handle.cancel()
        if self._writer:
            self._writer.close()

    @property
    def _gives_up(self) -> bool:
        """Nothing more is written: it failed, or damage was seen, perhaps by the commit that ended just now."""
        return self._failing or self._broken or self._damaged

    def _put_aside(self) -> None:
        """What was handled cannot be taken out: the next start is told not to handle it again. QueueError."""
        count = len(self._done.rows)
        try:
            self._journal.settled_file.write((row[0], row[2], row[3], row[4]) for row in self._done.rows)
        except (OSError, ValueError) as error:
            raise QueueError(
                f"{count} updates were handled and cannot be taken out of the journal {self._directory}: they will be "
                f"handled again after the next start: {words(error)}"
            ) from None
        log.warning("%d handled updates could not be taken out of the journal: they are in %s, and the next start "
                    "takes them out", count, self._journal.settled_file.path)  # fmt: skip
