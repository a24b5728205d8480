"""The C that compilers without vector instructions or GCC's extensions get, tried on this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SOURCES = HERE.parents[1] / "src/fasthook"
STRICT = ("-std=c11", "-pedantic-errors", "-Wall", "-Wextra", "-Werror", "-O2")
CHECKED = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")


@pytest.mark.parametrize("switches", [(), ("-DFASTHOOK_NO_SIMD",)], ids=["as it is here", "without vectors"])
def test_it_finds_what_the_obvious_way_finds(tmp_path: Path, switches: tuple[str, ...]) -> None:
    """It is standard C, reads nothing behind the end, and agrees with a loop over the bytes."""
    if not shutil.which("gcc"):
        if os.environ.get("CI") == "true":
            pytest.fail("gcc is not installed")
        pytest.skip("gcc is not installed")
    program = tmp_path / "native"
    source = str(HERE / "native.c")
    subprocess.run(["gcc", *STRICT, *CHECKED, *switches, f"-I{SOURCES}", source, "-o", program], check=True)
    ran = subprocess.run([program], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
