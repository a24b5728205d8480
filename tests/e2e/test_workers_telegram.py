"""`--workers` and Telegram: replies with files, the bot's own token, and what the door doesn't know of the bot."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from e2e.bot import Bot
from e2e.process import LONG, PATIENCE, Polling, Server, fasthook
from e2e.steady import worker_pids
from e2e.tools import until
from fasthook.settings import secret_of
from fasthook.testing import TOKEN
from fasthook.testing.account import Account
from fasthook.testing.calls import Call
from fasthook.testing.delivery import Attempt
from fasthook.testing.running import Telegram
from fasthook.testing.updates import Pending
from ops.scrape import Ops

Start = Callable[..., Server]
LARGEST = 50 << 20  # bytes of a file that the Bot API takes ("Sending files")

FILES = f"""
import io
from pathlib import Path

async def files(update):
    text = update["message"]["text"]
    thumbnail = ("small.jpg", b"thumbnail")
    opened = open("opened.bin", "rb")
    opened.read()
    documents = {{
        "bytes": b"contents",
        "path": Path("kept.txt"),
        "open": opened,
        "pair": ("named.txt", io.BytesIO(b"of a pair")),
        "large": bytes({LARGEST}),
        "too large": bytes(65 << 20),
        "gone": Path("gone.txt"),
        "text": io.StringIO("text"),
    }}
    if text == "album":
        media = [{{"type": "photo", "media": b"one"}}, {{"type": "photo", "media": Path("kept.txt")}}]
        return update.reply("sendMediaGroup", media=media)
    return update.reply("sendDocument", document=documents[text], thumbnail=thumbnail, caption=text)
"""


@pytest.fixture
def files(bot: Bot) -> str:
    with (bot.directory / "bot.py").open("a") as source:
        source.write(FILES)
    (bot.directory / "kept.txt").write_bytes(b"on disk")
    (bot.directory / "opened.bin").write_bytes(b"was read")
    return "bot:files"


def with_files(start: Start, telegram: Telegram, target: str, *options: str) -> Server:
    server = start("--token", TOKEN, "--api-url", telegram.url, "--reply-chat-rate", "off", *options, target=target)
    telegram.set_webhook(f"http://127.0.0.1:{server.address[1]}/webhook", secret_of(TOKEN))
    return server


@pytest.mark.parametrize("ack", ["queued", "handled"])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_files_in_what_a_handler_returns(start: Start, telegram: Telegram, files: str, workers: str, ack: str) -> None:
    server = with_files(start, telegram, files, "--workers", workers, "--ack", ack)
    chat = telegram.chat()
    for text, content in {"bytes": b"contents", "path": b"on disk", "open": b"was read", "pair": b"of a pair"}.items():
        chat.send(text)
        call = chat.expect("sendDocument", timeout=PATIENCE).result()
        assert call.text == text
        assert call.files["document"] == content
        assert b"thumbnail" in call.files.values()
    chat.send("album")
    album = chat.expect("sendMediaGroup", timeout=PATIENCE).result()
    assert sorted(album.files.values()) == [b"on disk", b"one"]
    assert server.stop() == 0
    assert not server.find("ERROR|Traceback")


def test_the_largest_file_that_telegram_takes(start: Start, telegram: Telegram, files: str) -> None:
    server = with_files(start, telegram, files, "--workers", "2")
    chat = telegram.chat()
    chat.send("large")
    assert len(chat.expect("sendDocument", timeout=PATIENCE).result().files["document"]) == LARGEST
    assert server.stop() == 0


def test_files_that_cannot_be_sent(start: Start, bot: Bot, telegram: Telegram, files: str) -> None:
    server = with_files(start, telegram, files, "--workers", "2")
    for text in ("gone", "text", "too large"):
        telegram.chat().send(text)
    server.until("update .*: what the handler returned cannot be sent: .*No such file or directory: .*gone.txt")
    server.until("update .*: what the handler returned cannot be sent: a file gives str, not bytes; open it in binary")
    server.until("the handler returned 68157... bytes")
    server.until("is a dead letter after 1 attempts: reply failed")
    assert server.stop() == 0
    assert len(bot.dead) == 1


def test_the_replies_of_all_workers_leave_at_the_rate_that_is_set(start: Start, telegram: Telegram, bot: Bot) -> None:
    """The door sends them, so that there is one rate."""
    server = with_files(start, telegram, "bot:handler", "--workers", "2", "--reply-rate", "3/h", "--drain-timeout", "0")
    for n in range(6):
        telegram.chat(100 + n).send("say hello")
    until(lambda: len(telegram.calls) >= 4)  # with setWebhook
    telegram.settled(LONG).result()
    assert server.stop() == 0
    assert len([call for call in telegram.calls if call.method == "sendMessage"]) == 3
    assert {letter.reason for letter in bot.dead} <= {"reply failed"}


# ---------------------------------------------------------------- the bot's own token

OWN = """
from telebot.async_telebot import AsyncTeleBot
import os

