"""Bots written for aiogram, python-telegram-bot and pyTelegramBotAPI, served by `fasthook run` as they are."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

import botapi
from botapi import TOKEN, Answer, flooded
from e2e.bot import Bot
from e2e.libraries import SOURCES, message, press
from e2e.process import PATIENCE, SECRET, Response, Server, fasthook
from e2e.telegram import Telegram

OK_MESSAGE = Answer.json(
    200, result={"message_id": 1, "date": 1_750_000_000, "chat": {"id": 5, "type": "private"}, "text": "hello"}
)
Start = Callable[..., Server]


@pytest.fixture
def api() -> Iterator[botapi.Telegram]:
    with botapi.Telegram() as server:
        yield server


@pytest.fixture(params=sorted(SOURCES))
def library(request: pytest.FixtureRequest, bot: Bot) -> str:
    """The bot is written in this one."""
    name: str = request.param
    write(bot, name)
    return name


@pytest.fixture(params=["queued", "handled"])
def ack(request: pytest.FixtureRequest) -> str:
    mode: str = request.param
    return mode


def write(bot: Bot, library: str) -> None:
    (bot.directory / "library_bot.py").write_text(SOURCES[library])


def served(start: Start, api: botapi.Telegram, *options: str) -> Server:
    return start("--secret", SECRET, "--api-url", api.url, *options, target="library_bot:app")


def recorded(bot: Bot) -> list[str]:
    file = bot.directory / "record"
    return file.read_text().splitlines() if file.exists() else []


def texts(api: botapi.Telegram, *responses: Response) -> list[str]:
    """What the bot said, by itself or in an answer."""
    in_answers = [json.loads(response.body) for response in responses if response.body]
    return [call["text"] for call in [*api.calls_of("sendMessage"), *in_answers]]


def test_an_echo_and_a_conversation_with_buttons(
    start: Start, api: botapi.Telegram, bot: Bot, library: str, ack: str
) -> None:
    """The token is the bot's own, and stands in no line."""
    server = served(start, api, "--ack", ack, "--log-level", "debug")
    responses = []
    updates = [message(1, "hello 🚀"), message(2, "/start"), press(3, "order"), message(4, "Ann"), message(5, "again")]
    for n, update in enumerate(updates):
        responses.append(server.post(update))
        assert responses[-1].status == 200
        if ack == "queued":
            api.until("sendMessage", n + 1)
    assert server.stop() == 0
    expected = ["hello 🚀", "Welcome", "Your name?", "Ordered for Ann, from the middleware", "again"]
    assert sorted(texts(api, *responses)) == sorted(expected)
    assert bool(responses[0].body) == (library == "aiogram" and ack == "handled")
    assert [call["text"] for call in api.calls_of("answerCallbackQuery")] == ["ok"]
    assert len([line for line in recorded(bot) if line.startswith("middleware")]) >= 3
    if library != "telebot":
        assert recorded(bot)[0] == "began 42 parcels"
        assert recorded(bot)[-1] == "ended parcels"
    assert {call.token for call in api.calls} <= {TOKEN}
    assert not server.find(TOKEN.partition(":")[2])
    assert not server.find("Traceback")


def test_a_handler_that_fails_is_tried_again(start: Start, bot: Bot, api: botapi.Telegram, library: str) -> None:
    server = served(start, api)
    assert server.post(message(1, "fail twice")).status == 200
    assert server.post(message(2, "next")).status == 200
    api.until("sendMessage")
    assert server.stop() == 0
    wanted = [line for line in recorded(bot) if line.startswith(("attempt", "handled"))]
    assert wanted == ["attempt 1", "attempt 2", "attempt 3", "handled 5 next"]


def test_one_that_goes_on_failing_is_a_dead_letter(start: Start, bot: Bot, api: botapi.Telegram, library: str) -> None:
    server = served(start, api, "--retries", "0")
    server.post(message(1, "fail"))
    server.until("update 1 .message. is a dead letter after 1 attempts: failed")
    assert server.stop() == 0
    [letter] = bot.dead
    assert "ValueError: the bot is broken" in letter.traceback
    assert "library_bot.py" in letter.traceback


