"""The report: one JSON object (documented in bench/README.md), and the same as Markdown."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bench.peers.goals import STEADY_RATE, Goal
from bench.peers.install import Program
from bench.peers.measure import SOUND, Series, as_json

SCHEMA = 1
NOT_FULL = 0.9  # of its core; below it the load generator or the waiting was the limit, not the server


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def document(
    command: str,
    parts: dict[str, list[Series]],
    goals: Iterable[Goal],
    settings: dict[str, Any],
    measured: dict[str, Any],
) -> dict[str, Any]:
    """Everything that was measured, in every round. `measured`: what `bench.stamp` said before it began."""
    wrk = Program("wrk", "--version")
    return {
        "schema": SCHEMA,
        "date": measured["date"],
        "measured": measured,
        "command": command,
        "machine": {
            "cpu": _cpu_model(),
            "cores": os.cpu_count(),
            "kernel": platform.release(),
            "python": platform.python_version(),
            **({} if wrk.missing() else wrk.versions()),
        },
        "settings": settings,
        **{name: [as_json(row) for row in series] for name, series in parts.items()},
        "goals": [goal.as_json() for goal in goals],
    }


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Text to the left, numbers to the right."""
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines] + [""]


def _ratio(row: dict[str, Any]) -> str:
    sound = [sample["ratio"] for sample in row["rounds"] if sample["errors"] <= SOUND * sample["requests"]]
    ratios = sound or [sample["ratio"] for sample in row["rounds"]]
    middle, low, high = row["median"]["ratio"], min(ratios), max(ratios)
    return f"{middle:.2f}" if low == high else f"{middle:.2f} ({low:.2f} to {high:.2f})"


def _errors(row: dict[str, Any]) -> str:
    mark = f" ‡{row['unsound']}" if row["unsound"] else ""
    return f"{sum(sample['errors'] for sample in row['rounds']):,.0f}{mark}"


def _cells(row: dict[str, Any], first: str) -> list[str]:
    if not row["rounds"]:
        return [first, f"missing: {row['missing']}", *[""] * 7]
    middle = row["median"]
    mark = "" if middle["busy"] >= NOT_FULL else " †"
    return [
        first,
        f"{middle['cpu_us']:.1f}",
        _ratio(row),
        f"{middle['rps']:,.0f}{mark}",
        *(f"{middle[key]:.2f}" for key in ("p50_ms", "p99_ms", "p999_ms")),
        f"{middle['peak_mib']:.0f}",
        _errors(row),
    ]


HEAD = ("CPU µs/request", "x limit.c", "requests/s", "p50 ms", "p99 ms", "p99.9 ms", "peak MiB", "errors")
NOTES = (
    "† the server's core was not full: the load generator, waiting for the one request, or a neighbour was the limit.",
    "‡ so many rounds had over 0.1% errors; the medians are without them, if there are others.",
)
CROWD = 0.1  # cores


def _crowd(report: dict[str, Any]) -> list[str]:
    """A warning, if the machine had other things to do."""
    parts = (report.get(name, ()) for name in ("rows", "sweep", "steady"))
    others = [sample["others"] for rows in parts for row in rows for sample in row["rounds"]]
    if not others or median(others) < CROWD:
        return []
    return [
        f"**The machine was busy**: other programs used {median(others):.1f} cores (at most {max(others):.1f}). "
        "Ratios are rough, requests/s too low, latencies too high.",
        "",
    ]


def _main_table(rows: list[dict[str, Any]]) -> list[str]:
    return _table(("peer", *HEAD), (_cells(row, row["name"]) for row in rows))


def _sweep_table(rows: list[dict[str, Any]]) -> list[str]:
    named = (_cells(row, f"{row['name']}, {row['connections']:,}") for row in rows)
    return ["## From 1 to 2,000 connections", "", *_table(("peer, connections", *HEAD), named)]


def _steady_cells(row: dict[str, Any]) -> list[str]:
    if not row["rounds"]:
        return [row["name"], f"missing: {row['missing']}", *[""] * 6]
    middle = row["median"]
    times = (f"{middle[key]:.3f}" for key in ("p50_ms", "p99_ms", "p999_ms", "max_ms"))
    return [row["name"], *times, f"{middle['latest_send_ms']:.3f}", f"{middle['cpu_us']:.1f}", _errors(row)]


def _steady_table(rows: list[dict[str, Any]]) -> list[str]:
    head = ("peer", "p50 ms", "p99 ms", "p99.9 ms", "max ms", "latest send ms", "CPU µs/request", "errors")
    return [f"## At a steady {STEADY_RATE:,} requests/s", "", *_table(head, map(_steady_cells, rows))]


def _goal_cells(goal: dict[str, Any]) -> list[str]:
    met = {True: "met", False: "**missed**", None: "not measured"}[goal["met"]]
    value = "" if goal["value"] is None else f"{goal['value']:,.2f}"
    return [goal["name"], value, f"{'≤' if goal['at_most'] else '≥'} {goal['bound']:,}", met]


def _versions(rows: Iterable[dict[str, Any]]) -> list[str]:
    """A line for each set of versions, with the peers that it served."""
    peers: dict[str, dict[str, None]] = {}
    for row in rows:
        named = ", ".join(f"{name} {version}" for name, version in row["versions"].items() if name != "python")
        if named:
            peers.setdefault(named, {})[row["name"]] = None
    return ["Versions:", "", *(f"- {'; '.join(names)}: {versions}" for versions, names in peers.items()), ""]


def markdown(report: dict[str, Any]) -> str:
    """The report for people."""
    machine, settings = report["machine"], report["settings"]
    lines = [
        f"# What a webhook request costs, {report['date'][:10]}",
        "",
        f"`{report['command']}`: rounds: {settings['rounds']}, of {settings['seconds']} s each; "
        "medians, with the lowest and highest ratio; "
        f"{settings['connections']} connections where not told otherwise.",
        "",
        f"{machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel']}, Python {machine['python']}"
        + (f", wrk {machine['wrk']}" if "wrk" in machine else ""),
        "",
    ]
    lines += _crowd(report)
    tables = {"rows": _main_table, "sweep": _sweep_table, "steady": _steady_table}
    parts = [name for name in tables if name in report]
    for name in parts:
        lines += tables[name](report[name])
    lines += [part for note in NOTES if any(note[0] in line for line in lines) for part in (note, "")]
    lines += ["## Goals", "", *_table(("goal", "measured", "bound", ""), map(_goal_cells, report["goals"]))]
    lines += _versions(row for name in parts for row in report[name])
    return "\n".join(lines)
