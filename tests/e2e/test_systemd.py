"""What a service manager sees: sockets handed over, and what it is told."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from e2e.bot import Bot
from e2e.process import COMMAND, PATIENCE, SECRET, Server, environment
from e2e.steady import until, worker_pids
from e2e.telegram import Connection
from fasthook.testing import samples

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="systemd is Linux's")
Start = Callable[..., Server]
TO_ASK = 1.0  # seconds that a server which stops waits for the request of who has just come
UNITS = Path(__file__).parents[2] / "deploy" / "systemd"

#: Puts the inherited descriptors where systemd puts them, and says whose they are.
HAND_OVER = """
import os, sys
count = int(sys.argv[1])
given = [os.dup(int(fd)) for fd in sys.argv[2 : 2 + count]]
moved = [os.dup2(fd, 100 + n) for n, fd in enumerate(given)]
for n, fd in enumerate(moved):
    os.dup2(fd, 3 + n)
os.environ["LISTEN_FDS"] = str(count)
os.environ["LISTEN_PID"] = os.environ.get("PRETEND", str(os.getpid()))
os.execv(sys.argv[2 + count], sys.argv[2 + count :])
"""


class Manager:
    """The other end of NOTIFY_SOCKET."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._socket.settimeout(PATIENCE)
        self.address = address

    def next(self) -> str:
        """What it is told next, but for the watchdog's food."""
        while (text := self._socket.recv(4096).decode()) == "WATCHDOG=1":
            pass
        return text

    def fed(self) -> bool:
        return self._socket.recv(4096) == b"WATCHDOG=1"

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    made = Manager(f"@fasthook-test-{os.getpid()}" if request.param == "abstract" else str(tmp_path / "notify"))
    yield made
    made.close()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_it_is_told_of_start_reload_and_stop(start: Start, manager: Manager, workers: str) -> None:
    server = start("--workers", workers, env={"NOTIFY_SOCKET": manager.address})
    assert manager.next() == "READY=1"
    if workers == "2":
        server.signal(signal.SIGHUP)
        assert re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=\d+", manager.next())
        server.until("reloaded: workers")
        assert manager.next() == "READY=1"
    assert server.stop() == 0
    assert manager.next() == "STOPPING=1"


def test_a_reload_that_fails_is_over_too(start: Start, bot: Bot, manager: Manager) -> None:
    server = start("--workers", "2", env={"NOTIFY_SOCKET": manager.address})
    assert manager.next() == "READY=1"
    (bot.directory / "bot.py").write_text("1 / 0\n")
    server.signal(signal.SIGHUP)
    assert manager.next().startswith("RELOADING=1")
    assert manager.next() == "READY=1"
    server.until("the new code does not start")
    assert server.stop() == 0


