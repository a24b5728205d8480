"""Dead letters: the updates that were given up on, with the reason, the attempts and the traceback."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import orjson

from fasthook.lanes import Reported
from fasthook.ops.blocks import REASONS as COUNTED
from fasthook.queues.store import DamagedError, Store, StoreError, SyncError, set_aside, words

log = logging.getLogger("fasthook.dead")

#: What a letter may say that it died of; "invalid": it was not an update.
UNREADABLE = "unreadable"  # what is there is no letter, or one of another version
REASONS: tuple[str, ...] = (*COUNTED[:-1], UNREADABLE)

_R = TypeVar("_R")


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An update that was given up on. Times are seconds since the epoch."""

    reason: str  # of `REASONS`
    bot_id: int
    raw: bytes
    attempts: int
    received_at: float
    died_at: float
    traceback: str

    @classmethod
    def of(
        cls, reason: str, bot_id: int, raw: bytes, *, attempts: int, received_at: float, error: BaseException | None
    ) -> DeadLetter:
        if isinstance(error, Reported):
            trace = error.trace
        else:
            trace = "".join(traceback.format_exception(error)) if error else ""
        return cls(reason, bot_id, raw, attempts, received_at, time.time(), trace)

    def pack(self) -> bytes:
        head = {name: value for name, value in asdict(self).items() if name != "raw"}
        head["traceback"] = self.traceback.encode("utf-8", "replace").decode()
        return orjson.dumps(head) + b"\n" + self.raw

    @classmethod
    def unpack(cls, record: bytes) -> DeadLetter:
        """ValueError: not a dead letter."""
        head, _, raw = record.partition(b"\n")
        try:
            return cls(raw=raw, **orjson.loads(head))
        except TypeError as error:
            raise ValueError(f"not a dead letter: {error}") from None


Numbered = tuple[int, DeadLetter]


