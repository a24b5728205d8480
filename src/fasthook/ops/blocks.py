"""What each process counts, in a mapped file that it alone writes, and the sum over all of them."""

from __future__ import annotations

import mmap
import os
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from time import monotonic_ns
from typing import ClassVar

from fasthook._core import Gate, Handling, Stats
from fasthook._protocol import EDGE_COUNTERS
from fasthook._scan import Admitted

#: Why updates become dead letters; any other reason counts as the last.
REASONS: tuple[str, ...] = ("failed", "timeout", "invalid", "reply failed", "expired", "crashed the worker", "other")


@dataclass(frozen=True)
class Layout:
    """Where each number stands in a block; all processes of a server have the same one. `paths`: its hook paths."""

    paths: int

    # histograms, in nanoseconds
    ack: ClassVar[int] = 0  # the edge writes it
    commit: ClassVar[int] = 1
    lag: ClassVar[int] = 2
    wait: ClassVar[int] = 3
    handlers: ClassVar[int] = 4  # the first of them; those of each path together

    @cached_property
    def in_flight(self) -> int:
        return Gate.counters(self.paths)

    @property
    def retries(self) -> int:
        return self.in_flight + 1

    @property
    def due(self) -> int:
        """When the loop's next beat is, monotonic ns."""
        return self.in_flight + 2

    @property
    def dead(self) -> int:
        """The first of the reasons."""
        return self.in_flight + 3

    @property
    def edge(self) -> int:
        """The first of the edge's, which are the last of all."""
        return self.dead + len(REASONS)

    @property
    def counters(self) -> int:
        return self.edge + len(EDGE_COUNTERS)

    @property
    def histograms(self) -> int:
        return self.handlers + self.paths * Handling.histograms()

    @property
    def nbytes(self) -> int:
        return Stats.nbytes(self.counters, self.histograms)

    @property
    def gauges(self) -> tuple[int, ...]:
        """Counters that say how something is, not how often it was: they end with their process."""
        return (self.in_flight, self.due, self.edge + EDGE_COUNTERS.index("connections"))


class Counts:
    """The writer's side of a block: what is counted outside the gate and the edge."""

    def __init__(self, stats: Stats, layout: Layout) -> None:
        self.stats = stats
        self._layout = layout
        self.handling = self.handling_of(1)

    def handling_of(self, row: int) -> Handling:
        """What counts the runs of the bot that has this row of the gate."""
        first = self._layout.handlers + (row - 1) * Handling.histograms()
        return Handling(self.stats, self._layout.in_flight, self._layout.wait, first)

    @classmethod
    def alone(cls, layout: Layout) -> Counts:
        """For a process whose counts nobody reads."""
        return cls(Stats(layout.counters, layout.histograms), layout)

    def retry(self) -> None:
        self.stats.add(self._layout.retries)

    def dead(self, reason: str) -> None:
        place = REASONS.index(reason) if reason in REASONS else len(REASONS) - 1
        self.stats.add(self._layout.dead + place)

    def committed(self, seconds: float) -> None:
        self.stats.observe(self._layout.commit, int(seconds * 1e9))

    def disconnected(self) -> None:
        """A peer went away in the middle of a request; the compiled edge counts for itself."""
        self.stats.add(self._layout.edge + EDGE_COUNTERS.index("disconnects"))

    def late(self, seconds: float) -> None:
        """The loop got to its beat so late."""
        self.stats.observe(self._layout.lag, int(seconds * 1e9))

    def due(self, due: float) -> None:
        """The loop's next beat is then, monotonic s; 0: there is none."""
        place = self._layout.due
        self.stats.add(place, int(due * 1e9) - self.stats.counter(place))


class HandlingByBot:
    """Counts the runs of several bots' handlers, each in its own histograms. `row`: of the gate, that a bot has."""

    def __init__(self, counts: Counts, row: Callable[[int], int]) -> None:
        self._counts = counts
        self._row = row
        self._of: dict[int, Handling] = {}

    def started(self, update: Admitted, since: float, now: float) -> None:
        of = self._of.get(update.bot_id)
        if of is None:
            of = self._of[update.bot_id] = self._counts.handling_of(self._row(update.bot_id))
        of.started(update, since, now)

    def ended(self, update: Admitted, began: float, outcome: int) -> float:
        return self._of[update.bot_id].ended(update, began, outcome)


@dataclass
class Histogram:
    """The sum of all values in ns, and how many were below each bound (in ns) and not below the one before it."""

    sum: int = 0
    counts: Counter[int] = field(default_factory=Counter)

    def add(self, total: int, counts: list[tuple[int, int]]) -> None:
        self.sum += total
        for bound, count in counts:
            self.counts[bound] += count


