"""`python -m bench.durable`: how long an acknowledgement takes that waits for the disk, beside the disk itself.

In turns of two seconds: fdatasync of a file of the same disk after a write of 8 KiB, as fast as it goes; and 1,000
updates/s over 64 connections to `fasthook run` with its journal, counted from when each was due. It ends with 1 if the
99th percentile of the acknowledgements is above three times that of fdatasync.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fasthook.testing import samples

SECRET = "bench-secret"
BOT = "async def handler(update):\n    pass\n"
RATE = 1000
CONNECTIONS = 64
TURN = 2.0  # seconds
MOST = 3.0  # times fdatasync
HEAD = (
    "POST /webhook HTTP/1.1\r\nHost: bench\r\nX-Telegram-Bot-Api-Secret-Token: {}\r\n"
    "Content-Type: application/json\r\nContent-Length: {}\r\nConnection: keep-alive\r\n\r\n"
)


def synced(file: int, seconds: float) -> list[float]:
    """How long fdatasync took, each time."""
    found, end, page = [], time.monotonic() + seconds, os.urandom(8192)
    n = 0
    while time.monotonic() < end:
        os.pwrite(file, page, (n % 4096) * 8192)
        n += 1
        began = time.perf_counter()
        os.fdatasync(file)
        found.append(time.perf_counter() - began)
    return found


class Load:
    """Updates at a fixed rate; `taken`: seconds from when each was due to its acknowledgement."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._update_id = 0
        self._free: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
        self.taken: list[float] = []
        self.latest = 0.0  # how late the load itself was, at worst

    async def connect(self) -> None:
        for _ in range(CONNECTIONS):
            self._free.put_nowait(await asyncio.open_connection("127.0.0.1", self._port))

    async def send(self, seconds: float) -> None:
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for n in range(int(seconds * RATE)):
                due = began + n / RATE
                if (wait := due - time.perf_counter()) > 0:
                    await asyncio.sleep(wait)
                self.latest = max(self.latest, time.perf_counter() - due)
                group.create_task(self._post(due))

    async def _post(self, due: float) -> None:
        self._update_id += 1
        chat = self._update_id % 1000 + 1
        body = samples.update(self._update_id, chat_id=chat, user_id=chat, size=500)
        reader, writer = connection = await self._free.get()
        writer.write(HEAD.format(SECRET, len(body)).encode() + body)
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"an update got {head[:40]!r}")
        self.taken.append(time.perf_counter() - due)
        self._free.put_nowait(connection)


def at(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))] * 1000


async def measure(port: int, file: int, rounds: int) -> tuple[list[float], Load]:
    load, disk = Load(port), list[float]()
    await load.connect()
    await load.send(1.0)
    load.taken.clear()
    load.latest = 0.0
    for _ in range(rounds):
        disk += await asyncio.to_thread(synced, file, TURN)
        await load.send(TURN)
    return disk, load


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.durable", description="Acknowledgements beside fdatasync.")
    parser.add_argument("--rounds", type=int, default=5, help="of two seconds each (5)")
    parser.add_argument("--directory", type=Path, help="on the disk to measure (the temporary directory)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fasthook-bench-", dir=arguments.directory) as name:
        directory = Path(name)
        (directory / "durable_bot.py").write_text(BOT)
        command = [str(Path(sys.executable).with_name("fasthook")), "run", "durable_bot:handler", "--port", "0"]
        server = subprocess.Popen([*command, "--secret", SECRET], cwd=directory, stderr=subprocess.PIPE, text=True)
        file = os.open(directory / "scratch", os.O_RDWR | os.O_CREAT)
        os.posix_fallocate(file, 0, 4096 * 8192)
        try:
            assert server.stderr is not None
            port = next(int(found[1]) for line in server.stderr if (found := re.search(r"http://[^:]+:(\d+)", line)))
            disk, load = asyncio.run(measure(port, file, arguments.rounds))
        finally:
            server.kill()
            server.communicate()
            os.close(file)
    for what, values in (("fdatasync", disk), ("acknowledgement", load.taken)):
        numbers = ", ".join(f"{name} {at(values, share):.2f} ms" for name, share in (("p50", 0.5), ("p99", 0.99)))
        print(f"{what}: {numbers} ({len(values):,} measured)")
    ratio = at(load.taken, 0.99) / at(disk, 0.99)
    print(f"p99 x fdatasync: {ratio:.2f} (goal: {MOST:g}); latest send {load.latest * 1000:.1f} ms")
    return 0 if ratio <= MOST else 1


if __name__ == "__main__":
    sys.exit(main())
