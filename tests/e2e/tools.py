"""`fasthook queue` and `fasthook dead`, as a person or a program calls them."""

from __future__ import annotations

import json
from collections.abc import Callable
from time import monotonic, sleep
from typing import Any

from e2e.bot import Bot
from e2e.process import PATIENCE, Ended, Server, fasthook
from fasthook.testing import samples


def tool(bot: Bot, *arguments: str) -> Ended:
    """A command that comes to a good end."""
    ended = fasthook(bot.directory, *arguments)
    assert (ended.code, ended.lines) == (0, ()), ended
    return ended


def rows(bot: Bot, *arguments: str) -> list[dict[str, Any]]:
    """The rows of a list."""
    return [json.loads(line) for line in tool(bot, *arguments, "--json").output.splitlines()]


def ids(bot: Bot, *arguments: str) -> list[int | None]:
    """The ids of the updates in a list."""
    return [row["update_id"] for row in rows(bot, *arguments)]


def number_of(bot: Bot, update_id: int, *arguments: str) -> str:
    """The number of an update in a list."""
    [number] = [row["number"] for row in rows(bot, *arguments) if row["update_id"] == update_id]
    return str(number)


def refused(bot: Bot, *arguments: str, code: int = 1) -> str:
    """The one line that is said by a command that cannot be done."""
    ended = fasthook(bot.directory, *arguments)
    assert ended.code == code, ended
    assert len(ended.lines) == 1, ended
    assert ended.output == ""
    return ended.lines[0]


def until(true: Callable[[], bool]) -> None:
    """Wait for something that can only be looked at."""
    deadline = monotonic() + PATIENCE
    while not true():
        assert monotonic() < deadline
        sleep(0.005)  # whoever it waits for may be a thread of this process


def say(server: Server, update_id: int, text: str = "", chat: int = 1, kind: str = "message") -> None:
    body = samples.update(update_id, kind, chat_id=chat, text=text)
    assert server.post(body).status == 200
