"""The store behind the dashboard: a JSON file for each measured commit, made of what the benchmarks wrote.

    python -m bench.history --store DIR --micro FILE --instructions FILE --peers FILE

Each of the files says itself what it was measured at (`measured`, by `bench.stamp`), and is kept under that commit,
whatever is checked out now; what is in the store already is not kept again.

A RECORD is {"schema": 1, "commit", "date", "subject", "machine", "measured": {part: when}, "micro": {name: {"ns",
"ratio", "plain"}}, "instructions": {name: count}, "peers": the report of `bench.peers`, or null}. `commit` ends in a +
if the tree was not as committed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.builds import ROOT

STORE = ROOT / "bench/out/history"
SCHEMA = 1

Record = dict[str, Any]
Places = dict[str, Path]  # of the file of each part


class RecordError(Exception):
    """A file of the store, or for it, that is not what it should be; in a line."""


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise RecordError(f"{path}: {error}") from None


def of_micro(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Of pytest-benchmark's JSON: nanoseconds for each item, and how many times the plain-Python way takes."""
    found = {}
    for bench in report["benchmarks"]:
        extra = bench["extra_info"]
        if "ratio" in extra:
            figures = {"ns": extra["ns"], "ratio": extra["ratio"], "plain": extra["plain"]}
            found[f"{extra['name']} / {extra['plain']}"] = figures
    return found


def of_instructions(report: dict[str, Any]) -> dict[str, float]:
    """Of what `bench.instructions --json` wrote: instructions for each item, at head."""
    return {name: count["head"] for name, count in report["counts"].items()}


def of_peers(report: dict[str, Any]) -> dict[str, Any]:
    """The report of `bench.peers --json` as it is."""
    return report


PARTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "micro": of_micro,
    "instructions": of_instructions,
    "peers": of_peers,
}


def measured(places: Places) -> list[Record]:
    """A record for each commit that one of the files was measured at; a file that is not there was not measured.

    Raises:
        RecordError: a file is not JSON, or does not say what it was measured at.
    """
    found: dict[str, Record] = {}
    for part, figures in PARTS.items():
        report = _read(places[part])
        if report is None:
            continue
        try:
            stamp = report["measured"]
            commit = stamp["commit"] + ("" if stamp["clean"] else "+")
            one = found.setdefault(commit, _empty(commit, stamp))
            one[part] = figures(report)
        except (KeyError, TypeError):
            raise RecordError(f"{places[part]}: does not say what it was measured at: measure again") from None
        one["measured"][part] = stamp["date"]
        one["date"] = max(one["date"], stamp["date"])
    return list(found.values())


def _empty(commit: str, stamp: dict[str, Any]) -> Record:
    machine = {name: stamp[name] for name in ("python", "system", "machine")}
    known = {"schema": SCHEMA, "commit": commit, "subject": stamp["subject"], "date": stamp["date"], "machine": machine}
    return known | {"measured": {}} | _nothing()


def _nothing() -> dict[str, Any]:
    """The figures of parts that were not measured."""
    return {"micro": {}, "instructions": {}, "peers": None}


def load(store: Path) -> list[Record]:
    """All of the store, the oldest first.

    Raises:
        RecordError: a file is not JSON, or of another schema.
    """
    found = []
    for path in sorted(store.glob("*.json")):
        one = _read(path)
        if not isinstance(one, dict) or one.get("schema") != SCHEMA:
            raise RecordError(f"{path}: not a record of schema {SCHEMA}")
        found.append(one)
    return sorted(found, key=lambda one: one["date"])


def _without(record: Record, known: set[tuple[str, str, str]]) -> Record | None:
    """The record without the parts that are known; None if nothing is left."""
    fresh = {part: date for part, date in record["measured"].items() if (record["commit"], part, date) not in known}
    if not fresh:
        return None
    figures = _nothing() | {part: record[part] for part in fresh}
    return record | figures | {"measured": fresh, "date": max(fresh.values())}


def add(store: Path, places: Places) -> list[Path]:
    """Keep what the store has not: a file for each commit, under its date and commit.

    Raises:
        RecordError: nothing was measured; a file, or one of the store, is not what it should be.
    """
    made = measured(places)
    if not made:
        raise RecordError("nothing was measured yet: run `make bench-quick` first")
    store.mkdir(parents=True, exist_ok=True)
    known = {(one["commit"], part, date) for one in load(store) for part, date in one.get("measured", {}).items()}
    paths = []
    for record in made:
        if fresh := _without(record, known):
            path = store / f"{fresh['date'].replace(':', '')[:17]}-{fresh['commit']}.json"
            path.write_text(json.dumps(fresh, indent=1) + "\n")
            paths.append(path)
    return paths


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.history", description="Keep what was measured.")
    parser.add_argument("--store", type=Path, default=STORE)
    for name in PARTS:
        parser.add_argument(f"--{name}", type=Path, default=ROOT / f"bench/out/{name}.json")
    arguments = parser.parse_args()
    try:
        paths = add(arguments.store, {name: getattr(arguments, name) for name in PARTS})
    except RecordError as error:
        print(error, file=sys.stderr)
        return 1
    print("\n".join(str(path) for path in paths) or "nothing new was measured")
    return 0


if __name__ == "__main__":
    sys.exit(main())
