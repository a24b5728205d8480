"""A disk that fails when it is told to: `faults.c`, preloaded into a server."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

_RECORD = struct.Struct("<qqq")


def skip(reason: str) -> None:
    """On a laptop the test is skipped, in CI it fails."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@dataclass(frozen=True)
class Step:
    """What was done to the file: a write, or a sync of all writes before it."""

    at: int  # bytes of the log up to here
    offset: int
    data: bytes
    synced: bool

    @property
    def is_sync(self) -> bool:
        return self.offset < 0


class Disk:
    """The faults of a server that runs with `env`."""

    def __init__(self, directory: Path) -> None:
        if sys.platform != "linux":
            pytest.skip("faults.c is preloaded as Linux does it")
        if not shutil.which("gcc"):
            skip("gcc is not installed")
        directory.mkdir()
        self.directory = directory
        shim = directory / "faults.so"
        source = Path(__file__).with_name("faults.c")
        command = ["gcc", "-shared", "-fPIC", "-O1", "-o", str(shim), str(source), "-ldl", "-lpthread"]
        subprocess.run(command, check=True, timeout=60)
        self.env = {"LD_PRELOAD": str(shim), "FAULTS": str(directory)}

    def fail(self, what: str, error: int) -> None:
        """`what`: write or sync."""
        made = self.directory / f"{what}.new"
        made.write_text(str(error))
        made.rename(self.directory / what)

    def heal(self) -> None:
        for what in ("write", "sync"):
            (self.directory / what).unlink(missing_ok=True)

    def log(self) -> None:
        """Write down from now on what is done."""
        (self.directory / "log").touch()

    @property
    def logged(self) -> int:
        """Bytes of the log."""
        return (self.directory / "log").stat().st_size

    def steps(self) -> Iterator[Step]:
        data, at = (self.directory / "log").read_bytes(), 0
        while at < len(data):
            offset, length, synced = _RECORD.unpack_from(data, at)
            start = at + _RECORD.size
            at = start + length
            yield Step(at, offset, data[start:at], bool(synced))
