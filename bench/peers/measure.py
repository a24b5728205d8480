"""Measuring: load on one server, and what it cost that server.

CPU time is read before and after the load, each time when the server has gone quiet, so that work it put off (a
queue it still has to drain) is in the bill.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from bench.peers import traffic
from bench.peers.catalog import LIMIT, Peer
from bench.peers.install import ROOT, build, last_line
from bench.peers.process import LOAD_CORE, Server, ServerError, machine_cpu_seconds, on_core, serving

WARM_UP = 1  # seconds
WARM_UP_IDS, MEASURED_IDS = 100_000_000, 200_000_000  # first ids; nine digits each, and never the same id twice

SOUND = 0.001  # the share of errors up to which a round says what answering costs; refusing is cheaper

Sample = dict[str, float]  # what README.md calls a round


@dataclass
class Series:
    """One row: a peer under one kind of load, over the rounds."""

    peer: Peer
    connections: int
    missing: str | None = None
    rounds: list[Sample] = field(default_factory=list)

    def sound(self) -> list[Sample]:
        """The rounds in which requests were answered, not refused or dropped."""
        return [sample for sample in self.rounds if sample["errors"] <= SOUND * sample["requests"]]


@dataclass(frozen=True)
class Load:
    """What is sent: seconds of it, over so many connections; at a fixed rate, or (0) as fast as answers come."""

    seconds: int
    connections: int
    rate: int = 0


def allow_many_connections() -> None:
    """Raises the limit of open files as far as it goes, here and for what is started from here."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _wrk(port: int, path: str, request: Path, first: int, load: Load) -> list[str]:
    script = str(ROOT / "bench/peers/update.lua")
    options = ["-t1", f"-c{load.connections}", f"-d{load.seconds}s", "--timeout", "10s", "-s", script]
    return ["wrk", *options, f"http://127.0.0.1:{port}{path}", "--", str(request), str(first)]


def _steady(port: int, request: Path, first: int, load: Load) -> list[str]:
    numbers = (first, load.rate, load.seconds, load.connections)
    return [str(build("steady")), str(port), str(request), *(str(number) for number in numbers)]


def send(server: Server, first: int, load: Load) -> Sample:
    """Runs the load to its end, and answers what the load generator reports."""
    with tempfile.NamedTemporaryFile("w", newline="", suffix=".http") as file:
        file.write(traffic.template(server.port, server.peer.path))
        file.flush()
        request = Path(file.name)
        if load.rate:
            command = _steady(server.port, request, first, load)
        else:
            command = _wrk(server.port, server.peer.path, request, first, load)
        done = subprocess.run(
            on_core(LOAD_CORE, command), capture_output=True, text=True, timeout=load.seconds + 60, check=False
        )
    if server.process.poll() is not None:
        raise ServerError(f"died under load: {server.said()}")
    if done.returncode:
        raise ServerError(f"{command[0].rpartition('/')[2]}: {last_line(done.stderr)}")
    report: Sample = json.loads(last_line(done.stdout))
    if load.rate:
        report["errors"] = report["refused"] + report["broken"] + report["unanswered"]
    return report


def _others(server: Server) -> float:
    """CPU seconds that neither the server nor what we started and waited for (the load generator) used."""
    load = resource.getrusage(resource.RUSAGE_CHILDREN)
    return machine_cpu_seconds() - server.cpu_seconds() - load.ru_utime - load.ru_stime


def measure(peer: Peer, load: Load) -> Sample:
    """One round of one peer, from a fresh start.

    Raises:
        ServerError: it could not be measured.
    """
    with serving(peer) as server:
        send(server, WARM_UP_IDS, Load(WARM_UP, load.connections, load.rate))
        server.settle()
        before, others_before = server.cpu_seconds(), _others(server)
        report = send(server, MEASURED_IDS, load)
        others = _others(server) - others_before
        server.settle()
        cpu = server.cpu_seconds() - before
        if not report["requests"]:
            raise ServerError(f"answered nothing: {server.said()}")
        seconds = report.get("seconds", load.seconds)
        return report | {
            "cpu_us": cpu / report["requests"] * 1e6,
            "rps": report["requests"] / seconds,
            "busy": cpu / seconds,
            "others": max(0.0, others / seconds),
            "peak_mib": server.peak_mib(),
        }


def run(peers: Sequence[Peer], load: Load, rounds: int, tell: Callable[[str], None]) -> list[Series]:
    """Every peer in turn, `rounds` times over; a peer that fails is told once and left out of later rounds.

    Raises:
        ServerError: limit.c failed, without which there are no ratios.
    """
    rows = [Series(peer, load.connections, peer.needs.missing()) for peer in peers]
    for number in range(1, rounds + 1):
        floor = 0.0
        for row in rows:
            if row.missing:
                continue
            try:
                sample = measure(row.peer, load)
            except (ServerError, subprocess.TimeoutExpired) as error:
                if row.peer.name == LIMIT:
                    raise
                row.missing = str(error)
                tell(f"{row.peer.name}: {error}")
                continue
            if row.peer.name == LIMIT:
                floor = sample["cpu_us"]
            row.rounds.append(sample | {"round": number, "ratio": sample["cpu_us"] / floor})
            tell(f"round {number}, {load.connections} connections, {row.peer.name}: {_in_short(row.rounds[-1])}")
    return rows


def _in_short(sample: Sample) -> str:
    errors = f", {sample['errors']:.0f} errors" if sample["errors"] else ""
    return f"{sample['cpu_us']:.1f} µs, {sample['ratio']:.2f} x limit.c, {sample['rps']:.0f}/s{errors}"


def to_stderr(line: str) -> None:
    """Progress, so that standard output is the report alone."""
    print(line, file=sys.stderr, flush=True)


def as_json(row: Series) -> dict[str, Any]:
    """A row as the JSON report has it."""
    usable = row.peer.needs.missing() is None
    keys = row.rounds[0].keys() - {"round"} if row.rounds else ()
    counted = row.sound() or row.rounds
    return {
        "name": row.peer.name,
        "connections": row.connections,
        "versions": row.peer.needs.versions() if usable else {},
        "missing": row.missing,
        "median": {key: median(sample[key] for sample in counted) for key in sorted(keys)},
        "rounds": row.rounds,
        "unsound": len(row.rounds) - len(row.sound()),
    }