app = AsyncTeleBot(os.environ.get("OWN") or open("own").read())


@app.message_handler()
async def echo(message):
    await app.send_message(message.chat.id, message.text)
"""


@pytest.fixture
def own(bot: Bot) -> Path:
    """A bot that has its own token, in the file that is returned."""
    (bot.directory / "own_bot.py").write_text(OWN)
    (bot.directory / "own").write_text(TOKEN)
    return bot.directory / "own"


def test_the_door_has_the_token_from_the_workers(start: Start, own: Path, telegram: Telegram) -> None:
    """The secret is made of it, and what a person sees says so; no line of the access log shows it."""
    server = start("--workers", "2", "--api-url", telegram.url, "--access-log", "--http", "asgi", target="own_bot:app")
    server.until("secret  made from the token")
    telegram.set_webhook(f"http://127.0.0.1:{server.address[1]}/webhook", secret_of(TOKEN))
    chat = telegram.chat()
    chat.send("hello")
    chat.expect("sendMessage", text="hello", timeout=PATIENCE).result()
    server.ask("POST", "/" + secret_of(TOKEN) + "/" + TOKEN)
    server.until("unknown_path|404")
    assert server.stop() == 0
    assert not server.find(secret_of(TOKEN))
    assert not server.find(TOKEN.partition(":")[2])


def test_new_code_with_another_token_does_not_take_over(start: Start, own: Path, telegram: Telegram) -> None:
    server = start("--workers", "2", "--api-url", telegram.url, target="own_bot:app")
    telegram.set_webhook(f"http://127.0.0.1:{server.address[1]}/webhook", secret_of(TOKEN))
    own.write_text("43:TEST-another")
    server.signal(signal.SIGHUP)
    server.until("the new code does not start, the old workers go on: .*the bot's token is another than at the start: ")
    chat = telegram.chat()
    chat.send("hello")
    chat.expect("sendMessage", text="hello", timeout=PATIENCE).result()
    assert server.stop() == 0
    assert not server.find("TEST-another")


def test_a_token_that_is_none(bot: Bot, own: Path) -> None:
    own.write_text("42:TEST ABC")
    ended = fasthook(bot.directory, "run", "own_bot:app", "--port", "0", "--workers", "2")
    one = fasthook(bot.directory, "run", "own_bot:app", "--port", "0")
    assert ended.line == one.line
    assert "TEST ABC" not in "".join(ended.lines)


@pytest.mark.parametrize(("command", "code"), [("run", 1), ("poll", 2)])
def test_no_token_at_all(bot: Bot, command: str, code: int) -> None:
    public = ["--public-url", "https://bot.example.com"]
    ended = fasthook(bot.directory, command, "bot:handler", "--port", "0", "--workers", "2", *public)
    assert ended.code == code
    assert "set --token" in ended.line
    assert not any("Traceback" in line for line in ended.lines)


# ---------------------------------------------------------------- polling

Poll = Callable[..., Polling]


@pytest.fixture
def poll(bot: Bot, telegram: Telegram) -> Iterator[Poll]:
    running: list[Polling] = []

    def started(*options: str, target: str = "bot:handler", env: dict[str, str] | None = None) -> Polling:
        running.append(Polling(bot.directory, target, "--api-url", telegram.url, *options, env=env))
        return running[-1]

    yield started
    for one in running:
        one.kill()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_polling_has_health_and_numbers(poll: Poll, bot: Bot, telegram: Telegram, workers: str) -> None:
    options = ["--token", TOKEN, "--workers", workers, "--ops", "127.0.0.1:0", "--drain-delay", "6s"]
    server = poll(*options, env={"PAUSE": "0.001"})
    ops = Ops.of(server)
    for n in range(200):
        telegram.chat(100 + n % 7).send(str(n))
    telegram.settled(LONG).result()
    page = ops.until(lambda page: page["fasthook_queue_depth"] == 0)
    assert page.by("fasthook_updates_total", "kind") == {"message": 200}
    assert ops.ask("/healthz").status == 200
    assert ops.ready() == (200, [])
    server.signal(signal.SIGTERM)
    server.until("SIGTERM: not ready any more")
    assert ops.ready() == (503, ["stopping"])
    assert server.wait() == 0
    assert len(bot.handled) == len({one.update_id for one in bot.handled}) == 200


def test_polling_with_workers_drains(poll: Poll, bot: Bot, telegram: Telegram) -> None:
    server = poll("--token", TOKEN, "--workers", "2", "--concurrency", "1", env={"PAUSE": "0.02"})
    for n in range(60):
        telegram.chat(100 + n % 7).send(str(n))
    telegram.settled(LONG).result()
    assert server.stop() == 0
    assert len(bot.handled) == 60
    assert not server.find("kept|ERROR")


def test_polling_with_a_worker_that_dies(poll: Poll, bot: Bot, telegram: Telegram) -> None:
    server = poll("--token", TOKEN, "--workers", "2", "--concurrency", "1", env={"PAUSE": "0.01"})
    for n in range(60):
        telegram.chat(100 + n % 7).send(str(n))
    os.kill(worker_pids(server)[0], signal.SIGKILL)
    server.until("died: SIGKILL")
    telegram.settled(LONG).result()
    assert server.stop() == 0
    assert len({one.update_id for one in bot.handled}) == 60


def test_polling_a_bot_whose_own_token_has_a_webhook(poll: Poll, bot: Bot, own: Path, telegram: Telegram) -> None:
    telegram.set_webhook("http://127.0.0.1:9/webhook")
    ended = fasthook(bot.directory, "poll", "own_bot:app", "--api-url", telegram.url, "--workers", "2")
    assert (ended.code, ended.line) == (1, ended.lines[-1])
    assert ended.line.startswith("fasthook: bot 42 has a webhook at http://127.0.0.1:9/webhook, and its updates go ")
    assert telegram.webhook_info()["url"] == "http://127.0.0.1:9/webhook"
    telegram.advance(1)
    server = poll("--workers", "2", "--take-over", target="own_bot:app")
    chat = telegram.chat()
    chat.send("hello")
    chat.expect("sendMessage", text="hello", timeout=PATIENCE).result()
    assert server.stop() == 0
    assert telegram.webhook_info()["url"] == ""


def test_two_that_poll_the_same_bot(poll: Poll, bot: Bot, telegram: Telegram) -> None:
    """Each is told, and says so; nothing is lost, and nothing handled twice by the one."""
    first = poll("--token", TOKEN, "--state-dir", "one")
    second = poll("--token", TOKEN, "--state-dir", "two")
    first.until("no updates, tried again in . s: getUpdates: 409 Conflict: .*: another program polls this bot; end it")
    assert second.stop() == 0
    telegram.chat().send("hello")
    first.until("Telegram answers again")
    telegram.settled(LONG).result()
    assert first.stop() == 0
    assert len(bot.handled) == 1


def test_polling_asks_for_the_kinds_of_new_code(poll: Poll, bot: Bot, telegram: Telegram) -> None:
    """At once, and not when the poll ends that is under way."""
    file = bot.directory / "library_bot.py"
    messages = (
        f"from telebot.async_telebot import AsyncTeleBot\napp = AsyncTeleBot({TOKEN!r})\n"
        "@app.message_handler()\nasync def message(message): ...\n"
    )
    file.write_text(messages)
    polls = _Polls()
    telegram.simulator.watchers.append(polls)
    server = poll("--workers", "2", target="library_bot:app")
    telegram.chat().send("hello")  # a poll is told of when it has ended
    until(lambda: polls.kinds == [["message"]])
    file.write_text(messages + "@app.callback_query_handler(func=bool)\nasync def pressed(query): ...\n")
    server.signal(signal.SIGHUP)
    server.until("reloaded: workers")
    telegram.chat().send("hello")
    until(lambda: polls.kinds[1:] == [["callback_query", "message"]])
    assert server.stop() == 0


class _Polls:
    """Watches a simulator: the kinds that were asked for, by each call that named some."""

    def __init__(self) -> None:
        self.kinds: list[list[str]] = []

    def sent(self, account: Account, update: Pending) -> None:
        """Not looked at."""

    def attempted(self, account: Account, attempt: Attempt) -> None:
        """Not looked at."""

    def called(self, account: Account, call: Call) -> None:
        if call.method == "getUpdates" and call.get("allowed_updates"):
            self.kinds.append(call["allowed_updates"])
