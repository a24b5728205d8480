"""What a server writes to standard error: never a token, a secret or what somebody wrote, and not the same for ever."""

from __future__ import annotations

import json
import logging
import os
import re
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

import pytest

from e2e.bot import Bot
from e2e.process import COMMAND, PATIENCE, Response, Server, environment, fasthook
from fasthook.logs import JsonLines, Lines, Redaction, TextLines
from fasthook.testing import samples

TOKEN = "42:TEST-a-token-that-nobody-may-read"
SECRET = "a-secret-that-nobody-may-read"
TEXT = "what somebody wrote to the bot"
OTHER = "123456789:" + "TESTtest_-" * 3 + "12345"  # of another bot
RIGHT = {"X-Telegram-Bot-Api-Secret-Token": SECRET}

BOT = """
import asyncio
from pathlib import Path

async def handler(update):
    text = update["message"]["text"]
    if "raise" in text:
        raise ValueError("https://api.telegram.org/bot%s/sendMessage, and bot%s" % (TOKEN, OTHER))
    if "hang" in text:
        await asyncio.sleep(3600)
    if "say" in text:
        return update.reply("sendMessage", text=text)
    if "nonsense" in text:
        return 42
    if "unsendable" in text:
        return update.reply("sendMessage", text=object())
    if "task" in text:
        asyncio.ensure_future(fails())

async def fails():
    raise ValueError(SECRET)
"""


def write_bot(bot: Bot) -> None:
    names = f"TOKEN, SECRET, OTHER = {TOKEN!r}, {SECRET!r}, {OTHER!r}\n"
    (bot.directory / "leaky.py").write_text(names + BOT)


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_no_token_no_secret_and_no_text(
    start: Callable[..., Server], bot: Bot, door: str, form: str, workers: str
) -> None:
    write_bot(bot)
    options = ["--token", TOKEN, "--secret", SECRET, "--http", door, "--log-format", form, "--access-log"]
    options += ["--log-level", "debug", "--retries", "1", "--handler-timeout", "0.2", "--max-body", "4096"]
    options += [
        "--api-url",
        "http://127.0.0.1:9",
        "--chat-rate",
        "1000/s",
        "--auth-rate",
        "3/h",
        "--ops",
        "127.0.0.1:0",
    ]
    server = start(*options, "--workers", workers, target="leaky:handler")
    for update_id, what in enumerate(["raise", "hang", "say", "nonsense", "unsendable", "task", "nothing"]):
        body = samples.update(update_id, chat_id=update_id, text=f"{what}: {TEXT}")
        for _ in range(2):
            assert server.ask("POST", server.path, body, RIGHT).status == 200
    server.ask("POST", server.path, b'{"text": "%s"}' % TEXT.encode(), RIGHT)
    server.ask("POST", f"/bot{TOKEN}/{SECRET}", TEXT.encode(), RIGHT)
    server.ask("GET", f"{server.path}?token={TOKEN}&secret={SECRET}")
    server.ask("POST", server.path, TEXT.encode() * 1000, RIGHT)
    for _ in range(5):
        server.ask("POST", server.path, TEXT.encode(), {"X-Telegram-Bot-Api-Secret-Token": SECRET + TOKEN[3:]})
    server.until("update 0 .* is a dead letter")
    server.until("update 1 .* is a dead letter")
    server.until("update 3: the handler returned int")
    server.until("update 4: what the handler returned cannot be sent")
    server.signal(signal.SIGTERM)
    server.until("SIGTERM: stopping")
    server.signal(signal.SIGTERM)  # the reply to 2 is still being tried
    server.wait()
    said = server.lines
    text = "\n".join(said)
    for private in (TOKEN, TOKEN[3:], SECRET, OTHER, TEXT):
        assert private not in text, [line for line in said if private in line]
    assert "/bot***/sendMessage, and bot***" in text  # the bot's own words, but for these
    if form == "json":
        check_fields([json.loads(line) for line in said])


