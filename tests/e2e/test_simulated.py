"""`fasthook run` and a simulated Telegram: all of what people say is answered once and in its order."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest

from e2e.bot import Bot
from e2e.process import PATIENCE, Server
from fasthook.settings import secret_of
from fasthook.testing import TOKEN, Chat, Simulator

CHATS = 20
UPDATES = 400
AT_ONCE = [word for rate in ("--reply-rate", "--reply-chat-rate", "--reply-group-rate") for word in (rate, "off")]
Start = Callable[..., Server]


async def converse(simulator: Simulator, server: Server) -> dict[int, list[str]]:
    """Some hundred things said in some chats, and the webhook set anew in their midst; what was said, by chat."""
    url = f"http://127.0.0.1:{server.address[1]}{server.path}"
    await simulator.set_webhook(url, secret_of(TOKEN))
    chats = [simulator.chat(1_000_000_001 + n) for n in range(CHATS)]
    said: dict[int, list[str]] = {chat.id: [] for chat in chats}
    chosen = random.Random(1)
    for n in range(UPDATES):
        chat = chosen.choice(chats)
        said[chat.id].append(f"{chat.id} {n}")
        await chat.send(f"say {chat.id} {n}")
        if n % 100 == 50:  # what is in flight is sent again
            simulator.clock.advance(1)
            await simulator.set_webhook(url, secret_of(TOKEN), max_connections=10 + n // 10)
        await asyncio.sleep(0)
    await asyncio.gather(*(answered(chat, len(said[chat.id])) for chat in chats))
    await simulator.bot.settled()
    return said


async def answered(chat: Chat, count: int) -> None:
    for _ in range(count):
        await chat.expect("sendMessage", timeout=PATIENCE)


@pytest.mark.parametrize(("ack", "failing"), [("queued", False), ("queued", True), ("handled", False)])
def test_all_are_answered_once_and_in_order(start: Start, bot: Bot, ack: str, failing: bool) -> None:
    """Under `failing` one call in fifty finds a broken Bot API, in three ways.

    Not with a reply in the answer to an update: that is run once, and nobody is told what came of it.
    """

    async def main() -> None:
        async with Simulator(seed=2) as simulator:
            options = ["--token", TOKEN, "--api-url", simulator.url, "--ack", ack, *AT_ONCE]
            server = await asyncio.to_thread(start, *options)
            if failing:
                for kind in ("500", "html", "close"):
                    simulator.fail(kind, "sendMessage", share=0.007)
            said = await converse(simulator, server)
            assert await asyncio.to_thread(server.stop) == 0
            account = simulator.bot
            good = [call for call in account.calls if call.method == "sendMessage" and call.status == 200]
            by_chat: dict[int, list[str]] = {chat: [] for chat in said}
            for call in good:
                by_chat[call["chat_id"]].append(call.text)
            assert by_chat == said
            assert len(good) == UPDATES
            assert {call.via for call in good} == ({"api"} if ack == "queued" else {"webhook"})
            assert len(bot.handled) == UPDATES

    asyncio.run(asyncio.wait_for(main(), 3 * PATIENCE))
