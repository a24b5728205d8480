"""`python -m bench.durable`: how long an acknowledgement takes that waits for the disk, beside the disk itself.

In turns of two seconds: fdatasync of a file of the same disk after a write of 8 KiB, as fast as it goes; and 1,000
updates/s from `steady.c` over 64 connections to `fasthook run` with its journal, counted from when each was due. The
server has the first core, the load the last. Both sides report the median of their turns' percentiles, so that a turn
that a neighbour disturbed says little. It ends with 1 if the 99th percentile of the acknowledgements is above three
times that of fdatasync.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench.peers import job, traffic
from bench.peers.install import build
from bench.peers.process import LOAD_CORE, SERVER_CORE, on_core

BOT = "async def handler(update):\n    pass\n"
RATE = 1000
CONNECTIONS = 64
TURN = 2  # seconds
MOST = 3.0  # times fdatasync
FIRST_ID = 100_000_000  # nine digits, as steady.c writes them


@dataclass(frozen=True)
class Turn:
    """What was measured in one: milliseconds, and of how many."""

    p50: float
    p99: float
    count: int
    latest_send: float = 0.0  # how late the load itself was, at worst


def synced(file: int) -> Turn:
    """How long fdatasync took."""
    found, end, page = [], time.monotonic() + TURN, os.urandom(8192)
    n = 0
    while time.monotonic() < end:
        os.pwrite(file, page, (n % 4096) * 8192)
        n += 1
        began = time.perf_counter()
        os.fdatasync(file)
        found.append((time.perf_counter() - began) * 1000)
    found.sort()
    p50, p99 = (found[int(share * (len(found) - 1))] for share in (0.5, 0.99))  # as steady.c counts
    return Turn(p50, p99, len(found))


def acknowledged(port: int, request: Path, first: int, seconds: int = TURN) -> Turn:
    """How long acknowledgements took, of updates from `first` on."""
    numbers = (first, RATE, seconds, CONNECTIONS)
    command = [str(build("steady")), str(port), str(request), *(str(number) for number in numbers)]
    done = subprocess.run(on_core(LOAD_CORE, command), check=True, capture_output=True, text=True, timeout=seconds + 60)
    found = json.loads(done.stdout)
    if found["refused"] or found["broken"] or found["unanswered"]:
        raise SystemExit(f"updates were not accepted: {found}")
    return Turn(found["p50_ms"], found["p99_ms"], found["requests"], found["latest_send_ms"])


def measure(port: int, request: Path, file: int, rounds: int) -> tuple[list[Turn], list[Turn]]:
    """The turns of the disk, and those of the server."""
    acknowledged(port, request, FIRST_ID, 1)
    disk, server = [], []
    for number in range(1, rounds + 1):
        disk.append(synced(file))
        server.append(acknowledged(port, request, FIRST_ID + number * RATE * TURN))
    return disk, server


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.durable", description="Acknowledgements beside fdatasync.")
    parser.add_argument("--rounds", type=int, default=5, help="of two seconds each (5)")
    parser.add_argument("--directory", type=Path, help="on the disk to measure (the temporary directory)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fasthook-bench-", dir=arguments.directory) as name:
        directory = Path(name)
        (directory / "durable_bot.py").write_text(BOT)
        command = [str(Path(sys.executable).with_name("fasthook")), "run", "durable_bot:handler", "--port", "0"]
        command += ["--secret", job.SECRET, "--path", job.PATH, "--no-ops"]
        server = subprocess.Popen(on_core(SERVER_CORE, command), cwd=directory, stderr=subprocess.PIPE, text=True)
        file = os.open(directory / "scratch", os.O_RDWR | os.O_CREAT)
        os.posix_fallocate(file, 0, 4096 * 8192)
        try:
            assert server.stderr is not None
            port = next(int(found[1]) for line in server.stderr if (found := re.search(r"http://[^:]+:(\d+)", line)))
            request = directory / "request"
            request.write_bytes(traffic.template(port).encode())
            disk, turns = measure(port, request, file, arguments.rounds)
        finally:
            server.kill()
            server.communicate()
            os.close(file)
    for what, side in (("fdatasync", disk), ("acknowledgement", turns)):
        p50, p99 = median(turn.p50 for turn in side), median(turn.p99 for turn in side)
        print(f"{what}: p50 {p50:.2f} ms, p99 {p99:.2f} ms ({sum(turn.count for turn in side):,} measured)")
    ratio = median(turn.p99 for turn in turns) / median(turn.p99 for turn in disk)
    print(
        f"p99 x fdatasync: {ratio:.2f} (goal: {MOST:g}); latest send {max(turn.latest_send for turn in turns):.1f} ms"
    )
    return 0 if ratio <= MOST else 1


if __name__ == "__main__":
    sys.exit(main())
