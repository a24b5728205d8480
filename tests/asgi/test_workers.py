"""A hook under a server with several processes: each has a ring of its own, and says so."""

from __future__ import annotations

import http.client
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from e2e.process import reserved_port
from fasthook.testing import samples

PATIENCE = 30.0
SOURCE = """\
import logging, os
from fasthook import Hook

logging.basicConfig(level="INFO")
record = os.open("handled", os.O_WRONLY | os.O_CREAT | os.O_APPEND)


async def handler(update):
    os.write(record, b"%d %d\\n" % (os.getpid(), update.update_id))


hook = Hook(handler, secret="secret", queue=os.environ.get("QUEUE", "memory:"))
"""


class Output:
    """Standard error of uvicorn, in a file."""

    def __init__(self, file: Path, process: subprocess.Popen[bytes]) -> None:
        self._file = file
        self.process = process

    def find(self, pattern: str) -> list[re.Match[str]]:
        return list(re.finditer(pattern, self._file.read_text(), re.MULTILINE))

    def until(self, pattern: str, count: int = 1) -> list[re.Match[str]]:
        end = time.monotonic() + PATIENCE
        while len(found := self.find(pattern)) < count:
            assert time.monotonic() < end, self._file.read_text()
            time.sleep(0.02)
        return found


@contextmanager
def served(directory: Path, port: int, *options: str, **env: str) -> Iterator[Output]:
    (directory / "bot.py").write_text(SOURCE)
    command = [sys.executable, "-m", "uvicorn", "bot:hook", "--port", str(port), "--lifespan", "on", *options]
    with (directory / "output").open("wb") as output:
        process = subprocess.Popen(
            command, cwd=directory, env=os.environ | env, stderr=output, stdout=output, start_new_session=True
        )
    try:
        yield Output(directory / "output", process)
        process.send_signal(signal.SIGINT)
        process.wait(PATIENCE)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # and its processes
            process.wait()


def post(port: int, update_id: int) -> int:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)) as connection:
        headers = {"X-Telegram-Bot-Api-Secret-Token": "secret"}
        connection.request("POST", "/webhook", samples.update(update_id, chat_id=update_id), headers)
        return connection.getresponse().status


def test_two_processes(tmp_path: Path) -> None:
    # a process that does not answer uvicorn's ping in time is replaced, and its successor says the same again
    options = ["--workers", "2", "--timeout-worker-healthcheck", "30"]
    with reserved_port() as port, served(tmp_path, port, *options) as output:
        output.until("Application startup complete", 2)
        assert [post(port, n) for n in range(20)] == [200] * 20
        [said] = output.find(
            r"WARNING:fasthook:process (\d+) has the state directory .fasthook: this one knows only the duplicates "
            "that it sees itself, and forgets them when it ends; for all processes to share them use fasthook run, or "
            "one process$"
        )
        assert int(said[1]) != output.process.pid
    assert sorted(int(line.split()[1]) for line in (tmp_path / "handled").read_text().splitlines()) == [*range(20)]
    assert not output.find("Traceback")


def test_a_journal_is_for_one_process(tmp_path: Path) -> None:
    with reserved_port() as port, served(tmp_path, port, QUEUE="journal:waiting") as first:
        first.until("Application startup complete")
        (tmp_path / "output").rename(tmp_path / "first")
        with reserved_port() as other, served(tmp_path, other, QUEUE="journal:waiting") as second:
            second.until(
                rf"the queue journal:waiting is in use by process {first.process.pid}: a journal is for one process; "
                "serve with fasthook run, or with one process, or set queue to memory:$"
            )
            assert second.process.wait(PATIENCE) != 0


def test_what_a_further_process_left_is_taken_over(tmp_path: Path) -> None:
    """And by the owner of the next start, not while that process lives."""
    import asyncio

    from fasthook.queues import Delivery
    from fasthook.queues.memory import MemoryQueue
    from updates import update

    async def main() -> None:
        further = MemoryQueue(tmp_path / "spill", owner=False)
        await further.open(lambda delivery: None, lambda delivery: True, lambda update, outcome: None)
        assert await further.close([Delivery(update(5)), Delivery(update(6))]) == 2
        [left] = tmp_path.glob("spill-*")
        left.rename(tmp_path / f"spill-{ended()}")
        found: list[Delivery] = []
        owner = MemoryQueue(tmp_path / "spill")
        await owner.open(found.append, lambda delivery: found.append(delivery) or True, lambda update, outcome: None)
        assert [delivery.update.update_id for delivery in found] == [5, 6]
        assert not list(tmp_path.glob("spill-*"))
        assert await owner.close(found) == 2

    asyncio.run(main())


def ended() -> int:
    """The number of a process that is gone."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid
