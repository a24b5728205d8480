"""The state directory: what outlives the process, and the lock that says whose it is."""

from __future__ import annotations

import logging
import mmap
import os
import struct
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from fasthook._core import DedupRing
from fasthook.ops.blocks import Blocks, Layout, reserve
from fasthook.queues import rebuilding
from fasthook.queues.store import set_aside

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

log = logging.getLogger("fasthook.state")

_RING_SIZES = struct.Struct("<8xqq")  # behind the magic word: capacity, limit
_QUEUE = "queue"  # the file that names it
_TO_SIGN = 1.0  # seconds that who takes a lock may need to write its number
_LOOK = 0.01  # seconds between looks for that


class StateError(Exception):
    """A state directory that cannot be used: one line that says why and what to do."""


class InUseError(StateError):
    """Another process has it. `owner`: its number, 0 if that is not known."""

    def __init__(self, message: str, owner: int) -> None:
        super().__init__(message)
        self.owner = owner


class Lock:
    """A file that one process at a time holds, with its number in it. `what` it stands for.

    InUseError: another process holds it; it is named. OSError: the file cannot be made.
    """

    def __init__(self, path: Path, what: str) -> None:
        self._file = path.open("a+b")
        if not _lock(self._file):
            owner = self._owner()
            self._file.close()
            number = int(owner) if owner.isdecimal() else 0
            raise InUseError(f"{what} is in use by process {owner or 'unknown'}; stop it", number)
        self._file.truncate(0)
        self._file.write(b"%d\n" % os.getpid())
        self._file.flush()

    def _owner(self) -> str:
        """The number in it; who has just taken the lock gets a moment to write it there."""
        end = time.monotonic() + _TO_SIGN
        while True:
            self._file.seek(0)
            owner = self._file.read(32).decode("ascii", "replace").strip()
            if owner or time.monotonic() >= end:
                return owner
            time.sleep(_LOOK)

    def close(self) -> None:
        """Give it up. The file stays: to remove it would let two owners in."""
        self._file.close()


