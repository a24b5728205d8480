"""Handlers that take up to half of the time after which Telegram sends again: each update runs once.

Telegram waits 60 s for an answer; here a hundredth of all times is taken.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable

import pytest

from e2e.bot import Bot
from e2e.process import PATIENCE, Server
from fasthook.settings import secret_of
from fasthook.testing import TOKEN, Simulator

SPEED = 100
SLOWEST = 30.0 / SPEED
DEADLINE = "250ms"  # 25 s
CHATS = 20
EACH = 12
KINDS = ("message", "callback_query", "my_chat_member")  # Telegram sends one of each at the same time
AGAIN = 40  # times that the webhook changes meanwhile: what is in flight is sent again, while it runs
Start = Callable[..., Server]

SOURCE = f"""\
import asyncio, os, random
record = os.open("handled", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

async def handler(update):
    os.write(record, b"%d %d begins\\n" % (update.chat_id, update.update_id))
    await asyncio.sleep(random.random() * {SLOWEST})
    os.write(record, b"%d %d ends\\n" % (update.chat_id, update.update_id))
    return update.reply("sendMessage", text="done")
"""


def given(simulator: Simulator) -> dict[int, str]:
    """Updates of each kind in each chat: the kind of each, by its number."""
    kinds: dict[int, str] = {}
    for n in range(EACH):
        for chat in range(1, CHATS + 1):
            kind = KINDS[n % len(KINDS)]
            person = {"id": chat, "is_bot": False, "first_name": "Ann"}
            place = {"id": chat, "type": "private"}
            message = {"message_id": n, "from": person, "chat": place, "date": simulator.bot.unix(), "text": "hello"}
            query = {"id": str(1000 * chat + n), "from": person, "message": message, "data": "pressed"}
            update_id = simulator.bot.add(kind, query if kind == "callback_query" else message, seconds=86_400)
            assert update_id is not None
            kinds[update_id] = kind
    return kinds


async def delivered(simulator: Simulator, url: str) -> dict[int, str]:
    kinds = given(simulator)
    for n in range(AGAIN):
        await simulator.set_webhook(url, secret_of(TOKEN), max_connections=40 + n % 2)
        await simulator.clock.sleep(1 + random.random() * 10)
    await simulator.bot.settled()
    return kinds


@pytest.mark.parametrize("queue", ["memory:", "journal:waiting"])
def test_each_update_runs_once(start: Start, bot: Bot, queue: str) -> None:
    (bot.directory / "bot.py").write_text(SOURCE)

    async def main() -> tuple[dict[int, str], int]:
        async with Simulator(speed=SPEED) as simulator:
            options = ["--token", TOKEN, "--api-url", simulator.url, "--reply-chat-rate", "off"]
            handled = ["--ack", "handled", "--ack-deadline", DEADLINE, "--queue", queue]
            server = await asyncio.to_thread(start, *options, *handled)
            kinds = await delivered(simulator, f"http://127.0.0.1:{server.address[1]}{server.path}")
            assert await asyncio.to_thread(server.stop) == 0
            return kinds, max(attempt.number for attempt in simulator.bot.attempts)

    kinds, tries = asyncio.run(asyncio.wait_for(main(), 2 * PATIENCE))
    rows = [line.split() for line in (bot.directory / "handled").read_text().splitlines()]
    runs = Counter(int(update_id) for _, update_id, what in rows if what == "begins")
    assert runs == Counter(kinds.keys())
    assert tries > 1  # some were sent again
    for chat in range(1, CHATS + 1):
        steps = [(int(update_id), what) for of, update_id, what in rows if int(of) == chat]
        order = [update_id for update_id, what in steps if what == "begins"]
        assert steps == [(update_id, what) for update_id in order for what in ("begins", "ends")]  # one at a time
        for kind in KINDS:
            ids = [update_id for update_id in order if kinds[update_id] == kind]
            assert ids == sorted(ids)
