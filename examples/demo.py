"""What `make demo` runs: a Telegram on this machine, and the bot in echo.py, which registers there and answers."""

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


def telegram() -> subprocess.Popen[str]:
    """A Telegram whose people talk when the bot has told it where it is."""
    options = ["--token", TOKEN, "--port", API]
    return subprocess.Popen(
        [COMMAND, "simulate", *options], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def bot(api: str, state: str) -> subprocess.Popen[str]:
    """Serve the bot, which registers its address by itself. Its own output is hidden: Telegram shows both sides."""
    options = ["--token", TOKEN, "--api-url", api, "--port", PORT, "--public-url", f"http://127.0.0.1:{PORT}"]
    return subprocess.Popen(
        [COMMAND, "run", "examples.echo:handler", *options, "--state-dir", state, "--log-level", "warning"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def curl(webhook: str) -> str:
    """A line that tells the bot something from another terminal."""
    body = (
        """'{"update_id":'$(date +%s)',"message":{"message_id":1,"date":0,"""
        """"chat":{"id":1,"type":"private"},"text":"hello from curl"}}'"""
    )
    head = f"-H 'X-Telegram-Bot-Api-Secret-Token: {secret_of(TOKEN)}' -H 'Content-Type: application/json'"
    return f"curl -i {webhook} {head} -d {body}"


class Said:
    """What a process says on standard error: passed on, with or without its hints, and the address it tells."""

    def __init__(self, process: subprocess.Popen[str], *, hints: bool) -> None:
        self._hints = hints
        self._address: queue.Queue[str | None] = queue.Queue()
        self._thread = threading.Thread(target=self._read, args=(process,))
        self._thread.start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr
        for line in process.stderr:
            if self._hints or not line.startswith("  "):
                sys.stderr.write(line)
            if found := re.match(r"fasthook (?:serves|simulates Telegram at) (\S+)", line):
                self._address.put(found[1])
        self._address.put(None)

    def address(self) -> str | None:
        """Wait for it. None: the process has ended."""
        return self._address.get()

    def end(self) -> None:
        self._thread.join()


def listen(people: subprocess.Popen[str]) -> None:
    """Let people talk, until Ctrl-C or for DEMO_SECONDS."""
    seconds = os.environ.get("DEMO_SECONDS")
    with contextlib.suppress(KeyboardInterrupt):  # they get the same Ctrl-C
        try:
            people.wait(float(seconds) if seconds else None)
        except subprocess.TimeoutExpired:
            people.terminate()


def main() -> int:
    with tempfile.TemporaryDirectory() as state, contextlib.ExitStack() as stack:
        people = telegram()
        heard = Said(people, hints=False)
        stack.callback(heard.end)
        api = heard.address()
        if api is None:
            return people.wait()
        served = bot(api, state)
        seen = Said(served, hints=True)
        stack.callback(seen.end)
        if webhook := seen.address():
            print(f"  try it  {curl(webhook)}\n", file=sys.stderr, flush=True)
            listen(people)
        else:
            people.terminate()
        people.wait()
        served.send_signal(signal.SIGTERM)
        with contextlib.suppress(KeyboardInterrupt):
            served.wait()
        return served.wait() or people.returncode


if __name__ == "__main__":
    sys.exit(main())
