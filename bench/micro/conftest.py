"""Each bench beside the plain-Python way of doing the same, in the same run, round by round.

The figures are those of the quickest round: what other programs take from the machine only ever adds.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from bench.stamp import stamp
from pytest_benchmark.fixture import BenchmarkFixture

ROUNDS = 60
Work = TypeVar("Work")


@dataclass(frozen=True)
class Row:
    """What one bench measured; nanoseconds for each item, the Python loop over the items included."""

    name: str
    ns: float
    plain: str
    plain_ns: float
    ratio: float
    goal: str
    items: int


ROWS = pytest.StashKey[list[Row]]()
FLOORS = pytest.StashKey[dict[str, float]]()
MEASURED = pytest.StashKey[dict[str, Any]]()


class Beside:
    """Measures a way of doing something beside another one."""

    def __init__(self, benchmark: BenchmarkFixture, config: pytest.Config) -> None:
        self._benchmark = benchmark
        self._rows = config.stash[ROWS]
        self._floors = config.stash.get(FLOORS, None)

    def __call__(
        self,
        name: str,
        ours: Callable[[Work], object],
        plain: Callable[[Work], object],
        *,
        prepare: Callable[[], Work],
        items: int,
        than: str,
        goal: str = "",
        rounds: int = ROUNDS,
    ) -> None:
        """Run both on what `prepare` makes, in turn, so that what disturbs the machine disturbs both.

        `items`: how many are done in one call. `than`: the plain way in a few words. `goal`: for the table.
        """
        times: list[int] = []

        def fresh() -> tuple[tuple[Work], dict[str, Any]]:
            work = prepare()
            start = time.perf_counter_ns()
            plain(work)
            times.append(time.perf_counter_ns() - start)
            return (work,), {}

        self._benchmark.pedantic(ours, setup=fresh, rounds=rounds, warmup_rounds=2)
        if self._benchmark.stats is None:  # --benchmark-disable
            return
        ns, plain_ns = self._benchmark.stats.stats.min * 1e9 / items, min(times) / items
        row = Row(name, ns, than, plain_ns, plain_ns / ns, goal, items)
        self._benchmark.extra_info.update(asdict(row))
        self._rows.append(row)
        if self._floors is not None:
            self._hold(row)

    def _hold(self, row: Row) -> None:
        name = f"{row.name} / {row.plain}"
        floor = self._floors.get(name) if self._floors is not None else None
        if floor is None:
            pytest.fail(f"no floor for {name!r}: put one into bench/floors.json", pytrace=False)
        if row.ratio < floor:
            pytest.fail(
                f"{name}: {row.ratio:.2f} times as quick as plain Python, {floor:g} is the floor", pytrace=False
            )


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--floors", type=Path, metavar="FILE", help="fail below the ratios in this JSON file")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS] = []
    config.stash[MEASURED] = stamp()
    path = config.getoption("--floors")
    if path is None:
        return
    try:
        config.stash[FLOORS] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise pytest.UsageError(f"--floors {path}: {error}") from None


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    output_json["measured"] = config.stash[MEASURED]


@pytest.fixture
def beside(benchmark: BenchmarkFixture, pytestconfig: pytest.Config) -> Beside:
    """Measure beside the plain-Python way; see `Beside`."""
    return Beside(benchmark, pytestconfig)


@pytest.hookimpl(trylast=True)  # behind the table of pytest-benchmark itself
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = config.stash[ROWS]
    if not rows:
        return
    terminalreporter.section("for each item, beside plain Python")
    wide = max(len(row.name) for row in rows), max(len(row.plain) for row in rows)
    line = f"{{:{wide[0]}}}  {{:>12}}  {{:{wide[1]}}}  {{:>12}}  {{:>8}}  {{}}"
    terminalreporter.write_line(line.format("", "fasthook", "plain Python", "", "ratio", "goal").rstrip())
    for row in rows:
        figures = row.name, f"{row.ns:,.0f} ns", row.plain, f"{row.plain_ns:,.0f} ns", f"{row.ratio:.1f} x", row.goal
        terminalreporter.write_line(line.format(*figures).rstrip())
