"""The numbers of a server for Prometheus: families made afresh at each scrape, from what the processes count.

A label is a bot, a verdict, a kind, an outcome, a reason or a process: each is one of a fixed set.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from fasthook._core import OUTCOMES, VERDICTS, Gate, Handling
from fasthook._protocol import EDGE_COUNTERS
from fasthook._scan import KINDS
from fasthook.ops.blocks import REASONS, Histogram, Totals
from fasthook.ops.health import CODES, Health

# Powers of two are bounds of the histograms themselves (see `Stats`), so that no bucket is a guess. In nanoseconds.
_FINE = [1 << power for power in range(13, 37)]  # 8.192 µs, twice that, … 68.7 s
_COARSE = _FINE[1::2]  # 16.384 µs, four times that, … 68.7 s


def page(health: Health, accept: str) -> tuple[bytes, str]:
    """All metrics, as a scraper accepts them (Prometheus text or OpenMetrics), and the content type."""
    encode, content_type = choose_encoder(accept)
    registry = CollectorRegistry()
    registry.register(_Collector(health))
    return encode(registry), content_type


class _Collector(Collector):
    """What one scrape sees."""

    def __init__(self, health: Health) -> None:
        self._health = health
        self._receiver = health.receiver
        self._blocks = health.receiver.blocks  # another's, when the start has come so far
        self._layout = self._blocks.layout
        has_gate = self._receiver.running or not health.starting
        rows: dict[int, int] = self._receiver.gate.rows if has_gate else {}
        self._bots = tuple(str(bot) for bot in sorted(rows, key=rows.__getitem__))  # those that there are and were

    def describe(self) -> list[Metric]:
        """Nothing in advance: the registry is of one scrape."""
        return []

    def collect(self) -> Iterator[Metric]:
        serves = not self._health.starting
        if serves:
            yield from self._queue()
        total = self._blocks.total()  # behind the queue's depth: what has left it is counted
        yield from self._door(total)
        yield from self._handling(total)
        if serves and self._receiver.queue.durable:
            yield from self._journal(total)
        yield from self._processes(total)
        yield from self._state()

    # ------------------------------------------------------------ the families

    def _door(self, total: Totals) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "fasthook_requests", "Requests by the verdict on them; bot none: for no hook.", labels=["bot", "verdict"]
        )
        updates = CounterMetricFamily("fasthook_updates", "Updates that were admitted.", labels=["bot", "kind"])
        known = CounterMetricFamily("fasthook_duplicates", "Updates that had been admitted before.", labels=["bot"])
        per_row = Gate.counters(0)
        for row, bot in enumerate(("none", *self._bots)):
            counts = total.counters[row * per_row : (row + 1) * per_row]
            for code, verdict in enumerate(VERDICTS):
                if row or counts[code]:
                    requests.add_metric([bot, verdict[0]], counts[code])
            if row:
                for kind, name in enumerate(KINDS):
                    updates.add_metric([bot, name], counts[len(VERDICTS) + kind])
                known.add_metric([bot], counts[-1])
        yield requests
        yield updates
        yield known
        yield self._histogram(
            "fasthook_ack_seconds", "From the last byte of a request to its response.", total, self._layout.ack, _FINE
        )
        edge = dict(zip(EDGE_COUNTERS, total.counters[self._layout.edge :], strict=True))
        yield CounterMetricFamily(
            "fasthook_disconnects", "Peers that went away within a request.", value=edge["disconnects"]
        )
        yield GaugeMetricFamily("fasthook_connections", "Connections open now.", value=self._health.connections())
        if self._receiver.settings.http == "compiled":
            yield CounterMetricFamily(
                "fasthook_timeouts", "Connections that were closed at a deadline.", value=edge["timeouts"]
            )
            yield CounterMetricFamily("fasthook_received_bytes", "Bytes received.", value=edge["received_bytes"])
            yield CounterMetricFamily("fasthook_sent_bytes", "Bytes sent.", value=edge["sent_bytes"])

    def _handling(self, total: Totals) -> Iterator[Metric]:
        handlers = HistogramMetricFamily(
            "fasthook_handler_seconds", "How long handlers ran.", labels=["bot", "kind", "outcome"]
        )
        for number, histogram in sorted(total.histograms.items()):
            if number >= self._layout.handlers:
                row, place = divmod(number - self._layout.handlers, Handling.histograms())
                kind, outcome = divmod(place, len(OUTCOMES))
                buckets = _buckets(histogram, _COARSE)
                handlers.add_metric([self._bots[row], KINDS[kind], OUTCOMES[outcome]], buckets, histogram.sum / 1e9)
        yield handlers
        yield self._histogram(
            "fasthook_wait_seconds",
            "From the acknowledgement of an update to the start of its handler.",
            total,
            self._layout.wait,
            _FINE,
        )
        in_flight = sum(
            member.stats.counter(self._layout.in_flight) for member in self._blocks.members
        )  # of those that live
        yield GaugeMetricFamily("fasthook_in_flight", "Updates in handlers now.", value=in_flight)
        yield CounterMetricFamily(
            "fasthook_retries",
            "Failed runs of a handler after which the update is tried again.",
            value=total.counters[self._layout.retries],
        )
        dead = CounterMetricFamily("fasthook_dead_letters", "Updates that were given up on.", labels=["reason"])
        for place, reason in enumerate(REASONS):
            dead.add_metric([reason.replace(" ", "_")], total.counters[self._layout.dead + place])
        yield dead

    def _queue(self) -> Iterator[Metric]:
        queue = self._receiver.queue
        oldest = self._receiver.oldest
        yield GaugeMetricFamily("fasthook_queue_depth", "Updates accepted and not settled.", value=queue.depth)
        yield GaugeMetricFamily(
            "fasthook_queue_oldest_seconds",
            "Age of the oldest of them.",
            value=0.0 if oldest is None else max(0.0, time.time() - oldest),
        )

    def _journal(self, total: Totals) -> Iterator[Metric]:
        yield self._histogram(
            "fasthook_journal_commit_seconds", "How long commits took.", total, self._layout.commit, _FINE
        )
        used = self._receiver.queue.used
        yield GaugeMetricFamily("fasthook_journal_bytes", "Bytes of the journal in use.", value=used)

    def _processes(self, total: Totals) -> Iterator[Metric]:
        yield self._histogram(
            "fasthook_event_loop_lag_seconds",
            "How late event loops came to what was due.",
            total,
            self._layout.lag,
            _COARSE,
        )
        blocked = GaugeMetricFamily(
            "fasthook_event_loop_blocked_seconds", "For how long an event loop has not come round.", labels=["process"]
        )
        cpu = CounterMetricFamily("fasthook_process_cpu_seconds", "CPU time, user and system.", labels=["process"])
        memory = GaugeMetricFamily("fasthook_process_resident_memory_bytes", "Memory in use.", labels=["process"])
        for member in self._blocks.members:
            blocked.add_metric([member.name], member.blocked())
            used = _process(member.pid)
            if used is not None:
                cpu.add_metric([member.name], used[0])
                memory.add_metric([member.name], used[1])
        yield CounterMetricFamily(
            "fasthook_worker_restarts", "Workers that died and were replaced.", value=self._blocks.restarts
        )
        yield CounterMetricFamily(
            "fasthook_worker_start_failures",
            "Worker processes that the system refused to start.",
            value=self._blocks.refused,
        )
        yield blocked
        yield cpu
        yield memory

    def _state(self) -> Iterator[Metric]:
        unready = GaugeMetricFamily("fasthook_unready", "1: not ready, for this reason.", labels=["reason"])
        codes = {reason.code for reason in self._health.reasons()}
        for code in CODES:
            unready.add_metric([code], float(code in codes))
        yield unready
        build = {"version": version("fasthook"), "python": platform.python_version()}
        yield InfoMetricFamily("fasthook_build", "What runs here.", value=build)

    def _histogram(self, name: str, words: str, total: Totals, number: int, bounds: list[int]) -> HistogramMetricFamily:
        histogram = total.histograms.get(number, Histogram())
        return HistogramMetricFamily(name, words, buckets=_buckets(histogram, bounds), sum_value=histogram.sum / 1e9)


def _buckets(histogram: Histogram, bounds: list[int]) -> list[tuple[str, float]]:
    """How many values were below each bound, and how many there are at all."""
    below, counts = 0, sorted(histogram.counts.items())
    found: list[tuple[str, float]] = []
    for bound in bounds:
        while counts and counts[0][0] <= bound:
            below += counts.pop(0)[1]
        found.append((repr(bound / 1e9), below))
    found.append(("+Inf", below + sum(count for _, count in counts)))
    return found


def _process(pid: int) -> tuple[float, int] | None:
    """CPU seconds and resident bytes of a process; None where there is no /proc, or it has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    # proc(5): the fields 14, 15 and 24, counted from the third, which is the first behind the name
    return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK"), int(stat[21]) * os.sysconf("SC_PAGE_SIZE")
