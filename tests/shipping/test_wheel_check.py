"""`python -m release.check` refuses a wheel for each thing that a wheel may not have."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAME = "fasthook-9.9-cp311-cp311-manylinux_2_28_x86_64.whl"
MODULES = sorted(path.stem for path in ROOT.glob("src/fasthook/_*.pyx"))
GOOD = {
    "fasthook/__init__.py": b"",
    "fasthook/py.typed": b"",
    "fasthook-9.9.dist-info/METADATA": b"",
    **{f"fasthook/{name}.pyi": b"" for name in MODULES},
    **{f"fasthook/{name}.cpython-311-x86_64-linux-gnu.so": b"\x7fELF src/fasthook/x.pyx\0" for name in MODULES},
}


def faults(path: Path) -> list[str]:
    """What the check says without the tools, which want real libraries."""
    ask = "from release.check import faults; print(*faults(Path(sys.argv[1])), sep='\\n')"
    code = f"import sys; from pathlib import Path; {ask}"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout.strip().splitlines()


def wheel(folder: Path, members: dict[str, bytes], name: str = NAME) -> Path:
    path = folder / name
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    return path


def test_a_good_one_passes(tmp_path: Path) -> None:
    assert faults(wheel(tmp_path, GOOD)) == []


SO = f"fasthook/{MODULES[0]}.cpython-311-x86_64-linux-gnu.so"


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ({"fasthook/_core.c": b""}, "fasthook/_core.c is a source"),
        ({"fasthook/_native.h": b""}, "fasthook/_native.h is a source"),
        ({"fasthook/_core.pyx": b""}, "fasthook/_core.pyx is a source"),
        ({"src/fasthook/__init__.py": b""}, "src/fasthook/__init__.py is outside the package"),
        ({"tests/test_x.py": b""}, "tests/test_x.py is outside the package"),
        ({"fasthook/__pycache__/x.pyc": b""}, "fasthook/__pycache__/x.pyc was left behind by a run"),
        ({SO: b"\x7fELF\0/home/ada/fasthook/src/x.c\0"}, "/home/ada/fasthook/src/x.c"),
        ({SO: b"\x7fELF\0$ORIGIN:/opt/python/cp311/lib\0"}, "/opt/python/cp311/lib"),
        ({SO: b"\x7fELF\0C:\\Users\\ada\\x.c\0"}, "C:\\Users\\ada\\x.c"),
        ({"fasthook/large": bytes(3 * 2**19)}, "is too much"),
    ],
)
def test_a_fault_is_told(tmp_path: Path, members: dict[str, bytes], says: str) -> None:
    (found,) = faults(wheel(tmp_path, GOOD | members))
    assert says in found


@pytest.mark.parametrize("missing", ["fasthook/py.typed", f"fasthook/{MODULES[0]}.pyi", SO])
def test_what_is_missing_is_told(tmp_path: Path, missing: str) -> None:
    (found,) = faults(wheel(tmp_path, {name: text for name, text in GOOD.items() if name != missing}))
    assert "missing" in found or "not compiled" in found


@pytest.mark.parametrize(
    "name",
    [
        "fasthook-9.9-cp311-cp311-linux_x86_64.whl",
        "fasthook-9.9-py3-none-any.whl",
        "fasthook-9.9-cp311-abi3-win_amd64.whl",
        "fasthook-9.9-cp310-cp310-win_amd64.whl",
        "fasthook-9.9-cp314-cp314t-win_amd64.whl",
    ],
)
def test_a_tag_that_nobody_promised_is_told(tmp_path: Path, name: str) -> None:
    (found,) = faults(wheel(tmp_path, GOOD, name))
    assert "tag" in found


def test_the_command_fails_with_a_line(tmp_path: Path) -> None:
    path = wheel(tmp_path, GOOD | {"fasthook/_core.c": b""})
    done = subprocess.run(
        [sys.executable, "-m", "release.check", str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 1
    assert done.stdout == f"{path.name}: fasthook/_core.c is a source\n"
