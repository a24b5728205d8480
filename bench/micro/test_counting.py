"""What it costs to count a run of a handler, beside prometheus-client with its labels looked up in advance."""

from __future__ import annotations

from time import monotonic
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, Histogram

from fasthook import Update
from fasthook._core import Handling
from fasthook._scan import restore
from fasthook.testing import samples

ITEMS = 1000


def test_a_run_of_a_handler(beside: Any) -> None:
    update = restore(Update, samples.update(1), 42, 1.5, 1)
    handling = Handling.alone()
    registry = CollectorRegistry()
    in_flight = Gauge("in_flight", "", registry=registry)
    wait = Histogram("wait", "", registry=registry)
    handler = Histogram("handler", "", ["bot", "kind", "outcome"], registry=registry).labels("42", "message", "handled")

    def counted(_: None) -> None:
        started, ended, now = handling.started, handling.ended, monotonic()
        for _ in range(ITEMS):
            started(update, 0.0, now)
            ended(update, now, 0)

    def counted_by_the_client(_: None) -> None:
        now = monotonic()
        for _ in range(ITEMS):
            in_flight.inc()
            wait.observe(now - update.received_at)
            handler.observe(monotonic() - now)
            in_flight.dec()

    beside(
        "a run of a handler, counted",
        counted,
        counted_by_the_client,
        prepare=lambda: None,
        items=ITEMS,
        than="prometheus-client",
        goal="≤ 200 ns",
    )
