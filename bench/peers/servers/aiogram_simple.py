"""aiogram's SimpleRequestHandler on aiohttp, as its webhook guide shows it.

Usage: python -m bench.peers.servers.aiogram_simple PORT
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import Any

from aiogram import BaseMiddleware, Bot, Dispatcher
from aiogram.types import Message, TelegramObject, Update
from aiogram.webhook.aiohttp_server import SimpleRequestHandler, setup_application
from aiohttp import web
from bench.peers import job


class DropDuplicates(BaseMiddleware):
    """aiogram has no duplicate check; an outer middleware on updates is where its users put one."""

    def __init__(self) -> None:
        self._seen = job.Seen()

    async def __call__(
        self,
        handler: Callable[[TelegramObject, dict[str, Any]], Awaitable[Any]],
        event: TelegramObject,
        data: dict[str, Any],
    ) -> Any:
        assert isinstance(event, Update)
        if self._seen.add(event.update_id):
            return await handler(event, data)
        return None


async def handler(message: Message, event_update: Update) -> None:
    job.handled(event_update.update_id)


def main(port: int) -> None:
    dispatcher = Dispatcher()
    dispatcher.update.outer_middleware(DropDuplicates())
    dispatcher.message.register(handler)
    bot = Bot(job.TOKEN)
    app = web.Application()
    SimpleRequestHandler(dispatcher, bot, handle_in_background=True, secret_token=job.SECRET).register(app, job.PATH)
    setup_application(app, dispatcher, bot=bot)
    web.run_app(app, host="127.0.0.1", port=port, access_log=None, print=None, backlog=4096)


if __name__ == "__main__":
    main(int(sys.argv[1]))
