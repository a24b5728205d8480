"""The goals for what a request costs, held against what was measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from bench.peers.catalog import AIOGRAM, DATA, FASTAPI, HOOK, JOURNAL, LIMIT, MINIMAL, NOOP, PTB, RAW_ASGI
from bench.peers.measure import Sample, Series

STEADY_RATE = 5_000  # requests/s
SWEEP = (1, 64, 512, 2_000)  # connections


@dataclass(frozen=True)
class Goal:
    """A number with a bound; `value` None where this run did not measure it, or saw only errors."""

    name: str
    value: float | None
    bound: float
    at_most: bool = True
    only_errors: bool = False

    @property
    def met(self) -> bool | None:
        if self.only_errors:
            return False
        if self.value is None:
            return None
        return self.value <= self.bound if self.at_most else self.value >= self.bound

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"met": self.met}


Rows = dict[str, Series]


def _by_round(row: Series) -> dict[float, Sample]:
    return {sample["round"]: sample for sample in row.sound()}


def _times(rows: Rows, this: str, that: str) -> float | None:
    """How many times the CPU of `that` a request costs `this`: the median over the rounds that have both."""
    if this not in rows or that not in rows:
        return None
    mine, theirs = _by_round(rows[this]), _by_round(rows[that])
    ratios = [mine[n]["cpu_us"] / theirs[n]["cpu_us"] for n in mine.keys() & theirs.keys()]
    return median(ratios) if ratios else None


def _middle(rows: Rows, name: str, key: str) -> float | None:
    sound = rows[name].sound() if name in rows else []
    return median(sample[key] for sample in sound) if sound else None


def _only_errors(series: list[Series]) -> bool:
    """Whether fasthook was loaded, and in some row refused or dropped too much in every round."""
    return any(row.rounds and not row.sound() for row in series if row.peer.name == NOOP)


def of_table(series: list[Series]) -> list[Goal]:
    """The goals of the main table."""
    rows = {row.peer.name: row for row in series}
    return [
        Goal("fasthook memory: with a no-op coroutine, x limit.c", _times(rows, NOOP, LIMIT), 1.6),
        Goal("fasthook memory: reading update.data, x limit.c", _times(rows, DATA, LIMIT), 2.4),
        Goal("fasthook journal: with a no-op coroutine, x limit.c", _times(rows, JOURNAL, LIMIT), 3.2),
        Goal("Hook, x a minimal raw ASGI app under the same uvicorn", _times(rows, HOOK, MINIMAL), 1.10),
        Goal("raw ASGI + orjson on uvicorn, x fasthook", _times(rows, RAW_ASGI, NOOP), 7, at_most=False),
        Goal("FastAPI, x fasthook", _times(rows, FASTAPI, NOOP), 25, at_most=False),
        Goal("aiogram, x fasthook", _times(rows, AIOGRAM, NOOP), 35, at_most=False),
        Goal("python-telegram-bot, x fasthook", _times(rows, PTB, NOOP), 60, at_most=False),
        Goal("fasthook memory:, requests/s on one core", _middle(rows, NOOP, "rps"), 45_000, at_most=False),
    ]


def of_steady(series: list[Series]) -> list[Goal]:
    """The goal at a fixed rate."""
    p99 = _middle({row.peer.name: row for row in series}, NOOP, "p99_ms")
    name = f"fasthook memory:, p99 at {STEADY_RATE:,} requests/s, ms"
    return [Goal(name, p99, 1.0, only_errors=_only_errors(series))]


def of_sweep(series: list[Series]) -> list[Goal]:
    """Flat: the ratio to limit.c, whose own cost rises as the kernel's does, is at no count far above that at 64."""
    ratios = {row.connections: _middle({NOOP: row}, NOOP, "ratio") for row in series if row.peer.name == NOOP}
    usual, found = ratios.get(64), [ratio for ratio in ratios.values() if ratio]
    worst = max(found) / usual if usual and len(found) > 1 else None
    name = "fasthook memory:, x limit.c at its worst count of connections, against 64"
    return [Goal(name, worst, 1.15, only_errors=_only_errors(series))]
