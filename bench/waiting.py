"""`python -m bench.waiting`: a start with a million updates waiting in the journal.

It writes them as a server does, starts `fasthook run` with a handler that never ends, and measures the time from the
start of the process to its first acknowledgement, and the memory that it needs. It ends with 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fasthook._scan import restore
from fasthook.queues.journal import JournalQueue
from fasthook.testing import samples
from fasthook.update import Update

SECRET = "bench-secret"
BOT = "import asyncio\n\n\nasync def handler(update):\n    await asyncio.Event().wait()\n"
CHATS = 10_000
MOST_SECONDS = 2.0
MOST_MIB = 200.0


async def fill(directory: Path, count: int, chats: int) -> None:
    """Let so many updates wait."""
    queue = JournalQueue(directory, window=1, remember=65_536, limit=1 << 40)
    left = count
    done = asyncio.Event()

    def answered(update: Update, outcome: object) -> None:
        nonlocal left
        left -= 1
        if left % 1000 == 0:
            done.set()

    await queue.open(lambda delivery: None, lambda delivery: True, answered)
    for start in range(1, count + 1, 1000):
        done.clear()
        now = time.time()
        for update_id in range(start, start + 1000):
            chat = update_id % chats + 1
            queue.put(restore(Update, samples.update(update_id, chat_id=chat, user_id=chat, size=500), 0, now, 1))
        await done.wait()
    await queue.close([])


def first_acknowledgement(directory: Path) -> tuple[float, float, float]:
    """Start a server there: seconds until it acknowledges an update, its memory then and 5 s later, in MiB."""
    command = [str(Path(sys.executable).with_name("fasthook")), "run", "waiting_bot:handler", "--port", "0"]
    command += ["--secret", SECRET, "--drain-timeout", "0", "--journal-max", "16GiB"]
    began = time.monotonic()
    server = subprocess.Popen(command, cwd=directory, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        port = next(int(found[1]) for line in server.stderr if (found := re.search(r"serves http://[^:]+:(\d+)", line)))
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        headers = {"X-Telegram-Bot-Api-Secret-Token": SECRET}
        connection.request("POST", "/webhook", samples.update(0, chat_id=1), headers)
        status = connection.getresponse().status
        seconds = time.monotonic() - began
        if status != 200:
            raise SystemExit(f"the first update got {status}")
        before = memory(server.pid)
        time.sleep(5)
        return seconds, before, memory(server.pid)
    finally:
        server.kill()
        server.communicate()


def memory(pid: int) -> float:
    """Resident memory without the pages of the mapped file, which the kernel takes back when it wants, in MiB."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.waiting", description="A start with many waiting updates.")
    parser.add_argument("--updates", type=int, default=1_000_000, help="how many wait (1,000,000)")
    parser.add_argument("--chats", type=int, default=CHATS, help="of how many chats (10,000)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fasthook-bench-") as name:
        directory = Path(name)
        (directory / "waiting_bot.py").write_text(BOT)
        began = time.monotonic()
        asyncio.run(fill(directory / ".fasthook/journal", arguments.updates, arguments.chats))
        size = (directory / ".fasthook/journal/data.mdb").stat().st_size / 2**20
        print(f"{arguments.updates:,} updates written in {time.monotonic() - began:.1f} s: {size:,.0f} MiB")
        seconds, before, after = first_acknowledgement(directory)
    largest = max(before, after)
    print(f"first acknowledgement after {seconds:.2f} s (goal: {MOST_SECONDS:g} s)")
    print(f"memory {before:.0f} MiB then, {after:.0f} MiB after 5 s (goal: {MOST_MIB:g} MiB)")
    return 0 if seconds <= MOST_SECONDS and largest <= MOST_MIB else 1


if __name__ == "__main__":
    sys.exit(main())
