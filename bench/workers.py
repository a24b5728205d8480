"""What worker processes cost and gain: python -m bench.workers --help (needs wrk).

First table: CPU of the front door and of the workers for each update with a no-op handler, and their memory. Second:
updates a second with a handler that burns a millisecond of CPU, by the number of workers.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench.peers import job, traffic
from bench.peers.install import OWN_BIN, ROOT
from bench.peers.process import CORES, LOAD_CORE, on_core

TICKS = os.sysconf("SC_CLK_TCK")
BURN = """
import os, time
record = os.open(os.environ["RECORD"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)

async def burn(update):
    end = time.thread_time_ns() + 1_000_000
    while time.thread_time_ns() < end:
        pass
    os.write(record, time.monotonic_ns().to_bytes(8, "little"))

async def noop(update):
    pass
"""
READY_WITHIN = 30.0  # seconds
IDLE = 0.5  # seconds without CPU time: all is handled
FIRST = 100_000_000


@dataclass(frozen=True)
class Door:
    """A running server."""

    process: subprocess.Popen[bytes]
    port: int
    record: Path

    def workers(self) -> list[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(pid) for pid in children]

    def settle(self) -> None:
        """Wait until nothing is left to do."""
        pids = [self.process.pid, *self.workers()]
        spent = -1.0
        while (now := sum(map(cpu_seconds, pids))) - spent > 1 / TICKS:
            spent = now
            time.sleep(IDLE)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def mebibytes(pid: int, name: str = "Pss") -> float:
    """Proportional memory: pages that processes share are divided among them."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    return 0.0


def free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


@contextlib.contextmanager
def serving(handler: str, workers: int, queue: str, *more: str) -> Iterator[Door]:
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "bot.py").write_text(BURN)
        port, record = free_port(), Path(directory) / "record"
        options = ["--port", str(port), "--secret", job.SECRET, "--path", job.PATH]
        options += ["--queue", queue, "--max-requests", "1000000000", "--workers", str(workers), *more]
        process = subprocess.Popen(
            [str(OWN_BIN / "fasthook"), "run", f"bot:{handler}", *options],
            cwd=directory,
            env=os.environ | {"RECORD": str(record)},
            stderr=subprocess.DEVNULL,
        )
        try:
            _wait(port)
            yield Door(process, port, record)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def _wait(port: int) -> None:
    end = time.monotonic() + READY_WITHIN
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/")
            connection.getresponse().read()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)
        finally:
            connection.close()


def load(port: int, seconds: float, first: int) -> int:
    """Send with wrk, for so long: how many were acknowledged."""
    with tempfile.NamedTemporaryFile("w", newline="", suffix=".http") as file:
        file.write(traffic.template(port, job.PATH))
        file.flush()
        script = str(ROOT / "bench/peers/update.lua")
        options = ["-t1", "-c64", f"-d{seconds:g}s", "--timeout", "10s", "-s", script]
        command = ["wrk", *options, f"http://127.0.0.1:{port}{job.PATH}", "--", file.name, str(first)]
        done = subprocess.run(on_core(LOAD_CORE, command), capture_output=True, text=True, check=True)
    said = json.loads(done.stdout.splitlines()[-1])
    if said["errors"]:
        print(f"{said['errors']} errors", file=sys.stderr)
    count: int = said["requests"]
    return count


def costs(workers: int, queue: str, seconds: int) -> str:
    """A row of the first table."""
    with serving("noop", workers, queue) as door:
        pids = door.workers()
        load(door.port, 1, FIRST)
        door.settle()
        before, theirs = cpu_seconds(door.process.pid), sum(map(cpu_seconds, pids))
        count = load(door.port, seconds, 2 * FIRST)
        door.settle()
        mine = (cpu_seconds(door.process.pid) - before) / count * 1e6
        others = (sum(map(cpu_seconds, pids)) - theirs) / count * 1e6
        memory = mebibytes(door.process.pid, "Rss"), median(mebibytes(pid, "Rss") for pid in pids)
        alone = median(mebibytes(pid) for pid in pids)
    cells = (queue.partition(":")[0], str(workers), f"{mine:.1f}", f"{others:.1f}", f"{count / seconds:,.0f}")
    return "| " + " | ".join((*cells, f"{memory[0]:.0f}", f"{memory[1]:.0f}", f"{alone:.0f}")) + " |"


def burned(workers: int, updates: float) -> float:
    """Updates a second while nothing but the workers had something to do."""
    with serving("burn", workers, "memory:", "--queue-size", "1000000") as door:
        load(door.port, 1, FIRST)
        sent = time.monotonic_ns()
        most = door.workers()
        end = time.monotonic() + updates
        while time.monotonic() < end:
            time.sleep(0.1)
        record = door.record.read_bytes()
        for pid in (door.process.pid, *most):
            os.kill(pid, signal.SIGKILL)
    times = [int.from_bytes(record[n : n + 8], "little") for n in range(0, len(record) // 8 * 8, 8)]
    after = [at for at in times if at > sent]
    return (len(after) - 1) / (max(after) - min(after)) * 1e9


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.workers", description="What worker processes cost and gain.")
    parser.add_argument("--seconds", type=int, default=5, help="of load for each row (5)")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4], help="in the second table (1 2 4)")
    given = parser.parse_args()
    print("| queue | workers | CPU µs/update, door | CPU µs/update, workers | updates/s | MiB door | MiB a worker "
          "| of it its own |\n| --- | --: | --: | --: | --: | --: | --: | --: |")  # fmt: skip
    for queue in ("memory:", "journal:waiting"):
        for workers in (1, 2):
            print(costs(workers, queue, given.seconds), flush=True)
    print("\n| workers | updates/s of 1 ms of CPU | efficiency |\n| --: | --: | --: |")
    alone = 0.0
    for workers in given.workers:
        rate = burned(workers, given.seconds)
        alone = alone or rate / workers
        used = min(workers, len(CORES))
        print(f"| {workers} | {rate:,.0f} | {rate / alone / used:.2f} of {used} cores |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
