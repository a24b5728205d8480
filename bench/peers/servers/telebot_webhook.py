"""pyTelegramBotAPI's own webhook server: AsyncTeleBot.run_webhooks, on a bot that never calls Telegram.

Usage: python -m bench.peers.servers.telebot_webhook PORT
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from bench.peers import job
from telebot.async_telebot import AsyncTeleBot
from telebot.types import Message, Update
from uvicorn.config import LOGGING_CONFIG


class OfflineBot(AsyncTeleBot):
    """Answers setWebhook by itself, and drops duplicates, which the library does not."""

    def __init__(self, token: str) -> None:
        super().__init__(token)
        self._seen = job.Seen()

    async def set_webhook(self, *args: Any, **options: Any) -> bool:
        return True

    async def process_new_updates(self, updates: list[Update]) -> None:
        await super().process_new_updates([update for update in updates if self._seen.add(update.update_id)])


async def handler(message: Message) -> None:
    job.handled(message.message_id)  # which traffic.py makes equal to the update's id: a handler here never sees that


def main(port: int) -> None:
    # The library lets uvicorn write a line for each request; no other peer here does.
    LOGGING_CONFIG["loggers"]["uvicorn.access"] = {"handlers": [], "propagate": False}
    bot = OfflineBot(job.TOKEN)
    bot.register_message_handler(handler)
    asyncio.run(bot.run_webhooks(port=port, url_path=job.PATH.strip("/"), secret_token=job.SECRET))


if __name__ == "__main__":
    main(int(sys.argv[1]))