def test_a_thousand_updates_in_order(start: Start, bot: Bot, api: botapi.Telegram, library: str, ack: str) -> None:
    server = served(start, api, "--ack", ack)
    chats = {chat: [message(1000 * chat + n, f"quiet {n}", chat=chat) for n in range(25)] for chat in range(1, 41)}

    async def main() -> None:
        with closing(Telegram(lambda: server.address, connections=20, again=0.05)) as telegram:
            await telegram.send(chats)

    asyncio.run(asyncio.wait_for(main(), PATIENCE))
    assert server.stop() == 0
    handled: dict[int, list[str]] = {}
    for line in recorded(bot):
        if line.startswith("handled"):
            _, chat, text = line.split(maxsplit=2)
            handled.setdefault(int(chat), []).append(text)
    assert handled == {chat: [f"quiet {n}" for n in range(25)] for chat in chats}


@pytest.mark.parametrize("library", ["ptb", "telebot"], indirect=True)
def test_the_token_is_in_no_traceback(start: Start, bot: Bot, api: botapi.Telegram, library: str) -> None:
    """Libraries show the addresses that they call, which hold it."""
    server = served(start, api, "--retries", "0")
    api.answers.extend([Answer(200, b"<html>")] * 3)
    assert server.post(message(1, "hello")).status == 200
    server.until("update 1 .message. is a dead letter")
    assert server.stop() == 0
    [letter] = bot.dead
    assert "library_bot.py" in letter.traceback
    assert "TEST-token" not in letter.traceback
    assert server.find("library_bot.py")
    assert not server.find("TEST-token")


# ---------------------------------------------------------------- what is one library's


def test_aiogram_methods_that_cannot_go_into_the_answer(start: Start, bot: Bot, api: botapi.Telegram) -> None:
    """A file goes through the bot's own session."""
    write(bot, "aiogram")
    server = served(start, api, "--ack", "handled")
    assert server.post(message(1, "file")).body == b""
    [call] = api.until("sendDocument")
    assert ("a.txt", b"contents") in call.values()
    assert server.stop() == 0


def test_what_telegram_may_say_to_a_method_of_aiogram(start: Start, bot: Bot, api: botapi.Telegram) -> None:
    """429 and 5xx are tried again, a refusal is told, a token that is revoked leaves a dead letter."""
    write(bot, "aiogram")
    server = served(start, api)
    said = [
        flooded(1),
        OK_MESSAGE,
        Answer.json(500, error_code=500, description="Internal Server Error"),
        OK_MESSAGE,
        *[Answer.json(403, error_code=403, description="Forbidden: bot was blocked by the user")] * 2,
        Answer.json(400, error_code=400, description="Bad Request: chat not found"),
        Answer.json(401, error_code=401, description="Unauthorized"),
    ]
    api.answers.extend(said)
    for n in range(6):
        assert server.post(message(n, "hello")).status == 200
    api.until("sendMessage", len(said))
    assert server.stop() == 0
    assert len(server.find("bot was blocked by the user")) == 1
    assert len(server.find("ERROR +fasthook: update 4: Telegram refused sendMessage: Bad Request: chat not found")) == 1
    assert len(server.find("GaveUp: Telegram doesn't know the token")) == 1
    assert [letter.reason for letter in bot.dead] == ["reply failed"]
    assert api.calls_of("sendMessage")[0]["parse_mode"] == "HTML"


def test_a_dispatcher_without_a_bot_gets_one_from_the_token(start: Start, bot: Bot, api: botapi.Telegram) -> None:
    source = SOURCES["aiogram"].replace("bot = Bot(TOKEN", "_ = lambda: Bot(TOKEN")
    (bot.directory / "library_bot.py").write_text(source)
    server = served(start, api, "--token", TOKEN)
    assert server.post(message(1, "hello")).status == 200
    assert api.until("sendMessage")[0]["text"] == "hello"
    assert server.stop() == 0


def test_jobs_of_an_application(start: Start, bot: Bot, api: botapi.Telegram) -> None:
    write(bot, "ptb")
    server = served(start, api)
    assert server.post(message(1, "job")).status == 200
    assert api.until("sendMessage")[0]["text"] == "A reminder"
    assert server.post(message(2, "broken job")).status == 200
    server.until("ERROR +fasthook: a job or a task of the Application failed")
    assert server.stop() == 0
    assert recorded(bot)[-2:] == ["stopped", "ended parcels"]
    assert bot.dead == []


