"""Handlers that take up to half of the time after which Telegram sends again: each update runs once.

Telegram waits 60 s for an answer; here a hundredth of all times is taken.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from e2e.process import PATIENCE, SECRET, Server
from e2e.telegram import Connection
from fasthook.testing import samples

SCALE = 100
REDELIVERED = 60.0 / SCALE  # seconds after which an unanswered update is sent again, on another connection
SLOWEST = 30.0 / SCALE
DEADLINE = "250ms"  # 25 s
CHATS = 20
EACH = 12
TOGETHER = 3  # updates of a chat that are on their way at once, in any order

SOURCE = f"""\
import asyncio, os, random
record = os.open("handled", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

async def handler(update):
    os.write(record, b"%d %d begins\\n" % (update.chat_id, update.update_id))
    await asyncio.sleep(random.random() * {SLOWEST})
    os.write(record, b"%d %d ends\\n" % (update.chat_id, update.update_id))
    return update.reply("sendMessage", text="done")
"""


class Sender:
    """Telegram: up to three updates of a chat at once, each sent again until it has its 200."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._random = random.Random()
        self.sent: Counter[int] = Counter()

    async def chat(self, chat: int) -> None:
        ids = [chat * 1000 + n for n in range(EACH)]
        for start in range(0, EACH, TOGETHER):
            await asyncio.gather(*(self._deliver(chat, update_id) for update_id in ids[start : start + TOGETHER]))

    async def _deliver(self, chat: int, update_id: int) -> None:
        body = samples.update(update_id, chat_id=chat, user_id=chat)
        # sometimes the connection is lost early, and Telegram comes back while the handler runs
        patience = self._random.choice([REDELIVERED, REDELIVERED, SLOWEST * self._random.random()])
        while True:
            self.sent[update_id] += 1
            with closing(Connection(lambda: self._server.address)) as connection:
                try:
                    status = await asyncio.wait_for(connection.post(body), patience)
                except TimeoutError:
                    patience = PATIENCE
                    continue
            assert status in (200, 503)
            if status == 200:
                return


@pytest.mark.parametrize("queue", ["memory:", "journal:waiting"])
def test_each_update_runs_once(tmp_path: Path, queue: str) -> None:
    (tmp_path / "bot.py").write_text(SOURCE)
    options = ["--secret", SECRET, "--ack", "handled", "--ack-deadline", DEADLINE, "--queue", queue]
    server = Server(tmp_path, "bot:handler", "--port", "0", *options)

    async def main() -> Sender:
        sender = Sender(server)
        async with asyncio.TaskGroup() as group:
            for chat in range(1, CHATS + 1):
                group.create_task(sender.chat(chat))
        return sender

    try:
        sender = asyncio.run(asyncio.wait_for(main(), 2 * PATIENCE))
        assert server.stop() == 0
    finally:
        server.kill()
    rows = [line.split() for line in (tmp_path / "handled").read_text().splitlines()]
    runs = Counter(int(update_id) for _, update_id, what in rows if what == "begins")
    assert set(runs.values()) == {1}
    assert runs.keys() == sender.sent.keys()
    assert max(sender.sent.values()) > 1  # some were sent again
    for chat in range(1, CHATS + 1):
        steps = [(int(update_id), what) for of, update_id, what in rows if int(of) == chat]
        order = [update_id for update_id, what in steps if what == "begins"]
        assert steps == [(update_id, what) for update_id in order for what in ("begins", "ends")]  # one at a time
        waves = [update_id % 1000 // TOGETHER for update_id in order]
        assert waves == sorted(waves)
