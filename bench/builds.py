"""Two builds side by side: a git revision or the working tree, compiled in a directory of its own under build/guard.

A directory is named by what is in it, so that it is built once, and all names are equally long.
"""

from __future__ import annotations

import filecmp
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from release.unpack import unpack

ROOT = Path(__file__).resolve().parent.parent
STORE = ROOT / "build/guard"
PARTS = ("src/fasthook", "setup.py", "pyproject.toml", "README.md", "LICENSE")
BUILT = (".so", ".pyd", ".c", ".html")
NO_TREE = "the working tree"


class BuildError(Exception):
    """What could not be built, in a line."""


def _git(*arguments: str) -> bytes:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, check=False)
    if done.returncode:
        raise BuildError(f"git {arguments[0]}: {done.stderr.decode().strip()}")
    return done.stdout


def name_of(revision: str | None) -> str:
    """What a report calls it: the short hash of a revision, or the working tree.

    Raises:
        BuildError: there is no such revision.
    """
    if revision is None:
        return NO_TREE
    return _git("rev-parse", "--short=12", "--verify", f"{revision}^{{commit}}").decode().strip()


def _sources(revision: str | None, into: Path) -> None:
    if revision is None:
        for part in PARTS:
            source = ROOT / part
            target = into / part
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", *(f"*{s}" for s in BUILT)))
            else:
                shutil.copy(source, target)
        return
    with tempfile.TemporaryFile() as file:
        file.write(_git("archive", name_of(revision), *PARTS))
        file.seek(0)
        with tarfile.open(fileobj=file) as archive:
            unpack(archive, into)


def _key(tree: Path) -> str:
    found = hashlib.sha256(sys.version.encode())
    for path in sorted(tree.rglob("*")):
        if path.is_file():
            found.update(f"{path.relative_to(tree)}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return found.hexdigest()[:12]


def _alike(tree: Path, built: Path) -> int:
    """How many of a tree's sources are the same in another."""
    sources = [path for path in (tree / "src/fasthook").rglob("*") if path.is_file()]
    others = [(path, built / path.relative_to(tree)) for path in sources]
    return sum(other.is_file() and filecmp.cmp(path, other, shallow=False) for path, other in others)


def _seed(tree: Path, built: Path) -> None:
    """Take from another build what is the same there, with its age, so that only what differs is compiled."""
    if not all(filecmp.cmp(tree / name, built / name, shallow=False) for name in ("setup.py", "pyproject.toml")):
        return
    for path in (tree / "src/fasthook").rglob("*"):
        other = built / path.relative_to(tree)
        if path.is_file() and other.is_file() and filecmp.cmp(path, other, shallow=False):
            shutil.copystat(other, path)
        elif path.is_file():
            os.utime(path)
    for path in (built / "src/fasthook").iterdir():
        if path.suffix in BUILT:
            shutil.copy2(path, tree / "src/fasthook" / path.name)


def tree(revision: str | None, again: str = "") -> Path:
    """The built tree of a revision, or of the working tree if None. `again`: a word for a second copy of the same.

    Raises:
        BuildError: there is no such revision, or it does not compile.
    """
    STORE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=STORE) as temporary:
        fresh = Path(temporary, "tree")
        _sources(revision, fresh)
        place = STORE / (_key(fresh) + again)
        if place.exists():
            return place
        seeds = [ROOT, *(path for path in STORE.iterdir() if (path / "setup.py").exists())]
        _seed(fresh, max(seeds, key=lambda path: _alike(fresh, path)))
        # with --inplace all would be compiled: in another directory, where nothing is yet
        command = [sys.executable, "setup.py", "--quiet", "build_ext", "--build-lib", "src"]
        done = subprocess.run(command, cwd=fresh, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BuildError(f"{name_of(revision)} does not compile:\n{done.stderr[-2000:]}")
        fresh.rename(place)
    return place


def environment(built: Path) -> dict[str, str]:
    """What a measured process gets: the build's package, and nothing that changes from run to run."""
    return {
        "PATH": os.defpath,
        "PYTHONPATH": f"{built / 'src'}{os.pathsep}{ROOT}",
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "LC_ALL": "C.UTF-8",
    }
