"""Workers that cannot be started, or do not come to the end of their start: the others go on."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from e2e.bot import Bot
from e2e.process import PATIENCE, SECRET, Server, answer, fasthook
from e2e.steady import children, until, worker_pids
from fasthook.testing import samples
from ops.scrape import Ops

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc, and sets the limits of a process")
Start = Callable[..., Server]


def test_no_room_for_a_process(start: Start, bot: Bot) -> None:
    """It is tried again, told once and counted; what came meanwhile is handled."""
    server = start("--secret", SECRET, "--workers", "2", "--queue", "memory:", "--ops", "127.0.0.1:0")
    ops = Ops.of(server)
    pid = server.process.pid
    with (
        closing(server.connect()) as telegram,
        closing(http.client.HTTPConnection(*ops.address, timeout=PATIENCE)) as asking,
    ):
        assert server.post(samples.update(1), telegram).status == 200
        assert ask(asking, "/readyz") == {"ready": True, "reasons": []}
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        used = max(int(one.name) for one in Path(f"/proc/{pid}/fd").iterdir())
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + 1, before[1]))
        for worker in worker_pids(server):
            os.kill(worker, signal.SIGKILL)
        server.until("died: SIGKILL", 2)
        server.until("ERROR .* a worker process cannot be started: Too many open files: tried again until one can$")
        assert server.post(samples.update(2), telegram).status == 200
        [reason] = ask(asking, "/readyz")["reasons"]
        assert reason == {
            "code": "no_worker",
            "words": "no worker process can handle updates: a worker process cannot be started: Too many open files",
        }
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        server.until("is ready$", 4)
        assert server.post(samples.update(3), telegram).status == 200
    assert len(children(server)) == 2
    assert len(server.find("cannot be started")) == 1
    assert ops.metrics()["fasthook_worker_start_failures_total"] >= 1
    assert ops.ready() == (200, [])
    assert server.stop() == 0
    assert sorted(one.update_id for one in bot.handled) == [1, 2, 3]
    assert not server.find("Traceback")


def test_no_room_for_new_code(start: Start, bot: Bot) -> None:
    server = start("--secret", SECRET, "--workers", "2", "--queue", "memory:")
    pid = server.process.pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    used = max(int(one.name) for one in Path(f"/proc/{pid}/fd").iterdir())
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + 1, before[1]))
    server.signal(signal.SIGHUP)
    server.until("the new code does not start, the old workers go on: a worker process cannot be started: Too many")
    os.kill(worker_pids(server)[0], signal.SIGTERM)
    server.until(r"worker \d .* goes on: a worker process cannot be started: Too many open files$")
    resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    server.signal(signal.SIGHUP)
    server.until("reloaded: workers")
    assert server.post(samples.update(1)).status == 200
    assert server.stop() == 0
    assert [one.update_id for one in bot.handled] == [1]


def ask(connection: http.client.HTTPConnection, path: str) -> dict[str, Any]:
    connection.request("GET", path)
    said: dict[str, Any] = json.loads(answer(connection).body)
    return said


def test_a_bot_that_hangs_at_the_first_start(bot: Bot) -> None:
    """The log says where, and the start fails with one line."""
    with (bot.directory / "bot.py").open("a") as file:
        file.write("\n\n__import__('time').sleep(3600)\n")
    ended = fasthook(bot.directory, "run", "bot:handler", "--port", "0", "--workers", "2", "--worker-timeout", "1s")
    assert ended.code == 1
    words = "has not come to the end of its start in 10 s"
    assert ended.line == f"fasthook: the bot {words}: --worker-timeout gives it longer"
    assert ended.lines[-1] == ended.line
    assert (
        len([line for line in ended.lines if line.endswith(f"{words}: it tells where it is, then it is killed")]) == 2
    )
    assert len([line for line in ended.lines if 'bot.py", line ' in line and line.endswith(" in <module>")]) == 2
    assert len([line for line in ended.lines if "Traceback" in line or "died" in line]) == 0


def test_a_reload_leaves_no_worker_too_many(start: Start, bot: Bot) -> None:
    """One that waited for its turn to be started again is not wanted any more."""
    server = start("--secret", SECRET, "--workers", "2")
    good = (bot.directory / "bot.py").read_text()
    (bot.directory / "bot.py").write_text(TRIED)
    os.kill(worker_pids(server)[0], signal.SIGKILL)
    wait_until(lambda: tries(bot) >= 4)
    (bot.directory / "bot.py").write_text(good)
    server.signal(signal.SIGHUP)
    server.until("reloaded: workers")

    def new() -> list[int]:
        return [pid for pid in children(server) if pid not in worker_pids(server)[:2]]

    wait_until(lambda: len(new()) == 2)  # a try that was under way when the new ones took over ends with them
    end = time.monotonic() + 3.0  # the fifth would be 1.6 s after the fourth
    while time.monotonic() < end:
        assert len(new()) <= 2
        time.sleep(0.02)
    wait_until(lambda: len(children(server)) == 2)
    assert server.stop() == 0


#: What does not start, and counts how often that was tried.
TRIED = "with open('tries', 'a') as file:\n    file.write('.')\nraise ImportError('not now')\n"


def tries(bot: Bot) -> int:
    file = bot.directory / "tries"
    return len(file.read_text()) if file.exists() else 0


def wait_until(condition: Callable[[], object]) -> None:
    asyncio.run(until(condition))
