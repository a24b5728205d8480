"""kill -9 at random moments under load: nothing that was acknowledged is lost, order is kept, and almost all once."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import time
from bisect import bisect
from collections import defaultdict
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from e2e.process import PATIENCE, SECRET, Server
from e2e.telegram import Connection
from fasthook.testing import samples

SECONDS = 110.0  # for all kills, at most, where the machine is not too slow for the fewest
LONGEST = 180.0  # seconds for those
KILLS = 220
# Which options, the share of the kills and of the seconds, and how many kills a slow machine must come to: workers take
# a second to start.
PARTS = {"": (0.7, 40), "--ack handled": (0.15, 8), "--workers 2": (0.15, 3)}
CHATS = 12

SOURCE = """\
import asyncio, os, random, time
server = os.getppid() if os.environ.get("WORKERS") else os.getpid()
record = os.open("handled", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

async def handler(update):
    if random.random() < 0.3:
        await asyncio.sleep(random.random() * 0.01)
    line = b"%d %d %d %.6f" % (server, update.chat_id, update.update_id, time.time())
    os.write(record, line.ljust(63) + b"\\n")  # a kill cuts a write in two where a page ends: no line has one in it
"""


@dataclass(frozen=True)
class Handled:
    pid: int
    chat: int
    update_id: int
    at: float


@dataclass
class Sender:
    """Telegram: one update of a chat after the other, each until it is acknowledged, over keep-alive connections."""

    server: Server
    acknowledged: set[int] = field(default_factory=set)
    sent: list[float] = field(default_factory=list)  # when, what a commit of its own acknowledged at the first try
    up: asyncio.Event = field(default_factory=asyncio.Event)
    ending: bool = False

    async def chat(self, chat: int) -> None:
        with closing(Connection(lambda: self.server.address)) as connection:
            update_id = chat * 1_000_000
            while not self.ending:
                await self._deliver(connection, samples.update(update_id, chat_id=chat, user_id=chat))
                self.acknowledged.add(update_id)
                update_id += 1

    async def _deliver(self, connection: Connection, body: bytes) -> None:
        for tries in itertools.count():
            await self.up.wait()
            sent = time.time()
            try:
                status = await connection.post(body)
            except (OSError, EOFError):
                connection.close()
                await asyncio.sleep(0)  # until it is seen that the server is gone
                continue
            assert status in (200, 503)
            if status == 200:
                if tries == 0:
                    self.sent.append(sent)
                return


def served(directory: Path, options: list[str]) -> Server:
    env = {"WORKERS": "1"} if "--workers" in options else {}
    where = ["--port", "0", "--secret", SECRET, "--queue", "journal:waiting"]
    return Server(directory, "bot:handler", *where, *options, env=env)


def read(file: Path) -> list[Handled]:
    lines = [line.split() for line in file.read_text().splitlines()]
    return [Handled(int(pid), int(chat), int(update_id), float(at)) for pid, chat, update_id, at in lines]


async def killed_often(
    directory: Path, options: list[str], share: float, fewest: int, kills: dict[int, float]
) -> Sender:
    """`kills`: the process and the moment of each."""
    chosen = random.Random()
    sender = Sender(await asyncio.to_thread(served, directory, options))
    end = time.monotonic() + SECONDS * share
    try:
        async with asyncio.TaskGroup() as group:
            for chat in range(1, CHATS + 1):
                group.create_task(sender.chat(chat))
            while len(kills) < fewest or (len(kills) < KILLS * share and time.monotonic() < end):
                sender.up.set()
                await asyncio.sleep(chosen.choice([0.02, 0.3]) * chosen.random())  # the random moment
                kills[sender.server.process.pid] = time.time()
                sender.up.clear()
                await asyncio.to_thread(sender.server.kill)
                sender.server = await asyncio.to_thread(served, directory, options)
            sender.ending = True
            sender.up.set()
        assert await asyncio.to_thread(sender.server.stop) == 0
    finally:
        await asyncio.to_thread(sender.server.kill)
    return sender


def settled(handled: list[Handled], *, of_workers: bool) -> dict[Handled, float]:
    """A time at which a server knew that an update was handled: it is taken out with the next commit.

    Of a worker's, that is when it gives out the next one of the chat, if it came to that.
    """
    if not of_workers:
        return {one: one.at for one in handled}
    last: dict[tuple[int, int], Handled] = {}
    found = {}
    for one in handled:
        before = last.get((one.pid, one.chat))
        if before is not None:
            found[before] = one.at
        last[one.pid, one.chat] = one
    return found


@pytest.mark.parametrize("options", PARTS)
def test_kill_9_at_random_moments(tmp_path: Path, options: str) -> None:
    (tmp_path / "bot.py").write_text(SOURCE)
    kills: dict[int, float] = {}
    share, fewest = PARTS[options]
    run = killed_often(tmp_path, options.split(), share, fewest, kills)
    sender = asyncio.run(asyncio.wait_for(run, LONGEST + PATIENCE))
    handled = read(tmp_path / "handled")

    assert len(sender.acknowledged) >= 100 * share
    assert sender.acknowledged == {one.update_id for one in handled}

    chats: dict[int, list[int]] = defaultdict(list)
    for update_id in dict.fromkeys(one.update_id for one in handled):  # where each comes first
        chats[update_id // 1_000_000].append(update_id)
    for chat, ids in chats.items():
        assert ids == list(range(chat * 1_000_000, chat * 1_000_000 + len(ids)))

    runs: dict[int, list[Handled]] = defaultdict(list)
    for one in handled:
        runs[one.update_id].append(one)
    sender.sent.sort()
    written = settled(handled, of_workers="--workers" in options)
    for again in runs.values():
        again.sort(key=lambda one: kills.get(one.pid, math.inf))
        for one in again[:-1]:
            if one in written:  # nothing that came behind it was acknowledged: it was in flight at the kill
                assert bisect(sender.sent, written[one]) >= bisect(sender.sent, kills[one.pid]), again
        assert len({one.pid for one in again}) == len(again)
    assert not list((tmp_path / "waiting").glob("*damaged*"))
