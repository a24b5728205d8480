"""Bots written for aiogram, python-telegram-bot and pyTelegramBotAPI, run as they are, against a simulated Telegram."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from e2e.bot import Bot
from e2e.libraries import SOURCES, aiogram
from e2e.process import LONG, PATIENCE, Polling, Server, fasthook, reserved_port
from fasthook.settings import secret_of
from fasthook.testing import TOKEN
from fasthook.testing.running import Conversation, Telegram

CHATS, EACH = 40, 50  # what is said in a row, beside the conversations


@dataclass(frozen=True)
class Way:
    """How a bot is run."""

    command: str
    workers: int = 1

    def __str__(self) -> str:
        return self.command if self.workers == 1 else f"{self.command}-{self.workers}-workers"


class Running:
    """A bot that is run against a simulated Telegram, with its own token, and registers or polls by itself."""

    def __init__(self, directory: Path, telegram: Telegram, way: Way, *options: str) -> None:
        self.telegram = telegram
        workers = ("--workers", str(way.workers)) if way.workers > 1 else ()
        arguments = ["library_bot:app", "--api-url", telegram.url, *workers, *options]
        self.url = ""
        if way.command == "poll":
            self.server: Server = Polling(directory, *arguments)
            return
        with reserved_port() as port:
            public = f"http://127.0.0.1:{port}"
            self.url = f"{public}/webhook"
            self.server = Server(directory, *arguments, "--port", str(port), "--public-url", public)
        try:
            self.server.until("the webhook is registered")
        except BaseException:
            self.server.kill()
            raise

    def chat(self, chat_id: int = 5) -> Conversation:
        return self.telegram.chat(chat_id)


Run = Callable[..., Running]


@pytest.fixture
def run(bot: Bot, telegram: Telegram) -> Iterator[Run]:
    """Run the bot; what still runs at the end is killed."""
    running: list[Running] = []

    def started(*options: str, way: Way = Way("run")) -> Running:
        running.append(Running(bot.directory, telegram, way, *options))
        return running[-1]

    yield started
    for one in running:
        one.server.kill()


@pytest.fixture(params=sorted(SOURCES))
def library(request: pytest.FixtureRequest, bot: Bot) -> str:
    """The bot is written in this one."""
    name: str = request.param
    write(bot, name)
    return name


def write(bot: Bot, library: str) -> None:
    if library == "aiogram":
        aiogram()
    (bot.directory / "library_bot.py").write_text(SOURCES[library])


def recorded(bot: Bot) -> list[str]:
    file = bot.directory / "record"
    return file.read_text().splitlines() if file.exists() else []


def say(chat: Conversation, text: str, answer: str) -> str:
    """Say something and hear the answer; how that came, `api` or `webhook`."""
    chat.send(text).result()
    return heard(chat, answer)


def heard(chat: Conversation, text: str, method: str = "sendMessage") -> str:
    return chat.expect(method, text=text, timeout=PATIENCE).result().via


# ---------------------------------------------------------------- what they are for


@pytest.mark.parametrize(
    ("way", "ack"),
    [
        *((way, ack) for way in (Way("run"), Way("run", 2), Way("poll")) for ack in ("queued", "handled")),
        (Way("poll", 2), "queued"),
    ],
    ids=str,
)
def test_conversations_and_a_flood(run: Run, bot: Bot, library: str, way: Way, ack: str) -> None:
    """An echo, buttons, a middleware, a job; then two thousand updates, each handled once, in order within its chat.

    The token and the kinds of updates are the bot's own; the token stands in no line.
    """
    one = run("--ack", ack, "--log-level", "debug", way=way)
    converse(one.chat(), library, way, in_answers=ack == "handled" and way.command == "run")
    told = one.telegram.webhook_info()
    assert {"message", "callback_query"} <= set(told["allowed_updates"])
    assert not {"inline_query", "poll"} & set(told["allowed_updates"])
    flood(one)
    one.telegram.settled(LONG).result()
    assert one.server.stop() == 0
    check(bot, library, way)
    assert not one.server.find(TOKEN.partition(":")[2])
    assert not one.server.find("Traceback|ERROR")
    assert bot.dead == []
    assert {call.status for call in one.telegram.calls} == {200}


def converse(chat: Conversation, library: str, way: Way, *, in_answers: bool) -> None:
    via = say(chat, "hello 🚀", "hello 🚀")
    assert via == ("webhook" if library == "aiogram" and in_answers else "api")
    say(chat, "/menu", "Which size?")
    chat.press("Large").result()
    assert chat.expect("answerCallbackQuery", timeout=PATIENCE).result()["text"] == "large"
    heard(chat, "A large parcel?", "editMessageText")
    chat.press("Yes").result()
    heard(chat, "A large parcel is on its way, from the middleware")
    if library == "ptb":
        say(chat, "job", "A reminder")
    if way.workers == 1:  # the library keeps these states in the memory of its process
        say(chat, "/start", "Welcome")
        chat.press("Order").result()
        heard(chat, "Your name?")
        say(chat, "Ann", "Ordered for Ann, from the middleware")


def flood(one: Running) -> None:
    """Some of it comes twice: what is in flight when the webhook changes."""
    chats = [one.chat(100 + n) for n in range(CHATS)]
    for n in range(EACH):
        for chat in chats:
            chat.send(f"quiet {n}" if n else "hello")
        if one.url and n == EACH // 2:
            one.telegram.advance(1)  # one setWebhook a second
            one.telegram.set_webhook(one.url, secret_of(TOKEN), max_connections=20)


def check(bot: Bot, library: str, way: Way) -> None:
    lines = recorded(bot)
    handled: dict[int, list[str]] = {}
    for line in lines:
        if line.startswith("handled") and int(line.split()[1]) >= 100:
            _, chat, text = line.split(maxsplit=2)
            handled.setdefault(int(chat), []).append(text)
    expected = ["hello", *(f"quiet {n}" for n in range(1, EACH))]
    assert handled == {100 + n: expected for n in range(CHATS)}
    assert len([line for line in lines if line.startswith("middleware")]) >= CHATS * EACH
    if library != "telebot":
        assert lines[: way.workers] == ["began 42 parcels"] * way.workers
        assert lines.count("ended parcels") == way.workers
        assert lines[-1] == "ended parcels"


@pytest.mark.parametrize("workers", [1, 2])
def test_a_handler_that_fails_is_tried_again(run: Run, bot: Bot, library: str, workers: int) -> None:
    """One succeeds at its third attempt, one goes on failing and is a dead letter; the next of the chat waits."""
    one = run("--retries", "2", way=Way("run", workers))
    for chat, texts in [(5, ["fail twice", "next"]), (6, ["fail", "next"])]:
        for text in texts:
            one.chat(chat).send(text).result()
    for chat in (5, 6):
        heard(one.chat(chat), "next")
    assert one.server.stop() == 0
    lines = recorded(bot)
    assert lines.index("attempt 3") < lines.index("handled 5 next")
    [letter] = bot.dead
    assert (letter.reason, letter.attempts) == ("failed", 3)
    assert "ValueError: the bot is broken" in letter.traceback
    assert "library_bot.py" in letter.traceback
    one.server.until("update .* is a dead letter after 3 attempts: failed")


@pytest.mark.parametrize("library", ["ptb", "telebot"], indirect=True)
@pytest.mark.parametrize("workers", [1, 2])
def test_the_token_is_in_no_traceback(run: Run, bot: Bot, library: str, workers: int) -> None:
    """Libraries show the addresses that they call, which hold it."""
    one = run("--retries", "0", way=Way("run", workers))
    one.telegram.fail("html", "sendMessage")
    one.chat().send("hello").result()
    one.server.until("is a dead letter")
    assert one.server.stop() == 0
    [letter] = bot.dead
    assert "library_bot.py" in letter.traceback
    assert "TEST-token" not in letter.traceback
    assert one.server.find("library_bot.py")
    assert not one.server.find("TEST-token")


# ---------------------------------------------------------------- what is one library's


@pytest.mark.parametrize("workers", [1, 2])
def test_aiogram_methods_that_a_handler_returns(run: Run, bot: Bot, workers: int) -> None:
    """In the answer where that can be; a file, or one that is acknowledged before, through the bot's own session."""
    write(bot, "aiogram")
    one = run("--ack", "handled", way=Way("run", workers))
    assert say(one.chat(), "returned", "returned") == "webhook"
    one.chat().send("file").result()
    call = one.chat().expect("sendDocument", timeout=PATIENCE).result()
    assert (call.via, list(call.files.values())) == ("api", [b"contents"])
    assert one.server.stop() == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_what_telegram_may_say_to_a_method_of_aiogram(run: Run, bot: Bot, workers: int) -> None:
    """429, 5xx and HTML are tried again, a refusal is told, a token that is revoked leaves a dead letter."""
    write(bot, "aiogram")
    one = run(way=Way("run", workers))
    chat = one.chat()
    for kind, status in (("429", 429), ("500", 500), ("html", 502)):
        one.telegram.fail(kind, "sendMessage", times=1)
        chat.send("returned").result()
        chat.expect(status=status, timeout=PATIENCE).result()
        assert chat.expect("sendMessage", timeout=PATIENCE).result()["parse_mode"] == "HTML"
    for kind in ("403", "403", "400"):
        one.telegram.fail(kind, "sendMessage", times=1)
        chat.send("returned").result()
        chat.expect(status=int(kind), timeout=PATIENCE).result()
    one.server.until("Telegram refused sendMessage: Bad Request: chat not found")
    one.telegram.simulator.bot.revoked = True
    chat.send("returned").result()
    one.server.until("GaveUp: Telegram doesn't know the token")
    assert one.server.stop() == 0
    assert len(one.server.find("bot was blocked by the user")) == 1
    assert [letter.reason for letter in bot.dead] == ["reply failed"]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_dispatcher_without_a_bot_gets_one_from_the_token(run: Run, bot: Bot, workers: int) -> None:
    aiogram()
    source = SOURCES["aiogram"].replace("bot = Bot(TOKEN", "_ = lambda: Bot(TOKEN")
    (bot.directory / "library_bot.py").write_text(source)
    one = run("--token", TOKEN, way=Way("run", workers))
    one.server.until("INFO .*a Bot was made from the token, without .* name it bot at the top level of the module")
    say(one.chat(), "hello", "hello")
    assert one.server.stop() == 0