def test_the_watchdog_is_fed(start: Start, manager: Manager) -> None:
    server = start(env={"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "100000"})
    assert manager.next() == "READY=1"
    assert all(manager.fed() for _ in range(3))
    assert server.stop() == 0


def test_another_process_watchdog_is_not(start: Start, manager: Manager) -> None:
    server = start(env={"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"})
    assert server.post(samples.update(1)).status in (200, 401)
    assert server.stop() == 0
    assert manager.next() == "READY=1"
    assert not manager.fed()  # STOPPING=1


def test_a_manager_that_is_gone_is_no_trouble(start: Start) -> None:
    assert start(env={"NOTIFY_SOCKET": "/nowhere/notify"}).stop() == 0


def test_workers_do_not_get_the_managers_variables(start: Start, manager: Manager) -> None:
    server = start("--workers", "2", env={"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "10000000"})
    for pid in worker_pids(server):
        its = Path(f"/proc/{pid}/environ").read_bytes()
        assert b"NOTIFY_SOCKET" not in its
        assert b"WATCHDOG" not in its
    assert server.stop() == 0


# ---------------------------------------------------------------- sockets


def handed(bot: Bot, listeners: list[socket.socket], *options: str, env: dict[str, str] | None = None) -> Server:
    fds = [listener.fileno() for listener in listeners]
    prefix = [sys.executable, "-c", HAND_OVER, str(len(fds)), *map(str, fds)]
    return Server(bot.directory, "bot:handler", "--secret", SECRET, *options, env=env, prefix=prefix, fds=fds)


def test_several_sockets_and_a_restart_that_refuses_nobody(bot: Bot) -> None:
    unix = str(bot.directory / "hook.sock")
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as local:
        local.bind(unix)
        local.listen()
        server = handed(bot, [tcp, local], "--workers", "2")
        try:
            assert server.address == tcp.getsockname()
            server.until(f"^fasthook serves unix:{re.escape(unix)}/webhook$")
            assert server.post(samples.update(1)).status == 200
            server.uds = unix
            assert server.post(samples.update(2)).status == 200
            assert server.stop() == 0
            waiting = socket.create_connection(tcp.getsockname(), PATIENCE)  # nobody is there, and it is not refused
        finally:
            server.kill()
        server = handed(bot, [tcp, local])
        try:
            waiting.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert waiting.recv(100).startswith(b"HTTP/1.1 404 ")
            waiting.close()
            assert server.stop() == 0
        finally:
            server.kill()
    assert sorted(one.update_id for one in bot.handled) == [1, 2]


@pytest.mark.parametrize("options", [["--workers", "2"], ["--http", "asgi"]], ids=["compiled", "asgi"])
def test_clients_connect_all_through_restarts(bot: Bot, options: list[str]) -> None:
    """Each update on a connection of its own, and each is answered with 200, by the server before or the one after."""
    said: list[object] = []
    going = True

    async def client(number: int, where: tuple[str, int]) -> None:
        update_id = number * 1_000_000
        while going:
            begun = time.monotonic()
            with closing(Connection(lambda: where)) as connection:
                try:
                    said.append(await connection.post(samples.update(update_id, chat_id=number)))
                except (OSError, EOFError) as error:
                    if time.monotonic() - begun > TO_ASK:
                        continue  # it was held up for longer than one that has just come is waited for
                    said.append(error)
            update_id += 1

    async def restarts(tcp: socket.socket) -> None:
        nonlocal going
        clients = [asyncio.create_task(client(number, tcp.getsockname())) for number in range(1, 21)]
        for left in (3, 2, 1, 0):
            server = await asyncio.to_thread(handed, bot, [tcp], *options)
            try:
                have = len(said)
                await until(lambda have=have: len(said) >= have + 200)
                if left == 0:  # who has connected when the last one stops would wait for one that never comes
                    going = False
                    await asyncio.wait_for(asyncio.gather(*clients), PATIENCE)
                assert await asyncio.to_thread(server.stop) == 0
            finally:
                server.kill()

    with socket.create_server(("127.0.0.1", 0), backlog=1024) as tcp:
        asyncio.run(restarts(tcp))
    assert Counter(said) == {200: len(said)}
    assert len({one.update_id for one in bot.handled}) == len(said)


def test_sockets_of_another_process_are_left_alone(bot: Bot) -> None:
    with socket.create_server(("127.0.0.1", 0)) as tcp:
        server = handed(bot, [tcp], "--port", "0", env={"PRETEND": "1"})
        try:
            assert server.address != tcp.getsockname()
            assert server.stop() == 0
        finally:
            server.kill()


def test_a_socket_that_cannot_be_used(bot: Bot) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        fd = datagrams.fileno()
        done = subprocess.run(
            [sys.executable, "-c", HAND_OVER, "1", str(fd), str(COMMAND), "run", "bot:handler"],
            cwd=bot.directory, env=environment(), pass_fds=[fd], capture_output=True, text=True, timeout=PATIENCE,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "fasthook: the sockets of the service manager cannot be used: "
        "descriptor 3 is no listening stream socket: the .socket unit needs ListenStream="
    ]


def test_the_units_are_valid(tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        if os.environ.get("CI") == "true":
            pytest.fail("systemd-analyze is not installed")
        pytest.skip("systemd-analyze is not installed")
    for unit in UNITS.iterdir():
        text = unit.read_text().replace("/srv/bot/.venv/bin/fasthook", str(COMMAND))
        (tmp_path / unit.name).write_text(text)
    units = [str(tmp_path / name) for name in ("fasthook.service", "fasthook.socket")]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True, timeout=PATIENCE
    )
    said = [line for line in done.stderr.splitlines() if "fasthook" in line]
    assert (done.returncode, said) == (0, []), done.stderr
