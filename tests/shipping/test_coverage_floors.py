"""`make coverage` holds Cython and Python to the floor each for itself, and misses none of the compiled modules."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import coverage
import pytest

FLOORS = Path(__file__).resolve().parents[2] / "release/floors.sh"
FLOOR = tomllib.loads((FLOORS.parents[1] / "pyproject.toml").read_text())["tool"]["coverage"]["report"]["fail_under"]


def floors(folder: Path, **counted: int) -> subprocess.CompletedProcess[str]:
    """Count so many percent of the lines of each: c, d for _c.pyx, _d.pyx, which are there, py for plain.py.

    Of what is below the floor there are few lines, which the others would make up for.
    """
    sources = folder / "src/fasthook"
    sources.mkdir(parents=True)
    (folder / ".coveragerc").write_text(f"[report]\nfail_under = {FLOOR}\n")
    data = coverage.CoverageData(str(folder / ".coverage"))
    for name, file in {"c": "_c.pyx", "d": "_d.pyx", "py": "plain.py"}.items():
        percent = counted.get(name, 0)
        hundreds = 40 if percent >= FLOOR else 1
        (sources / file).write_text("x = 1\n" * hundreds * 100)
        if name in counted:
            data.add_lines({str(sources / file): range(1, hundreds * percent + 1)})
    data.write()
    data.close()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    environment["PYTHON"] = sys.executable
    return subprocess.run(
        ["bash", str(FLOORS)], cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=120
    )


def test_above_the_floor(tmp_path: Path) -> None:
    done = floors(tmp_path, c=FLOOR, d=FLOOR, py=FLOOR)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("low", [{"c": 50, "d": 50, "py": 100}, {"c": 100, "d": 100, "py": 50}])
def test_one_language_is_below_it(tmp_path: Path, low: dict[str, int]) -> None:
    done = floors(tmp_path, **low)
    assert done.returncode == 1
    assert "50%" in done.stdout


def test_a_compiled_module_of_which_nothing_was_counted(tmp_path: Path) -> None:
    done = floors(tmp_path, c=100, py=100)
    assert done.returncode == 1
    assert "no line was counted of _d.pyx" in done.stderr
