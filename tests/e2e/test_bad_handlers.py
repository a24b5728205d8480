"""Handlers that raise, hang or return nonsense, and targets that are no handlers."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from e2e.bot import Bot
from e2e.process import SECRET, Server, fasthook
from fasthook.testing import samples

Start = Callable[..., Server]


def say(server: Server, update_id: int, text: str, chat: int) -> None:
    assert server.post(samples.update(update_id, chat_id=chat, text=text)).status == 200


def test_a_handler_that_raises(start: Start, bot: Bot) -> None:
    server = start("--secret", SECRET, "--retries", "1")
    for update_id, text, chat in [(1, "raise", 1), (2, "fine", 1), (3, "fine", 2), (4, "fail once", 3)]:
        say(server, update_id, text, chat)
    assert server.stop() == 0
    server.until(
        r"WARNING fasthook.dispatch: update 1 \(message\): attempt 1 of 2 failed, the next is in [01]\.\d s: "
        r"ValueError: the bot is broken$"
    )
    server.until(r"ERROR +fasthook: update 1 \(message\) is a dead letter after 2 attempts: failed$")
    assert bot.by_chat == {2: [3], 1: [2], 3: [4]}
    [letter] = bot.dead
    assert (letter.reason, letter.attempts, letter.raw) == ("failed", 2, samples.update(1, chat_id=1, text="raise"))
    assert 'raise ValueError("the bot is broken")' in letter.traceback
    assert letter.traceback.rstrip().endswith("ValueError: the bot is broken")
    assert letter.received_at < letter.died_at


def test_a_handler_that_hangs(start: Start, bot: Bot) -> None:
    server = start("--secret", SECRET, "--retries", "1", "--handler-timeout", "2s")
    for update_id, text, chat in [(1, "hang", 1), (2, "fine", 1), (3, "fine", 2)]:
        say(server, update_id, text, chat)
    assert server.stop() == 0
    server.until(r"attempt 1 of 2 failed, .*: HandlerTimeout: the handler ran longer than 2 s and was cancelled$")
    assert bot.by_chat == {2: [3], 1: [2]}
    [letter] = bot.dead
    assert (letter.reason, letter.attempts) == ("timeout", 2)


def test_a_plain_function_that_hangs(start: Start, bot: Bot) -> None:
    """It may be half done and cannot be stopped: a second try beside the first would be worse than none."""
    server = start("--secret", SECRET, "--retries", "1", "--handler-timeout", "2s", target="bot:plain")
    for update_id, text, chat in [(1, "hang", 1), (2, "fine", 1), (3, "fine", 2)]:
        say(server, update_id, text, chat)
    server.until("update 1 .message. is a dead letter after 1 attempts: timeout")
    assert server.stop() == 0
    assert bot.by_chat == {2: [3], 1: [2]}
    [letter] = bot.dead
    assert (letter.reason, letter.attempts) == ("timeout", 1)


def test_a_handler_that_returns_nonsense(start: Start, bot: Bot) -> None:
    server = start("--secret", SECRET)
    say(server, 1, "nonsense", 1)
    server.until(
        r"ERROR +fasthook: update 1: the handler returned int, not None or a Bot API method \(update.reply\(...\)\)$"
    )
    assert server.stop() == 0
    assert len(bot.handled) == 1
    assert bot.dead == []


REFUSED = [
    ("bot", "'bot' is not module:attribute, for instance bot:handler"),
    ("bot:TEXT", "a str is not a handler: it cannot be called with an update"),
    ("bot:Class", "Class is a class: make an object of it, or name a function"),
    ("bot:without_argument", "the handler must take one argument, the update"),
    ("bot:generator", "the handler is a generator: it must return, not yield"),
    ("bot:nothing", "the module 'bot' has no attribute 'nothing'"),
    ("nosuch:handler", "there is no module 'nosuch' here or on the Python path"),
    ("bot.py:handler", "'bot.py' is a file, not a module: give bot:handler"),
    ("./bot.py:handler", "'./bot.py' is a file, not a module: give bot:handler"),
    ("app/bot.py:handler", "'app/bot.py' is a file, not a module: give app.bot:handler"),
    ("../bot:handler", "'../bot' is a file, not a module: go to .. and give bot:handler"),
    ("/srv/app/bot.py:handler", "'/srv/app/bot.py' is a file, not a module: go to /srv/app and give bot:handler"),
    ("bot/handler", "'bot/handler' is not module:attribute, for instance bot:handler"),
    ("other.py", "'other.py' is not module:attribute, for instance other:handler"),
    ("bot:NUMBER", "an int is not a handler: it cannot be called with an update"),
]


@pytest.mark.parametrize(("target", "words"), REFUSED)
def test_a_target_that_cannot_be_served(bot: Bot, target: str, words: str) -> None:
    ended = fasthook(bot.directory, "run", target, "--port", "0")
    assert ended.code == 2
    assert ended.lines == (f"fasthook: {target}: {words}",)


@pytest.mark.parametrize(
    ("source", "words", "last"),
    [
        ("import not_installed_here", "imports 'not_installed_here', which is not installed", "ModuleNotFoundError: "),
        ("1 / 0", "fails to import: ZeroDivisionError: division by zero", "ZeroDivisionError: "),
    ],
)
def test_a_bot_whose_import_fails(bot: Bot, source: str, words: str, last: str) -> None:
    """The traceback is the bot's; our line comes behind it."""
    (bot.directory / "bot.py").write_text(f"def inner():\n    {source}\ninner()\n")
    ended = fasthook(bot.directory, "run", "bot:handler", "--port", "0")
    assert ended.code == 2
    assert ended.line == f"fasthook: bot:handler: the module 'bot' {words}"
    assert ended.lines[-1] == ended.line
    assert ended.lines[0] == "Traceback (most recent call last):"
    assert ended.lines[-2].startswith(last)
    assert 'bot.py", line 2, in inner' in "\n".join(ended.lines)
    file = bot.directory / "bot.py"
    assert [line for line in ended.lines if line.startswith("  File ")] == [
        f'  File "{file}", line 3, in <module>',
        f'  File "{file}", line 2, in inner',
    ]


