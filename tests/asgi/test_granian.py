"""`Hook` served by granian, which is a process of its own."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from asgi.serving import PATIENCE, SECRET
from fasthook.testing import samples

SOURCE = """
import contextlib
from fasthook import Hook

log = open("log", "a", buffering=1)

@contextlib.asynccontextmanager
async def lifespan(app):
    print("opened", file=log)
    yield {"db": "the database"}
    print("closed", file=log)

async def handler(update):
    print(update.update_id, update.state["db"], file=log)

hook = Hook(handler, secret="asgi-secret", lifespan=lifespan, max_body=1024)
"""


def connected(path: Path) -> socket.socket:
    """A connection to a server that is about to listen there."""
    until = time.monotonic() + PATIENCE
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(PATIENCE)
    while client.connect_ex(str(path)):
        assert time.monotonic() < until, "granian does not listen"
        time.sleep(0.01)
    return client


@pytest.mark.parametrize("prefix", ["", "/api"])
def test_served_by_granian(tmp_path: Path, prefix: str) -> None:
    (tmp_path / "app.py").write_text(SOURCE)
    command = [sys.executable, "-m", "granian", "--interface", "asgi", "--uds", "granian.sock", "--no-ws", "app:hook"]
    environment = {k: v for k, v in os.environ.items() if not re.match("FASTHOOK_|BOT_TOKEN|GRANIAN_", k)}
    if prefix:
        command += ["--url-path-prefix", prefix]
    with (tmp_path / "output").open("wb") as output:
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=output, start_new_session=True)
    connection = http.client.HTTPConnection("localhost", timeout=PATIENCE)
    try:
        until = time.monotonic() + PATIENCE
        while "Started worker-1" not in (said := (tmp_path / "output").read_text()):
            assert process.poll() is None, said
            assert time.monotonic() < until, said
            time.sleep(0.01)
        requests: list[tuple[str, str, Any, int]] = [
            ("POST", f"{prefix}/webhook", samples.update(1), 200),
            ("POST", f"{prefix}/webhook", samples.update(1), 200),
            ("POST", f"{prefix}/webhook", iter([samples.update(2)[:50], samples.update(2)[50:]]), 200),
            ("POST", f"{prefix}/other", samples.update(3), 404),
            ("GET", f"{prefix}/webhook", b"", 405),
            ("HEAD", f"{prefix}/webhook", b"", 405),
            ("POST", f"{prefix}/webhook", bytes(1025), 413),
        ]
        for method, path, raw, status in requests:
            connection.sock = connected(tmp_path / "granian.sock")
            with contextlib.suppress(BrokenPipeError):  # granian closes when a head is refused before its body has come
                connection.request(method, path, raw, SECRET)
            response = connection.getresponse()
            response.read()
            connection.close()
            assert (method, path, response.status) == (method, path, status)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    finally:
        connection.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its worker may outlive it
        process.wait()
    assert (tmp_path / "log").read_text() == "opened\n1 the database\n2 the database\nclosed\n"
