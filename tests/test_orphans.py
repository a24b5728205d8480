"""Waiting for the workers of a server that died."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fasthook import orphans
from fasthook.state import StateError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="worker processes need Linux or macOS")

PATIENCE = 20.0  # seconds

WORKER = """
import os, sys
from pathlib import Path
from fasthook import orphans
with orphans.belongs(Path(sys.argv[1])):
    print("there", flush=True)
    if len(sys.argv) > 2 and os.fork() == 0:
        sys.stdin.read()
        os._exit(0)
    sys.stdin.readline()
"""


@contextmanager
def worker(directory: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """A process that belongs to the server of a state directory."""
    command = [sys.executable, "-c", WORKER, str(directory), *options]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "there\n"
        yield process


def test_nobody_is_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    asyncio.run(orphans.end(tmp_path))
    with worker(tmp_path) as process:
        process.communicate("\n", timeout=PATIENCE)
    (tmp_path / "other").mkdir()
    with worker(tmp_path / "other"):  # another server's
        asyncio.run(orphans.end(tmp_path))
    assert not caplog.records


def test_workers_are_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main(*processes: subprocess.Popen[str]) -> None:
        waiting = asyncio.create_task(orphans.end(tmp_path))
        while not caplog.records:
            assert not waiting.done()
            await asyncio.sleep(0.01)
        for process in processes:
            assert not waiting.done()
            await asyncio.to_thread(process.communicate, "\n", PATIENCE)
        await waiting

    with worker(tmp_path) as first, worker(tmp_path) as second:
        asyncio.run(main(first, second))
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_what_a_bot_has_forked_is_not(tmp_path: Path) -> None:
    with worker(tmp_path, "forks") as process:
        assert process.stdin
        process.kill()
        process.wait(PATIENCE)
        asyncio.run(orphans.end(tmp_path))
        process.stdin.close()


def test_one_that_never_ends(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with worker(tmp_path):
        asyncio.run(orphans.end(tmp_path, 0.1))
    assert caplog.messages[-1].startswith("workers of a server that died do not end: ")


def test_a_file_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "workers").mkdir()
    with pytest.raises(StateError, match="workers: cannot be used: Is a directory; set --state-dir"):
        asyncio.run(orphans.end(tmp_path))
