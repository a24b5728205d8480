"""`python -m bench.slow`: what slow clients cost the others.

`fasthook run` on one core gets updates at a steady rate over 16 connections, alone and beside so many slow clients in
turn. A third of these each drips a head, drips a body, and leaves its answers unread; who is thrown out comes again.
Printed: p50 and p99 of the others' latency, and the ratio of the p99s. A busy machine makes both worse, so the median
of the ratios is what counts.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.peers.install import build

from fasthook import descriptors

_SECRET = "bench"
_HEAD = f"POST /webhook HTTP/1.1\r\nHost: a\r\nX-Telegram-Bot-Api-Secret-Token: {_SECRET}\r\n"
_BOT = "async def handler(update):\n    pass\n"
_CONNECTIONS = 16


def _template() -> bytes:
    """A request as `steady.c` wants it."""
    body = (
        '{"update_id":IIIIIIIII,"message":{"message_id":1,"date":0,"chat":{"id":CCCCCCCCC,"type":"private"},'
        f'"text":"{"x" * 380}"}}}}'
    )
    return f"{_HEAD}Content-Length: {len(body)}\r\n\r\n{body}".encode()


def _steady(port: int, first_id: int, template: Path, rate: int, seconds: int) -> tuple[float, float]:
    """p50 and p99 in ms of updates at a steady rate."""
    numbers = (first_id, rate, seconds, _CONNECTIONS)
    command = [str(build("steady")), str(port), str(template), *(str(number) for number in numbers)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    if found["refused"] or found["broken"] or found["unanswered"]:
        raise SystemExit(f"updates were not accepted: {found}")
    return found["p50_ms"], found["p99_ms"]


async def _slow(port: int, kind: int) -> None:
    """A client that never comes to an end, and comes again when it is thrown out."""
    first = [
        _HEAD.encode() + b"X: ",
        _HEAD.encode() + b"Content-Length: 100000\r\n\r\n",
        b"GET /unread HTTP/1.1\r\nHost: a\r\n\r\n" * 200,
    ]
    loop = asyncio.get_running_loop()
    while True:
        with socket.socket() as one, contextlib.suppress(OSError):
            one.setblocking(False)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            await loop.sock_connect(one, ("127.0.0.1", port))
            await loop.sock_sendall(one, first[kind])
            while True:
                await asyncio.sleep(1)
                await loop.sock_sendall(one, b"x" if kind < 2 else first[2][:32])
        await asyncio.sleep(1)


async def _crowd(port: int, count: int) -> None:
    await asyncio.gather(*(_slow(port, n % 3) for n in range(count)))


@contextlib.contextmanager
def _beside(port: int, count: int) -> Iterator[None]:
    """So many slow clients, in a process of their own."""
    crowd = subprocess.Popen([sys.executable, "-m", "bench.slow", "--crowd", str(port), "--count", str(count)])
    try:
        time.sleep(2)  # all are connected, and the first have dripped
        yield
    finally:
        crowd.terminate()
        crowd.wait()


def _measure(port: int, template: Path, given: argparse.Namespace) -> None:
    ratios: list[float] = []
    first = 100_000_000
    for number in range(given.rounds):
        alone = _steady(port, first, template, given.rate, given.seconds)
        with _beside(port, given.count):
            beside = _steady(port, first + 50_000_000, template, given.rate, given.seconds)
        first += 100_000_000
        ratios.append(beside[1] / alone[1])
        words = (
            f"{name} p50 {p50:.2f} ms, p99 {p99:.2f} ms" for name, (p50, p99) in (("alone", alone), ("beside", beside))
        )
        print(f"round {number + 1}: {'; '.join(words)}; p99 x {ratios[-1]:.2f}", flush=True)
    print(f"{given.count} slow clients, {given.rate} updates/s: p99 x {statistics.median(ratios):.2f} (median)")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.slow", description=__doc__)
    parser.add_argument("--count", type=int, default=1500, help="slow clients (default: 1500)")
    parser.add_argument("--rate", type=int, default=1000, help="updates a second (default: 1000)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: 3)")
    parser.add_argument("--seconds", type=int, default=2, help="of each half of a round (default: 2)")
    parser.add_argument("--crowd", type=int, metavar="PORT", help="be the slow clients")
    given = parser.parse_args()
    descriptors.raise_limit()
    if given.crowd:
        return asyncio.run(_crowd(given.crowd, given.count))
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as directory, socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        Path(directory, "bot.py").write_text(_BOT)
        template = Path(directory, "request")
        template.write_bytes(_template())
        fd = str(listener.fileno())
        options = ["--fd", fd, "--queue", "memory:", "--secret", _SECRET, "--no-ops", "--header-timeout", "5"]
        server = subprocess.Popen(
            [sys.executable, "-m", "fasthook", "run", "bot:handler", *options],
            cwd=directory,
            pass_fds=[listener.fileno()],
            stderr=subprocess.DEVNULL,
        )
        try:
            os.sched_setaffinity(server.pid, cores[:1])
            os.sched_setaffinity(0, cores[1:] or cores)
            _measure(listener.getsockname()[1], template, given)
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
