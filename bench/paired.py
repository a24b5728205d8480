"""CPU time of base and head in turn: `python -m bench.paired --base REV`.

A round runs base, head, head, base, so that a machine that grows slower or faster by the minute harms both alike; then
base, its copy, its copy, base, the same way. What the second four differ by is noise. Exits with 1 only for a workload
whose median over the rounds is further from 1 than any round of noise, and further than --least percent.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

from bench import builds
from bench.workloads import WORKLOADS

ROUNDS = 5
LEAST = 3.0  # percent: the layout of code in memory alone makes as much
SECONDS = 0.2  # of CPU for each run
FIRST_COUNT = 5000


class RunError(Exception):
    """A workload that failed, in a line."""


@dataclass(frozen=True)
class Pair:
    """Head over base, round by round, beside base's copy over base; without rounds if it cannot run on base."""

    name: str
    base_ns: float = 0.0  # for each item, the median
    ratios: list[float] = field(default_factory=list)
    noise: list[float] = field(default_factory=list)
    note: str = ""

    @property
    def change(self) -> float:
        """Percent of CPU time; positive is slower."""
        return (median(self.ratios) - 1) * 100

    @property
    def floor(self) -> float:
        """Percent: the worst that base differed from its copy."""
        return max(abs(ratio - 1) for ratio in self.noise) * 100

    def slower(self, least: float) -> bool:
        return bool(self.ratios) and self.change > max(self.floor, least)

    def line(self, least: float) -> str:
        """Its line of the table for people."""
        if not self.ratios:
            return f"{self.name:24}{self.note}"
        red = "  RED" if self.slower(least) else ""
        return f"{self.name:24}{self.base_ns:>9,.0f} ns{self.change:>+8.1f} %{self.floor:>8.1f} %{red}"


def seconds(built: Path, name: str, count: int) -> float:
    """CPU seconds of `count` items in a process of their own.

    Raises:
        RunError: the workload failed.
    """
    command = [sys.executable, "-m", "bench.workloads", name, str(count), "--seconds"]
    done = subprocess.run(
        command, cwd=builds.ROOT, env=builds.environment(built), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RunError(f"{name}: {done.stderr.strip().splitlines()[-1]}")
    return float(done.stdout)


def _abba(a: Path, b: Path, name: str, count: int) -> tuple[float, float]:
    """CPU seconds of a and of b, each twice."""
    first, second, third, fourth = (seconds(built, name, count) for built in (a, b, b, a))
    return first + fourth, second + third


def pair(name: str, base: Path, copy: Path, head: Path, rounds: int) -> Pair:
    """All rounds of one workload.

    Raises:
        RunError: it fails on head.
    """
    seconds(head, name, FIRST_COUNT)
    try:
        once = seconds(base, name, FIRST_COUNT)
    except RunError as error:
        return Pair(name, note=f"fails on base: {error}")
    count = max(FIRST_COUNT, int(FIRST_COUNT * SECONDS / once))
    ratios, noise, costs = [], [], []
    for _ in range(rounds):
        a, b = _abba(base, head, name, count)
        ratios.append(b / a)
        costs.append(a / 2 / count * 1e9)
        a, b = _abba(base, copy, name, count)
        noise.append(b / a)
    return Pair(name, median(costs), ratios, noise)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.paired", description=__doc__)
    parser.add_argument("--base", metavar="REV", required=True, help="the git revision to compare with")
    parser.add_argument("--head", metavar="REV", help="default: the working tree")
    parser.add_argument("--only", metavar="NAMES", help=f"of {', '.join(WORKLOADS)}; with commas between")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--least", type=float, default=LEAST, help="percent (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rounds there, too")
    arguments = parser.parse_args()
    names = arguments.only.split(",") if arguments.only else list(WORKLOADS)
    if unknown := sorted(set(names) - set(WORKLOADS)):
        parser.error(f"no workload is called {', '.join(unknown)}")
    try:
        base, copy = builds.tree(arguments.base), builds.tree(arguments.base, again="-again")
        head = builds.tree(arguments.head)
        print(
            f"base {builds.name_of(arguments.base)}, head {builds.name_of(arguments.head)}, {arguments.rounds} rounds"
        )
        print(f"{'CPU time of each':24}{'base':>12}{'change':>10}{'noise':>10}", flush=True)
        pairs = []
        for name in names:
            pairs.append(found := pair(name, base, copy, head, arguments.rounds))
            print(found.line(arguments.least), flush=True)
    except (builds.BuildError, RunError) as error:
        print(error, file=sys.stderr)
        return 2
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps([asdict(found) for found in pairs], indent=1) + "\n")
    if unknown := [found.name for found in pairs if not found.ratios]:
        print(f"not compared, as they fail on base: {', '.join(unknown)}", file=sys.stderr)
    slower = [found.name for found in pairs if found.slower(arguments.least)]
    if slower:
        print(f"slower beyond the noise: {', '.join(slower)}", file=sys.stderr)
    return int(bool(slower))


if __name__ == "__main__":
    sys.exit(main())
