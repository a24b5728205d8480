"""What `make demo` runs: the bot in echo.py, served by fasthook, and a Telegram on this machine that talks to it."""

import contextlib
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from fasthook.settings import secret_of

TOKEN = "42:TEST-token-of-the-demo"
COMMAND = Path(sys.executable).with_name("fasthook")
API = os.environ.get("DEMO_API_PORT", "8081")
PORT = os.environ.get("DEMO_PORT", "8000")


def bot(state: str) -> subprocess.Popen[str]:
    """Serve the bot. Its own output is hidden: the simulator shows both sides."""
    options = ["--token", TOKEN, "--api-url", f"http://127.0.0.1:{API}", "--port", PORT, "--state-dir", state]
    return subprocess.Popen(
        [COMMAND, "run", "examples.echo:handler", *options, "--log-level", "warning"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def telegram(webhook: str) -> subprocess.Popen[str]:
    """The people, until Ctrl-C or for DEMO_SECONDS."""
    seconds = os.environ.get("DEMO_SECONDS")
    options = ["--token", TOKEN, "--port", API, "--webhook", webhook]
    return subprocess.Popen(
        [COMMAND, "simulate", *options, *(["--duration", seconds] if seconds else [])],
        text=True,
        stdin=subprocess.DEVNULL,
    )


def curl(webhook: str) -> str:
    """A line that tells the bot something from another terminal."""
    body = (
        """'{"update_id":'$(date +%s)',"message":{"message_id":1,"date":0,"""
        """"chat":{"id":1,"type":"private"},"text":"hello from curl"}}'"""
    )
    head = f"-H 'X-Telegram-Bot-Api-Secret-Token: {secret_of(TOKEN)}' -H 'Content-Type: application/json'"
    return f"curl -i {webhook} {head} -d {body}"


def watch(served: subprocess.Popen[str], ready: queue.Queue[str | None]) -> None:
    """Pass on what the bot's server says, and where it is."""
    assert served.stderr
    for line in served.stderr:
        sys.stderr.write(line)
        if found := re.match(r"fasthook serves (\S+)", line):
            ready.put(found[1])
    ready.put(None)


def main() -> int:
    ready: queue.Queue[str | None] = queue.Queue()
    with tempfile.TemporaryDirectory() as state:
        served = bot(state)
        watcher = threading.Thread(target=watch, args=(served, ready))
        watcher.start()
        people = None
        if webhook := ready.get():
            print(f"  try it  {curl(webhook)}\n", file=sys.stderr, flush=True)
            people = telegram(webhook)
            with contextlib.suppress(KeyboardInterrupt):  # they get the same Ctrl-C
                people.wait()
            people.wait()
            served.send_signal(signal.SIGTERM)
        with contextlib.suppress(KeyboardInterrupt):
            served.wait()
        watcher.join()
        return (people.returncode if people else 0) or served.wait()


if __name__ == "__main__":
    sys.exit(main())