def test_a_bot_that_exits_when_it_is_imported(bot: Bot) -> None:
    (bot.directory / "bot.py").write_text("import sys\nsys.exit('no token')\n")
    ended = fasthook(bot.directory, "run", "bot:handler", "--port", "0")
    assert ended.code == 1
    assert ended.lines == ("fasthook: bot:handler: the module 'bot' calls sys.exit('no token') when it is imported",)


def test_an_error_of_several_lines_is_one_line(bot: Bot) -> None:
    (bot.directory / "bot.py").write_text("raise ValueError('one\\n  two \\x1b[31m')\n")
    ended = fasthook(bot.directory, "run", "bot:handler", "--port", "0")
    assert ended.line == r"fasthook: bot:handler: the module 'bot' fails to import: ValueError: one two \u001b[31m"
    assert ended.lines[-1] == ended.line


LIFESPAN = """
import contextlib

@contextlib.asynccontextmanager
async def lifespan(app):
    print("opened", file=open("log", "a"))
    {}
    yield {{"db": {{"name": "the database"}}}}
    print("closed", file=open("log", "a"))

async def handler(update):
    print(update.state["db"]["name"], file=open("log", "a"))
"""


def test_a_lifespan_beside_the_handler(start: Start, bot: Bot) -> None:
    (bot.directory / "bot.py").write_text(LIFESPAN.format("pass"))
    server = start("--secret", SECRET)
    say(server, 1, "", 1)
    say(server, 2, "", 2)
    assert server.stop() == 0
    assert (bot.directory / "log").read_text() == "opened\nthe database\nthe database\nclosed\n"


def test_a_lifespan_that_exits(bot: Bot) -> None:
    (bot.directory / "bot.py").write_text(LIFESPAN.format("raise SystemExit(3)"))
    ended = fasthook(bot.directory, "run", "bot:handler", "--port", "0")
    assert ended.code == 1
    assert len(ended.lines) == 1
    assert ended.lines[0].endswith("the bot does not start: its lifespan calls sys.exit(3)")


def test_a_lifespan_that_fails(bot: Bot) -> None:
    (bot.directory / "bot.py").write_text(LIFESPAN.format("1 / 0"))
    ended = fasthook(bot.directory, "run", "bot:handler", "--port", "0")
    assert ended.code == 1
    assert "the bot does not start" in ended.lines[0]
    files = [line for line in ended.lines if line.startswith("  File ")]
    assert len(files) == 1
    assert "bot.py" in files[0]
    assert ended.lines[-1] == "ZeroDivisionError: division by zero"