@pytest.mark.parametrize("secret", [["--secret", SECRET], ["--token", TOKEN], []], ids=["set", "made", "thrown away"])
def test_the_start_is_json_where_the_log_is(start: Callable[..., Server], secret: list[str]) -> None:
    server = start("--log-format", "json", "--queue", "memory:", "--ops", "127.0.0.1:0", *secret)
    line = json.loads(server.until("fasthook serves").string)
    url = f"http://127.0.0.1:{server.address[1]}/webhook"
    told = line["server"]
    assert (line["level"], line["message"]) == ("info", f"fasthook serves {url}")
    assert (told["urls"], told["queue"]) == ([url], "memory:")
    assert told["ops"].startswith("http://127.0.0.1:")
    assert told["secret"].startswith(("as it was set", "made from the token", "thrown away"))
    assert server.stop() == 0
    assert all(json.loads(one) for one in server.lines)
    assert SECRET not in "".join(server.lines)


def check_fields(lines: list[dict[str, Any]]) -> None:
    for line in lines:
        assert datetime.fromisoformat(line["time"]).tzinfo is not None
        assert line["level"] in ("debug", "info", "warning", "error")
        assert {"logger", "message"} <= line.keys()
    access = [line for line in lines if line["logger"] == "fasthook.access"]
    assert len(access) == 7 * 2 + 4 + 5
    first = access[0]
    assert (first["update_id"], first["bot"], first["kind"], first["verdict"]) == (0, 42, "message", "accepted")
    assert 0 < first["duration"] < PATIENCE
    assert [line["verdict"] for line in access[14:18]] == ["invalid", "not_found", "bad_method", "too_large"]
    dead = next(line for line in lines if "dead letter after" in line["message"])
    assert {"update_id", "bot", "kind", "traceback"} <= dead.keys(), dead


MANY = """
import logging

async def handler(update):
    logging.getLogger("bot").error("%d of %s: %s", update.update_id, SECRET, "x" * 50_000, extra={"update_id": 5})
    raise ValueError(TOKEN + "y" * 50_000)
"""


@pytest.mark.parametrize("form", ["text", "json"])
def test_lines_of_several_processes_are_whole(start: Callable[..., Server], bot: Bot, form: str) -> None:
    """Though each is longer than what a pipe takes in one piece."""
    (bot.directory / "many.py").write_text(f"TOKEN, SECRET = {TOKEN!r}, {SECRET!r}\n{MANY}")
    options = ["--token", TOKEN, "--secret", SECRET, "--log-level", "debug", "--log-format", form, "--retries", "0"]
    server = start(*options, "--workers", "2", target="many:handler")
    with ThreadPoolExecutor(8) as pool:
        bodies = [samples.update(number, chat_id=number, text=f"{number} {TEXT}") for number in range(60)]
        assert {answer.status for answer in pool.map(lambda body: ask(server, body), bodies)} == {200}
    server.until(r" of \*\*\*: x", 60)  # the end of a process does not wait long for its log to be read
    server.until(r" is a dead letter after ", 60)
    assert server.stop() == 0
    said = server.lines
    for private in (TOKEN, SECRET, TEXT):
        assert not [line for line in said if private in line]
    if form == "json":
        lines = [json.loads(line) for line in said if line.startswith("{")]
        assert sum(line["message"].endswith(" of ***: " + "x" * 50_000) for line in lines) == 60
        assert {line["process"] for line in lines if line["logger"] == "bot"} == {"worker-1", "worker-2"}
        assert not any("process" in line for line in lines if "dead letter" in line["message"])
    else:
        mine = [line for line in said if re.search(r" ERROR   worker-[12] bot: \d+ of \*\*\*: x{50000}$", line)]
        assert len(mine) == 60
        assert len([line for line in said if re.search(r" ERROR   fasthook: update \d+ .* a dead letter", line)]) == 60
    assert len([line for line in said if "x" in line and not line.strip("x")]) == 0
    assert "".join(said).count("y" * 50_000) == 60


def ask(server: Server, body: bytes) -> Response:
    return server.ask("POST", server.path, body, RIGHT)


def test_a_bot_that_fails_to_import_says_no_token(bot: Bot) -> None:
    (bot.directory / "leaky.py").write_text(f"raise ValueError('no bot has {TOKEN}')\n")
    ended = fasthook(bot.directory, "run", "leaky:handler", "--token", TOKEN)
    text = "\n".join(ended.lines)
    assert ended.code == 2
    assert "ValueError: no bot has ***" in text
    assert TOKEN not in text


def test_no_line_a_request_unless_told(start: Callable[..., Server], door: str) -> None:
    server = start("--secret", SECRET, "--http", door)
    assert server.ask("POST", server.path, samples.update(1), RIGHT).status == 200
    assert server.stop() == 0
    assert not server.find("webhook 200")


