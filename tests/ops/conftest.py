"""The server of the e2e tests, with its ops server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from e2e.conftest import bot as bot
from e2e.conftest import door as door
from e2e.conftest import start as start
from e2e.process import SECRET, Server
from ops.scrape import Ops

Serve = Callable[..., tuple[Server, Ops]]


@pytest.fixture
def serve(start: Callable[..., Server]) -> Serve:
    """Start `fasthook run`; the server, and its ops server."""

    def served(*options: str, **more: Any) -> tuple[Server, Ops]:
        server = start("--secret", SECRET, "--ops", "127.0.0.1:0", *options, **more)
        return server, Ops.of(server)

    return served