@pytest.mark.parametrize("way", [Way("run"), Way("run", 2), Way("poll"), Way("poll", 2)], ids=str)
def test_an_application_that_comes_to_take_everything(run: Run, bot: Bot, telegram: Telegram, way: Way) -> None:
    """Telegram doesn't keep to what the bot took before."""
    file = bot.directory / "library_bot.py"
    write(bot, "ptb")
    first = run(way=way)
    say(first.chat(), "hello", "hello")
    assert "callback_query" in telegram.webhook_info()["allowed_updates"]
    assert first.server.stop() == 0
    taken = "from telegram.ext import TypeHandler\napp.add_handler(TypeHandler(object, later), group=-2)\n"
    file.write_text(file.read_text() + "\n" + taken)
    telegram.advance(1)  # one setWebhook a second
    second = run(way=way)
    say(second.chat(), "hello again", "hello again")
    told = telegram.webhook_info()
    assert "allowed_updates" not in told
    if way.command == "run":
        options = ["--public-url", second.url.removesuffix("/webhook"), "--api-url", telegram.url, "--json"]
        looked = fasthook(bot.directory, "webhook", "info", "library_bot:app", *options)
        assert '"problems": []' in looked.output
    assert second.server.stop() == 0


def test_jobs_of_an_application(run: Run, bot: Bot) -> None:
    write(bot, "ptb")
    one = run()
    one.chat().send("broken job").result()
    one.server.until("ERROR +fasthook: a job or a task of the Application failed")
    assert one.server.stop() == 0
    assert recorded(bot)[-2:] == ["stopped", "ended parcels"]
    assert bot.dead == []


