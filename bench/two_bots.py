"""`python -m bench.two_bots`: what a bot feels of another one in the same server whose handlers sleep under a flood.

Two servers with the same two bots. In one of them the first bot gets a flood of updates whose handlers sleep for ten
seconds; in both the second bot gets its updates at a fixed rate, in turns of two seconds, so that both see the same
machine. Counted is the time from a request's receipt, which its acknowledgement follows, to the end of its handler. It
ends with 1 if the 99th percentile beside the flood is above twice the one without.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fasthook.testing import samples

BOT = """
import asyncio, os, struct, time
record = os.open("record", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

async def slow(update):
    await asyncio.sleep(10)

async def quick(update):
    os.write(record, struct.pack("<d", time.time() - update.received_at))
"""
TABLES = "".join(
    f'[[bot]]\ntoken = "{bot}:TEST-bench"\nsecret = "bench"\ntarget = "two_bots:{name}"\n'
    for bot, name in ((1, "slow"), (2, "quick"))
)
HEAD = (
    "POST /webhook/{} HTTP/1.1\r\nHost: bench\r\nX-Telegram-Bot-Api-Secret-Token: bench\r\n"
    "Content-Type: application/json\r\nContent-Length: {}\r\nConnection: keep-alive\r\n\r\n"
)
TURN = 2.0  # seconds
RATE = 200  # updates a second for the second bot
FLOOD = 400  # and for the first
MOST = 2.0


@dataclass(frozen=True)
class Served:
    """A server with both bots."""

    directory: Path
    port: int

    def taken(self) -> list[float]:
        """Seconds, for each update of the second bot."""
        return [value for (value,) in struct.iter_unpack("<d", (self.directory / "record").read_bytes())]


@contextlib.contextmanager
def serving(queue: str) -> Iterator[Served]:
    with tempfile.TemporaryDirectory(prefix="fasthook-bench-") as name:
        directory = Path(name)
        (directory / "two_bots.py").write_text(BOT)
        (directory / "fasthook.toml").write_text(TABLES)
        options = ["--port", "0", "--no-ops", "--queue", queue, "--drain-timeout", "0"]
        command = [str(Path(sys.executable).with_name("fasthook")), "run", *options]
        server = subprocess.Popen(command, cwd=directory, stderr=subprocess.PIPE, text=True)
        try:
            assert server.stderr is not None
            port = next(int(found[1]) for line in server.stderr if (found := re.search(r"http://[^:]+:(\d+)", line)))
            yield Served(directory, port)
        finally:
            server.kill()
            server.communicate()


class Load:
    """Updates of one bot at a fixed rate, over some connections, each from another chat than the one before."""

    def __init__(self, port: int, bot: int, rate: int) -> None:
        self._port, self._bot, self._rate = port, bot, rate
        self._update_id = 0
        self._free: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
        self.refused = 0

    async def connect(self) -> None:
        for _ in range(16):
            self._free.put_nowait(await asyncio.open_connection("127.0.0.1", self._port))

    async def send(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with asyncio.TaskGroup() as group:
            for n in range(int(seconds * self._rate)):
                await asyncio.sleep(max(0.0, began + n / self._rate - loop.time()))
                group.create_task(self._post())

    async def _post(self) -> None:
        self._update_id += 1
        body = samples.update(self._update_id, chat_id=self._update_id % 5000 + 1, size=500)
        reader, writer = connection = await self._free.get()
        writer.write(HEAD.format(self._bot, len(body)).encode() + body)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
        self.refused += not head.startswith(b"http/1.1 200")
        self._free.put_nowait(connection)


async def measure(quiet: Served, flooded: Served, rounds: int) -> Load:
    flood = Load(flooded.port, 1, FLOOD)
    loads = [Load(served.port, 2, RATE) for served in (quiet, flooded)]
    for load in (flood, *loads):
        await load.connect()
    flooding = asyncio.create_task(flood.send(3.0 + rounds * 2 * TURN))
    await asyncio.sleep(2.0)  # its share of the handlers is taken by now
    for _ in range(rounds):
        for load in loads:
            await load.send(TURN)
            if load.refused:
                raise SystemExit(f"{load.refused} updates of the second bot were refused")
    await flooding
    return flood


def at(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))] * 1000


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.two_bots", description="A bot beside a flooded one.")
    parser.add_argument("--rounds", type=int, default=5, help="of two seconds for each server (5)")
    parser.add_argument("--queue", default="memory:", help="memory: or journal:DIRECTORY (memory:)")
    arguments = parser.parse_args()
    with serving(arguments.queue) as quiet, serving(arguments.queue) as flooded:
        flood = asyncio.run(measure(quiet, flooded, arguments.rounds))
        alone, beside = quiet.taken(), flooded.taken()
    for what, values in (("alone", alone), ("beside the flood", beside)):
        numbers = ", ".join(f"{name} {at(values, share):.2f} ms" for name, share in (("p50", 0.5), ("p99", 0.99)))
        print(f"{what}: {numbers} ({len(values):,} handled)")
    ratio = at(beside, 0.99) / at(alone, 0.99)
    print(f"p99 x alone: {ratio:.2f} (goal: {MOST:g}); {flood.refused} of the flood got 503")
    return 0 if ratio <= MOST and len(alone) == len(beside) else 1


if __name__ == "__main__":
    sys.exit(main())
