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
PATIENCE = 120.0  # seconds


def fixed_addresses() -> list[str]:
    """What keeps the kernel from laying out addresses at random: an older libasan may not find the room it needs there,
    and then says so for ever.
    """
    prefix = ["setarch", "-R"]
    may = shutil.which("setarch") and not subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode
    return prefix if may else []


@pytest.mark.parametrize("switches", [(), ("-DFASTHOOK_NO_SIMD",)], ids=["as it is here", "without vectors"])
def test_it_finds_what_the_obvious_way_finds(tmp_path: Path, switches: tuple[str, ...]) -> None:
    """It is standard C, reads nothing behind the end, and agrees with a loop over the bytes."""
    if not shutil.which("gcc"):
        if os.environ.get("CI") == "true":
            pytest.fail("gcc is not installed")
        pytest.skip("gcc is not installed")
    program = tmp_path / "native"
    compiling = ["gcc", *STRICT, *CHECKED, *switches, f"-I{SOURCES}", str(HERE / "native.c"), "-o", str(program)]
    subprocess.run(compiling, check=True, timeout=PATIENCE)
    command = [*fixed_addresses(), str(program)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
