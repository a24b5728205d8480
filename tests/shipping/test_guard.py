"""The guard itself: a commit that makes the scan five percent slower turns it red, one that changes nothing doesn't."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINE = "    c = telegram_order(c, found)\n"
SPIN = "    cdef volatile int spin = 0\n"
LOOP = "    while spin < 40:\n        spin += 1\n"
WORDS = "    # nothing else changes\n"
PATIENCE = 360.0  # seconds: it compiles two builds and lets valgrind count


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is here, compiled as it is here, with a history of three commits: slower, with a comment, as it is."""
    if not shutil.which("valgrind"):
        if os.environ.get("CI") == "true":
            pytest.fail("valgrind is not installed")
        pytest.skip("valgrind is not installed")
    made = tmp_path_factory.mktemp("guard") / "fasthook"
    compiled = [*ROOT.glob("src/fasthook/*.so"), *ROOT.glob("src/fasthook/*.c")]
    names = ["setup.py", "pyproject.toml", "README.md", "LICENSE", ".gitignore"]
    for path in [*(ROOT / name for name in names), *compiled]:
        target = made / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    for name in ("src", "bench", "release"):
        ignored = shutil.ignore_patterns("__pycache__", "*.so", "*.c", "*.html", "out", "node_modules", "*.egg-info")
        shutil.copytree(ROOT / name, made / name, ignore=ignored, dirs_exist_ok=True)
    scan = made / "src/fasthook/_scan.pyx"
    text = scan.read_text()
    assert text.count(LINE) == 1
    scan.write_text(
        text.replace(LINE, LINE + LOOP).replace(
            "    cdef bint whole, escaped\n    c.at", f"{SPIN}    cdef bint whole, escaped\n    c.at"
        )
    )
    assert SPIN in scan.read_text()
    commit(made, "slower", "init", "--quiet")
    scan.write_text(text.replace(LINE, WORDS + LINE))
    commit(made, "a comment")
    shutil.copy2(ROOT / "src/fasthook/_scan.pyx", scan)  # with its age: what is compiled already is used
    commit(made, "as it is")
    return made


def git(repository: Path, *arguments: str) -> None:
    who = ("-c", "user.name=guard", "-c", "user.email=guard@example.org", "-c", "commit.gpgsign=false")
    subprocess.run(["git", "-C", str(repository), *who, *arguments], check=True, capture_output=True, timeout=120)


def commit(repository: Path, subject: str, *first: str) -> None:
    if first:
        git(repository, *first)
    git(repository, "add", "--all")
    git(repository, "commit", "--quiet", "-m", subject)


def guard(repository: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench.instructions", "--only", "scan", *options]
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "GIT_DIR")}
    return subprocess.run(
        command, cwd=repository, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE
    )


def test_five_percent_more_is_red(repository: Path, tmp_path: Path) -> None:
    found = tmp_path / "counts.json"
    done = guard(repository, "--base", "HEAD", "--head", "HEAD~2", "--json", str(found))
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr == "more than 2 % more instructions: scan\n"
    assert 3 < json.loads(found.read_text())["counts"]["scan"]["change"] < 8
    assert json.loads(found.read_text())["measured"]["subject"] == "slower"


def test_a_comment_is_green(repository: Path) -> None:
    done = guard(repository, "--base", "HEAD", "--head", "HEAD~1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "+0.00 %" in done.stdout or "-0.00 %" in done.stdout


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--base", "no-such-revision"), "git rev-parse: "),
        (("--only", "no-such-work"), "no workload is called no-such-work"),
    ],
)
def test_what_cannot_be_compared_is_told(repository: Path, options: tuple[str, ...], says: str) -> None:
    done = guard(repository, *options)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
