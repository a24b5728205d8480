"""A Telegram that never stops: some chats, one update of a chat after the other, and no answer but 200 is right."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import closing, suppress
from pathlib import Path

import pytest

from e2e.bot import Bot
from e2e.process import PATIENCE, Server
from e2e.telegram import Connection
from fasthook.testing import samples

_EACH = 1_000_000  # ids of a chat


class Steady:
    """The load. `again`: the share of updates that is sent a second time, at the same instant on another connection.

    `pace`: seconds between two updates of a chat, so that handlers keep up. `server` may be replaced while `up` is not
    set; what fails then is sent again.
    """

    def __init__(self, server: Server, *, chats: int = 12, again: float = 0.1, pace: float = 0.01) -> None:
        self.server = server
        self.up = asyncio.Event()
        self.up.set()
        self.acknowledged: dict[int, list[int]] = {chat: [] for chat in range(1, chats + 1)}
        self.failures: list[object] = []
        self._again = again
        self._pace = pace
        self._ending = False
        self._random = random.Random(7)

    async def during(self, what: Callable[[], Awaitable[None]]) -> None:
        """Send until this has come to its end."""
        async with asyncio.TaskGroup() as group:
            for chat in self.acknowledged:
                group.create_task(self._chat(chat))
            try:
                await what()
            finally:
                self._ending = True
                self.up.set()

    async def until_acknowledged(self, more: int) -> None:
        """Wait for so many acknowledgements from now on."""
        wanted = self.count + more
        async with asyncio.timeout(PATIENCE):
            while self.count < wanted:
                await asyncio.sleep(0.001)

    @property
    def count(self) -> int:
        return sum(len(ids) for ids in self.acknowledged.values())

    async def _chat(self, chat: int) -> None:
        where = lambda: self.server.address  # noqa: E731
        with closing(Connection(where)) as first, closing(Connection(where)) as second:
            update_id = chat * _EACH
            while not self._ending:
                body = samples.update(update_id, chat_id=chat, user_id=chat)
                sends = [self._deliver(first, body)]
                if self._random.random() < self._again:
                    sends.append(self._deliver(second, body))
                await asyncio.gather(*sends)
                self.acknowledged[chat].append(update_id)
                update_id += 1
                await asyncio.sleep(self._pace)

    async def _deliver(self, connection: Connection, body: bytes) -> None:
        while True:
            await self.up.wait()
            try:
                status = await connection.post(body)
            except (OSError, EOFError) as error:
                if self.up.is_set() and self.server.process.poll() is None:
                    self.failures.append(error)
                connection.close()
                await asyncio.sleep(0)
                continue
            if status == 200:
                return
            if self.up.is_set():
                self.failures.append(status)


def check_once(bot: Bot, steady: Steady) -> None:
    """All was handled, each exactly once and in order."""
    assert not steady.failures
    assert bot.by_chat == {chat: ids for chat, ids in steady.acknowledged.items() if ids}


def check_order(bot: Bot, steady: Steady) -> None:
    """All was handled, in order where each comes first."""
    assert not steady.failures
    first: dict[int, list[int]] = defaultdict(list)
    for update_id in dict.fromkeys(one.update_id for one in bot.handled):
        first[update_id // _EACH].append(update_id)
    assert first == {chat: ids for chat, ids in steady.acknowledged.items() if ids}


def worker_pids(server: Server) -> list[int]:
    """The processes of all workers that there ever were, in the order in which they were ready."""
    return [int(found[1]) for found in server.find(r"worker \d+ \(process (\d+)\) is ready$")]


def children(server: Server) -> list[int]:
    """The processes of the workers that live now; the test is skipped where there is no /proc."""
    if sys.platform != "linux":
        pytest.skip("looks at /proc")
    pid = server.process.pid
    found = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return [child for child in found if is_alive(child)]


def kill_one(server: Server) -> bool:
    """kill -9 of one of the workers; False if there is none just now."""
    living = [pid for pid in worker_pids(server) if is_alive(pid)]
    if living:
        with suppress(ProcessLookupError):
            os.kill(random.choice(living), signal.SIGKILL)
    return bool(living)


def state(pid: int) -> str:
    """The letter that `ps` has for it; nothing if there is no such process."""
    if sys.platform != "linux":
        asked = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
        return asked.stdout.strip()[:1]
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[0]


def is_alive(pid: int) -> bool:
    return state(pid) not in {"", "Z"}


async def until(condition: Callable[[], object]) -> None:
    """Wait for something."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)
