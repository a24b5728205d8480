"""A bot in a directory of its own, served by the installed command."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from e2e.bot import Bot
from e2e.process import Server


@pytest.fixture
def bot(tmp_path: Path) -> Bot:
    """The bot, in the test's directory."""
    return Bot(tmp_path)


@pytest.fixture
def start(bot: Bot) -> Iterator[Callable[..., Server]]:
    """Start `fasthook run` for the bot; what still runs at the end is killed."""
    with contextlib.ExitStack() as servers:

        def started(*options: str, target: str = "bot:handler", env: dict[str, str] | None = None) -> Server:
            server = Server(bot.directory, target, "--port", "0", *options, env=env)
            servers.callback(server.kill)
            return server

        yield started


@pytest.fixture(params=["compiled", "asgi"])
def door(request: pytest.FixtureRequest) -> str:
    """`--http`: both doors keep the same promises."""
    name: str = request.param
    return name
