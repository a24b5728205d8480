"""What `make` does when a step of it fails."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("failing", ["fuzz_edge", "fuzz_scan", ""])
def test_fuzz_runs_both_targets_and_fails_if_one_does(tmp_path: Path, failing: str) -> None:
    """With an interpreter that only writes down what it is asked for."""
    if not shutil.which("make"):
        pytest.skip("make is not installed")
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\necho "$*" >>{tmp_path}/asked\ncase "$*" in *{failing or "nothing"}*) exit 77;; esac\n'
    )
    python.chmod(0o755)
    command = ["make", "fuzz", "--old-file", "build", f"BIN={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    asked = (tmp_path / "asked").read_text()
    assert all(f"fuzz/{target}.py" in asked for target in ("fuzz_edge", "fuzz_scan"))
    assert (done.returncode == 0) == (not failing), done.stderr
    assert (f"build/fuzz/: {failing}" in done.stdout) == bool(failing)
