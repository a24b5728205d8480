"""What processes count, added up: nothing is lost with a process, and nothing is counted twice."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fasthook._core import OUTCOMES
from fasthook._scan import KINDS, restore
from fasthook.ops.blocks import REASONS, Blocks, Counts, Layout, open_block
from fasthook.testing import samples
from fasthook.update import Update

LAYOUT = Layout(paths=2)

WORKER = """
import sys
from pathlib import Path
from fasthook.ops.blocks import Counts, Layout, open_block
layout = Layout(paths=2)
counts = Counts(open_block(Path(sys.argv[1]), layout), layout)
for number in range(1000):
    counts.retry()
    counts.late(0.001)
counts.stats.add(layout.in_flight, 3)
counts.due(5.0)
print("counted", flush=True)
sys.stdin.read()
"""


def test_a_process_that_is_killed_stays_counted(tmp_path: Path) -> None:
    blocks = Blocks(tmp_path / "stats", LAYOUT)
    for death in range(1, 4):
        member = blocks.add("worker-1", 0)
        worker = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(member.file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert worker.stdout
        assert worker.stdin
        assert worker.stdout.readline() == b"counted\n"
        worker.kill()
        assert worker.wait() == -signal.SIGKILL
        worker.stdout.close()
        worker.stdin.close()
        before = blocks.total()
        assert member.stats.counter(LAYOUT.in_flight) == 3
        blocks.retire("worker-1")
        after = blocks.total()
        assert before.counters[LAYOUT.retries] == after.counters[LAYOUT.retries] == 1000 * death
        assert before.histograms == after.histograms
        assert sum(after.histograms[LAYOUT.lag].counts.values()) == 1000 * death
        assert after.counters[LAYOUT.in_flight] == after.counters[LAYOUT.due] == 0
        assert not list((tmp_path / "stats").iterdir())
        assert blocks.members == []


def test_processes_are_added_up(tmp_path: Path) -> None:
    blocks = Blocks(tmp_path / "stats", LAYOUT)
    for number in range(1, 4):
        counts = Counts(blocks.add(f"worker-{number}", number).stats, LAYOUT)
        for _ in range(number):
            counts.dead("timeout")
            counts.dead("something new")
            counts.committed(0.002)
    total = blocks.total()
    dead = dict(zip(REASONS, total.counters[LAYOUT.dead :], strict=False))
    assert {reason: count for reason, count in dead.items() if count} == {"timeout": 6, "other": 6}
    assert total.histograms[LAYOUT.commit].sum == 6 * 2_000_000
    assert [member.name for member in blocks.members] == ["worker-1", "worker-2", "worker-3"]


def test_a_new_server_counts_from_nought(tmp_path: Path) -> None:
    Counts(Blocks(tmp_path / "stats", LAYOUT).add("door", 1).stats, LAYOUT).retry()
    blocks = Blocks(tmp_path / "stats", LAYOUT)
    blocks.add("door", 1)
    assert not any(blocks.total().counters)


def test_a_block_of_other_sizes_is_refused(tmp_path: Path) -> None:
    open_block(tmp_path / "block", LAYOUT)
    with pytest.raises(ValueError, match="sizes"):
        open_block(tmp_path / "block", Layout(paths=1))


def test_places_do_not_overlap() -> None:
    places = [LAYOUT.in_flight, LAYOUT.retries, LAYOUT.due, *range(LAYOUT.dead, LAYOUT.dead + len(REASONS))]
    places += range(LAYOUT.edge, LAYOUT.counters)
    assert sorted(places) == list(range(LAYOUT.in_flight, LAYOUT.counters))


def test_a_block_of_a_full_disk_is_an_error_not_a_crash(tmp_path: Path) -> None:
    (tmp_path / "stats").mkdir()
    program = (
        "import resource, sys\nfrom pathlib import Path\nfrom fasthook.ops.blocks import Blocks, Layout\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try:\n    Blocks(Path(sys.argv[1]), Layout(1)).add('door', 1)\n"
        "except OSError as error:\n    print(error.strerror)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "stats")], capture_output=True, text=True, check=True
    )
    assert done.stdout == "File too large\n"


@pytest.mark.parametrize("outcome", range(len(OUTCOMES)))
@pytest.mark.parametrize("kind", ["message", "callback_query", "poll"])
def test_runs_of_handlers(tmp_path: Path, kind: str, outcome: int) -> None:
    stats = open_block(tmp_path / "block", LAYOUT)
    handling = Counts(stats, LAYOUT).handling
    update = restore(Update, samples.update(1, kind), 42, 0.0, 1)
    handling.started(update, 0.0, 0.0)
    assert stats.counter(LAYOUT.in_flight) == 1
    handling.ended(update, 0.0, outcome)
    assert stats.counter(LAYOUT.in_flight) == 0
    counted = [number for number in range(stats.histograms) if stats.histogram(number)[1]]
    assert counted == [LAYOUT.wait, LAYOUT.handlers + KINDS.index(kind) * len(OUTCOMES) + outcome]


def test_a_second_run_did_not_wait(tmp_path: Path) -> None:
    stats = open_block(tmp_path / "block", LAYOUT)
    handling = Counts(stats, LAYOUT).handling
    update = restore(Update, samples.update(1), 42, 0.0, 2)
    handling.started(update, 0.0, 0.0)
    assert stats.histogram(LAYOUT.wait) == (0, [])
