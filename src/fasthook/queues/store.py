"""Records in an LMDB file: how updates and dead letters lie on disk.

LMDB writes a transaction whole or not at all, and syncs it before `commit` returns.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import lmdb

from fasthook._scan import restore
from fasthook.ops.blocks import reserve
from fasthook.queues.probe import DAMAGE, check
from fasthook.update import Update

if TYPE_CHECKING:
    from fasthook._scan import Admitted

_HEAD = struct.Struct("<BBHxxxxqd")  # version, flags, attempt, bot_id, received_at; then the raw bytes
_VERSION = 1
REPLAYED = 1  # flag: given to the handler again because a person said so, however old it is
_KEY = struct.Struct(">Q")
_NONE = _KEY.pack(0)
_LAST = _NONE  # the key of the last number that was given; records begin at 1
_SLACK = 1 << 20
_CUT_OFF = 1 << 30  # bytes, at most, that a file may be shorter than it says
_LOCK_BYTES = 8192  # LMDB's table of readers: 64 of them, a cache line each, and a head
_PAGE = 4096
_COPIED = 64 << 10  # bytes of pages that a commit copies, to change what is in them


class StoreError(Exception):
    """A file that cannot be used: one line that says which and why."""


class SyncError(StoreError):
    """What the disk has of a file is uncertain after a failed sync: that file is not written again."""


class DamagedError(StoreError):
    """What is in the file cannot be read."""


def pack_update(update: Admitted, flags: int = 0) -> bytes:
    return _HEAD.pack(_VERSION, flags, min(update.attempt, 0xFFFF), update.bot_id, update.received_at) + update.raw


def unpack_update(record: bytes) -> Update:
    """ValueError: not a record, or one of a newer version."""
    if len(record) < _HEAD.size:
        raise ValueError("the record is cut off")
    version, _, attempt, bot_id, received_at = _HEAD.unpack_from(record)
    if version != _VERSION:
        raise ValueError(f"the record has version {version}, this program knows {_VERSION}")
    return restore(Update, record[_HEAD.size :], bot_id, received_at, attempt)


def replayed(record: bytes) -> bool:
    """Whether a person gave this update to the handler again."""
    return len(record) > 1 and bool(record[1] & REPLAYED)


def received_at(record: bytes) -> float | None:
    """When an update came; None: it is not a record."""
    return float(_HEAD.unpack_from(record)[4]) if len(record) >= _HEAD.size else None


class Store:
    """Records under growing numbers, none used twice, in a directory of their own. It may be read while another process
    writes.

    StoreError: it cannot be used. DamagedError: what is in it cannot be read. SyncError: a sync has failed.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._file = file = directory / "data.mdb"
        self._uncertain = False  # a sync has failed
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            check(file, ("",), locked=True)
            with (directory / "lock.mdb").open("a+b") as lock:  # LMDB maps it, and would leave holes in it
                reserve(lock.fileno(), _LOCK_BYTES)
            self._env = lmdb.open(str(directory), map_size=16 << 20, mode=0o600, max_readers=64)
            try:
                make_whole(self._env, file)
            except BaseException:
                self._env.close()
                raise
        except lmdb.VersionMismatchError:
            raise StoreError(f"{directory}: is of a newer LMDB: use the program that wrote it") from None
        except DAMAGE as error:
            raise DamagedError(f"{directory}: cannot be opened: {words(error)}") from None
        except (OSError, lmdb.Error) as error:
            raise StoreError(f"{directory}: cannot be opened: {words(error)}") from None

    def close(self) -> None:
        self._env.close()

    def _begin(self, *, write: bool = False) -> lmdb.Transaction:
        try:
            return self._env.begin(write=write)
        except lmdb.MapResizedError:
            self._env.set_mapsize(0)  # another process made it larger: take over its size
            return self._env.begin(write=write)

    def append(self, records: Iterable[bytes], *, replace: bool = False) -> None:
        """Write all records behind the last one (or instead of all there are) in one transaction, on disk at return.

        StoreError: nothing was written.
        """
        batch = list(records)
        needed = 2 * sum(len(record) + 4096 for record in batch) + _SLACK
        try:
            self._make_room(2 * sum(len(record) for record in batch) + _COPIED)
            while True:
                try:
                    self._write(batch, replace)
                    return
                except DAMAGE as error:
                    raise DamagedError(f"{self.directory}: cannot be written: {words(error)}") from None
                except lmdb.MapFullError:
                    self._env.set_mapsize(self._env.info()["map_size"] * 2 + needed)
        except (OSError, lmdb.Error) as error:
            raise self._not_written(error) from None

    def _not_written(self, error: BaseException) -> StoreError:
        line = f"{self.directory}: cannot be written: {words(error)}"
        if may_be_sync(error):
            self._uncertain = True
            return SyncError(line)
        return StoreError(line)

    def _make_room(self, more: int) -> None:
        """Let the file have room for a commit: LMDB takes a write that a full disk cut short for an I/O error."""
        if self._uncertain:
            raise SyncError(f"{self.directory}: is not written again after a sync that failed")
        length = (self._env.info()["last_pgno"] + 1) * self._env.stat()["psize"] + more
        if hasattr(os, "posix_fallocate") and (size := self._file.stat().st_size) < length:
            with self._file.open("r+b") as file:
                os.posix_fallocate(file.fileno(), size, length - size)

    def _write(self, batch: list[bytes], replace: bool) -> None:
        with self._begin(write=True) as txn:
            given = _KEY.unpack(txn.get(_LAST, _NONE))[0]
            if replace:
                txn.drop(self._env.open_db(), delete=False)
            last = max(given, self._last(txn))
            for number, record in enumerate(batch, last + 1):
                txn.put(_KEY.pack(number), record, append=True)
            txn.put(_LAST, _KEY.pack(last + len(batch)))

    def _last(self, txn: lmdb.Transaction) -> int:
        with txn.cursor() as cursor:
            return int(_KEY.unpack(cursor.key())[0]) if cursor.last() else 0

    def delete(self, numbers: Iterable[int]) -> int:
        """Remove records: how many there were. StoreError: none was removed."""
        wanted = list(numbers)
        try:
            self._make_room(min(len(wanted) * _PAGE, self._file.stat().st_size) + _COPIED)
            with self._begin(write=True) as txn:
                return sum(txn.delete(_KEY.pack(number)) for number in wanted)
        except (OSError, lmdb.Error) as error:
            raise self._not_written(error) from None

    def get(self, number: int) -> bytes | None:
        """The record with this number. StoreError: the file cannot be read."""
        try:
            with self._begin() as txn:
                found = txn.get(_KEY.pack(number))
                return None if found is None else bytes(found)
        except DAMAGE as error:
            raise DamagedError(f"{self.directory}: cannot be read: {words(error)}") from None
        except (OSError, lmdb.Error) as error:
            raise StoreError(f"{self.directory}: cannot be read: {words(error)}") from None

    def items(self, behind: int = 0) -> Iterator[tuple[int, bytes]]:
        """Each number behind this one and its record, oldest first. StoreError: the file cannot be read."""
        try:
            with self._begin() as txn, txn.cursor() as cursor:
                if cursor.set_range(_KEY.pack(behind + 1)):
                    for key, record in cursor:
                        yield _KEY.unpack(key)[0], bytes(record)
        except DAMAGE as error:
            raise DamagedError(f"{self.directory}: cannot be read: {words(error)}") from None
        except (OSError, lmdb.Error) as error:
            raise StoreError(f"{self.directory}: cannot be read: {words(error)}") from None

    def __len__(self) -> int:
        with self._begin() as txn:
            return int(txn.stat()["entries"]) - (txn.get(_LAST) is not None)


