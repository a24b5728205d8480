"""Hooks that are served for a test: in a thread of this process, or by `fasthook run` in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn
import uvloop

from fasthook import Hook, Update

PROTOCOL = "fasthook._protocol:HookProtocol"
SECRET = "edge-secret"
PATIENCE = 10.0  # seconds that a test waits for something before it fails
START = 60.0  # the same for what a process says, which may have to be loaded first
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "uvloop": uvloop.new_event_loop,
    "asyncio": asyncio.new_event_loop,
}


@dataclass(frozen=True)
class Certificate:
    """A server's certificate chain with its key in one file, and a client's context that trusts it."""

    chain: Path
    client: ssl.SSLContext


class Seen:
    """A handler that keeps what it was given."""

    def __init__(self) -> None:
        self._raws: dict[int, bytes] = {}
        self._times: Counter[int] = Counter()
        self._changed = threading.Condition()

    async def __call__(self, update: Update) -> None:
        with self._changed:
            self._raws[update.update_id] = update.raw
            self._times[update.update_id] += 1
            self._changed.notify_all()

    def wait_for(self, update_id: int) -> bytes:
        """The body of this update, once the handler has it."""
        with self._changed:
            if not self._changed.wait_for(lambda: update_id in self._raws, PATIENCE):
                raise AssertionError(f"the handler never got update {update_id}")
            return self._raws[update_id]

    def times(self, update_id: int) -> int:
        """How often the handler was given this update by now."""
        with self._changed:
            return self._times[update_id]

    def __len__(self) -> int:
        return len(self._raws)


class _Uvicorn(uvicorn.Server):
    """uvicorn in a thread: no signal handlers, and it tells when it has started."""

    def __init__(self, config: uvicorn.Config, begun: Callable[[], None]) -> None:
        super().__init__(config)
        self._begun = begun

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._begun()


class Served:
    """A hook behind a listening socket, in a thread with an event loop of its own.

    `options`: those of `uvicorn.Config`. `settings`: those of `Hook`.
    """

    def __init__(
        self,
        state_dir: Path,
        *,
        loop: str = "uvloop",
        certificate: Certificate | None = None,
        handler: Any = None,
        listener: socket.socket | None = None,
        options: dict[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        self.loop_name = loop
        self.certificate = certificate
        self.seen = Seen()
        given = {"secret": SECRET, "auth_rate": "off", "drain_timeout": 5} | settings
        self.hook = Hook(handler or self.seen, state_dir=state_dir, **given)
        self.listener = listener or socket.create_server(("127.0.0.1", 0), backlog=2048)
        self.address = self.listener.getsockname()
        self.family = self.listener.family
        chain = {"ssl_certfile": certificate.chain} if certificate else {}
        plain = {"server_header": False, "date_header": False, "proxy_headers": False, "access_log": False}
        config = {"http": PROTOCOL, "ws": "none", "lifespan": "on", "log_config": None} | plain | chain
        self._ready: queue.Queue[BaseException | None] = queue.Queue()
        self.server = _Uvicorn(uvicorn.Config(self.hook, **(config | (options or {}))), lambda: self._ready.put(None))
        self._thread = threading.Thread(target=self._run, name="edge", daemon=True)
        self._thread.start()
        if error := self._ready.get(timeout=PATIENCE):
            raise error

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=LOOPS[self.loop_name]) as runner:
                runner.run(self._serve())
        except BaseException as error:
            self._ready.put(error)

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        await self.server.serve(sockets=[self.listener])

    def settle(self) -> None:
        """Return when the server has read all that was sent until now."""
        # A callback that another thread schedules may run before the sockets of that turn are read, the third
        # turn after it can't.
        done = threading.Event()

        def hop(left: int) -> None:
            if left:
                self.loop.call_soon(hop, left - 1)
            else:
                done.set()

        self.loop.call_soon_threadsafe(hop, 3)
        if not done.wait(PATIENCE):
            raise AssertionError("the server's loop is stuck")

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function in the server's loop, and return what it returns."""

        async def calling() -> Any:
            return function(*arguments)

        return asyncio.run_coroutine_threadsafe(calling(), self.loop).result(PATIENCE)

    def ask_to_stop(self) -> None:
        """What the first SIGTERM does."""
        self.loop.call_soon_threadsafe(setattr, self.server, "should_exit", True)

    def join(self) -> None:
        """Wait until the server has stopped; the error it stopped with is raised."""
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "the server does not stop"
        if not self._ready.empty() and (error := self._ready.get()):
            raise error

    def stop(self) -> None:
        if self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # the loop may have ended by itself
                self.ask_to_stop()
        self.join()


class Process:
    """A server in a process of its own. `listener`: a socket that it inherits; `address`: where it will listen."""

    def __init__(
        self,
        command: list[str],
        cwd: Path,
        *,
        listener: socket.socket | None = None,
        address: tuple[Any, ...] | str = "",
        family: int = socket.AF_INET,
        certificate: Certificate | None = None,
    ) -> None:
        self.address = listener.getsockname() if listener else address
        self.family = listener.family if listener else family
        self.certificate = certificate
        environment = {k: v for k, v in os.environ.items() if not k.startswith("FASTHOOK_") and k != "BOT_TOKEN"}
        self.process = subprocess.Popen(
            [sys.executable, *command],
            cwd=cwd,
            env=environment | {"PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[listener.fileno()] if listener else [],
            text=True,
        )
        self._lines: list[str] = []
        self._more = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._more:
                self._lines.append(line)
                self._more.notify_all()
        with self._more:
            self._ended = True
            self._more.notify_all()

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Return when the process has written something that matches."""

        def found() -> re.Match[str] | None:
            return re.search(pattern, self.output)

        with self._more:
            self._more.wait_for(lambda: found() or self._ended, START)
            match = found()
        assert match, f"the server did not write {pattern!r}:\n{self.output}"
        return match

    @property
    def output(self) -> str:
        """What the process has written."""
        return "".join(self._lines)

    @property
    def resident(self) -> int:
        """Bytes of memory in use now; the test is skipped where there is no /proc."""
        if sys.platform != "linux":
            pytest.skip("memory is counted in /proc")
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(text.partition("VmRSS:")[2].split()[0]) * 1024

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, wait for the end; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"the server does not stop:\n{self.output}") from None
        finally:
            self._reader.join(PATIENCE)
            assert self.process.stdout is not None
            if not self._reader.is_alive():  # else this would wait for it
                self.process.stdout.close()
        return code


BOT = f"""\
from fasthook import Hook

async def handler(update):
    pass

hook = Hook(handler, secret="{SECRET}", queue="memory:", auth_rate="off", keep_alive=60)
"""
RUN = ["-m", "fasthook", "run", "bot:handler", "--queue", "memory:", "--secret", SECRET, "--auth-rate", "off"]


def bot_in(directory: Path) -> Path:
    """The directory, with a module `bot` in it."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "bot.py").write_text(BOT)
    return directory


def fasthook_run(directory: Path, *options: str, certificate: Certificate | None = None) -> Process:
    """`fasthook run` on a socket that listens already; it serves when this returns."""
    bot_in(directory)
    tls = ["--ssl-certfile", str(certificate.chain)] if certificate else []
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        command = [*RUN, "--fd", str(listener.fileno()), *tls, *options]
        process = Process(command, directory, listener=listener, certificate=certificate)
    try:
        process.wait_for("fasthook serves")
    except BaseException:
        process.stop(signal.SIGKILL)
        raise
    return process
