"""The store behind the dashboard: a JSON file for each measured commit, made of what the benchmarks wrote.

    python -m bench.history --store DIR --micro FILE --instructions FILE --peers FILE

A RECORD is {"schema": 1, "commit", "date", "subject", "machine", "micro": {name: {"ns", "ratio", "plain"}},
"instructions": {name: count}, "peers": the report of `bench.peers`, or null}.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
STORE = ROOT / "bench/out/history"
SCHEMA = 1

Record = dict[str, Any]


class RecordError(Exception):
    """A file of the store, or for it, that is not what it should be; in a line."""


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise RecordError(f"{path}: {error}") from None


def of_micro(report: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    """Of pytest-benchmark's JSON: nanoseconds for each item, and how many times the plain-Python way takes."""
    found = {}
    for bench in (report or {}).get("benchmarks", ()):
        extra = bench["extra_info"]
        if "ratio" in extra:
            figures = {"ns": extra["ns"], "ratio": extra["ratio"], "plain": extra["plain"]}
            found[f"{extra['name']} / {extra['plain']}"] = figures
    return found


def of_instructions(report: dict[str, Any] | None) -> dict[str, float]:
    """Of what `bench.instructions --json` wrote: instructions for each item, at head."""
    return {name: count["head"] for name, count in (report or {}).items()}


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def record(micro: Path, instructions: Path, peers: Path) -> Record:
    """What was measured at this commit; a file that is not there is a part that was not measured.

    Raises:
        RecordError: a file is not JSON.
    """
    return {
        "schema": SCHEMA,
        "commit": _git("rev-parse", "--short=12", "HEAD") + ("+" if _git("status", "--porcelain", "-uno") else ""),
        "subject": _git("log", "-1", "--format=%s"),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"python": platform.python_version(), "system": platform.system(), "machine": platform.machine()},
        "micro": of_micro(_read(micro)),
        "instructions": of_instructions(_read(instructions)),
        "peers": _read(peers),
    }


def add(store: Path, made: Record) -> Path:
    """Write it into the store, under its date and commit."""
    store.mkdir(parents=True, exist_ok=True)
    path = store / f"{made['date'].replace(':', '')[:17]}-{made['commit']}.json"
    path.write_text(json.dumps(made, indent=1) + "\n")
    return path


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


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.history", description="Keep what was measured.")
    parser.add_argument("--store", type=Path, default=STORE)
    for name in ("micro", "instructions", "peers"):
        parser.add_argument(f"--{name}", type=Path, default=ROOT / f"bench/out/{name}.json")
    arguments = parser.parse_args()
    try:
        print(add(arguments.store, record(arguments.micro, arguments.instructions, arguments.peers)))
    except RecordError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
