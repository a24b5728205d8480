"""What one commit of a journal writes, and how it goes into a transaction."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import compress
from typing import Any

from fasthook.queues import QueueError
from fasthook.queues.rows import ID, NUMBER
from fasthook.queues.store import pack_update
from fasthook.queues.tables import Journal
from fasthook.update import Update

BATCH = 1000  # updates in one commit
ROW = 128  # bytes that an update takes beside its own
_SLICE = 500  # handled updates that are dropped for their age in one commit, beside as many as come
_STEP = 16  # handled updates, and replies, that make room for new ones at a time

# number, id, whether the id is to be forgotten at once, when it was handled if the update is kept, the reply, and how
# many bytes this one writes
Done = tuple[int, bytes, bool, float | None, bytes | None, int]


@dataclass(slots=True)
class Requeue:
    """Handled updates by their numbers, or dead ones, that somebody wants to be handled again."""

    wanted: Sequence[int | Update]
    moved: asyncio.Future[int]
    count: int = 0

    def refuse(self, why: str) -> None:
        """They are not: whoever waits gets a QueueError."""
        if not self.moved.done():
            self.moved.set_exception(QueueError(why))


@dataclass(slots=True)
class Batch:
    """What one commit writes."""

    new: list[Update]
    done: list[Done]
    requeue: list[Requeue] = field(default_factory=list)
    tried: dict[int, Update] = field(default_factory=dict)  # have failed once more, by number
    again: list[tuple[int, Update]] = field(default_factory=list)  # were handled, and wait once more
    kept: list[tuple[int, Update]] = field(default_factory=list)
    last: int = 0  # the highest number that was given
    known: list[Update] = field(default_factory=list)
    refused: list[Update] = field(default_factory=list)  # there is no room for them
    rest: frozenset[int] = frozenset()  # were handled, and are taken out later: more than goes into one commit
    why: str = ""  # that is refused
    roomy: bool = True  # there is room for more than a few others
    remembered: int = 0  # how many ids of handled updates there are afterwards
    used: int = 0  # bytes of the file that are not free, about
    size: int = 0  # bytes that it writes, about

    def __post_init__(self) -> None:
        self.size = sum([len(update.raw) for update in self.new]) + ROW * len(self.new)
        if self.tried:
            self.size += sum(len(update.raw) + ROW for update in self.tried.values())
        if self.done:
            self.size += sum([row[5] for row in self.done])


class Writing:
    """Writes batches. `remember`: ids of handled updates that stay known; `remembered`: that are. `keep`: seconds that
    handled updates are kept; `keeps`: there are, or may come to be, such.
    """

    def __init__(self, journal: Journal, *, remember: int, remembered: int, keep: float | None, keeps: bool) -> None:
        self.remembered = remembered
        self._journal = journal
        self._limit = journal.limit
        self._remember = remember
        self._keep = keep
        self._keeps = keeps

    def write(self, txn: Any, batch: Batch, number: int, *, troubled: bool) -> None:
        """Write a batch. `number`: the last that was given. `troubled`: look for more room than it needs.

        lmdb.Error: the transaction is of no use any more.
        """
        journal = self._journal
        batch.again, batch.kept, batch.known = [], [], []
        self._write_done(txn, batch)
        for tried, update in batch.tried.items():
            journal.note_attempt(txn, tried, update)
        for part in batch.requeue:
            number = self._write_again(txn, batch, part, number)
        more = sum([len(update.raw) for update in batch.new]) + ROW * len(batch.new)
        if not self._has_room(txn, batch, more) and batch.new:
            batch.refused += batch.new
            batch.new, more = [], 0
        batch.last = number + len(batch.new)
        if batch.new:
            self._write_new(txn, batch, number)
        batch.used += more
        if troubled:
            batch.roomy = self._has_room(txn, batch, self._limit // 16)

    def _write_new(self, txn: Any, batch: Batch, number: int) -> None:
        journal, new, pack, pack_id = self._journal, batch.new, NUMBER.pack, ID.pack
        numbers = range(number + 1, batch.last + 1)
        keys = [pack(number) for number in numbers]
        names = [pack_id(update.bot_id, update.update_id) for update in new]
        kept = list(zip(numbers, new, strict=True))
        with txn.cursor(journal.ids) as cursor:
            if cursor.putmulti(zip(names, keys, strict=True), True, False)[1] < len(new):
                mine = [cursor.get(name) == key for name, key in zip(names, keys, strict=True)]
                batch.known = [update for update, is_mine in zip(new, mine, strict=True) if not is_mine]
                kept, keys = list(compress(kept, mine)), list(compress(keys, mine))
        with txn.cursor(journal.waiting) as cursor:
            cursor.putmulti(
                [(key, pack_update(update)) for key, (_, update) in zip(keys, kept, strict=True)], True, True, True
            )
        batch.kept = kept

    def _write_again(self, txn: Any, batch: Batch, part: Requeue, number: int) -> int:
        journal = self._journal
        part.count = 0
        for one in part.wanted:
            new = number + 1
            update = (
                journal.put_back(txn, one, new)
                if isinstance(one, int)
                else journal.put_again(txn, one, new, batch.rest)
            )
            if update is not None:
                number = new
                part.count += 1
                batch.again.append((number, update))
        return number

    def _write_done(self, txn: Any, batch: Batch) -> None:
        """Take out what was handled, and forget what is too old."""
        journal = self._journal
        waiting, pack, delete = journal.waiting, NUMBER.pack, txn.delete
        known = []
        for number, name, forget, handled_at, reply, _ in batch.done:
            key = pack(number)
            if forget:
                delete(key, b"", waiting)
                delete(name, b"", journal.ids)
                continue
            if handled_at is None and reply is None:
                delete(key, b"", waiting)
            else:
                journal.take_out(txn, number, name, handled_at, reply)
            known.append(key + name)
        batch.remembered = self.remembered + len(known)
        journal.remember(txn, known)
        if batch.remembered > self._remember:
            batch.remembered -= journal.forget(txn, batch.remembered - self._remember)
        if self._keeps:
            journal.drop_handled(txn, time.time() - (self._keep or 0.0), 2 * len(batch.done) + _SLICE)
            self._has_room(txn, batch, 0)  # what is kept takes more pages than it did while it waited

    def _has_room(self, txn: Any, batch: Batch, more: int) -> bool:
        """Whether so many bytes more fit below the limit; ids and updates that were handled make room for new ones."""
        journal = self._journal
        used, known, replies = journal.pages(txn)
        while replies > self._limit // 4 and journal.drop_replies(txn, _STEP):
            used, known, replies = journal.pages(txn)
        while known > self._limit // 2 and (forgotten := journal.forget(txn, BATCH)):
            batch.remembered -= forgotten
            used, known, _ = journal.pages(txn)
        while used + more > self._limit and journal.drop_handled(txn, float("inf"), _STEP):
            used = journal.pages(txn)[0]
        batch.used = used
        return used + more <= self._limit
