"""The pages in docs/migrate/ are true: each "after" is run as it stands, by `fasthook run`, by `poll`, in FastAPI."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from e2e.bot import Bot
from e2e.libraries import aiogram
from e2e.process import PATIENCE, Polling, Server, environment, killed_in_the_end, reserved_port
from fasthook.settings import secret_of
from fasthook.testing import TOKEN
from fasthook.testing.running import Telegram

PAGES = sorted((Path(__file__).parents[2] / "docs" / "migrate").glob("*.md"))


@pytest.fixture(params=PAGES, ids=lambda path: path.stem)
def page(request: pytest.FixtureRequest) -> str:
    path: Path = request.param
    if path.stem == "aiogram":
        aiogram()
    return path.read_text("utf-8")


def write(bot: Bot, page: str) -> None:
    """The module as the page has it: without the last line of what was there before, then what FastAPI needs."""
    before, *_, fastapi = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert "After: the last line goes" in page
    after = before.rstrip().rpartition("\n")[0].replace("123456:ABC…", TOKEN)
    (bot.directory / "bot.py").write_text(after)
    (bot.directory / "web.py").write_text(f"{after}\n\n{fastapi}")


def commands(page: str) -> dict[str, str]:
    """The target, by the command that gets it."""
    return dict(re.findall(r"^fasthook (run|poll) (\S+)", page, re.MULTILINE))


def hears_its_echo(telegram: Telegram) -> None:
    chat = telegram.chat()
    chat.send("hello").result()
    chat.expect("sendMessage", text="hello", timeout=PATIENCE).result()


@pytest.mark.parametrize("command", ["run", "poll"])
def test_after_the_change(bot: Bot, telegram: Telegram, page: str, command: str) -> None:
    write(bot, page)
    options = [commands(page)[command], "--api-url", telegram.url]
    with reserved_port() as port:
        if command == "run":
            options += ["--public-url", f"http://127.0.0.1:{port}", "--port", str(port)]
        server = (Server if command == "run" else Polling)(bot.directory, *options)
    try:
        hears_its_echo(telegram)
        assert server.stop() == 0
        assert not server.find("Traceback|ERROR")
    finally:
        server.kill()


def test_in_fastapi(bot: Bot, telegram: Telegram, page: str) -> None:
    write(bot, page)
    name = "web" if "web.mount(" in page else "app"
    with uvicorn(bot, telegram, f"web:{name}") as address:
        telegram.set_webhook(f"{address}/telegram/webhook", secret_of(TOKEN))
        hears_its_echo(telegram)


@contextmanager
def uvicorn(bot: Bot, telegram: Telegram, target: str) -> Iterator[str]:
    """Serve an application with uvicorn: its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", target, "--port", "0"],
        cwd=bot.directory, env=environment(FASTHOOK_API_URL=telegram.url), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process, killed_in_the_end(process):
        assert process.stderr
        for line in process.stderr:
            if found := re.search(r"running on (http://\S+)", line):
                break
        else:
            raise AssertionError("uvicorn ended")
        yield found[1]
        process.terminate()
        process.communicate(timeout=PATIENCE)
