"""What all tests share: how much hypothesis does, and the compiled core beside its twin."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace

import hypothesis
import pytest

import fasthook._core
import fasthook._scan
import reference

hypothesis.settings.register_profile("default", max_examples=100, deadline=None)
# A failure in CI must be the same failure on the next machine.
hypothesis.settings.register_profile("ci", max_examples=250, deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") == "true" else "default")


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """A shell's job in the background ignores Ctrl-C, and so would the commands that tests interrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


# Where several processes share the tests, what takes long comes first, and nobody waits for it at the end.
LONGEST = ("tests/shipping/test_guard.py", "tests/e2e/test_kill.py", "tests/e2e/", "tests/shipping/", "tests/queues/")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    def rank(item: pytest.Item) -> int:
        return next((n for n, place in enumerate(LONGEST) if item.nodeid.startswith(place)), len(LONGEST))

    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=rank)


Core = SimpleNamespace  # scan, DedupRing, TokenBuckets, Stats: typed enough for tests


def _compiled() -> Core:
    core, scan = fasthook._core, fasthook._scan
    return Core(
        name="compiled",
        KINDS=scan.KINDS,
        scan=scan.scan,
        DedupRing=core.DedupRing,
        TokenBuckets=core.TokenBuckets,
        Stats=core.Stats,
    )


def _twin() -> Core:
    return Core(
        name="twin",
        KINDS=reference.KINDS,
        scan=reference.scan,
        DedupRing=reference.DedupRing,
        TokenBuckets=reference.TokenBuckets,
        Stats=reference.Stats,
    )


@pytest.fixture(scope="session", params=[_compiled, _twin], ids=["compiled", "twin"])
def core(request: pytest.FixtureRequest) -> Core:
    """The compiled core, then its twin: what holds for one must hold for the other."""
    made: Core = request.param()
    return made
