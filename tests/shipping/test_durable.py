"""`bench.durable`: updates that a real server takes, made-up times, and the end that belongs to them."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

QUICK = 0.2  # ms, of fdatasync


@pytest.mark.parametrize(
    ("times", "code", "says"),
    [
        ((0.5, 0.6, 0.7), 0, "p99 x fdatasync: 3.00 (goal: 3); latest send "),
        ((0.5, 0.7, 0.8), 1, "p99 x fdatasync: 3.50 (goal: 3); latest send "),
        ((0.5, 0.6, 90.0), 0, "p99 x fdatasync: 3.00 (goal: 3); latest send "),  # a turn that was disturbed
    ],
)
def test_the_medians_of_the_turns_say_whether_the_goal_is_met(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    times: tuple[float, ...],
    code: int,
    says: str,
) -> None:
    if sys.platform != "linux" or not shutil.which("cc"):
        pytest.skip("it is measured on Linux, with a C compiler")
    from bench import durable
    from bench.durable import Turn

    real, firsts, p99s = durable.acknowledged, list[int](), iter([0.0, *times])

    def acknowledged(port: int, request: Path, first: int, seconds: int = 1) -> Turn:
        firsts.append(first)
        taken = real(port, request, first, seconds)
        assert taken.count == seconds * durable.RATE
        return Turn(0.1, next(p99s), taken.count, taken.latest_send)

    monkeypatch.setattr(durable, "RATE", 100)
    monkeypatch.setattr(durable, "acknowledged", acknowledged)
    monkeypatch.setattr(durable, "synced", lambda file: Turn(0.1, QUICK, 7))
    monkeypatch.setattr(sys, "argv", ["durable", "--rounds", str(len(times))])
    assert durable.main() == code
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "fdatasync: p50 0.10 ms, p99 0.20 ms (21 measured)"
    assert said[1].endswith(f"p99 {sorted(times)[1]:.2f} ms (300 measured)")
    assert said[2].startswith(says)
    assert len(set(firsts)) == len(times) + 1
