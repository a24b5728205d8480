"""The bots of three libraries in this process: mounted in FastAPI, and what they are asked for."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
import telebot
from fastapi import FastAPI
from telebot.async_telebot import AsyncTeleBot
from telegram.ext import (
    ApplicationBuilder,
    ChatBoostHandler,
    ChatMemberHandler,
    CommandHandler,
    InlineQueryHandler,
    MessageHandler,
    MessageReactionHandler,
    TypeHandler,
    filters,
)

from e2e.libraries import aiogram, message
from e2e.process import LONG, PATIENCE
from fasthook import Hook
from fasthook.handlers import StartError, TargetError, WithBot, adapt, kinds_of, load
from fasthook.handlers.text import well_formed
from fasthook.queues.deadletter import DeadLetter, DeadLetters
from fasthook.testing import TOKEN
from fasthook.testing.running import RunningBot, Telegram
from updates import of

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
    handler = make()

    async def main() -> None:
        hook = Hook(handler, secret=SECRET, api_url=telegram.url, state_dir=tmp_path)

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


# ---------------------------------------------------------------- started again


def broken_aiogram() -> Any:
    library = aiogram()
    dispatcher = library.Dispatcher()
    dispatcher["bot"] = library.Bot(TOKEN)

    @dispatcher.message()
    async def fail(message: Any) -> None:
        raise ValueError("the bot is broken")

    return dispatcher


def broken_ptb() -> Any:
    async def fail(update: Any, context: Any) -> None:
        raise ValueError("the bot is broken")

    application = ApplicationBuilder().token(TOKEN).build()
    application.add_handler(MessageHandler(filters.TEXT, fail))
    return application


def broken_telebot() -> Any:
    bot = AsyncTeleBot(TOKEN)

    async def fail(message: Any) -> None:
        raise ValueError("the bot is broken")

    bot.register_message_handler(fail)
    return bot


@pytest.mark.parametrize("make", [broken_aiogram, broken_ptb, broken_telebot])
def test_a_bot_that_is_started_again_still_fails(make: Any, telegram: Telegram, tmp_path: Path) -> None:
    """One object, as where two tests share a module's bot, or a `[[bot]]` goes and comes back."""
    target = make()
    for name in ("first", "second"):
        running = RunningBot(target, telegram, tmp_path / name, {"retries": 0})
        try:
            telegram.advance(1)  # one setWebhook a second
            telegram.set_webhook(running.url, running.secret)
            telegram.chat().send("hello").result()
            telegram.settled(LONG).result()
        finally:
            running.stop()
        assert [letter.reason for letter in dead(tmp_path / name)] == ["failed"]


def dead(state_dir: Path) -> list[DeadLetter]:
    letters = DeadLetters(state_dir / "dead")
    try:
        return [letter for _, letter in letters.items()]
    finally:
        letters.close()


def test_an_application_whose_start_fails_ends_in_order(telegram: Telegram, tmp_path: Path) -> None:
    """As its own `run_polling` ends: what `post_init` opened can be closed."""
    ended: list[str] = []

    async def fail(application: Any) -> None:
        raise ValueError("no database")

    async def close(application: Any) -> None:
        ended.append("closed")

    builder = ApplicationBuilder().token(TOKEN).post_init(fail).post_stop(close).post_shutdown(close)
    application = builder.build()
    with pytest.raises(ValueError, match="no database"):
        RunningBot(application, telegram, tmp_path, {})
    assert ended == ["closed"]
    with pytest.raises(RuntimeError, match="not initialized"):
        asyncio.run(application.process_update(None))
    telegram.simulator.bot.revoked = True
    with pytest.raises(StartError, match="doesn't know the token"):
        RunningBot(application, telegram, tmp_path, {})
    assert ended == ["closed"] * 2


def test_an_application_that_is_served_twice(telegram: Telegram, tmp_path: Path) -> None:
    """The second says so and leaves it to the first."""
    application = broken_ptb()
    first = RunningBot(application, telegram, tmp_path / "first", {})
    try:
        with pytest.raises(StartError, match="the Application already runs"):
            RunningBot(application, telegram, tmp_path / "second", {})
        assert application.running
    finally:
        first.stop()


# ---------------------------------------------------------------- what is answered to a returned method


