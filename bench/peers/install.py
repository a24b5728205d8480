"""What the peers need, where it is looked for, and how it is installed.

Python peers share one virtualenv, .venv-bench beside the repository's other files; grammY is in bench/peers/node;
wrk and nginx come from the system. What is missing is a reason in the report, never a silent gap.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

ROOT = Path(__file__).resolve().parents[2]
NODE = ROOT / "bench/peers/node"
OUT = ROOT / "bench/out"
BENCH_BIN = ROOT / ".venv-bench/bin"
OWN_BIN = Path(sys.executable).parent  # the virtualenv that fasthook is installed in
INSTALL = "python -m bench.peers --install"

_LIST_PACKAGES = """
import json, platform
from importlib.metadata import distributions
print(json.dumps({"python": platform.python_version()} | {d.name.lower(): d.version for d in distributions()}))
"""


class Need(Protocol):
    """Something a peer is made of."""

    def missing(self) -> str | None:
        """Why it can't be used here; None if it can."""

    def versions(self) -> dict[str, str]:
        """Its parts and their versions, for the report."""


@cache
def _packages(python: Path) -> dict[str, str]:
    # -I: the list must be the virtualenv's, whatever directory we are started in.
    done = subprocess.run([python, "-I", "-c", _LIST_PACKAGES], capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


@cache
def _complaint(*command: str | Path) -> str | None:
    """What the command says if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    except OSError as error:
        return f"{Path(command[0]).name}: {error.strerror}"
    return last_line(done.stderr) if done.returncode else None


@dataclass(frozen=True)
class Packages:
    """Python packages in one of the two virtualenvs."""

    names: tuple[str, ...]
    bin: Path = BENCH_BIN

    def missing(self) -> str | None:
        python = self.bin / "python"
        if not python.exists():
            return f"no {self.bin.parent.name}: {INSTALL}"
        absent = [name for name in self.names if name.lower() not in _packages(python)]
        return f"{', '.join(absent)} not in {self.bin.parent.name}" if absent else None

    def versions(self) -> dict[str, str]:
        found = _packages(self.bin / "python")
        return {name: found[name.lower()] for name in ("python", *self.names)}


@dataclass(frozen=True)
class Program:
    """A program of the system."""

    name: str
    version_option: str

    def missing(self) -> str | None:
        return None if shutil.which(self.name) else f"{self.name} is not installed: {INSTALL}"

    def versions(self) -> dict[str, str]:
        done = subprocess.run([self.name, self.version_option], capture_output=True, text=True, check=False)
        text = (done.stdout + done.stderr).split("\n", 1)[0]  # nginx and wrk say it in their own ways
        return {self.name: text.removeprefix("nginx version: nginx/").removeprefix("wrk ").split(" [")[0].strip()}


@dataclass(frozen=True)
class NodeModule:
    """A package in bench/peers/node."""

    name: str

    def missing(self) -> str | None:
        if reason := Program("node", "--version").missing():
            return reason
        found = (NODE / "node_modules" / self.name).exists()
        return None if found else f"{self.name} is not installed: {INSTALL}"

    def versions(self) -> dict[str, str]:
        manifest = json.loads((NODE / "node_modules" / self.name / "package.json").read_text())
        return Program("node", "--version").versions() | {self.name: manifest["version"]}


@dataclass(frozen=True)
class Built:
    """A program made from a C file in bench/."""

    name: str

    def missing(self) -> str | None:
        return None if (OUT / self.name).exists() or shutil.which("cc") else "no C compiler (cc)"

    def versions(self) -> dict[str, str]:
        return {}


@dataclass(frozen=True)
class Fasthook:
    """fasthook itself, installed beside this Python; `attribute` is what the peer uses of it, where not the command."""

    attribute: str = ""

    def missing(self) -> str | None:
        if reason := Packages(("fasthook",), OWN_BIN).missing():
            return reason
        if self.attribute:
            return _complaint(OWN_BIN / "python", "-c", f"from fasthook import {self.attribute}")
        return _complaint(OWN_BIN / "fasthook", "run", "--help")

    def versions(self) -> dict[str, str]:
        return Packages(("fasthook", "uvicorn", "uvloop", "httptools", "orjson"), OWN_BIN).versions()


def last_line(text: str) -> str:
    """The line of a program's output that says what went wrong."""
    return (text.strip().splitlines() or ["said nothing"])[-1]


def build(name: str) -> Path:
    """The program made from bench/NAME.c, compiled again if the source is newer; several may ask at once."""
    source, program = ROOT / f"bench/{name}.c", OUT / name
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        OUT.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=OUT) as fresh:
            made = Path(fresh, name)
            subprocess.run(["cc", "-O2", "-Wall", "-Wextra", "-o", made, source], check=True)
            made.replace(program)
    return program


def install() -> int:
    """Installs the peers. A part that fails is told and doesn't stop the others; answers the number that failed."""
    python = BENCH_BIN / "python"
    steps: list[list[str | Path]] = []
    if not python.exists():
        steps.append([sys.executable, "-m", "venv", BENCH_BIN.parent])
    steps.append([python, "-m", "pip", "install", "--quiet", "-r", ROOT / "bench/peers/requirements.txt"])
    if shutil.which("npm"):
        steps.append(["npm", "install", "--prefix", NODE, "--no-package-lock", "--no-audit", "--no-fund"])
    else:
        print("npm is not installed: no grammY. Install Node 18 or newer, and run this again.")
    steps += _system_steps()
    return sum(not _run(step) for step in steps)


def _system_steps() -> list[list[str | Path]]:
    absent = [package for package, program in (("wrk", "wrk"), ("nginx-light", "nginx")) if not shutil.which(program)]
    if not absent:
        return []
    if os.geteuid() == 0 and shutil.which("apt-get"):
        return [["apt-get", "update", "-qq"], ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *absent]]
    print(f"Install with your system's package manager, and run this again: {' '.join(absent)}")
    return []


def _run(step: list[str | Path]) -> bool:
    shown = " ".join(part.name if isinstance(part, Path) else part for part in step)
    print(f"{shown} …", flush=True)
    done = subprocess.run(step, check=False, cwd=ROOT)
    if done.returncode:
        print(f"failed ({done.returncode}): {shown}")
    return done.returncode == 0