@pytest.mark.parametrize("workers", [1, 2])
def test_what_telebot_logs_is_written_once(run: Run, bot: Bot, workers: int) -> None:
    """As all else is: in the format that was asked for, and without the token."""
    write(bot, "telebot")
    file = bot.directory / "library_bot.py"
    said = "import telebot\n\n\ndef said():\n    telebot.logger.error('said of %s', TOKEN)\n"
    file.write_text(file.read_text().replace("async def echo(message):\n", "async def echo(message):\n    said()\n"))
    file.write_text(file.read_text() + "\n\n" + said)
    one = run("--log-format", "json", way=Way("run", workers))
    say(one.chat(), "hello", "hello")
    assert one.server.stop() == 0
    [line] = [found.string for found in one.server.find("said of")]
    assert json.loads(line)["message"] == "said of ***"


def test_an_error_handler_of_the_bot_takes_the_error(run: Run, bot: Bot, library: str) -> None:
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
    one = run()
    one.chat().send("fail").result()
    one.telegram.settled(LONG).result()
    assert one.server.stop() == 0
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
        (
            "from telegram.ext import Application\ndef app():\n    Application.builder().token('42:TEST').build()",
            "app() takes no update; put an Application at the top level of the module, not into app(), and name that",
        ),
        (
            "from aiogram import Bot, Dispatcher\ndp = Dispatcher()\nasync def app():\n    bot = Bot('42:TEST')",
            "app() takes no update; put a Dispatcher at the top level",
        ),
        (
            "import telebot.async_telebot\ndef app():\n    telebot.async_telebot.AsyncTeleBot('42:TEST')",
            "app() takes no update; put an AsyncTeleBot at the top level",
        ),
    ],
)
def test_what_is_no_handler(bot: Bot, source: str, words: str) -> None:
    if "aiogram" in source:
        aiogram()
    (bot.directory / "library_bot.py").write_text(source)
    ended = fasthook(bot.directory, "run", "library_bot:app", "--port", "0")
    assert ended.line.startswith(f"fasthook: library_bot:app: {words}")
    assert (ended.code, ended.lines) == (2, (ended.line,))


