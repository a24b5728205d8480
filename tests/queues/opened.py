"""A journal's queue that is open, and a hand on its commits."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import lmdb

from fasthook import Update
from fasthook._scan import restore
from fasthook.queues import Delivery, Outcome
from fasthook.queues.journal import Journal, JournalQueue
from fasthook.queues.store import unpack_update
from fasthook.testing import samples

PATIENCE = 100.0  # seconds: a slow machine starts a process for each journal that is opened
BOT = 123456789
Run = Callable[[Coroutine[Any, Any, None]], None]


def made(update_id: int, kind: str = "message", *, size: int | None = None, chat: int | None = None) -> Update:
    """An admitted update."""
    where = {} if chat is None else {"chat_id": chat, "user_id": chat}
    return restore(
        Update, samples.update(update_id, kind, text=str(update_id), size=size, **where), BOT, time.time(), 1
    )


class Opened:
    """A queue that is open: what it delivered, and what it said of each id."""

    def __init__(
        self, directory: Path, *, window: int = 1000, remember: int = 1000, limit: int = 1 << 30, **more: Any
    ) -> None:
        self.queue = JournalQueue(directory, window=window, remember=remember, limit=limit, **more)
        self.delivered: list[Delivery] = []
        self.said: list[tuple[int, Outcome]] = []
        self.at_answer: Callable[[int, Outcome], None] = lambda update_id, outcome: None
        self._changed = asyncio.Event()

    async def open(self) -> Opened:
        self.waited = await self.queue.open(self._deliver, self._redeliver, self._answered)
        return self

    def _deliver(self, delivery: Delivery) -> None:
        self.delivered.append(delivery)
        self._changed.set()

    def _redeliver(self, delivery: Delivery) -> bool:
        self._deliver(delivery)
        return True

    def _answered(self, update: Update, outcome: Outcome) -> None:
        self.said.append((update.update_id, outcome))
        self.at_answer(update.update_id, outcome)
        self._changed.set()

    async def until(self, what: Callable[[], bool]) -> None:
        while not what():
            self._changed.clear()
            await self._changed.wait()

    async def put(self, *update_ids: int, size: int | None = None, chat: int | None = None) -> list[Outcome]:
        """Put these at once, and wait for what becomes of them."""
        seen = len(self.said)
        for update_id in update_ids:
            assert self.queue.put(made(update_id, size=size, chat=chat)) is False
        await self.until(lambda: len(self.said) >= seen + len(update_ids))
        outcomes = dict(self.said[seen:])
        return [outcomes[update_id] for update_id in update_ids]

    def settle(self, *update_ids: int, forget: bool = False) -> None:
        for delivery in [delivery for delivery in self.delivered if delivery.update.update_id in update_ids]:
            self.delivered.remove(delivery)
            self.queue.settle(delivery, forget=forget)

    async def any_left(self) -> bool:
        """Whether there is more to settle. The queue looks for it in a turn of the loop."""
        async with asyncio.timeout(PATIENCE):
            while self.queue.depth and not self.delivered:
                await asyncio.sleep(0)
        return bool(self.delivered)

    @property
    def ids(self) -> list[int]:
        """What was delivered and not settled."""
        return [delivery.update.update_id for delivery in self.delivered]

    async def close(self) -> int:
        return await self.queue.close(self.delivered)


SAFE, KNOWN, FULL = Outcome.SAFE, Outcome.KNOWN, Outcome.FULL


async def opened(directory: Path, **options: Any) -> Opened:
    return await Opened(directory, **options).open()


def on_disk(directory: Path, scratch: Path) -> list[int]:
    """The ids that wait, in order, in a copy of a journal: what a crash at this moment would leave."""
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(directory, scratch)
    return waiting(scratch)


def waiting(directory: Path) -> list[int]:
    opened = Journal(directory)
    try:
        return [unpack_update(record).update_id for _, record in opened.items()]
    finally:
        opened.close()


# ---------------------------------------------------------------- a hand on the commits

Commit = Callable[[], None]


class HeldTxn:
    def __init__(self, txn: Any, commits: Commits) -> None:
        self._txn = txn
        self._commits = commits

    def __enter__(self) -> Any:
        return self._txn.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._txn.__exit__(*error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._txn, name)

    def commit(self) -> None:
        self._commits.commit(self._txn.commit, self._txn.abort)


class HeldEnv:
    def __init__(self, env: lmdb.Environment, commits: Commits) -> None:
        self._env = env
        self._commits = commits

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)

    def begin(self, *args: Any, **options: Any) -> Any:
        txn = self._env.begin(*args, **options)
        return HeldTxn(txn, self._commits) if options.get("write") else txn


class Commits:
    """Counts the commits, and holds them up, or lets them fail."""

    def __init__(self) -> None:
        self.count = 0
        self.errors: list[Exception] = []  # the next commits fail with these
        self.before: Callable[[], None] = lambda: None
        self.after: Callable[[], None] = lambda: None

    def commit(self, commit: Commit, abort: Commit) -> None:
        self.count += 1
        self.before()
        if self.errors:
            abort()
            raise self.errors.pop(0)
        commit()
        self.after()


class Hold:
    """Something for a writer's thread to stop at."""

    def __init__(self) -> None:
        self._reached = threading.Event()
        self._go = threading.Event()

    def __call__(self) -> None:
        self._reached.set()
        assert self._go.wait(PATIENCE)

    async def reached(self) -> None:
        assert await asyncio.to_thread(self._reached.wait, PATIENCE)

    def go(self) -> None:
        self._go.set()
