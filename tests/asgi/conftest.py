"""Hooks with a handler that keeps what it got, and the servers that serve them."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from asgi.serving import PATIENCE, SERVERS, Serve, handler_of
from fasthook import Hook

Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting comes from the environment of who runs the tests."""
    for name in list(os.environ):
        if re.fullmatch("FASTHOOK_.*|BOT_TOKEN|.*_proxy", name, re.IGNORECASE):
            monkeypatch.delenv(name)


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a coroutine in a loop of its own, as `asyncio.run` does, on both kinds."""
    factory = pytest.importorskip("uvloop").new_event_loop if request.param == "uvloop" else None

    def run_it(coroutine: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(asyncio.wait_for(coroutine, PATIENCE))

    return run_it


@pytest.fixture(params=list(SERVERS))
def serve(request: pytest.FixtureRequest) -> Serve:
    """Serves an application over a real socket."""
    made: Serve = SERVERS[request.param]
    return made


@pytest.fixture
def handled() -> list[int]:
    """The ids that the handler of `hook` was given."""
    return []


@pytest.fixture
def make(tmp_path: Path, handled: list[int]) -> Callable[..., Hook]:
    """Makes a hook; its settings may be given."""

    def made(handler: Any = None, **settings: Any) -> Hook:
        chosen: dict[str, Any] = {
            "secret": "asgi-secret",
            "state_dir": tmp_path / "state",
            "drain_timeout": 10,
        } | settings
        return Hook(handler or handler_of(handled), **chosen)

    return made


@pytest.fixture
def hook(make: Callable[..., Hook]) -> Iterator[Hook]:
    made = make()
    yield made
    assert not made.receiver.running, "the hook was never stopped"