class DeadLetters:
    """The dead letters of a state directory. What a server does with them is done in a thread of its own, so that no
    sync stops the loop; a program without a loop uses `items`, `get` and `delete`.

    `max_age`: seconds that a letter is kept, None for ever. `max_count`: how many are kept, 0 for all. What is more is
    dropped, the oldest first. A damaged file is set aside under a name that the log tells.
    """

    def __init__(self, directory: Path, *, max_age: float | None = None, max_count: int = 0) -> None:
        self._directory = directory
        self._max_age = max_age
        self._max_count = max_count
        self._store: Store | None = None
        self._writer = ThreadPoolExecutor(1, "fasthook-dead")
        self._refusing: str | None = None  # why nothing is written any more

    # ------------------------------------------------------------ in a loop

    def start(self) -> None:
        """Drop what is too old, or too many, meanwhile."""
        self._writer.submit(self._prune_at_start)

    async def add(self, letter: DeadLetter) -> None:
        """Keep a dead letter; it is on disk at return. StoreError: it is not."""
        await self._in_writer(self._append, letter.pack())

    async def aitems(self, behind: int = 0, most: int = 1000) -> list[Numbered]:
        """So many letters behind a number, oldest first. StoreError: the file cannot be read."""
        return await self._in_writer(lambda: list(itertools.islice(self.items(behind), most)))

    async def aget(self, number: int) -> DeadLetter | None:
        """`get`, in the writer's thread."""
        return await self._in_writer(self.get, number)

    async def adelete(self, numbers: Iterable[int]) -> int:
        """`delete`, in the writer's thread."""
        return await self._in_writer(self.delete, list(numbers))

    async def _in_writer(self, work: Callable[..., _R], *arguments: Any) -> _R:
        return await asyncio.get_running_loop().run_in_executor(self._writer, work, *arguments)

    # ------------------------------------------------------------ on the file

    def items(self, behind: int = 0) -> Iterator[Numbered]:
        """Each number behind this one and its letter, oldest first; one that cannot be read has that for its reason.

        StoreError: the file cannot be read.
        """
        if not self._directory.exists():
            return
        for number, record in self._open().items(behind):
            try:
                yield number, DeadLetter.unpack(record)
            except ValueError:
                yield number, DeadLetter(UNREADABLE, 0, record, 0, 0.0, 0.0, "")

    def get(self, number: int) -> DeadLetter | None:
        """The letter with this number. StoreError: the file cannot be read. ValueError: the letter cannot."""
        record = self._open().get(number) if self._directory.exists() else None
        try:
            return None if record is None else DeadLetter.unpack(record)
        except ValueError as error:
            raise ValueError(f"{error}; fasthook dead drop {number} deletes it") from None

    def delete(self, numbers: Iterable[int]) -> int:
        """Remove letters: how many there were. StoreError: none was removed."""
        return self._open().delete(numbers) if self._directory.exists() else 0

    def close(self) -> None:
        self._writer.shutdown()
        if self._store is not None:
            self._store.close()
            self._store = None

    def _open(self) -> Store:
        if self._store is None:
            try:
                self._store = Store(self._directory)
            except DamagedError as error:
                self._set_aside(error)
                self._store = Store(self._directory)
        return self._store

    def _set_aside(self, error: DamagedError) -> None:
        if self._store is not None:
            self._store.close()
            self._store = None
        aside = set_aside(self._directory)
        log.error("the dead letters are damaged (%s): they are kept as %s, and begun anew", error, aside)

    def _append(self, record: bytes) -> None:
        if self._refusing:
            raise StoreError(self._refusing)
        try:
            self._open().append([record])
        except DamagedError as error:
            self._set_aside(error)
            self._open().append([record])
        except SyncError as error:
            self._begin_anew(error, record)
        self._prune()

    def _begin_anew(self, error: SyncError, record: bytes) -> None:
        """What the disk has of the file is uncertain: go on with another. StoreError: that cannot be done either."""
        store, self._store = self._open(), None
        try:
            saved = [record for _, record in store.items()]
        except StoreError:
            saved = []
        store.close()
        try:
            aside = set_aside(self._directory)
            self._open().append([*saved, record])
        except (OSError, StoreError) as failure:
            self._refusing = f"{self._directory}: no dead letter is written until a restart: {words(failure)}"
            raise StoreError(self._refusing) from None
        log.error("%s: it is kept as %s, and %d letters of it are in a new file", error, aside, len(saved))

    # ------------------------------------------------------------ retention

    def _prune_at_start(self) -> None:
        if self._directory.exists():
            try:
                self._open()
            except StoreError as error:
                log.error("%s", error)
            else:
                self._prune()

    def _prune(self) -> None:
        store = self._open()
        try:
            drop = max(self._too_many(store), self._too_old(store), key=len)  # both are the oldest
            if drop:
                store.delete(drop)
        except StoreError as error:
            log.error("old dead letters could not be dropped: %s", error)
        else:
            if drop:
                log.info("%d dead letters were dropped: there are more than --dead-max-count, or they are older than "
                         "--dead-max-age", len(drop))  # fmt: skip

    def _too_many(self, store: Store) -> list[int]:
        count = len(store)
        if not self._max_count or count <= self._max_count:
            return []
        excess = count - self._max_count + self._max_count // 100  # not one by one with each that comes
        return [number for number, _ in itertools.islice(store.items(), excess)]

    def _too_old(self, store: Store) -> list[int]:
        """Where the clock was ahead for a while, a letter counts as no younger than the first true one behind it."""
        if self._max_age is None:
            return []
        now = time.time()
        old, ahead = list[int](), list[int]()
        for number, record in store.items():
            died_at = _died_at(record)
            if died_at is None:
                continue  # it stays
            if died_at > now:
                ahead.append(number)
            elif died_at < now - self._max_age:
                old += [*ahead, number]
                ahead = []
            else:
                break
        return old


def _died_at(record: bytes) -> float | None:
    try:
        return DeadLetter.unpack(record).died_at
    except ValueError:
        return None
