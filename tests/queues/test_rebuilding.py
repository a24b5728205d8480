"""A damaged journal is rebuilt from what can be read of it, whatever ends that half-way."""

from __future__ import annotations

import asyncio
import logging
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fasthook.queues import QueueError
from fasthook.queues.store import unpack_update
from fasthook.queues.tables import Journal
from queues.opened import PATIENCE, opened

COUNT = 1500  # more than one commit of the new file
HANDLED = range(0, COUNT, 100)  # as was seen after the damage
REST = [number for number in range(COUNT) if number not in HANDLED]

KILLED = """
import os, signal, sys
from pathlib import Path
from fasthook.queues.tables import Journal

directory, left = sys.argv[1], int(sys.argv[2])


def step():
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)


def hook(event, arguments):
    if event.startswith(("os.", "open")) and isinstance(arguments[0], (str, Path)) and directory in str(arguments[0]):
        step()


def remember(self, txn, handled, whole=Journal.remember):
    step()
    whole(self, txn, handled)
    step()


Journal.remember = remember
sys.addaudithook(hook)
Journal(Path(directory)).close()
"""


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """The directory of a journal that was seen to be damaged, by a process that handled some updates then."""
    directory = tmp_path / "damaged"

    async def main() -> None:
        one = await opened(directory, window=2 * COUNT)
        await one.put(*range(COUNT), size=4000)
        one.queue._journal.suspect(number + 1 for number in HANDLED)  # numbers are counted from 1
        await one.close()

    asyncio.run(main())
    return directory


def waiting(directory: Path, limit: int = 1 << 30) -> list[int]:
    journal = Journal(directory, limit)
    try:
        return [unpack_update(record).update_id for _, record in journal.items()]
    finally:
        journal.close()


def test_killed_at_each_step(damaged: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The next start has all of it, tells where the damaged file is, and leaves nothing half-made."""
    image = (damaged / "data.mdb").read_bytes()
    directory = tmp_path / "journal"
    code, steps = -signal.SIGKILL, 0
    while code:
        shutil.copytree(damaged, directory)
        command = [sys.executable, "-c", KILLED, str(directory), str(steps)]
        ended = subprocess.run(command, timeout=PATIENCE, stderr=subprocess.PIPE, text=True, check=False)
        code, said = ended.returncode, ended.stderr.splitlines()
        assert code in (0, -signal.SIGKILL)
        caplog.clear()
        assert waiting(directory) == REST, steps
        said += [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
        assert 1 <= len(said) <= 2, (steps, said)
        kept = {path.read_bytes()[: len(image)] for path in directory.glob("data.mdb.damaged-*")}
        assert kept == {image}, steps
        assert {path.name for path in directory.iterdir() if "damaged" not in path.name} == {"data.mdb", "owner"}
        shutil.rmtree(directory)
        steps += 1
    assert steps > 10


def test_a_limit_that_is_too_small_for_it(damaged: Path) -> None:
    for _ in range(2):
        with pytest.raises(QueueError, match=r"is full: set a larger --journal-max"):
            waiting(damaged, 100_000)
    assert waiting(damaged) == REST
