"""python-telegram-bot's own webhook server: Application.run_webhook, on a bot that never calls Telegram.

Usage: python -m bench.peers.servers.ptb_webhook PORT
"""

from __future__ import annotations

import sys
from typing import Any

from bench.peers import job
from telegram import Update, User
from telegram.ext import Application, ApplicationHandlerStop, ContextTypes, ExtBot, MessageHandler, TypeHandler, filters

seen = job.Seen()


class OfflineBot(ExtBot[None]):
    """Answers by itself what run_webhook asks Telegram at start: getMe, setWebhook and deleteWebhook."""

    async def get_me(self, *args: Any, **options: Any) -> User:
        self._bot_user = User(42, "Bench", is_bot=True, username="bench_bot")
        return self._bot_user

    async def set_webhook(self, *args: Any, **options: Any) -> bool:
        return True

    async def delete_webhook(self, *args: Any, **options: Any) -> bool:
        return True


async def drop_duplicates(update: Update, context: ContextTypes.DEFAULT_TYPE) -> None:
    """The library has no duplicate check; an earlier handler group is where its users put one."""
    if not seen.add(update.update_id):
        raise ApplicationHandlerStop


async def handler(update: Update, context: ContextTypes.DEFAULT_TYPE) -> None:
    job.handled(update.update_id)


def main(port: int) -> None:
    application = Application.builder().bot(OfflineBot(job.TOKEN)).build()
    application.add_handler(TypeHandler(Update, drop_duplicates), group=-1)
    application.add_handler(MessageHandler(filters.ALL, handler))
    application.run_webhook(
        listen="127.0.0.1",
        port=port,
        url_path=job.PATH,
        secret_token=job.SECRET,
        webhook_url=f"https://bot.example{job.PATH}",
    )


if __name__ == "__main__":
    main(int(sys.argv[1]))
