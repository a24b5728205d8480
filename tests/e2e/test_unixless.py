"""Without what only Unix has, as on Windows: everything can be imported, and one process serves a bot."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from e2e.bot import Bot
from e2e.process import COMMAND, LONG, SECRET, Server, environment
from fasthook.testing import samples

UNIXLESS = Path(__file__).with_name("unixless.py")
PREFIX = [sys.executable, "-P", str(UNIXLESS)]  # -P: the folder has a telegram.py of its own


@pytest.fixture
def start(bot: Bot) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def started(*options: str) -> Server:
        arguments = ("bot:handler", "--port", "0", "--secret", SECRET, *options)
        servers.append(Server(bot.directory, *arguments, prefix=PREFIX))
        return servers[-1]

    yield started
    for server in servers:
        server.kill()


def run(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command that ends by itself."""
    command = [*PREFIX, *arguments]
    return subprocess.run(
        command, cwd=directory, env=environment(), capture_output=True, text=True, timeout=LONG, check=False
    )


def test_every_module_can_be_imported(tmp_path: Path) -> None:
    ended = run(tmp_path, "--load-all")
    assert ended.returncode == 0, ended.stderr
    assert {"fasthook.server", "fasthook.queues.probe", "fasthook.cli.simulate"} <= set(ended.stdout.split())


@pytest.mark.parametrize("queue", ["memory:", "journal:kept"])
def test_a_bot_is_served(start: Callable[..., Server], bot: Bot, queue: str) -> None:
    server = start("--queue", queue, "--dedup-size", "1024")
    assert server.post(samples.update(1)).status == 200
    assert server.stop() == 0
    server = start("--queue", queue, "--dedup-size", "2048")
    assert server.post(samples.update(1)).status == 200
    assert server.post(samples.update(2)).status == 200
    assert server.stop() == 0
    assert [one.update_id for one in bot.handled] == [1, 2]


def test_the_ops_server_answers(start: Callable[..., Server], bot: Bot) -> None:
    server = start("--ops", "127.0.0.1:0")
    assert server.until(r"^  ops     (http://\S+)$")
    assert server.stop() == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--workers", "2"], "--workers, --max-requests and --reload: worker processes need Linux or macOS"),
        (["--uds", "hook.sock"], "--uds: this system has no Unix sockets"),
        (["--ops", "unix:ops.sock"], "--ops: this system has no Unix sockets"),
    ],
)
def test_what_needs_unix_is_refused_in_a_line(bot: Bot, arguments: list[str], said: str) -> None:
    ended = run(bot.directory, str(COMMAND), "run", "bot:handler", "--port", "0", *arguments)
    assert ended.returncode == 2, ended.stderr
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_tool_says_that_the_server_must_stop_first(start: Callable[..., Server], bot: Bot) -> None:
    """There is no control socket."""
    server = start()
    server.until("no control socket|without a control socket|this system has no Unix sockets")
    ended = run(bot.directory, str(COMMAND), "queue", "stats")
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert str(server.process.pid) in ended.stderr
    assert server.stop() == 0
    assert run(bot.directory, str(COMMAND), "queue", "stats").returncode == 0


def test_the_simulator_runs(tmp_path: Path) -> None:
    ended = run(tmp_path, str(COMMAND), "simulate", "--port", "0", "--duration", "0.1")
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