def test_repeated_errors_are_thinned(start: Callable[..., Server], bot: Bot) -> None:
    server = start("--secret", SECRET, "--retries", "0")
    for update_id in range(50):
        body = samples.update(update_id, chat_id=update_id, text="raise")
        assert server.ask("POST", server.path, body, RIGHT).status == 200
    assert server.stop() == 0
    assert len(bot.dead) == 50
    assert len(server.find(r"ERROR .*: update \d+ .* is a dead letter")) == 10
    assert server.find("ERROR .*… and 40 more like it: update %d .* is a dead letter")


def test_debug_shows_all(start: Callable[..., Server], bot: Bot) -> None:
    server = start("--secret", SECRET, "--retries", "0", "--log-level", "debug")
    for update_id in range(20):
        server.ask("POST", server.path, samples.update(update_id, chat_id=update_id, text="raise"), RIGHT)
    server.until("ERROR .* is a dead letter", count=20)


def test_nobody_reads_standard_error(bot: Bot) -> None:
    """A full pipe holds up its writer, not the server."""
    read, write = os.pipe()
    options = ["--uds", "hook.sock", "--secret", SECRET, "--access-log", "--retries", "0"]
    process = subprocess.Popen(
        [str(COMMAND), "run", "bot:handler", *options], cwd=bot.directory, env=environment(), stderr=write
    )
    try:
        os.close(write)
        read_until(read, b"queue")
        server = Server.__new__(Server)
        server.uds, server.directory, server.path = "hook.sock", bot.directory, "/webhook"
        for update_id in range(1, 200):  # each leaves a traceback or a line
            body = samples.update(update_id, chat_id=update_id, text="raise")
            connection = server.connect()
            connection.sock.settimeout(PATIENCE)
            for _ in range(10):
                assert server.ask("POST", "/webhook", body, RIGHT, connection).status == 200
            connection.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()
        os.close(read)


def read_until(pipe: int, words: bytes) -> None:
    """Read from a pipe until these have come."""
    said = b""
    while words not in said:
        assert select.select([pipe], [], [], PATIENCE)[0], said
        data = os.read(pipe, 65536)
        assert data, said  # the process has ended
        said += data


# ---------------------------------------------------------------- the parts