def saying(*answers: str) -> Any:
    """A session of aiogram's that has an answer for each call, one after the other."""

    class Says(aiogram().client.session.base.BaseSession):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.answers = list(answers)

        async def make_request(self, bot: Any, method: Any, timeout: int | None = None) -> Any:
            return self.check_response(bot, method, 200, self.answers.pop(0)).result

        async def stream_content(self, *_: Any, **__: Any) -> Any:
            yield b""

        async def close(self) -> None:
            """There is nothing open."""

    return Says()


@pytest.mark.parametrize("undone", ["<html>Bad Gateway</html>", '{"error":"bad gateway"}', "[]"])
def test_an_answer_that_is_not_telegrams_is_tried_again(undone: str) -> None:
    """And one of Telegram's that is newer than aiogram is not: it was done."""
    session = saying(undone, '{"ok":true,"result":{"newer":"than aiogram"}}', "never asked for")
    dispatcher = aiogram_bot()
    dispatcher["bot"] = aiogram().Bot(TOKEN, session=session)

    async def main() -> None:
        reply = await adapt(dispatcher, threads=1).call(of(message(1, "hello")))
        await reply.send()

    asyncio.run(asyncio.wait_for(main(), PATIENCE))
    assert session.answers == ["never asked for"]


# ---------------------------------------------------------------- a user who blocked the bot


def awaiting_aiogram() -> Any:
    library = aiogram()
    dispatcher = library.Dispatcher()
    dispatcher["bot"] = library.Bot(TOKEN)

    @dispatcher.message()
    async def echo(message: Any) -> None:
        await message.answer(message.text or "")

    return dispatcher


@pytest.mark.parametrize("make", [awaiting_aiogram, ptb_bot, telebot_bot])
def test_a_call_of_the_handler_that_telegram_forbids(
    make: Any, telegram: Telegram, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told once for each chat, and its update is handled: no second try, no dead letter."""
    running = RunningBot(make(), telegram, tmp_path, {"retries": 1})
    try:
        telegram.set_webhook(running.url, running.secret)
        telegram.fail("403", "sendMessage")
        for chat, text in [(5, "one"), (5, "two"), (6, "three")]:
            telegram.chat(chat).send(text).result()
        telegram.settled(LONG).result()
    finally:
        running.stop()
    assert [call.status for call in telegram.calls if call.method == "sendMessage"] == [403] * 3
    told = [record.getMessage() for record in caplog.records if "blocked by the user" in record.getMessage()]
    assert len(told) == 2
    assert all("Telegram refused " in line and "told once for each chat" in line for line in told)
    assert not any(record.levelname == "ERROR" for record in caplog.records)
    assert dead(tmp_path) == []


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


def test_kinds_of_a_command_with_filters_of_its_own() -> None:
    """They take the place of those that keep it to messages."""
    application = ApplicationBuilder().token(TOKEN).build()
    application.add_handler(CommandHandler("start", print))
    assert kinds_of(application) == ("edited_message", "message")
    application.add_handler(CommandHandler("start", print, filters.ChatType.CHANNEL))
    kinds = kinds_of(application)
    assert kinds is not None
    assert {"message", "channel_post"} <= set(kinds)


def test_an_application_that_takes_everything() -> None:
    """It gets what Telegram sends by default; and with it, by name, what another handler takes beside that."""
    application = ptb_bot()
    application.add_handler(TypeHandler(object, print))
    assert kinds_of(application) == ()
    application.add_handler(ChatMemberHandler(print, ChatMemberHandler.MY_CHAT_MEMBER))
    assert kinds_of(application) == ()
    application.add_handler(ChatMemberHandler(print, ChatMemberHandler.CHAT_MEMBER))
    kinds = kinds_of(application)
    assert kinds is not None
    assert {"message", "poll", "my_chat_member", "chat_member"} <= set(kinds)
    assert not {"message_reaction", "message_reaction_count"} & set(kinds)


def test_kinds_of_the_others() -> None:
    assert kinds_of(aiogram_bot()) == ("message",)
    assert kinds_of(aiogram().Dispatcher()) is None
    assert kinds_of(ApplicationBuilder().token(TOKEN).build()) is None
    assert kinds_of(telebot_bot()) == ("message",)
    assert kinds_of(AsyncTeleBot(TOKEN)) is None
    assert kinds_of(print) is None


# ---------------------------------------------------------------- whose log


def test_in_a_users_application_telebot_logs_as_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr(telebot.logger, "handlers", [telebot.console_output_handler])
    adapt(telebot_bot(), threads=1)
    assert telebot.logger.handlers == [telebot.console_output_handler]


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
