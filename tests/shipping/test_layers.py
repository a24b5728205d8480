"""The guard's layers: all of them are run, and each is red for what is slower, not for noise. Timings are made up."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from bench import builds, guard, instructions, paired
from bench.guard import Layer

ZEROS = "0" * 40


def ending(code: int, said: str) -> tuple[str, ...]:
    return (sys.executable, "-c", f"print({said!r}); raise SystemExit({code})")


@pytest.mark.parametrize(
    ("codes", "ends"), [((0, 0, 0), 0), ((1, 0, 0), 1), ((2, 0, 0), 2), ((2, 0, 1), 1), ((0, 0, 4), 2)]
)
def test_a_red_layer_stops_none_of_the_others(
    codes: tuple[int, ...], ends: int, capfd: pytest.CaptureFixture[str]
) -> None:
    made = [Layer(f"layer {number}", ending(code, f"said {number}")) for number, code in enumerate(codes)]
    assert guard.run(made) == ends
    said = capfd.readouterr().out
    assert [line for line in said.splitlines() if line.startswith("said")] == ["said 0", "said 1", "said 2"]
    words = {0: "green", 1: "RED"}
    told = ", ".join(f"layer {number} {words.get(code, 'could not be run')}" for number, code in enumerate(codes))
    assert said.endswith(f"guard: {told}\n")


def test_there_are_three_layers_and_without_a_base_one() -> None:
    assert [layer.command[2] for layer in guard.layers("main")] == ["bench.instructions", "pytest", "bench.paired"]
    assert all("main" in layer.command for layer in guard.layers("main") if layer.command[2] != "pytest")
    assert [layer.command[2] for layer in guard.layers(None)] == ["pytest"]


@pytest.fixture
def commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """Makes a commit in a repository that the guard takes for its own; answers its hash."""
    monkeypatch.setattr(builds, "ROOT", tmp_path)

    def git(*arguments: str) -> str:
        who = ("-c", "user.name=guard", "-c", "user.email=guard@example.org", "-c", "commit.gpgsign=false")
        command = ["git", "-C", str(tmp_path), *who, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout.strip()

    def made() -> str:
        git("commit", "--quiet", "--allow-empty", "-m", "A commit")
        return git("rev-parse", "HEAD")

    git("init", "--quiet")
    return made


@pytest.mark.parametrize("gone", [ZEROS, "1234567890" * 4])
def test_a_base_that_a_push_left_behind_is_the_commit_before(
    commit: Callable[[], str], gone: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first = commit()
    assert guard.base_of(gone) is None
    commit()
    capsys.readouterr()
    assert guard.base_of(gone) == "HEAD^"
    assert capsys.readouterr().err == f"the base {gone} is not here: HEAD^ instead\n"
    assert guard.base_of(first) == first
    assert guard.base_of("") == "HEAD^"
    assert capsys.readouterr().err == ""


def test_a_base_that_was_never_one_is_told(commit: Callable[[], str]) -> None:
    commit()
    with pytest.raises(builds.BuildError, match="rev-parse"):
        guard.base_of("no-such-revision")


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds that are nothing but names: base, base-again, head."""
    monkeypatch.setattr(builds, "tree", lambda revision, again="": Path((revision or "head") + again))
    monkeypatch.setattr(builds, "name_of", str)


Cost = Callable[[str, int], float]  # of a build, at its nth run


def timed(monkeypatch: pytest.MonkeyPatch, cost: Cost, *options: str) -> int:
    """`bench.paired` of one workload that takes so many microseconds for each."""
    runs: dict[str, int] = {}

    def seconds(built: Path, name: str, count: int) -> float:
        runs[str(built)] = runs.get(str(built), 0) + 1
        return cost(str(built), runs[str(built)]) * count / 1e6

    monkeypatch.setattr(paired, "seconds", seconds)
    monkeypatch.setattr(sys, "argv", ["paired", "--base", "base", "--only", "scan", *options])
    return paired.main()


def steady(head: float, copy: float = 1.0) -> Cost:
    return lambda built, _: {"base": 1.0, "base-again": copy, "head": head}[built]


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize(
    ("cost", "red"),
    [
        (steady(1.0), False),
        (steady(1.1), True),
        (steady(1.1, copy=1.02), True),
        (steady(1.1, copy=1.12), False),  # the noise is larger
        (steady(1.1, copy=0.88), False),  # whichever way it goes
        (steady(1.02), False),  # the layout of code alone makes as much
        (steady(0.9), False),  # quicker
        (lambda built, number: 3.0 if built == "head" and number == 4 else 1.0, False),  # one run was disturbed
        (
            lambda built, number: 3.0 if built == "base-again" and number == 4 else steady(1.1)(built, 1),
            False,
        ),  # of the noise
    ],
)
def test_rounds_in_turn_are_red_beyond_the_noise_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cost: Cost, red: bool
) -> None:
    assert timed(monkeypatch, cost) == int(red)
    said = capsys.readouterr()
    assert said.err == ("slower beyond the noise: scan\n" if red else "")
    assert ("RED" in said.out) == red


@pytest.mark.usefixtures("two")
def test_a_machine_that_grows_slower_by_the_run_harms_both_alike(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    runs = iter(range(1, 1000))
    found = tmp_path / "rounds.json"
    assert timed(monkeypatch, lambda *_: 1.0 + next(runs) / 10, "--json", str(found), "--rounds", "3") == 0
    (pair,) = json.loads(found.read_text())
    assert pair["ratios"] == pytest.approx([1.0] * 3)
    assert pair["noise"] == pytest.approx([1.0] * 3)


def failing(built: str, number: int) -> float:
    if built == "base":
        raise paired.RunError("scan: no such function")
    return 1.0


@pytest.mark.usefixtures("two")
def test_rounds_that_base_cannot_run_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert timed(monkeypatch, failing) == 0
    said = capsys.readouterr()
    assert "fails on base: scan: no such function" in said.out
    assert said.err == "not compared, as they fail on base: scan\n"


@pytest.mark.usefixtures("two")
def test_a_workload_that_head_cannot_run_ends_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert timed(monkeypatch, lambda built, number: failing("base" if built == "head" else "", number)) == 2
    assert capsys.readouterr().err == "scan: no such function\n"


@pytest.mark.usefixtures("two")
def test_instructions_that_base_cannot_run_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def total(built: Path, name: str, count: int) -> int:
        if (str(built), name) == ("base", "ring"):
            raise instructions.CountError("ring: no such function")
        return 100 * count

    monkeypatch.setattr(instructions, "_total", total)
    monkeypatch.setattr("shutil.which", lambda name: name)
    monkeypatch.setattr(sys, "argv", ["instructions", "--base", "base", "--only", "scan,ring"])
    assert instructions.main() == 0
    said = capsys.readouterr()
    assert "fails on base: ring: no such function" in said.out
    assert said.err == "not compared, as they fail on base: ring\n"
