"""The pytest plugin: a Telegram, a running bot and a chat with it.

A test module or conftest.py says what the bot is:

    @pytest.fixture
    def bot_handler():
        return "bot:handler"  # or the handler itself

    async def test_it_greets(chat):
        await chat.send("/start")
        await chat.expect(method="sendMessage", text="Hello!")

Telegram and the bot run on threads of their own, so it doesn't matter what runs the test: pytest-asyncio, anyio on
asyncio, nothing (an `async def` that uses one of these fixtures and that no other plugin takes is run with
`asyncio.run`), or a plain `def`, in which `chat.send("/start").result()` stands for `await`.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from fasthook.testing.running import Conversation, RunningBot, Telegram

_OURS = frozenset({"telegram", "bot", "chat"})


@pytest.fixture
def telegram() -> Iterator[Telegram]:
    """A Telegram on this machine, for this test: `fasthook.testing.running.Telegram`."""
    from fasthook.testing.running import Telegram

    running = Telegram()
    yield running
    running.stop()


@pytest.fixture
def bot_handler() -> Any:
    """What the bot under test is: to be overridden by a handler, or by `module:attribute`."""
    raise pytest.UsageError(
        'which bot is tested? Write a fixture `bot_handler` that returns its handler, or "module:attribute"'
    )


@pytest.fixture
def bot_settings() -> dict[str, Any]:
    """Settings of the bot under test, by the names of `fasthook run`'s options; to be overridden."""
    return {}


@pytest.fixture(scope="session")
def _bot_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """The loop of all bots under test, since a module's application is made once, and may be bound to its loop."""
    from fasthook.testing.running import lasting_loop

    with lasting_loop() as loop:
        yield loop


@pytest.fixture
def bot(
    telegram: Telegram,
    bot_handler: Any,
    bot_settings: dict[str, Any],
    tmp_path: Path,
    _bot_loop: asyncio.AbstractEventLoop,
) -> Iterator[RunningBot]:
    """The bot under test, served and registered with `telegram`: `fasthook.testing.running.RunningBot`."""
    from fasthook.testing.running import RunningBot

    running = RunningBot(bot_handler, telegram, tmp_path / "fasthook", bot_settings, _bot_loop)
    telegram.set_webhook(running.url, running.secret)
    yield running
    running.stop()


@pytest.fixture
def chat(telegram: Telegram, bot: RunningBot) -> Conversation:
    """A private chat with the bot under test: `fasthook.testing.running.Conversation`."""
    return telegram.chat()


def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run an `async def` that uses these fixtures, if no plugin for such tests is there to do it."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj) or not _OURS & set(pyfuncitem.fixturenames):
        return None
    if pyfuncitem.get_closest_marker("asyncio") or pyfuncitem.get_closest_marker("anyio"):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True
