"""The journal's file: an LMDB environment with a table for each thing that must outlive the process.

`waiting`: number -> update, in the order of arrival. `ids`: (bot, update_id) -> the number it got on arrival. `done`:
what one commit found handled, so that ids can be forgotten: the highest number -> each number and its id. `handled`:
number -> (when, update), if handled updates are kept. `replies`: number -> the id, and the method that a handler
returned under `--ack handled`. LMDB's own lock file is not used: it would tie a transaction to one thread, and the
journal's lock says already that nobody else is here.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import struct
import time
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

import lmdb

from fasthook.queues import QueueError
from fasthook.queues.probe import DAMAGE, check
from fasthook.queues.rebuilding import DATA, Rebuilding, Saved
from fasthook.queues.rows import HANDLED, ID, NUMBER
from fasthook.queues.settled_file import Row, SettledFile
from fasthook.queues.store import (
    REPLAYED,
    StoreError,
    make_whole,
    pack_update,
    replayed,
    sync_directory,
    unpack_update,
    words,
)
from fasthook.state import Lock, StateError
from fasthook.update import Update

log = logging.getLogger("fasthook.queue")

Name = tuple[int, int]  # the bot and the update_id

FORMAT = b"2"
_TOGETHER = 80  # of them in a row: LMDB keeps longer ones on pages of their own
_TIME = struct.Struct("<d")
_FIRST_SIZE = 16 << 20  # bytes of the map at the beginning
_SPARE = 4 << 20  # bytes of the map beyond the limit: LMDB copies pages to take something out of a full journal
_STEP = 1 << 20  # bytes that it grows by beyond that, if it must
_MARGIN = 512 << 10  # bytes of the map that a commit finds free: LMDB saves its list of free pages, too
_COPIED = 128 << 10  # bytes of pages that a commit copies, to change what is in them
_AHEAD = 256 << 10  # bytes that the file is made longer than it must be
_KEPT = 512 << 10  # bytes that the file keeps free of what is new, to take out what was handled when the disk is full
_SCATTERED = 4  # so many times what is wanted has to be free inside the file, where it is in pieces
_PROBED = 10_000  # waiting updates that are read at the opening, to see whether they can be
_SLICE = 1000  # updates that a tool moves in one commit
_TABLES = ("meta", "ids", "done", "handled", "replies", "waiting")


class Journal:
    """The tables. One process at a time has them.

    A damaged file is set aside under a name that the log tells, and what can be read of it goes into a new one.
    QueueError: one line.
    """

    def __init__(self, directory: Path, limit: int = 1 << 30) -> None:
        self.directory = directory
        self.file = directory / DATA
        self.limit = limit
        self.no_room: OSError | None = None  # why the file could not be made longer
        self._allocated = 0  # bytes that it has
        self.env: Any = None
        self._rebuilding = Rebuilding(directory)
        self.settled_file = SettledFile(directory)
        self.settled: list[Row] = []  # what it lists, and still cannot be taken out
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
            self.close()
            raise

    # ------------------------------------------------------------ opening

    def _open(self) -> None:
        try:
            self._rebuilding.clean_up()
            try:
                self._probe()
                self._open_tables(self.directory)
                self.settled = self._take_out_settled()
            except (*DAMAGE, lmdb.NotFoundError) as error:  # or a table is missing
                self._begin_anew(error)
                self.settled = self._take_out_settled()
        except lmdb.VersionMismatchError:
            raise QueueError(_newer(self.directory, "a newer LMDB")) from None
        except (OSError, lmdb.Error, *DAMAGE) as error:
            raise QueueError(_cannot(self.directory, error)) from None

    def _probe(self) -> None:
        if self._rebuilding.is_wanted:
            raise lmdb.CorruptedError("that was seen while it was in use")
        # what is to be taken out may be anywhere
        check(self.file, _TABLES, most=None if self.settled_file.path.exists() else _PROBED)

    def _open_tables(self, directory: Path) -> None:
        file = directory / DATA
        size = file.stat().st_size if file.exists() else 0
        self.env = lmdb.open(
            str(directory),
            map_size=max(min(_FIRST_SIZE, self.limit), size),
            max_dbs=len(_TABLES),
            mode=0o600,
            lock=False,
            readahead=False,
        )
        try:
            self._page = int(self.env.stat()["psize"])
            self._is = file.stat()
            make_whole(self.env, file)
            with self.env.begin(write=True) as txn:
                self.meta = self.env.open_db(b"meta", txn)
                is_new = txn.put(b"format", FORMAT, db=self.meta, overwrite=False)
                version = txn.get(b"format", db=self.meta)
                if version != FORMAT:
                    raise QueueError(_newer(self.directory, f"another fasthook (format {version.decode('latin-1')})"))
                self.ids, self.done, self.handled, self.replies, self.waiting = (
                    self.env.open_db(name.encode(), txn, create=is_new) for name in _TABLES[1:]
                )
            self.counts()
            self.known_replies(0)
        except BaseException:
            self.env.close()
            raise
        sync_directory(directory)

    def _begin_anew(self, error: BaseException) -> None:
        """What can be read of the damaged file goes into a new one, which takes its place."""
        if self.env:
            self.env.close()
        try:
            making, saved = self._rebuilding.begin()
            self._open_tables(making)
            self._take_in(saved)
            self.env.close()
            aside = self._rebuilding.set_aside()
            log.error(
                "the journal %s is damaged (%s): its %d bytes are kept as %s; %d waiting updates could be read, and "
                "are in the new one",
                self.directory, error, aside.stat().st_size, aside, len(saved[0]),
            )  # fmt: skip
            self._rebuilding.put_in_place()
            self._open_tables(self.directory)
        except (OSError, lmdb.Error, StoreError, QueueError) as failure:
            self._rebuilding.give_up()
            raise QueueError(
                f"the journal {self.directory} is damaged ({error}), and what can be read of it does not go into a new "
                f"one: {words(failure)}; nothing of it is lost: start again when that is mended"
            ) from None

    def _take_in(self, saved: Saved) -> None:
        waiting, done = saved
        rows = [(number, record, b"") for number, record in waiting.items()]
        rows += [(number, b"", name) for number, name in done.items() if number not in waiting]

        def write(txn: Any, rows: list[tuple[int, bytes, bytes]]) -> int:
            for number, record, name in rows:
                key = NUMBER.pack(number)
                if record:
                    txn.put(key, record, db=self.waiting, append=True)
                txn.put(name or ID.pack(*_name(record)), key, db=self.ids, overwrite=False)
            self.remember(txn, [NUMBER.pack(number) + name for number, record, name in rows if not record])
            return 0

        self._in_slices(rows, write, beyond=True)

    def suspect(self, handled: Iterable[int] = ()) -> None:
        """Damage was seen: the next opening sets the file aside, and leaves out these."""
        with contextlib.suppress(OSError):
            self._rebuilding.suspect(handled)

    # ------------------------------------------------------------ settled, and not written

    def _take_out_settled(self) -> list[Row]:
        """What the last stop could not take out is. Returned: what cannot be now, either. Errors of `DAMAGE`."""
        rows = self.settled_file.read()
        if not rows:
            return []
        try:
            self._in_slices(rows, self._take_out_rows, beyond=True)
        except QueueError as error:
            if isinstance(error.__cause__, DAMAGE):
                raise error.__cause__ from None
            return rows
        self.settled_file.remove()
        return []

    def _take_out_rows(self, txn: Any, rows: list[Row]) -> int:
        known = []
        for number, forget, handled_at, reply in rows:
            record = txn.get(NUMBER.pack(number), db=self.waiting)
            if record is None:
                continue
            try:
                name = ID.pack(*_name(record))
            except ValueError:  # it cannot be read: there is no id to know it by
                txn.delete(NUMBER.pack(number), db=self.waiting)
                continue
            if forget:
                txn.delete(NUMBER.pack(number), db=self.waiting)
                txn.delete(name, db=self.ids)
            else:
                self.take_out(txn, number, name, handled_at, reply)
                known.append(NUMBER.pack(number) + name)
        self.remember(txn, known)
        return len(rows)

    def close(self) -> None:
        if self.env:
            self.env.close()
        self._lock.close()

    # ------------------------------------------------------------ reading

    def items(self, behind: int = 0) -> Generator[tuple[int, bytes], None, None]:
        """The waiting updates behind a number, in order: the number and the record."""
        yield from self._rows(self.waiting, behind)

    def get(self, number: int) -> bytes | None:
        """The record of a waiting update, None if it doesn't wait."""
        with self.env.begin(db=self.waiting) as txn:
            record: bytes | None = txn.get(NUMBER.pack(number))
            return record

    def handled_items(self, behind: int = 0) -> Generator[tuple[int, float, bytes], None, None]:
        """The handled updates that are kept, in the order of their arrival: number, when it was handled, record."""
        for number, row in self._rows(self.handled, behind):
            yield number, _TIME.unpack_from(row)[0], row[_TIME.size :]

    def _rows(self, table: Any, behind: int) -> Generator[tuple[int, bytes], None, None]:
        with self.env.begin(db=table) as txn, txn.cursor() as cursor:
            if cursor.set_range(NUMBER.pack(behind + 1)):
                for key, record in cursor:
                    yield NUMBER.unpack(key)[0], record

    def counts(self) -> tuple[int, int, int]:
        """How many updates wait, how many handled ones are known, and the highest number that was given."""
        highest = max((row[0] for row in self.settled), default=0)  # not to be given again
        with self.env.begin() as txn:
            for table in (self.waiting, self.done, self.handled):
                with txn.cursor(db=table) as cursor:
                    if cursor.last():
                        highest = max(highest, NUMBER.unpack(cursor.key())[0])
            with txn.cursor(db=self.done) as cursor:
                remembered = sum(len(row) for row in cursor.iternext(keys=False)) // HANDLED
            return txn.stat(self.waiting)["entries"], remembered, highest

    def known_replies(self, most: int) -> list[tuple[Name, bytes]]:
        """What handlers returned, oldest first, by the update's bot and id: the newest, so many bytes of them."""
        found: list[tuple[Name, bytes]] = []
        size = 0
        with self.env.begin() as txn, txn.cursor(db=self.replies) as cursor:
            for row in cursor.iterprev(keys=False) if cursor.last() else ():
                size += len(row) - ID.size
                if size > most:
                    break
                if len(row) > ID.size:
                    bot_id, update_id = ID.unpack_from(row)
                    found.append(((bot_id, update_id), row[ID.size :]))
        return found[::-1]

    def reply(self, name: bytes) -> bytes | None:
        """What the handler of an update returned, if that is known."""
        with self.env.begin() as txn:
            number = txn.get(name, db=self.ids)
            row: bytes | None = None if number is None else txn.get(number, db=self.replies)
            return None if row is None else row[ID.size :]

    # ------------------------------------------------------------ parts of a transaction

    def pages(self, txn: Any) -> tuple[int, int, int]:
        """Bytes in use, and how many of them are ids, and replies. What is free inside the file is not in use."""
        page = self._page
        sizes = []
        for table in (self.ids, self.done, self.waiting, self.handled, self.replies):
            stat = txn.stat(table)
            sizes.append(page * (stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]))
        return sum(sizes), sizes[0] + sizes[1], sizes[4]

    def take_out(self, txn: Any, number: int, name: bytes, handled_at: float | None, reply: bytes | None) -> None:
        """A waiting update was handled, and its id is to be remembered. `handled_at`: keep the update too."""
        key = NUMBER.pack(number)
        if handled_at is None:
            txn.delete(key, db=self.waiting)
        else:
            record = txn.pop(key, db=self.waiting)
            if record is not None:
                txn.put(key, _TIME.pack(handled_at) + record, db=self.handled)
        if reply is not None:
            txn.put(key, name + reply, db=self.replies)

    def remember(self, txn: Any, handled: list[bytes]) -> None:
        """The ids of handled updates stay known: each the packed number and the id."""
        handled.sort()
        for start in range(0, len(handled), _TOGETHER):
            row = handled[start : start + _TOGETHER]
            txn.put(row[-1][: NUMBER.size], b"".join(row), db=self.done)

    def note_attempt(self, txn: Any, number: int, update: Update) -> None:
        """A waiting update was tried once more."""
        key = NUMBER.pack(number)
        record = txn.get(key, db=self.waiting)
        if record is not None:
            txn.put(key, pack_update(update, REPLAYED if replayed(record) else 0), db=self.waiting)

    def put_back(self, txn: Any, number: int, new: int) -> Update | None:
        """A handled update waits again, under a new number, the highest. None: it is not there."""
        key = NUMBER.pack(number)
        row = txn.get(key, db=self.handled)
        if row is None:
            return None
        try:
            update = unpack_update(row[_TIME.size :])
        except ValueError as error:
            log.error("handled update number %d cannot be read (%s): it stays there", number, error)
            return None
        for table in (self.handled, self.replies):
            txn.delete(key, db=table)
        update.attempt = 1
        txn.put(NUMBER.pack(new), pack_update(update, REPLAYED), db=self.waiting, append=True)
        txn.put(ID.pack(update.bot_id, update.update_id), NUMBER.pack(new), db=self.ids)
        return update

    def put_again(self, txn: Any, update: Update, new: int, gone: frozenset[int] = frozenset()) -> Update | None:
        """An update waits, under the highest number, although its id may be known. None: it waits already.

        `gone`: were handled, and are still among those that wait.
        """
        name, key = ID.pack(update.bot_id, update.update_id), NUMBER.pack(new)
        old = txn.get(name, db=self.ids)
        if old is not None:
            if NUMBER.unpack(old)[0] not in gone and txn.get(old, db=self.waiting) is not None:
                return None
            txn.delete(old, db=self.replies)
        txn.put(key, pack_update(update, REPLAYED), db=self.waiting, append=True)
        txn.put(name, key, db=self.ids)
        return update

    def forget(self, txn: Any, count: int) -> int:
        """Forget the oldest ids of handled updates, and what was returned for them: all of a row, and no more of them
        than `count`. How many those were.
        """
        forgotten = 0
        replies = bool(txn.stat(self.replies)["entries"])
        with txn.cursor(db=self.done) as done, txn.cursor(db=self.ids) as ids:
            while done.first() and forgotten + len(row := done.value()) // HANDLED <= count:
                for at in range(0, len(row) - HANDLED + 1, HANDLED):
                    key, name = row[at : at + NUMBER.size], row[at + NUMBER.size : at + HANDLED]
                    newest = ids.pop(name)
                    if newest != key and newest is not None:
                        ids.put(name, newest)  # it was to be handled again, under that number
                    if replies:
                        txn.delete(key, db=self.replies)
                done.delete()
                forgotten += len(row) // HANDLED
        return forgotten

    def drop_handled(self, txn: Any, before: float, most: int) -> int:
        """Drop the oldest of the handled updates that are kept, if they were handled before a time. How many.

        Where the clock was ahead for a while, an update counts as no younger than the first true one behind it.
        """
        now = time.time()
        ahead = 0
        with txn.cursor(db=self.handled) as cursor:
            found = cursor.first()
            while found and ahead < most and (handled_at := _TIME.unpack_from(cursor.value())[0]) > max(now, before):
                ahead += 1
                found = cursor.next()
            if ahead and (not found or (ahead < most and handled_at > before)):
                return 0
            for n in range(most):
                if not cursor.first() or (n >= ahead and _TIME.unpack_from(cursor.value())[0] > before):
                    return n
                cursor.delete()
        return most

    def drop_replies(self, txn: Any, most: int) -> int:
        """Drop so many of the oldest replies. How many those were."""
        with txn.cursor(db=self.replies) as cursor:
            for n in range(most):
                if not cursor.first():
                    return n
                cursor.delete()
        return most

    def make_room(self, more: int, touched: int, used: int, *, spare: bool) -> None:
        """Let the file have room for a commit before LMDB writes it; else `no_room` says why not.

        `more`: bytes that are new. `touched`: rows that are taken out, each of which may stand on a page of its own.
        `used`: bytes of the file that are not free. `spare`: a part of the file has to stay free, with which rows can
        be taken out when the disk is full; OSError: it would not, or the file is not there any more.
        """
        self._look()
        if not hasattr(os, "posix_fallocate"):
            return
        info = self.env.info()
        length = (info["last_pgno"] + 1) * self._page
        copied = max(0, touched * self._page - (length - used) // 2)
        wanted = 2 * more + _COPIED + copied + (min(_KEPT, self.limit // 8) if spare else 0)
        needed = length + min(wanted, info["map_size"] - length)
        if needed <= self._allocated:
            return
        try:
            with self.file.open("r+b") as file:
                size = os.fstat(file.fileno()).st_size
                if size < needed:
                    os.posix_fallocate(file.fileno(), size, needed + _AHEAD - size)
                self._allocated = max(size, needed + _AHEAD)
                self.no_room = None
        except OSError as error:
            self.no_room = error
            if spare and (length - used) // _SCATTERED < wanted:
                raise

    def _look(self) -> None:
        """OSError: the file has been removed, or another put in its place; what is written would not be found again."""
        try:
            found = self.file.stat()
        except FileNotFoundError:
            found = None
        if found is None or not os.path.samestat(found, self._is):
            raise OSError(errno.ESTALE, "its data.mdb was removed or replaced; put it back, or start the server again")

    def grow_ahead(self, more: int) -> None:
        """Let the map have room for a commit of so many bytes, as far as it may grow."""
        info = self.env.info()
        if info["map_size"] - (info["last_pgno"] + 1) * self._page < 2 * more + _MARGIN:
            self.grow()

    def grow(self, *, beyond: bool = False) -> bool:
        """Make the map larger; False if it is as large as it may be.

        `beyond`: however large it is, because something is to be taken out, which gives back more than it takes.
        """
        size = self.env.info()["map_size"]
        largest = self.limit + _SPARE
        if size < largest:
            self.env.set_mapsize(min(largest, size * 2))
        elif beyond:
            self.env.set_mapsize(size + _STEP)
        else:
            return False
        return True

    # ------------------------------------------------------------ for tools, while no server runs

    def purge(self, numbers: Iterable[int]) -> int:
        """Take waiting updates out; they are not handled. How many were there. On disk at return. QueueError."""

        def write(txn: Any, numbers: list[int]) -> int:
            count, known = 0, []
            for number in numbers:
                record = txn.get(NUMBER.pack(number), db=self.waiting)
                if record is not None:
                    count += 1
                    txn.delete(NUMBER.pack(number), db=self.waiting)
                    with contextlib.suppress(ValueError):  # it cannot be read: there is no id to know it by
                        known.append(NUMBER.pack(number) + ID.pack(*_name(record)))
            self.remember(txn, known)
            return count

        return self._in_slices(list(numbers), write, beyond=True)

    def requeue(self, numbers: Iterable[int]) -> int:
        """Let handled updates wait again, under new numbers. How many were there. On disk at return. QueueError."""
        highest = self.counts()[2]

        def write(txn: Any, numbers: list[int]) -> int:
            count = 0
            for number in numbers:
                if self.put_back(txn, number, highest + count + 1):
                    count += 1
            return count

        moved = 0
        for part in _slices(list(numbers)):
            count = self._in_slices(part, write)
            highest += count
            moved += count
        return moved

    def again(self, updates: Iterable[Update]) -> int:
        """Let updates wait although their ids are known: how many. On disk at return, all or none. QueueError."""
        highest = self.counts()[2]

        def write(txn: Any, updates: list[Update]) -> int:
            count = 0
            for update in updates:
                if self.put_again(txn, update, highest + count + 1):
                    count += 1
            return count

        return self._in_one(list(updates), write)

    def _in_slices(self, rows: list[Any], write: Any, *, beyond: bool = False) -> int:
        count = 0
        for part in _slices(rows):
            count += self._in_one(part, write, beyond=beyond)
        return count

    def _in_one(self, rows: list[Any], write: Any, *, beyond: bool = False) -> int:
        while True:
            try:
                with self.env.begin(write=True) as txn:
                    return int(write(txn, rows))
            except lmdb.MapFullError:
                if not self.grow(beyond=beyond):
                    raise QueueError(f"the journal {self.directory} is full: set a larger --journal-max") from None
            except (OSError, lmdb.Error) as error:
                raise QueueError(f"the journal {self.directory} cannot be written: {words(error)}") from error


def _slices(rows: list[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(rows), _SLICE):
        yield rows[start : start + _SLICE]


def _name(record: bytes) -> Name:
    update = unpack_update(record)
    return update.bot_id, update.update_id


def _cannot(directory: Path, error: BaseException) -> str:
    return f"the journal {directory} cannot be opened: {words(error)}; set --queue to a directory that can be written"


def _newer(directory: Path, what: str) -> str:
    return f"the journal {directory} is of {what}: use that one, or set another --queue"
