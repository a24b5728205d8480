"""The store of figures: each is kept once, under the commit that it was measured at."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import bench.stamp
import pytest
from bench import history

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("micro", "instructions", "peers")


def measured(commit: str, second: int, clean: bool = True) -> dict[str, Any]:
    """As `bench.stamp` says it."""
    when = {"subject": f"What {commit} does", "date": f"2026-01-31T12:00:{second:02}+00:00"}
    return {"commit": commit, "clean": clean, "python": "3.11.7", "system": "Linux", "machine": "x86_64"} | when


def write_micro(folder: Path, stamp: dict[str, Any]) -> None:
    extra = {"name": "scan, 500 B", "plain": "orjson.loads", "ns": 250.0, "ratio": 5.0}
    text = json.dumps({"measured": stamp, "benchmarks": [{"extra_info": extra}, {"extra_info": {}}]})
    (folder / "micro.json").write_text(text)


def write_instructions(folder: Path, stamp: dict[str, Any]) -> None:
    (folder / "instructions.json").write_text(json.dumps({"measured": stamp, "counts": {"scan": {"head": 4000.0}}}))


def write_peers(folder: Path, stamp: dict[str, Any]) -> None:
    (folder / "peers.json").write_text(json.dumps({"measured": stamp, "rows": []}))


def keep(folder: Path) -> subprocess.CompletedProcess[str]:
    """The command, with what was written into the folder."""
    options = [f"--{part}={folder / part}.json" for part in PARTS]
    command = [sys.executable, "-m", "bench.history", "--store", str(folder / "store"), *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)


def test_one_measurement_is_one_record_however_often_it_is_kept(tmp_path: Path) -> None:
    for number, write in enumerate((write_micro, write_instructions, write_peers)):
        write(tmp_path, measured("aaaaaaaaaaaa", number))
    assert keep(tmp_path).returncode == 0
    again = keep(tmp_path)
    assert (again.returncode, again.stdout) == (0, "nothing new was measured\n")
    (record,) = history.load(tmp_path / "store")
    assert (record["commit"], record["subject"]) == ("aaaaaaaaaaaa", "What aaaaaaaaaaaa does")
    assert record["date"] == "2026-01-31T12:00:02+00:00"
    assert record["micro"] == {"scan, 500 B / orjson.loads": {"ns": 250.0, "ratio": 5.0, "plain": "orjson.loads"}}
    assert record["instructions"] == {"scan": 4000.0}
    assert record["peers"]["rows"] == []


def test_what_an_earlier_run_left_stays_with_its_commit(tmp_path: Path) -> None:
    write_peers(tmp_path, measured("aaaaaaaaaaaa", 1))
    write_micro(tmp_path, measured("bbbbbbbbbbbb", 2))
    assert keep(tmp_path).returncode == 0
    old, new = history.load(tmp_path / "store")
    assert (old["commit"], list(old["measured"]), old["micro"]) == ("aaaaaaaaaaaa", ["peers"], {})
    assert (new["commit"], list(new["measured"]), new["peers"]) == ("bbbbbbbbbbbb", ["micro"], None)


def test_what_was_measured_later_is_kept_alone(tmp_path: Path) -> None:
    write_micro(tmp_path, measured("aaaaaaaaaaaa", 1))
    keep(tmp_path)
    write_peers(tmp_path, measured("aaaaaaaaaaaa", 9))
    keep(tmp_path)
    first, second = history.load(tmp_path / "store")
    assert (list(first["measured"]), list(second["measured"])) == (["micro"], ["peers"])
    assert second["micro"] == {}


def test_a_tree_that_was_changed_is_marked(tmp_path: Path) -> None:
    write_micro(tmp_path, measured("aaaaaaaaaaaa", 1, clean=False))
    keep(tmp_path)
    (record,) = history.load(tmp_path / "store")
    assert record["commit"] == "aaaaaaaaaaaa+"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "nothing was measured yet"),
        ("{", "line 1"),
        ('{"benchmarks": []}', "does not say what it was measured at"),
        ("[]", "does not say what it was measured at"),
    ],
)
def test_what_cannot_be_kept_is_told_in_a_line(tmp_path: Path, text: str | None, says: str) -> None:
    if text is not None:
        (tmp_path / "micro.json").write_text(text)
    done = keep(tmp_path)
    assert done.returncode == 1
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_stamp_is_of_the_commit_and_says_whether_the_tree_is_as_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> str:
        who = ("-c", "user.name=stamp", "-c", "user.email=stamp@example.org", "-c", "commit.gpgsign=false")
        command = ["git", "-C", str(tmp_path), *who, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout.strip()

    monkeypatch.setattr(bench.stamp, "ROOT", tmp_path)
    git("init", "--quiet")
    assert bench.stamp.stamp()["commit"] == "unknown"
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "--quiet", "-m", "First")
    clean = bench.stamp.stamp()
    assert (clean["commit"], clean["clean"], clean["subject"]) == (
        git("rev-parse", "--short=12", "HEAD"),
        True,
        "First",
    )
    (tmp_path / "file").write_text("two")
    assert bench.stamp.stamp() | {"date": ""} == clean | {"clean": False, "date": ""}
    git("commit", "--quiet", "--all", "-m", "Second")
    named = bench.stamp.stamp("HEAD^")
    assert (named["commit"], named["subject"], named["clean"]) == (clean["commit"], "First", True)
