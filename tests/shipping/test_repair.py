"""The command of pyproject.toml that repairs Linux wheels makes of one what `release.check` wants."""

from __future__ import annotations

import platform
import sys
import zipfile
from pathlib import Path

import pytest
from release.check import of_name
from release.wheels import repair

import fasthook

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="manylinux wheels are made on Linux with glibc"
)
PYTHON = f"cp3{sys.version_info.minor}"
INFO = "fasthook-9.9.dist-info"
METADATA = "Metadata-Version: 2.1\nName: fasthook\nVersion: 9.9\n"


def unrepaired(folder: Path) -> Path:
    """A wheel with one of the modules that are compiled here."""
    path = folder / f"fasthook-9.9-{PYTHON}-{PYTHON}-linux_{platform.machine()}.whl"
    [module] = Path(fasthook.__file__).parent.glob("_scan.*.so")
    tag = path.stem.removeprefix("fasthook-9.9-")
    members: dict[str, str | bytes] = {
        f"fasthook/{module.name}": module.read_bytes(),
        f"{INFO}/METADATA": METADATA,
        f"{INFO}/WHEEL": f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: false\nTag: {tag}\n",
    }
    record = "".join(f"{name},,\n" for name in [*members, f"{INFO}/RECORD"])
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in [*members.items(), (f"{INFO}/RECORD", record)]:
            archive.writestr(name, content)
    return path


def test_a_repaired_wheel_has_one_tag_which_the_check_lets_pass(tmp_path: Path) -> None:
    raw = unrepaired(tmp_path)
    assert list(of_name(raw))
    repair(raw, tmp_path / "repaired")
    [wheel] = (tmp_path / "repaired").iterdir()
    assert wheel.name == f"fasthook-9.9-{PYTHON}-{PYTHON}-manylinux_2_28_{platform.machine()}.whl"
    assert not list(of_name(wheel))
