"""The installed command in a process of its own."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

COMMAND = Path(sys.executable).with_name("fasthook")
SECRET = "e2e-secret"
PATIENCE = 60.0  # seconds that a test waits for something before it fails
LONG = 240.0  # the same for a thousand things one after the other, and for the import of a large library


def environment(**more: str) -> dict[str, str]:
    """What a process gets: none of the settings and proxies of who runs the tests, no ops server unless it says so."""
    ours = re.compile(r"FASTHOOK_.*|BOT_TOKEN|.*_proxy", re.IGNORECASE)
    return {name: value for name, value in os.environ.items() if not ours.fullmatch(name)} | {
        "FASTHOOK_OPS": "off",
        **more,
    }


@contextlib.contextmanager
def killed_in_the_end(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> Iterator[None]:
    """Inside, a process lives for `LONG` at most: who reads what it says comes to the end of that."""
    timer = threading.Timer(LONG, process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        process.kill()
        process.wait(PATIENCE)


@dataclass(frozen=True)
class Ended:
    """A command that came to its end by itself."""

    code: int
    lines: tuple[str, ...]  # standard error
    output: str = ""  # standard output

    @property
    def line(self) -> str:
        """The one line that a person is told."""
        said = [line for line in self.lines if line.startswith("fasthook:")]
        assert len(said) == 1, self.lines
        return said[0]


def fasthook(directory: Path, *arguments: str, env: Mapping[str, str] | None = None) -> Ended:
    """Run a command that ends by itself."""
    command = [str(COMMAND), *arguments]
    done = subprocess.run(
        command,
        cwd=directory,
        env=environment(**(env or {})),
        capture_output=True,
        text=True,
        timeout=LONG,
        check=False,
    )
    return Ended(done.returncode, tuple(done.stderr.splitlines()), done.stdout)


@dataclass(frozen=True)
class Response:
    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes


class Server:
    """`fasthook run` with these arguments. It is ready when this returns.

    `prefix`: a command that runs the command. `fds`: descriptors that it inherits.
    """

    command = "run"
    banner = r"fasthook serves (?:https?://\[?([^/]+?)\]?:(\d+)|unix:([^:]+?))(/[^\s,\x22]*)"

    def __init__(
        self,
        directory: Path,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
        fds: Sequence[int] = (),
    ) -> None:
        self.directory = directory
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._ended = False
        self.process = subprocess.Popen(
            [*prefix, str(COMMAND), self.command, *arguments],
            cwd=directory,
            pass_fds=fds,
            env=environment(**(env or {})),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            banner = self.until(self.banner)
        except BaseException:
            self.kill()
            raise
        if self.command != "run":
            return
        host, port, self.uds, self.path = banner.groups()
        self.address = (host, int(port)) if port else ("", 0)

    def _read(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def find(self, pattern: str) -> list[re.Match[str]]:
        """What matches on standard error until now."""
        return [found for line in list(self.lines) if (found := re.search(pattern, line))]

    def until(self, pattern: str, count: int = 1) -> re.Match[str]:
        """Wait for so many lines on standard error that match, for PATIENCE each; the last of them."""
        matches: list[re.Match[str]] = []
        with self._changed:
            while len(matches) < count:
                come = len(matches) + 1
                self._changed.wait_for(lambda: len(self.find(pattern)) >= come or self._ended, PATIENCE)  # noqa: B023
                matches = self.find(pattern)
                lines = [f"{len(matches)} of {count} lines match {pattern!r} in:", *self.lines]
                assert len(matches) >= come, "\n".join(lines)
        return matches[count - 1]

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """Wait for the end; the exit code."""
        code = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return code

    def stop(self) -> int:
        """Stop as a service manager does, and wait for the end."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """End it at once, and wait for the end of its workers, which see that it is gone."""
        self.process.kill()
        self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        if self._reader.is_alive():
            lines = ["others have its standard error:", *_writers_of(self.process), "it said:", *self.lines]
            raise AssertionError("\n".join(lines))
        assert self.process.stderr
        self.process.stderr.close()

    # ------------------------------------------------------------ requests

    def connect(self) -> http.client.HTTPConnection:
        """A new connection."""
        if not self.uds:
            return http.client.HTTPConnection(*self.address, timeout=PATIENCE)
        connection = http.client.HTTPConnection("localhost", timeout=PATIENCE)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(str(self.directory / self.uds))
        return connection

    def post(self, body: bytes, connection: http.client.HTTPConnection | None = None) -> Response:
        """Post an update as Telegram does, on a connection of its own if none is given."""
        return self.ask("POST", self.path, body, {"X-Telegram-Bot-Api-Secret-Token": SECRET}, connection)

    def ask(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        connection: http.client.HTTPConnection | None = None,
    ) -> Response:
        used = connection or self.connect()
        try:
            used.request(method, path, body, dict(headers or {}))
            return answer(used)
        finally:
            if connection is None:
                used.close()


class Polling(Server):
    """`fasthook poll` with these arguments. It polls when this returns."""

    command = "poll"
    banner = r"fasthook polls https?://\S+ for bot \d+"


def _writers_of(process: subprocess.Popen[str]) -> list[str]:
    """The processes that hold the standard error of one that has ended, where /proc tells; they are killed."""
    assert process.stderr
    pipe, found = os.fstat(process.stderr.fileno()), []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if place.name != str(os.getpid()) and os.path.samestat(pipe, (place / "fd" / "2").stat()):
                status = re.sub(r"\s+", " ", (place / "status").read_text())[:100]
                found.append(f"{place.name}: {(place / 'cmdline').read_bytes().decode(errors='replace')!r} {status}")
                os.kill(int(place.name), signal.SIGKILL)
    return found


def free_port() -> int:
    """A port that nobody has, for who must name one before it is listened on."""
    with socket.create_server(("127.0.0.1", 0)) as one:
        port: int = one.getsockname()[1]
    return port


@contextlib.contextmanager
def reserved_port() -> Iterator[int]:
    """The same, and nobody else gets it meanwhile: on Linux it is bound, to which one more that listens may be bound
    where both have SO_REUSEADDR."""
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        if sys.platform != "linux":
            one.close()
        yield port


def answer(connection: http.client.HTTPConnection) -> Response:
    """The answer to the request that was just sent."""
    response = connection.getresponse()
    body = response.read()
    return Response(response.status, {name.lower(): value for name, value in response.getheaders()}, body)
