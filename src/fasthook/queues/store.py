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
from fasthook.update import Update

if TYPE_CHECKING:
    from fasthook._scan import Admitted

_HEAD = struct.Struct("<BxHxxxxqd")  # version, attempt, bot_id, received_at; then the raw bytes
_VERSION = 1
_KEY = struct.Struct(">Q")
_SLACK = 1 << 20


class StoreError(Exception):
    """A file that cannot be used: one line that says which and why."""


def pack_update(update: Admitted) -> bytes:
    return _HEAD.pack(_VERSION, min(update.attempt, 0xFFFF), update.bot_id, update.received_at) + update.raw


def unpack_update(record: bytes) -> Update:
    """ValueError: not a record, or one of a newer version."""
    if len(record) < _HEAD.size:
        raise ValueError("the record is cut off")
    version, attempt, bot_id, received_at = _HEAD.unpack_from(record)
    if version != _VERSION:
        raise ValueError(f"the record has version {version}, this program knows {_VERSION}")
    return restore(Update, record[_HEAD.size :], bot_id, received_at, attempt)


class Store:
    """Records under growing numbers, in a directory of their own. It may be read while another process writes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._env = lmdb.open(str(directory), map_size=16 << 20, mode=0o600, max_readers=64)
            self._restore_length()
        except (OSError, lmdb.Error) as error:
            raise StoreError(f"{directory}: cannot be opened: {_words(error)}") from None

    def _restore_length(self) -> None:
        # A page that is missing behind the end of a cut-off file is a bus error; one of zeros is an error that we see.
        length = (self._env.info()["last_pgno"] + 1) * self._env.stat()["psize"]
        with (self.directory / "data.mdb").open("r+b") as file:
            if os.fstat(file.fileno()).st_size < length and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, length)

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
            while True:
                try:
                    self._write(batch, replace)
                    return
                except lmdb.MapFullError:
                    self._env.set_mapsize(self._env.info()["map_size"] * 2 + needed)
        except (OSError, lmdb.Error) as error:
            raise StoreError(f"{self.directory}: cannot be written: {_words(error)}") from None

    def _write(self, batch: list[bytes], replace: bool) -> None:
        with self._begin(write=True) as txn:
            if replace:
                txn.drop(self._env.open_db(), delete=False)
            with txn.cursor() as cursor:
                number = _KEY.unpack(cursor.key())[0] + 1 if cursor.last() else 1
            for record in batch:
                txn.put(_KEY.pack(number), record, append=True)
                number += 1

    def delete(self, numbers: Iterable[int]) -> None:
        """Remove records. StoreError: none was removed."""
        try:
            with self._begin(write=True) as txn:
                for number in numbers:
                    txn.delete(_KEY.pack(number))
        except (OSError, lmdb.Error) as error:
            raise StoreError(f"{self.directory}: cannot be written: {_words(error)}") from None

    def items(self) -> Iterator[tuple[int, bytes]]:
        """Each number and its record, oldest first. StoreError: the file is damaged."""
        try:
            with self._begin() as txn, txn.cursor() as cursor:
                for key, record in cursor:
                    yield _KEY.unpack(key)[0], bytes(record)
        except (OSError, lmdb.Error, struct.error) as error:
            raise StoreError(f"{self.directory}: cannot be read: {_words(error)}") from None

    def __len__(self) -> int:
        with self._begin() as txn:
            return int(txn.stat()["entries"])


def _words(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def set_aside(path: Path) -> Path:
    """Give a damaged file or directory a new name beside the old one, so that nothing in it is lost."""
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    for n in range(1000):
        aside = path.with_name(f"{path.name}.damaged-{stamp}" + (f"-{n}" if n else ""))
        if not aside.exists():
            return path.rename(aside)
    raise StoreError(f"{path}: damaged, and no free name to set it aside under")
