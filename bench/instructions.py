"""Instructions that a request takes, base beside head: `python -m bench.instructions --base REV`.

valgrind's callgrind counts what a workload executes N times and 2N times; the difference is the N alone, without the
interpreter's start. The hash seed and the layout of addresses are fixed, so two runs of one build differ by next to
nothing, on whatever machine. Exits with 1 if a workload takes more than --limit percent more, 2 if it could not count.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from bench import builds
from bench.stamp import stamp
from bench.workloads import WORKLOADS

LIMIT = 2.0  # percent
COUNTS = {"scan": 4000, "scan-4k": 1000, "ring": 4000, "buckets": 4000, "gate": 4000, "protocol": 1600, "asgi": 1600}


class CountError(Exception):
    """A run that gave no count."""


@dataclass(frozen=True)
class Count:
    """What one workload takes, in instructions for each item; `base` None if it cannot run there."""

    name: str
    head: float
    base: float | None = None
    note: str = ""

    @property
    def change(self) -> float | None:
        """Percent; positive is more."""
        return None if self.base is None else (self.head / self.base - 1) * 100


def _fixed_addresses() -> list[str]:
    """What keeps the kernel from laying out addresses at random; nothing where that is not allowed."""
    if not shutil.which("setarch"):
        return []
    prefix = ["setarch", "-R"]
    return [] if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode else prefix


def _total(built: Path, name: str, count: int) -> int:
    command = [
        *_fixed_addresses(),
        *("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"),
        *(sys.executable, "-m", "bench.workloads", name, str(count)),
    ]
    done = subprocess.run(
        command, cwd=builds.ROOT, env=builds.environment(built), capture_output=True, text=True, check=False
    )
    found = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode or not found:
        lines = [line for line in done.stderr.splitlines() if line and not line.startswith("==")]
        raise CountError(lines[-1] if lines else f"valgrind ended with {done.returncode}")
    return int(found[1])


def _of_one(built: Path, name: str) -> float:
    """Instructions for each item.

    Raises:
        CountError: the workload fails on that build.
    """
    count = COUNTS[name]
    return (_total(built, name, 2 * count) - _total(built, name, count)) / count


def measure(names: list[str], head: Path, base: Path | None) -> list[Count]:
    """Count each workload on both builds, as many at once as there are cores.

    Raises:
        CountError: a workload fails on head.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        heads = {name: pool.submit(_of_one, head, name) for name in names}
        bases = {name: pool.submit(_of_one, base, name) for name in names} if base else {}
        found = []
        for name in names:
            count = Count(name, heads[name].result())
            if name in bases:
                try:
                    count = Count(name, count.head, bases[name].result())
                except CountError as error:
                    count = Count(name, count.head, note=f"fails on base: {error}")
            found.append(count)
    return found


def report(counts: list[Count], limit: float) -> str:
    """The table for people."""
    lines = [f"{'instructions for each':24}{'base':>12}{'head':>12}{'change':>10}"]
    for count in counts:
        base = "" if count.base is None else f"{count.base:,.0f}"
        change = "" if count.change is None else f"{count.change:+.2f} %"
        red = "  RED" if (count.change or 0) > limit else ""
        lines.append(f"{count.name:24}{base:>12}{count.head:>12,.0f}{change:>10}{red}  {count.note}".rstrip())
    return "\n".join(lines)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.instructions", description=__doc__)
    parser.add_argument("--base", metavar="REV", help="the git revision to compare with; none: count head alone")
    parser.add_argument("--head", metavar="REV", help="default: the working tree")
    parser.add_argument("--only", metavar="NAMES", help=f"of {', '.join(WORKLOADS)}; with commas between")
    parser.add_argument("--limit", type=float, default=LIMIT, help="percent (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the counts there, too")
    arguments = parser.parse_args()
    arguments.names = arguments.only.split(",") if arguments.only else list(WORKLOADS)
    if unknown := sorted(set(arguments.names) - set(WORKLOADS)):
        parser.error(f"no workload is called {', '.join(unknown)}")
    return arguments


def main() -> int:
    arguments = _arguments()
    if not shutil.which("valgrind"):
        print("valgrind is not installed (Debian: apt install valgrind)", file=sys.stderr)
        return 2
    try:
        measured = stamp(arguments.head)
        head = builds.tree(arguments.head)
        base = builds.tree(arguments.base) if arguments.base else None
        counts = measure(arguments.names, head, base)
    except (builds.BuildError, CountError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"base {builds.name_of(arguments.base)}, " if base else "", f"head {builds.name_of(arguments.head)}", sep="")
    print(report(counts, arguments.limit))
    if arguments.json:
        found = {count.name: asdict(count) | {"change": count.change} for count in counts}
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps({"measured": measured, "counts": found}, indent=1) + "\n")
    if unknown := [count.name for count in counts if base and count.base is None]:
        print(f"not compared, as they fail on base: {', '.join(unknown)}", file=sys.stderr)
    slower = [count.name for count in counts if (count.change or 0) > arguments.limit]
    if slower:
        print(f"more than {arguments.limit:g} % more instructions: {', '.join(slower)}", file=sys.stderr)
    return int(bool(slower))


if __name__ == "__main__":
    sys.exit(main())