class Stream:
    """A file that keeps what is written; it can be told to fail."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()


@pytest.fixture
def logger(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[logging.Logger, Lines, Stream]]]:
    monkeypatch.setattr("fasthook.logs._PATIENCE", PATIENCE)  # the writer's thread may have to wait for its turn
    made: list[tuple[logging.Logger, Lines]] = []

    def build(formatter: logging.Formatter, **options: Any) -> tuple[logging.Logger, Lines, Stream]:
        stream = Stream()
        lines = Lines(stream, formatter, Redaction([SECRET]), **options)
        found = logging.Logger("test")
        found.addHandler(lines)
        made.append((found, lines))
        return found, lines, stream

    yield build
    for found, lines in made:
        found.removeHandler(lines)
        lines.close()


Make = Callable[..., tuple[logging.Logger, Lines, Stream]]


def test_the_first_of_each_kind_is_never_lost(logger: Make) -> None:
    log, lines, stream = logger(TextLines(), often=2)
    for number in range(5):
        log.error("one %d", number)
        log.warning("one %d", number)
        log.error("two %d", number)
        log.info("said each time %d", number)
    lines.close()
    said = [line.split(" test: ")[1] for line in stream.lines]
    assert [line for line in said if line.startswith("one")] == ["one 0", "one 0", "one 1", "one 1"]
    assert [line for line in said if line.startswith("two")] == ["two 0", "two 1"]
    assert len([line for line in said if line.startswith("said")]) == 5
    assert sorted(said[-3:]) == ["… and 3 more like it: one %d"] * 2 + ["… and 3 more like it: two %d"]


def test_what_was_held_back_is_told_though_nothing_follows(logger: Make) -> None:
    log, _, stream = logger(TextLines(), often=1, window=0.05)
    log.error("again")
    log.error("again")
    end = time.monotonic() + PATIENCE
    while not stream.text.endswith("… and 1 more like it: again\n"):
        assert time.monotonic() < end, stream.text


def test_a_kind_begins_anew_after_its_time(logger: Make) -> None:
    log, lines, stream = logger(TextLines(), often=1)
    for created in (100.0, 101.0, 102.0, 161.0):
        record = logging.LogRecord("test", logging.ERROR, "", 0, "again", None, None)
        record.created = created
        log.handle(record)
    lines.flush()
    said = [line.split(" test: ")[1] for line in stream.lines]
    assert said == ["again", "… and 2 more like it: again", "again"]


def test_kinds_are_bounded(logger: Make) -> None:
    log, lines, stream = logger(TextLines(), often=1)
    for number in range(3000):
        log.error(f"kind {number}")
    lines.flush()
    assert len(stream.lines) == 3000
    assert len(lines._kinds) <= 1000


def test_json_lines(logger: Make) -> None:
    log, lines, stream = logger(JsonLines(), often=None)
    try:
        raise ValueError(f"with {SECRET}\nand a second line")
    except ValueError:
        log.exception("update %d: \ud800 and %s", 7, SECRET, extra={"update_id": 7, "kind": "message", "bot": None})
    lines.flush()
    (line,) = map(json.loads, stream.lines)
    assert (line["level"], line["logger"], line["update_id"], line["kind"]) == ("error", "test", 7, "message")
    assert line["message"] == "update 7: ? and ***"
    assert line["traceback"].endswith("ValueError: with ***\nand a second line")
    assert "bot" not in line


def test_a_wrong_call_of_a_logger_is_told_without_its_arguments(
    logger: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    log, lines, stream = logger(TextLines(), often=None)
    log.error("a number: %d", SECRET)
    log.error("after it")
    lines.flush()
    assert stream.lines[0].startswith("ERROR test: 'a number: %d' cannot be logged: ")
    assert stream.lines[1].endswith("after it")
    assert SECRET not in stream.text + capsys.readouterr().err


def test_what_cannot_be_written_is_counted(logger: Make) -> None:
    log, lines, stream = logger(TextLines(), often=None)
    begun, stopped = threading.Event(), threading.Event()
    plain = stream.write

    def stuck(text: str) -> int:
        begun.set()
        stopped.wait(PATIENCE)
        return plain(text)

    stream.write = stuck  # type: ignore[method-assign]
    log.info("the first")
    assert begun.wait(PATIENCE)  # else the writer might take all of the others at once
    for _ in range(50):
        log.info("x" * 100_000)
    log.info("the last")
    stopped.set()
    lines.flush()
    log.info("again")
    lines.flush()
    written = len([line for line in stream.lines if line.endswith("x")])
    assert 40 <= written < 50
    assert "the last" not in stream.text
    assert stream.lines[0].endswith("the first")
    assert re.search(f"ERROR +fasthook: {51 - written} lines of the log are lost", stream.text)


def test_colour_only_where_it_is_asked_for() -> None:
    record = logging.LogRecord("test", logging.ERROR, "", 0, "red", None, None)
    assert "\33" not in TextLines().format(record)
    assert TextLines(colour=True).format(record).endswith("\33[0m")


@pytest.mark.parametrize(
    "text",
    [
        OTHER,
        f"bot{OTHER}/getMe",
        f"https://example.com/?t={OTHER.replace(':', '%3A')}",
        f"({OTHER})",
        f"'{OTHER}'",
        "/file/bot7:TEST/a",
    ],
)
def test_whatever_looks_like_a_token_goes(text: str) -> None:
    said = Redaction([])(text)
    assert "TEST" not in said
    assert "***" in said


@pytest.mark.parametrize("text", ["12:34:56", "2026-01-01T12:00:00", "10.0.0.1:8443", "update 123456789: not sent"])
def test_other_words_stay(text: str) -> None:
    assert Redaction(["", "abc"])(text + " abc") == text + " abc"


def test_a_handler_of_the_bots_is_not_waited_for(bot: Bot) -> None:
    """Neither its errors nor the time that it takes are the start's."""
    with (bot.directory / "bot.py").open("a") as file:
        file.write(
            "\n\nimport logging\n\nclass Theirs(logging.NullHandler):\n    def flush(self):\n"
            "        raise OSError('gone')\n\nlogging.getLogger().addHandler(Theirs())\n"
        )
    server = Server(bot.directory, "bot:handler", "--port", "0", "--secret", SECRET)
    try:
        assert server.ask("POST", server.path, samples.update(1), RIGHT).status == 200
        assert server.stop() == 0
    finally:
        server.kill()
