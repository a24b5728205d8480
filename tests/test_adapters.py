"""The bots of three libraries in this process: mounted in FastAPI, and what they are asked for."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from telebot.async_telebot import AsyncTeleBot
from telegram.ext import (
    ApplicationBuilder,
    ChatBoostHandler,
    InlineQueryHandler,
    MessageHandler,
    MessageReactionHandler,
    TypeHandler,
    filters,
)

from e2e.libraries import aiogram, message
from fasthook import Hook
from fasthook.handlers import TargetError, WithBot, kinds_of, load
from fasthook.handlers.text import well_formed
from fasthook.testing import TOKEN
from fasthook.testing.running import Telegram
from updates import of

PATIENCE = 30.0
SECRET = "a-secret"


def aiogram_bot() -> Any:
    library = aiogram()
    properties = library.client.default.DefaultBotProperties(parse_mode="HTML")
    dispatcher = library.Dispatcher()
    dispatcher["bot"] = library.Bot(TOKEN, default=properties)

    @dispatcher.message()
    async def echo(message: Any) -> Any:
        return message.answer(message.text or "")

    return dispatcher


def ptb_bot() -> Any:
    async def echo(update: Any, context: Any) -> None:
        await update.message.reply_text(update.message.text)

    application = ApplicationBuilder().token(TOKEN).build()
    application.add_handler(MessageHandler(filters.TEXT, echo))
    return application


def telebot_bot() -> Any:
    bot = AsyncTeleBot(TOKEN)

    async def echo(message: Any) -> None:
        await bot.send_message(message.chat.id, message.text)

    bot.register_message_handler(echo)
    return bot


@pytest.mark.parametrize("make", [aiogram_bot, ptb_bot, telebot_bot])
def test_mounted_in_fastapi(make: Any, telegram: Telegram, tmp_path: Path) -> None:
    async def main() -> None:
        hook = Hook(make(), secret=SECRET, api_url=telegram.url, state_dir=tmp_path)

        @contextlib.asynccontextmanager
        async def lifespan(app: FastAPI) -> AsyncIterator[None]:
            async with hook.running():
                yield

        app = FastAPI(lifespan=lifespan)
        app.mount("/telegram", hook)
        transport = httpx.ASGITransport(app)
        async with lifespan(app), httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            response = await client.post(
                "/telegram/webhook",
                content=message(1, "hello"),
                headers={"X-Telegram-Bot-Api-Secret-Token": SECRET, "Content-Type": "application/json"},
            )
            assert response.status_code == 200
        assert hook.settings.bot_id == 42

    asyncio.run(asyncio.wait_for(main(), PATIENCE))
    assert [call.text for call in telegram.calls if call.method == "sendMessage"] == ["hello"]


# ---------------------------------------------------------------- kinds


def test_kinds_of_an_application() -> None:
    application = ptb_bot()
    application.add_handler(InlineQueryHandler(print))
    application.add_handler(MessageReactionHandler(print, message_reaction_types=0))
    application.add_handler(ChatBoostHandler(print, chat_boost_types=-1))
    kinds = kinds_of(application)
    assert kinds is not None
    assert {"message", "channel_post", "inline_query", "message_reaction_count", "chat_boost"} <= set(kinds)
    assert not {"message_reaction", "removed_chat_boost", "poll"} & set(kinds)
    application.add_handler(TypeHandler(object, print))
    assert kinds_of(application) is None


def test_kinds_of_the_others() -> None:
    assert kinds_of(aiogram_bot()) == ("message",)
    assert kinds_of(telebot_bot()) == ("message",)
    assert kinds_of(AsyncTeleBot(TOKEN)) is None
    assert kinds_of(print) is None


# ---------------------------------------------------------------- which Bot


def module(monkeypatch: pytest.MonkeyPatch, **names: Any) -> None:
    made = ModuleType("with_bots")
    vars(made).update(names)
    monkeypatch.setitem(sys.modules, "with_bots", made)


def test_the_bot_beside_a_dispatcher(monkeypatch: pytest.MonkeyPatch) -> None:
    library = aiogram()
    one, two = library.Bot("1:TEST"), library.Bot("2:TEST")
    dispatcher = library.Dispatcher()
    module(monkeypatch, dp=dispatcher, whatever=one)
    assert load("with_bots:dp").value == WithBot(dispatcher, one)
    module(monkeypatch, dp=dispatcher, whatever=one, bot=two)
    assert load("with_bots:dp").value == WithBot(dispatcher, two)
    module(monkeypatch, dp=dispatcher, whatever=one, another=two)
    assert load("with_bots:dp").value is dispatcher
    dispatcher["bot"] = one
    module(monkeypatch, dp=dispatcher, bot=two)
    assert load("with_bots:dp").value is dispatcher


def test_a_dispatcher_without_a_bot(tmp_path: Path) -> None:
    dispatcher = aiogram().Dispatcher()
    with pytest.raises(TargetError, match="the Dispatcher has no Bot"):
        Hook(dispatcher, state_dir=tmp_path)


# ---------------------------------------------------------------- text


def test_lone_surrogates_are_replaced() -> None:
    raw = b'{"update_id":1,"message":{"chat":{"id":5},"text":"\\ud83d, \\uD83D\\uDE80","a":["\\udc00"]}}'
    found = well_formed(of(raw))["message"]
    assert (found["text"], found["a"]) == ("\ufffd, 🚀", ["\ufffd"])