@pytest.mark.parametrize(
    ("package", "extra", "workers"),
    [
        ("aiogram", "aiogram", "1"),
        ("aiogram", "aiogram", "2"),
        ("telegram", "ptb", "1"),
        ("telebot", "telebot", "1"),
    ],
)
def test_a_library_that_is_not_installed(bot: Bot, package: str, extra: str, workers: str) -> None:
    hidden = f"import sys\nsys.modules[{package!r}] = None\nimport {package}\n"  # as if it were not there
    (bot.directory / "library_bot.py").write_text(hidden)
    ended = fasthook(bot.directory, "run", "library_bot:app", "--port", "0", "--workers", workers)
    words = f"imports {package!r}, which is not installed: pip install 'fasthook[{extra}]'"
    assert ended.line == f"fasthook: library_bot:app: the module 'library_bot' {words}"


@pytest.mark.parametrize(
    ("name", "version", "words", "workers"),
    [
        ("aiogram.dispatcher.dispatcher.Dispatcher", "2.25.1", "must be 3.10 or newer, below 4", "1"),
        ("aiogram.dispatcher.dispatcher.Dispatcher", "2.25.1", "must be 3.10 or newer, below 4", "2"),
        ("aiogram.dispatcher.dispatcher.Dispatcher", "4.0.0", "must be 3.10 or newer, below 4", "1"),
        ("telegram.ext._application.Application", "20.8", "must be 21.0 or newer", "1"),
        ("telebot.async_telebot.AsyncTeleBot", "4.14.0", "must be 4.20 or newer", "1"),
    ],
)
def test_a_version_that_is_not_supported(bot: Bot, name: str, version: str, words: str, workers: str) -> None:
    """As far as its type and its version tell."""
    module, _, cls = name.rpartition(".")
    (bot.directory / "library_bot.py").write_text(
        "import importlib.metadata\n"
        f"importlib.metadata.version = lambda package: {version!r}\n"
        f"app = type({cls!r}, (), {{'__module__': {module!r}}})()\n"
    )
    ended = fasthook(bot.directory, "run", "library_bot:app", "--port", "0", "--workers", workers)
    packages = {"aiogram": "aiogram", "telegram": "python-telegram-bot", "telebot": "pyTelegramBotAPI"}
    package = packages[module.partition(".")[0]]
    assert ended.lines == (f"fasthook: library_bot:app: {package} {version} is not supported: it {words}",)
    assert ended.code == 2