def test_an_error_handler_of_the_bot_takes_the_error(
    start: Start, bot: Bot, api: botapi.Telegram, library: str
) -> None:
    """Then the update is handled, as the library sees it."""
    takes = {
        "aiogram": "@app.errors()\nasync def take(event):\n    record('took', event.exception)\n    return True\n",
        "ptb": "async def take(update, context):\n    record('took', context.error)\n\napp.add_error_handler(take)\n",
        "telebot": """class Take:
    async def handle(self, error):
        record('took', error)
        return True


app.exception_handler = Take()
""",
    }
    file = bot.directory / "library_bot.py"
    file.write_text(file.read_text() + "\n\n" + takes[library])
    server = served(start, api)
    assert server.post(message(1, "fail")).status == 200
    assert server.stop() == 0
    assert "took the bot is broken" in recorded(bot)
    assert bot.dead == []


# ---------------------------------------------------------------- bots that cannot be served


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (
            "from aiogram import Dispatcher\napp = Dispatcher()",
            "the Dispatcher has no Bot: name it bot in the same module",
        ),
        (
            "from aiogram import Router\napp = Router()",
            "an aiogram Router is not a handler: include it in a Dispatcher",
        ),
        ("from aiogram import Bot\napp = Bot('42:TEST')", "an aiogram Bot is not a handler: name the Dispatcher"),
        ("from telegram.ext import ApplicationBuilder\napp = ApplicationBuilder()", "an ApplicationBuilder is not a "),
        (
            "from telebot import TeleBot\napp = TeleBot('42:TEST', threaded=False)",
            "a TeleBot handles updates in threads",
        ),
    ],
)
def test_what_is_no_handler(bot: Bot, source: str, words: str) -> None:
    (bot.directory / "library_bot.py").write_text(source)
    ended = fasthook(bot.directory, "run", "library_bot:app", "--port", "0")
    assert ended.line.startswith(f"fasthook: library_bot:app: {words}")
    assert (ended.code, ended.lines) == (2, (ended.line,))


@pytest.mark.parametrize(
    ("package", "extra"), [("aiogram", "aiogram"), ("telegram.ext", "ptb"), ("telebot", "telebot")]
)
def test_a_library_that_is_not_installed(bot: Bot, package: str, extra: str) -> None:
    missing = f"raise ModuleNotFoundError({f'No module named {package!r}'!r}, name={package!r})"
    (bot.directory / "library_bot.py").write_text(missing)
    ended = fasthook(bot.directory, "run", "library_bot:app", "--port", "0")
    assert ended.line.endswith(f"imports {package!r}, which is not installed: pip install 'fasthook[{extra}]'")


def test_a_version_that_is_not_supported(bot: Bot) -> None:
    """An older aiogram, as far as its type and its version tell."""
    (bot.directory / "library_bot.py").write_text(
        "import importlib.metadata\n"
        "importlib.metadata.version = lambda package: '2.25.1'\n"
        "app = type('Dispatcher', (), {'__module__': 'aiogram.dispatcher.dispatcher'})()\n"
    )
    ended = fasthook(bot.directory, "run", "library_bot:app", "--port", "0")
    words = "aiogram 2.25.1 is not supported: it must be 3.10 or newer, below 4"
    assert ended.lines == (f"fasthook: library_bot:app: {words}",)


def test_another_token_than_the_bots(bot: Bot, library: str) -> None:
    ended = fasthook(bot.directory, "run", "library_bot:app", "--port", "0", "--token", "43:TEST")
    words = "--token is that of bot 43, but the target's own is another, of bot 42"
    assert ended.lines == (f"fasthook: library_bot:app: {words}",)


def test_a_token_that_an_application_is_refused_with(bot: Bot, api: botapi.Telegram) -> None:
    write(bot, "ptb")
    api.token = "42:TEST-another"
    ended = fasthook(bot.directory, "run", "library_bot:app", "--port", "0", "--api-url", api.url)
    assert ended.line == "fasthook: Telegram doesn't know the token of the Application's bot"
    assert ended.code == 1
    assert "TEST-token" not in "".join(ended.lines)


def test_importing_fasthook_imports_no_library(tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text(
        "import sys\n\n\nasync def handler(update):\n    pass\n\n\ndef lifespan(app):\n"
        "    found = {'aiogram', 'telegram', 'telebot', 'httpx', 'aiohttp'} & set(sys.modules)\n"
        "    print('imported', sorted(found), file=sys.stderr)\n    raise SystemExit(0)\n"
    )
    ended = fasthook(tmp_path, "run", "plain:handler", "--port", "0")
    assert "imported []" in ended.lines
