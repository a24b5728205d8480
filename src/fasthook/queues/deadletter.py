"""Dead letters: the updates that were given up on, with the reason, the attempts and the traceback."""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson

from fasthook.lanes import Reported
from fasthook.queues.store import Store


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An update that was given up on. Times are seconds since the epoch."""

    reason: (
        str  # "failed", "timeout", "invalid" (it was not an update), "reply failed", "expired", "crashed the worker"
    )
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


class DeadLetters:
    """The dead letters of a state directory. Writing happens in a thread of its own, so that no sync stops the loop."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._store: Store | None = None
        self._writer = ThreadPoolExecutor(1, "fasthook-dead")

    async def add(self, letter: DeadLetter) -> None:
        """Keep a dead letter; it is on disk at return. StoreError: it is not."""
        await asyncio.get_running_loop().run_in_executor(self._writer, self._append, letter.pack())

    def _append(self, record: bytes) -> None:
        self._open().append([record])

    def _open(self) -> Store:
        if self._store is None:
            self._store = Store(self._directory)
        return self._store

    def items(self) -> Iterator[tuple[int, DeadLetter]]:
        """Each number and its letter, oldest first."""
        if self._directory.exists():
            for number, record in self._open().items():
                yield number, DeadLetter.unpack(record)

    def close(self) -> None:
        self._writer.shutdown()
        if self._store:
            self._store.close()
            self._store = None
