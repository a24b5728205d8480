"""`--floors` of the micro-benchmarks, and that what they write is what the store of figures reads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from bench import history

ROOT = Path(__file__).resolve().parents[2]
NAME = "nothing / next to nothing"
BENCH = """
def test_nothing(beside):
    beside("nothing", len, sum, prepare=lambda: (1, 2), items=2, than="next to nothing", rounds=3)
"""


def bench(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """A micro-benchmark of no time at all, with the fixture of `bench/micro`."""
    (folder / "test_nothing.py").write_text(BENCH)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "bench.micro.conftest", "-c", str(ROOT / "pyproject.toml")]
    # In a worker of pytest-xdist, pytest-benchmark measures nothing.
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    return subprocess.run(
        [*command, str(folder), *options], cwd=ROOT, env=alone, capture_output=True, text=True, check=False, timeout=120
    )


def floors(folder: Path, text: str) -> str:
    path = folder / "floors.json"
    path.write_text(text)
    return f"--floors={path}"


def test_what_is_above_its_floor_passes(tmp_path: Path) -> None:
    done = bench(tmp_path, floors(tmp_path, json.dumps({NAME: 0})))
    assert done.returncode == 0, done.stdout
    assert "for each item, beside plain Python" in done.stdout


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        (json.dumps({NAME: 1e9}), 1, "times as quick as plain Python, 1e+09 is the floor"),
        (json.dumps({"something else": 1}), 1, f"no floor for '{NAME}': put one into bench/floors.json"),
        ("{", 4, "floors.json: Expecting"),
    ],
)
def test_what_is_below_it_or_has_none_fails(tmp_path: Path, text: str, code: int, says: str) -> None:
    done = bench(tmp_path, floors(tmp_path, text))
    assert done.returncode == code, done.stdout
    assert says in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_the_store_reads_what_a_benchmark_writes(tmp_path: Path) -> None:
    assert bench(tmp_path, f"--benchmark-json={tmp_path / 'micro.json'}").returncode == 0
    places = {part: tmp_path / f"{part}.json" for part in history.PARTS}
    [path] = history.add(tmp_path / "store", places)
    [record] = history.load(tmp_path / "store")
    assert path.name.endswith(f"{record['commit']}.json")
    assert record["micro"].keys() == {NAME}
    assert record["micro"][NAME]["plain"] == "next to nothing"
    assert record["micro"][NAME]["ratio"] > 0
