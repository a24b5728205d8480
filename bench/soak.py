"""`python -m bench.soak`: millions of requests against `fasthook run`, and its memory over time.

    python -m bench.soak --requests 2000000
    python -m bench.soak --requests 10000000 --http asgi      # what it doesn't know is an option of `fasthook run`

New updates in pipelined batches, and among them duplicates, chunked bodies, wrong secrets, unknown paths; connections
come and go. It prints the resident memory of the server as it goes, and ends with 1 if that has grown by more than
`--allowed` MiB since the first quarter, in which the duplicate ring and the allocator fill up.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

SECRET = "soak-secret"
BOT = "async def handler(update):\n    pass\n"
BATCH = 100  # requests that a connection sends at once, the last of them for an unknown path
BATCHES_A_CONNECTION = 50
LAST_ANSWER = b"no hook is at this path\n"
REPORTS = 20

HEAD = b"POST /webhook HTTP/1.1\r\nHost: soak\r\nX-Telegram-Bot-Api-Secret-Token: %b\r\n%b\r\n\r\n"
BODY = (
    b'{"update_id":%d,\n"message":{"message_id":%d,"from":{"id":%d,"is_bot":false,"first_name":"Ada"},'
    b'"chat":{"id":%d,"type":"private"},"date":1760000000,"text":"a message of no great length, as most are"}}'
)
END = b"GET /soak HTTP/1.1\r\nHost: soak\r\n\r\n"


class SoakError(Exception):
    """The server does not serve. The message is one line."""


@dataclass
class Progress:
    """What has been sent and answered so far, and the memory that was seen at each report."""

    wanted: int
    sent: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    memory: list[tuple[int, int]] = field(default_factory=list)  # requests answered, bytes
    failed: str = ""

    @property
    def answered(self) -> int:
        return self.statuses.total()

    def grown(self) -> int:
        """Bytes that the memory has grown by since the first quarter."""
        early = [size for done, size in self.memory if done <= self.wanted / 4]
        late = [size for done, size in self.memory if done >= self.wanted * 3 / 4]
        return max(late) - max(early) if early and late else 0


def one(update_id: int, *, secret: str = SECRET, chunked: bool = False) -> bytes:
    """A request with an update of its own."""
    chat = 700_000_000 + update_id % 1000
    body = BODY % (update_id, update_id, chat, chat)
    if chunked:
        half = len(body) // 2
        body = b"%x\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (half, body[:half], len(body) - half, body[half:])
    framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % len(body)
    return HEAD % (secret.encode(), framing) + body


def batch(ids: Iterator[int]) -> bytes:
    """New updates, two of them again, one chunked, one with a wrong secret, and an end that is easy to see."""
    new = [next(ids) for _ in range(BATCH - 5)]
    odd = [one(new[0]), one(new[1]), one(next(ids), chunked=True), one(0, secret="wrong")]
    return b"".join([*map(one, new), *odd, END])


def resident(pid: int) -> int:
    """Bytes of memory that a process has in use."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0]) * 1024


async def client(port: int, ids: Iterator[int], progress: Progress) -> None:
    """Connect, send batches, count the answers, connect again, until as many were sent as are wanted."""
    while progress.sent < progress.wanted:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
        for _ in range(BATCHES_A_CONNECTION):
            if progress.sent >= progress.wanted:
                break
            progress.sent += BATCH
            writer.write(batch(ids))
            answers = await reader.readuntil(LAST_ANSWER)
            count(answers, progress.statuses)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def count(answers: bytes, statuses: Counter[int]) -> None:
    for status in (200, 401, 404, 503):
        statuses[status] += answers.count(b"HTTP/1.1 %d " % status)


async def watch(process: subprocess.Popen[bytes], progress: Progress) -> None:
    """Note the memory at each report, and print it."""
    begun = time.monotonic()
    print(f"{'requests':>12} {'MiB':>8} {'a second':>10}")
    for number in itertools.count(1):
        while progress.answered < min(progress.wanted, number * progress.wanted // REPORTS):
            if process.poll() is not None:
                raise SoakError(f"the server ended with {process.returncode}")
            await asyncio.sleep(0.05)
        size = resident(process.pid)
        progress.memory.append((progress.answered, size))
        rate = progress.answered / (time.monotonic() - begun)
        print(f"{progress.answered:>12,} {size / 2**20:>8.1f} {rate:>10,.0f}", flush=True)
        if progress.answered >= progress.wanted:
            return


async def load(process: subprocess.Popen[bytes], port: int, connections: int, progress: Progress) -> None:
    ids = itertools.count(1)
    async with asyncio.TaskGroup() as tasks:
        for _ in range(connections):
            tasks.create_task(client(port, ids, progress))
        tasks.create_task(watch(process, progress))


@contextlib.contextmanager
def server(options: list[str]) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """`fasthook run` on a socket that listens already, and its port."""
    with tempfile.TemporaryDirectory() as directory, socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        (Path(directory) / "bot.py").write_text(BOT)
        command = [sys.executable, "-m", "fasthook", "run", "bot:handler", "--fd", str(listener.fileno())]
        command += ["--queue", "memory:", "--secret", SECRET, "--auth-rate", "off", *options]
        process = subprocess.Popen(command, cwd=directory, pass_fds=[listener.fileno()])
        try:
            yield process, listener.getsockname()[1]
        finally:
            process.terminate()
            process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description="The memory of the server over time.")
    parser.add_argument("--requests", type=int, default=2_000_000)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument(
        "--allowed", type=float, default=2.0, help="MiB that the memory may grow after the first quarter"
    )
    arguments, options = parser.parse_known_args()
    progress = Progress(arguments.requests)
    with server(options) as (process, port):
        try:
            asyncio.run(load(process, port, arguments.connections, progress))
        except* (SoakError, OSError, asyncio.IncompleteReadError) as errors:
            progress.failed = str(errors.exceptions[0])
    if progress.failed:
        print(f"soak: {progress.failed}", file=sys.stderr)
        return 1
    grown = progress.grown() / 2**20
    print(", ".join(f"{n:,} answers {status}" for status, n in sorted(progress.statuses.items()) if n))
    print(f"grown by {grown:.1f} MiB since the first quarter, allowed are {arguments.allowed:g}")
    return int(grown > arguments.allowed)


if __name__ == "__main__":
    raise SystemExit(main())