def words(error: BaseException) -> str:
    """What a person is told of an error of the disk."""
    if isinstance(error, lmdb.PanicError):
        return "an earlier write failed half-way; it works again after a restart"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def may_be_sync(error: BaseException) -> bool:
    """Whether an error may be a failed fsync: the kernel may have dropped the pages, and a second fsync would lie."""
    return isinstance(error, lmdb.PanicError) or "Input/output error" in str(error)


def is_full(error: BaseException) -> bool:
    """Whether an error of LMDB may be a full disk: it takes a write that was cut short for an I/O error."""
    return "No space left" in str(error) or may_be_sync(error)


def make_whole(env: lmdb.Environment, file: Path) -> None:
    """Touching a page behind the end of a file that was cut off is a bus error: make those pages zeros.

    CorruptedError: so much cannot have been cut off, and the disk would be filled for nothing.
    """
    length, has = (env.info()["last_pgno"] + 1) * env.stat()["psize"], file.stat().st_size
    if length - has > _CUT_OFF:
        raise lmdb.CorruptedError(f"it has {has} bytes and is said to have {length}")
    if has < length and hasattr(os, "posix_fallocate"):
        with file.open("r+b") as handle:
            os.posix_fallocate(handle.fileno(), 0, length)


def set_aside(path: Path) -> Path:
    """Give a damaged file or directory a new name beside the old one, so that nothing in it is lost."""
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    for n in range(1000):
        aside = path.with_name(f"{path.name}.damaged-{stamp}" + (f"-{n}" if n else ""))
        if not aside.exists():
            return path.rename(aside)
    raise StoreError(f"{path}: damaged, and no free name to set it aside under")


def sync_directory(directory: Path) -> None:
    """A new file survives a power cut only with its name."""
    if os.name == "nt":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
