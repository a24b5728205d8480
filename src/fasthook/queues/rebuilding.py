"""A damaged journal: who says that it is, what can be read of it, and how a new file comes into its place.

The new file is made in `rebuilding/`, which becomes `rebuilt/` when all of it is on disk. Then the damaged file is set
aside, and the new one takes its name. Whatever ends a start meanwhile, the next one has all that there was.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import struct
from collections.abc import Iterable
from pathlib import Path

import orjson

from fasthook.queues.probe import salvage
from fasthook.queues.rows import HANDLED, NUMBER
from fasthook.queues.store import set_aside, sync_directory, unpack_update

log = logging.getLogger("fasthook.queue")

DATA = "data.mdb"  # LMDB's name for its file
_REBUILT = "rebuilt"
_ROW = 64  # bytes that an id takes, with its number

# waiting updates by their numbers, and the ids of handled ones
Saved = tuple[dict[int, bytes], dict[int, bytes]]


class Rebuilding:
    """The files of a journal's directory that are there while it is damaged."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file = directory / DATA
        self._suspect = directory / "suspect"
        self._making = directory / "rebuilding"
        self._made = directory / _REBUILT

    # ------------------------------------------------------------ what says so

    @property
    def is_wanted(self) -> bool:
        """Damage was seen by the process that had the file last."""
        return self._suspect.exists() and self._file.exists()

    def suspect(self, handled: Iterable[int]) -> None:
        """Damage was seen: the next start rebuilds the file, and leaves out these. OSError."""
        said = {"file": _version(self._file), "handled": list(handled)}
        new = self._suspect.with_suffix(".new")
        with new.open("wb") as file:
            file.write(orjson.dumps(said))
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._suspect)
        sync_directory(self._directory)

    def _handled(self) -> set[int]:
        """What was handled after the damage was seen: in this very file, not in one that came into its place."""
        try:
            said = orjson.loads(self._suspect.read_bytes())
            return {int(number) for number in said["handled"]} if said["file"] == _version(self._file) else set()
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return set()

    # ------------------------------------------------------------ the new file

    def begin(self) -> tuple[Path, Saved]:
        """An empty directory, and what is to be put into a journal there.

        OSError: there is no room for it. InterruptedError: the damaged file was not read to its end.
        """
        saved = _salvaged(self._file, self._handled())
        self._making.mkdir(mode=0o700)
        if hasattr(os, "posix_fallocate"):
            size = sum(len(record) for record in saved[0].values()) + _ROW * (len(saved[0]) + len(saved[1]))
            _look_for_room(self._making / "room", size)
        return self._making, saved

    def give_up(self) -> None:
        """The new file is not to be: the room that it takes is free again."""
        shutil.rmtree(self._making, ignore_errors=True)

    def set_aside(self) -> Path:
        """The new file is whole, and closed: the damaged one's new name. OSError, StoreError."""
        self._making.rename(self._made)
        sync_directory(self._directory)
        aside = set_aside(self._file)
        sync_directory(self._directory)
        return aside

    def put_in_place(self) -> None:
        """OSError: the next start does it."""
        self._suspect.unlink(missing_ok=True)
        (self._made / DATA).rename(self._file)
        self._made.rmdir()
        sync_directory(self._directory)

    def clean_up(self) -> None:
        """End what a start that ended too early has begun, or undo it. OSError."""
        if self._making.exists():
            shutil.rmtree(self._making)
        if (self._made / DATA).exists() and not self._file.exists():
            self.put_in_place()
            log.error("the journal %s was damaged: what could be read of it is in the new one; it is kept beside that",
                      self._directory)  # fmt: skip
        elif self._made.exists():
            shutil.rmtree(self._made)
        if not self._file.exists():
            self._suspect.unlink(missing_ok=True)  # it was of a file that is not there any more


def is_gone(directory: Path) -> bool:
    """Whether there is no journal here. One that nobody may look into is there."""
    for file in (directory / DATA, directory / _REBUILT / DATA):
        try:
            file.stat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:
            return False
        return False
    return True


def _look_for_room(file: Path, size: int) -> None:
    """OSError: there is none for so many bytes."""
    with file.open("wb") as made:
        try:
            os.posix_fallocate(made.fileno(), 0, max(size, 1))
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # a file system that does not know
                raise
    file.unlink()


def _version(file: Path) -> list[int]:
    """What tells a file from another under its name, and from itself before a later write."""
    try:
        found = file.stat()
    except OSError:
        return []
    return [found.st_size, found.st_mtime_ns]


def _salvaged(file: Path, handled: set[int]) -> Saved:
    """What can be read of a damaged file, in order."""
    waiting: dict[int, bytes] = {}
    done: dict[int, bytes] = {}
    for key, record in sorted(salvage(file, "waiting").items()):
        try:
            unpack_update(record)
            number = NUMBER.unpack(key)[0]
            if number not in handled:
                waiting[number] = record
        except (ValueError, struct.error):
            continue  # a page of something else
    for key, row in salvage(file, "done").items():
        parts = [row[at : at + HANDLED] for at in range(0, len(row), HANDLED)]
        keys = [part[: NUMBER.size] for part in parts]
        if len(row) % HANDLED == 0 and keys and keys == sorted(set(keys)) and keys[-1] == key:
            done.update((NUMBER.unpack_from(part)[0], part[NUMBER.size :]) for part in parts)
    return waiting, done
