"""The command: python -m bench.peers --help."""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import signal
import sys
from pathlib import Path

from bench.peers import goals, measure, report
from bench.peers.catalog import LIMIT, NOOP, Peer, chosen
from bench.peers.check import CheckError, check
from bench.peers.goals import Goal
from bench.peers.install import INSTALL, install
from bench.peers.measure import Load, Series, to_stderr
from bench.peers.process import LOAD_CORE, SERVER_CORE, ServerError
from bench.stamp import stamp


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description="Server CPU per request, x limit.c.")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds (3)")
    parser.add_argument("--seconds", type=int, default=5, help="of load in each round (5)")
    parser.add_argument("--connections", type=int, default=64, help="keep-alive connections (64)")
    parser.add_argument("--only", metavar="NAME,NAME", help="peers whose names contain one of these, and limit.c")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all rounds here")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables here, too")
    parser.add_argument("--quick", action="store_true", help="one round of one second: does it work at all")
    what = parser.add_argument_group("what to do, instead of the table of all peers")
    what.add_argument("--connections-sweep", action="store_true", help="fasthook at 1, 64, 512 and 2,000 connections")
    what.add_argument("--steady", action="store_true", help="latency of fasthook at a steady 5,000 requests/s")
    what.add_argument("--all", action="store_true", help="the table, the sweep and the steady rate")
    what.add_argument("--check", action="store_true", help="that each peer does its job, with a few requests")
    what.add_argument("--list", action="store_true", help="the peers, and what is missing")
    what.add_argument("--install", action="store_true", help="install the peers: pip, npm, and apt where root")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.seconds = 1, 1
    return arguments


def _list(peers: tuple[Peer, ...]) -> int:
    for peer in peers:
        reason = peer.needs.missing()
        versions = (
            ", ".join(f"{name} {version}" for name, version in peer.needs.versions().items()) if not reason else ""
        )
        print(f"{peer.name}: {f'missing: {reason}' if reason else versions or 'ready'}")
    return 0


def _check(peers: tuple[Peer, ...]) -> int:
    failed = 0
    for peer in peers:
        reason = peer.needs.missing()
        try:
            result = f"missing: {reason}" if reason else f"ok: {check(peer)}"
        except (CheckError, ServerError, OSError) as error:
            result, failed = f"FAILED: {error}", failed + 1
        print(f"{peer.name}: {result}", flush=True)
    return 1 if failed else 0


def _measure(arguments: argparse.Namespace, peers: tuple[Peer, ...]) -> tuple[dict[str, list[Series]], list[Goal]]:
    """The parts that were asked for, and the goals that belong to them."""
    table = arguments.all or not (arguments.connections_sweep or arguments.steady)
    few = peers if arguments.only else tuple(peer for peer in peers if peer.name in (LIMIT, NOOP))
    parts: dict[str, list[Series]] = {}
    held: list[Goal] = []
    if table:
        load = Load(arguments.seconds, arguments.connections)
        parts["rows"] = measure.run(peers, load, arguments.rounds, to_stderr)
        held += goals.of_table(parts["rows"])
    if arguments.all or arguments.connections_sweep:
        parts["sweep"] = []
        for connections in goals.SWEEP:
            load = Load(arguments.seconds, connections)
            parts["sweep"] += measure.run(few, load, arguments.rounds, to_stderr)
        held += goals.of_sweep(parts["sweep"])
    if arguments.all or arguments.steady:
        load = Load(arguments.seconds, arguments.connections, goals.STEADY_RATE)
        parts["steady"] = measure.run(few, load, arguments.rounds, to_stderr)
        held += goals.of_steady(parts["steady"])
    return parts, held


def _report(arguments: argparse.Namespace, peers: tuple[Peer, ...]) -> int:
    if not shutil.which("wrk"):
        print(f"wrk is not installed: {INSTALL}", file=sys.stderr)
        return 2
    if SERVER_CORE == LOAD_CORE:
        to_stderr("only one core: server and load share it, so requests/s and latencies say little")
    measure.allow_many_connections()
    measured = stamp()
    try:
        parts, held = _measure(arguments, peers)
    except ServerError as error:
        print(f"limit.c: {error}", file=sys.stderr)
        return 1
    settings = {name: getattr(arguments, name) for name in ("rounds", "seconds", "connections")}
    command = shlex.join(["python", "-m", "bench.peers", *sys.argv[1:]])
    found = report.document(command, parts, held, settings, measured)
    text = report.markdown(found)
    print(text)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    if arguments.markdown:
        arguments.markdown.write_text(text + "\n")
    return 0


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exception, so that the server is stopped, too
    arguments = _arguments()
    try:
        peers = chosen(arguments.only)
    except LookupError as error:
        print(error.args[0], file=sys.stderr)
        return 2
    if arguments.install:
        return 1 if install() else 0
    if arguments.list:
        return _list(peers)
    if arguments.check:
        return _check(peers)
    return _report(arguments, peers)


if __name__ == "__main__":
    sys.exit(main())
