"""What a wheel must be: `python -m release.check dist/*.whl` says in a line each what is wrong, and exits with 1."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

MAX_SIZE = 3 * 2**19  # 1.5 MiB
MODULES = ("_scan", "_core", "_protocol")
LIBRARIES = (".so", ".pyd")
SOURCES = (".c", ".h", ".pyx", ".pxd", ".html")
PYTHONS = range(11, 16)
TAGS = re.compile(
    r"fasthook-[^-]+-(cp3\d\d)-(cp3\d\d)-"
    r"(manylinux_2_28_(x86_64|aarch64)|musllinux_1_2_(x86_64|aarch64)|macosx_\d+_\d+_(x86_64|arm64)|win_amd64)\.whl"
)
# where somebody's sources lie; a module from a release knows its own only as src/fasthook/….pyx, for tracebacks
SOMEBODYS = re.compile(
    rb"(?<![\w.~-])(?:/(?:home|root|tmp|var|opt|work|project|github|Users|private)/|[A-Z]:[\\/])[\w.+/\\-]{3,}"
)


def of_name(wheel: Path) -> Iterator[str]:
    """A tag for one CPython, its own ABI, and a platform that is promised."""
    found = TAGS.fullmatch(wheel.name)
    if not found:
        yield "the name has no tag of a platform that wheels are made for: was it repaired?"
        return
    python, abi = found.group(1, 2)
    if python != abi or int(python[3:]) not in PYTHONS:
        yield f"{python}-{abi} is not the tag of a CPython that wheels are made for"


def of_members(wheel: zipfile.ZipFile) -> Iterator[str]:
    """The package and its metadata, compiled, typed, and without a source."""
    names = [PurePosixPath(info.filename) for info in wheel.infolist() if not info.is_dir()]
    for name in names:
        if name.parts[0] != "fasthook" and not name.parts[0].endswith(".dist-info"):
            yield f"{name} is outside the package"
        if name.suffix in SOURCES:
            yield f"{name} is a source"
        if "__pycache__" in name.parts:
            yield f"{name} was left behind by a run"
    libraries = {name.name.partition(".")[0] for name in names if name.suffix in LIBRARIES}
    yield from (f"{module} is not compiled in it" for module in MODULES if module not in libraries)
    yield from (
        f"fasthook/{name} is missing"
        for name in ("py.typed", *(f"{module}.pyi" for module in MODULES))
        if PurePosixPath("fasthook", name) not in names
    )


def of_paths(wheel: zipfile.ZipFile) -> Iterator[str]:
    """No library tells where it was built."""
    for name in wheel.namelist():
        if PurePosixPath(name).suffix in LIBRARIES:
            for path in sorted(set(SOMEBODYS.findall(wheel.read(name))))[:3]:
                yield f"{name} has a path of the machine it was built on: {path.decode(errors='replace')}"


def faults(wheel: Path) -> list[str]:
    """What is wrong with a wheel, one line each; nothing is run for it."""
    found = list(of_name(wheel))
    size = wheel.stat().st_size
    if size >= MAX_SIZE:
        found.append(f"{size:,} bytes, {MAX_SIZE:,} is too much")
    try:
        with zipfile.ZipFile(wheel) as archive:
            found += [*of_members(archive), *of_paths(archive)]
    except zipfile.BadZipFile as error:
        found.append(f"not a wheel: {error}")
    return found


def _run(*command: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    return done.returncode, done.stdout.strip()


def of_tools(wheel: Path) -> Iterator[str]:
    """What auditwheel, check-wheel-contents and twine have against it."""
    commands = [("check_wheel_contents", str(wheel)), ("twine", "check", "--strict", str(wheel))]
    if "linux" in wheel.name:
        commands.append(("auditwheel", "show", str(wheel)))
    for command in commands:
        code, said = _run(*command)
        if code:
            yield f"{' '.join(command[:2])}: {said}"
        elif command[0] == "auditwheel":
            yield from of_platform(wheel, " ".join(said.split()))


def of_platform(wheel: Path, said: str) -> Iterator[str]:
    """The tag of the name promises no more than auditwheel finds."""
    tag = re.search(r'is consistent with the following platform tag: "(\w+)"', said)
    if not tag:
        yield f"auditwheel: {said}"
    elif tag[1].startswith("linux"):
        yield "auditwheel: it needs something that only this machine has"
    elif "manylinux" in wheel.name and (version := re.match(r"manylinux_2_(\d+)", tag[1])) and int(version[1]) > 28:
        yield f"auditwheel: it needs {tag[1]}"


def main() -> int:
    wheels = [Path(name) for name in sys.argv[1:]]
    if not wheels:
        print("usage: python -m release.check WHEEL…", file=sys.stderr)
        return 2
    failed = False
    for wheel in wheels:
        if not wheel.is_file():
            found = ["no such file"]
        else:
            found = faults(wheel) or list(of_tools(wheel))
        failed |= bool(found)
        print(*(f"{wheel.name}: {fault}" for fault in found or ["good"]), sep="\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