class StateDir:
    """A directory that one process at a time owns. StateError: it cannot be written. InUseError: it is not ours."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ring_map: mmap.mmap | None = None
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = Lock(path / "lock", f"the state directory {path}")
        except InUseError as error:
            raise InUseError(f"{error}, or set another --state-dir", error.owner) from None
        except OSError as error:
            raise StateError(
                f"the state directory {path} cannot be written: {error.strerror}; set --state-dir"
            ) from None

    def ring(self, capacity: int, limit: int) -> DedupRing:
        """The duplicates known from the last run, in a mapped file; what a dead process had in flight is released."""
        path = self.path / "ring"
        try:
            known = self._known(path, capacity, limit)
            if known is not None:  # whole under another name first: a crash here must not forget them
                image = bytearray(DedupRing.nbytes(capacity, limit))
                remade = DedupRing(capacity, limit, buffer=image)
                for bot, update_id in known:
                    remade.claim(bot, update_id)
                    remade.settle(bot, update_id)
                made = path.with_name("ring.new")
                made.write_bytes(image)
                made.replace(path)
            ring = self._map(path, capacity, limit)
        except OSError as error:
            raise StateError(f"{path}: cannot be used: {error.strerror}; set --state-dir") from None
        ring.release_all()
        return ring

    def blocks(self, layout: Layout) -> Blocks:
        """Where the processes count what they do, from nought."""
        path = self.path / "stats"
        try:
            return Blocks(path, layout)
        except OSError as error:
            raise StateError(f"{path}: cannot be used: {error.strerror}; set --state-dir") from None

    def _known(self, path: Path, capacity: int, limit: int) -> list[tuple[int, int]] | None:
        """The ids that are done, of a ring made for other sizes; None if there is none, or it can go on as it is."""
        if not path.exists() or path.stat().st_size == 0:
            return None
        data = bytearray(path.read_bytes())
        try:
            old_capacity, old_limit = _RING_SIZES.unpack_from(data)
            if DedupRing.nbytes(old_capacity, old_limit) != len(data):
                raise ValueError("its size is wrong")
            old = DedupRing(old_capacity, old_limit, buffer=data)
            if (old_capacity, old_limit) == (capacity, limit):
                return None
            return [(bot, update_id) for bot, update_id, done in old.items() if done]
        except (ValueError, struct.error) as error:
            aside = set_aside(path)
            log.error(
                "%s is damaged (%s): duplicates from before this start are not known; kept as %s", path, error, aside
            )
            return None

    def _map(self, path: Path, capacity: int, limit: int) -> DedupRing:
        size = DedupRing.nbytes(capacity, limit)
        with path.open("a+b") as file:
            reserve(file.fileno(), size)
            self._ring_map = mmap.mmap(file.fileno(), size)
        return DedupRing(capacity, limit, buffer=self._ring_map)

    def note_queue(self, queue: str) -> None:
        """Keep in mind which queue belongs to this directory, for tools that are used while nobody runs.

        A journal inside or beside it is noted by where it is from here: a bot that is moved or copied takes it along.
        """
        kind, _, place = queue.partition(":")
        if kind == "journal":
            here, there = (os.path.normpath(path.absolute()) for path in (self.path, Path(place)))
            if Path(there).is_relative_to(Path(here).parent) and len(Path(here).parts) > 2:
                there = os.path.relpath(there, here)
            queue = f"journal:{there}"
        try:
            (self.path / _QUEUE).write_text(f"{queue}\n", "utf-8")
        except (OSError, UnicodeError) as error:
            log.warning("%s cannot be written: %s", self.path / _QUEUE, error)

    def other_queue(self, queue: str) -> str | None:
        """The queue of the last server, if it is known and another one than this."""
        last = noted_queue(self.path)
        return last if last is not None and _resolved(last) != _resolved(queue) else None

    def close(self) -> None:
        """Give the directory up."""
        self._lock.close()


def remember(path: Path, names: Iterable[tuple[int, int]]) -> None:
    """Let these ids be known in the ring of a state directory whose lock we hold. StateError: it cannot be written.

    Where there is no ring, or one that cannot be read, none is known: the next start makes a new one, or says so.
    """
    ring = path / "ring"
    try:
        with ring.open("r+b") as file:
            reserve(file.fileno(), os.fstat(file.fileno()).st_size)
            image = mmap.mmap(file.fileno(), 0)
        capacity, limit = _RING_SIZES.unpack_from(image)
        known = DedupRing(capacity, limit, buffer=image)
        known.release_all()  # as the next start does
        for bot, update_id in names:
            known.claim(bot, update_id)
            known.settle(bot, update_id)
        image.flush()
    except (FileNotFoundError, ValueError, struct.error):
        return
    except OSError as error:
        raise StateError(f"{ring}: cannot be written: {error.strerror}") from None


def noted_queue(path: Path) -> str | None:
    """The queue of the server that had this state directory last; None if it isn't known."""
    try:
        kind, _, place = (path / _QUEUE).read_text("utf-8").strip().partition(":")
    except (OSError, UnicodeError):
        return None
    if kind == "journal":
        return f"journal:{os.path.normpath(path / place)}"
    return f"{kind}:{place}" if kind else None


def is_gone(queue: str) -> bool:
    """Whether a queue is a journal that is not there. One that nobody may look into is: who opens it says so."""
    kind, _, place = queue.partition(":")
    return kind == "journal" and rebuilding.is_gone(Path(place))


def _resolved(queue: str) -> str:
    kind, _, place = queue.partition(":")
    return f"{kind}:{os.path.normcase(os.path.realpath(place))}" if place else queue


def _lock(file: IO[bytes]) -> bool:
    try:
        if sys.platform == "win32":
            file.seek(1 << 30)  # a byte behind the pid, which others may read
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