OLD_PTB = {
    "telegram/__init__.py": "",
    "telegram/ext.py": (
        "class Dispatcher: ...\n\n\nclass Updater:\n    def __init__(self, token):\n"
        "        if not token:\n            raise ValueError('no token')\n        self.dispatcher = Dispatcher()\n"
    ),
    "python_telegram_bot-13.15.dist-info/METADATA": (
        "Metadata-Version: 2.1\nName: python-telegram-bot\nVersion: 13.15\n"
    ),
}


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize(
    "source",
    [
        "from telegram.ext import Updater\napp = Updater('42:TEST')",
        "from telegram.ext import Updater\napp = Updater('42:TEST').dispatcher",
        "from telegram.ext import ApplicationBuilder",
        "import telegram.ext.filters",
        "from telegram.ext import Updater\napp = Updater('')",
    ],
)
def test_an_old_python_telegram_bot(bot: Bot, source: str, workers: str) -> None:
    """It is told of whatever the bot does with it."""
    for name, text in OLD_PTB.items():
        (bot.directory / name).parent.mkdir(exist_ok=True)
        (bot.directory / name).write_text(text)
    (bot.directory / "library_bot.py").write_text(source + "\n")
    options = ["--port", "0", "--workers", workers, "--secret", "a-secret"]
    ended = fasthook(bot.directory, "run", "library_bot:app", *options)
    words = "python-telegram-bot 13.15 is not supported: it must be 21.0 or newer"
    assert ended.lines == (f"fasthook: library_bot:app: {words}",)
    assert ended.code == 2


def test_a_module_that_the_library_no_longer_has(bot: Bot) -> None:
    (bot.directory / "library_bot.py").write_text("from aiogram.contrib.fsm_storage.memory import MemoryStorage\n")
    ended = fasthook(bot.directory, "run", "library_bot:app", "--port", "0")
    words = "imports 'aiogram.contrib', which is not in aiogram 3."
    assert ended.line.startswith(f"fasthook: library_bot:app: the module 'library_bot' {words}")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_another_token_than_the_bots(bot: Bot, library: str, workers: str) -> None:
    ended = fasthook(bot.directory, "run", "library_bot:app", "--token", "43:TEST", "--workers", workers, "--port", "0")
    words = "--token is that of bot 43, but the target's own is another, of bot 42"
    assert (ended.code, ended.lines) == (2, (f"fasthook: library_bot:app: {words}",))


def test_an_older_token_of_the_same_bot(bot: Bot) -> None:
    write(bot, "telebot")
    ended = fasthook(bot.directory, "run", "library_bot:app", "--token", "42:TEST-older", "--port", "0")
    words = "--token and the target's own are two tokens of bot 42: one of them is revoked"
    assert ended.lines == (f"fasthook: library_bot:app: {words}",)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_token_that_an_application_is_refused_with(bot: Bot, telegram: Telegram, workers: str) -> None:
    write(bot, "ptb")
    telegram.simulator.bot.revoked = True
    options = ["--port", "0", "--api-url", telegram.url, "--workers", workers]
    ended = fasthook(bot.directory, "run", "library_bot:app", *options)
    assert ended.lines == ("fasthook: Telegram doesn't know the token of the Application's bot",)
    assert ended.code == 1


def test_importing_fasthook_imports_no_library(tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text(
        "import sys\n\n\nasync def handler(update):\n    pass\n\n\ndef lifespan(app):\n"
        "    found = {'aiogram', 'telegram', 'telebot', 'httpx', 'aiohttp'} & set(sys.modules)\n"
        "    print('imported', sorted(found), file=sys.stderr)\n    raise SystemExit(0)\n"
    )
    ended = fasthook(tmp_path, "run", "plain:handler", "--port", "0")
    assert "imported []" in ended.lines