class Totals:
    """Numbers of several blocks, added up."""

    def __init__(self, layout: Layout) -> None:
        self.counters = [0] * layout.counters
        self.histograms: dict[int, Histogram] = {}  # those that are not empty

    def add(self, stats: Stats) -> None:
        for number in range(stats.counters):
            self.counters[number] += stats.counter(number)
        for number in range(stats.histograms):
            total, counts = stats.histogram(number)
            if counts:
                self.histograms.setdefault(number, Histogram()).add(total, counts)

    def add_totals(self, other: Totals) -> None:
        self.counters = [a + b for a, b in zip(self.counters, other.counters, strict=True)]
        for number, histogram in other.histograms.items():
            self.histograms.setdefault(number, Histogram()).add(histogram.sum, list(histogram.counts.items()))


@dataclass(frozen=True)
class Member:
    """A process that counts."""

    name: str  # "door", "worker-1"
    pid: int
    stats: Stats
    file: Path | None
    layout: Layout

    def blocked(self) -> float:
        """Seconds by which the beat of its loop is overdue."""
        due = self.stats.counter(self.layout.due)
        return max(0.0, (monotonic_ns() - due) / 1e9) if due else 0.0

    def runs(self) -> int:
        """How many runs of handlers it has begun."""
        ended = (self.stats.histogram(number)[1] for number in range(self.layout.handlers, self.layout.histograms))
        return self.stats.counter(self.layout.in_flight) + sum(count for counts in ended for _, count in counts)


class Blocks:
    """The blocks of a server's processes, as its door sees them. Any thread may ask for the sum.

    `directory`: what an earlier server left in it goes away; None: a process of its own, in its memory. OSError: it
    cannot be written.
    """

    def __init__(self, directory: Path | None, layout: Layout) -> None:
        self.layout = layout
        self._directory = directory
        self._members: dict[str, Member] = {}
        self._gone = Totals(layout)  # of the processes that have ended
        self._mutex = threading.Lock()
        self._made = 0
        self.restarts = 0  # workers that were replaced because they had died
        self.refused = 0  # worker processes that the system did not start
        if directory is None:
            return
        directory.mkdir(mode=0o700, exist_ok=True)
        for old in directory.glob("*.stats"):
            old.unlink()

    def add(self, name: str, pid: int) -> Member:
        """A new block for a process; the process opens its `file` with `open_block`. OSError: there is no room."""
        self._made += 1
        file = self._directory / f"{name}.{self._made}.stats" if self._directory else None
        stats = open_block(file, self.layout) if file else Stats(self.layout.counters, self.layout.histograms)
        member = Member(name, pid, stats, file, self.layout)
        with self._mutex:
            self._members[name] = member
        return member

    def retire(self, name: str) -> None:
        """A process has ended: what it counted stays in the sum. KeyError: there is none of this name."""
        with self._mutex:
            member = self._members.pop(name)
            self._gone.add(member.stats)
            for place in self.layout.gauges:
                self._gone.counters[place] = 0
        if member.file:
            member.file.unlink(missing_ok=True)

    @property
    def members(self) -> list[Member]:
        """The processes that there are."""
        with self._mutex:
            return list(self._members.values())

    def total(self) -> Totals:
        """All that was counted, by the processes that there are and by those that have ended."""
        total = Totals(self.layout)
        with self._mutex:
            total.add_totals(self._gone)
            for member in self._members.values():
                total.add(member.stats)
        return total


def open_block(file: Path, layout: Layout) -> Stats:
    """The block in a file, made if it is not there. OSError: no room. ValueError: the file holds something else."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if os.fstat(descriptor).st_size < layout.nbytes:
            reserve(descriptor, layout.nbytes)
        return Stats(layout.counters, layout.histograms, mmap.mmap(descriptor, layout.nbytes))
    finally:
        os.close(descriptor)


def reserve(descriptor: int, size: int) -> None:
    """Let a file have room on the disk for its first so many bytes; it gets zeros where it has none.

    A page of a mapped file for which a full disk has no room would be a bus error at its first use. OSError: there is
    no room; the file is as long as it was.
    """
    length = os.fstat(descriptor).st_size
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, size)
        else:
            _fill(descriptor, length, size)
    except OSError:
        os.truncate(descriptor, length)
        raise


def _fill(descriptor: int, start: int, end: int) -> None:
    os.lseek(descriptor, start, os.SEEK_SET)
    while start < end:
        start += os.write(descriptor, bytes(min(end - start, 1 << 20)))
