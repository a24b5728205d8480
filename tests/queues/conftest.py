"""What the tests of queues share."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import lmdb
import pytest

from queues.opened import PATIENCE, Commits, HeldEnv, Run


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a coroutine to its end in a loop of each kind."""
    factory = pytest.importorskip("uvloop").new_event_loop if request.param == "uvloop" else None

    def run_it(coroutine: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(asyncio.wait_for(coroutine, PATIENCE))

    return run_it


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def commits(monkeypatch: pytest.MonkeyPatch) -> Commits:
    found, real = Commits(), lmdb.open
    monkeypatch.setattr(lmdb, "open", lambda *args, **options: HeldEnv(real(*args, **options), found))
    return found
