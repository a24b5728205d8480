"""A real Chromium, told over its debugging pipe to open a page; what it drew, said and asked the network for."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 150.0  # seconds that it may take to answer, or to load a page


def find() -> str | None:
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@dataclass
class Tab:
    """A page under observation: the addresses it asked for and what went wrong in it."""

    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


class Browser:
    """A browser without a window."""

    def __init__(self, commands: int, events: int) -> None:
        self._commands, self._events = commands, events
        self._readable = select.poll()
        self._readable.register(events, select.POLLIN)
        self._number = 0
        self._rest = b""
        self._loaded: set[str] = set()  # pages, by the number that their navigation was answered with
        self.tab = Tab()
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.page(f"{domain}.enable")
        self.page("Page.setLifecycleEventsEnabled", enabled=True)

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Ask, and read up to the answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        os.write(self._commands, json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        until = time.monotonic() + PATIENCE
        while True:
            found = self._next(until, method)
            if found.get("id") == self._number:
                assert "error" not in found, found
                result: dict[str, Any] = found["result"]
                return result

    def page(self, method: str, **params: Any) -> dict[str, Any]:
        return self.call(method, self._session, **params)

    def open(self, address: str) -> Tab:
        """Go there and wait until the page has loaded."""
        self.tab = Tab()
        loader = self.page("Page.navigate", url=address)["loaderId"]
        until = time.monotonic() + PATIENCE
        while loader not in self._loaded:
            self._next(until, f"load {address}")
        return self.tab

    def evaluate(self, expression: str) -> Any:
        """The value of some JavaScript in the page; a promise is waited for."""
        return self.page("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)["result"][
            "value"
        ]

    def _next(self, until: float, what: str) -> dict[str, Any]:
        """The next message. What is waited for may take until then."""
        while b"\0" not in self._rest:
            left = max(0.0, until - time.monotonic())
            assert self._readable.poll(left * 1000), f"the browser did not {what} within {PATIENCE:g} s"
            piece = os.read(self._events, 65536)
            assert piece, "the browser is gone"
            self._rest += piece
        text, self._rest = self._rest.split(b"\0", 1)
        message: dict[str, Any] = json.loads(text)
        params = message.get("params", {})
        if message.get("method") == "Network.requestWillBeSent":
            self.tab.requests.append(params["request"]["url"])
        elif message.get("method") == "Page.lifecycleEvent" and params["name"] == "load":
            self._loaded.add(params["loaderId"])
        elif message.get("method") in ("Inspector.targetCrashed", "Inspector.detached"):
            raise AssertionError(f"the page is gone: {text.decode()}")
        elif message.get("method") == "Runtime.exceptionThrown":
            self.tab.errors.append(json.dumps(params["exceptionDetails"]))
        elif message.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.tab.errors.append(params["entry"]["text"])
        return message


@contextmanager
def browser(path: str, home: Path) -> Iterator[Browser]:
    """Start one with nothing of the user's in it, and end it."""
    command_out, command_in = os.pipe()
    event_out, event_in = os.pipe()
    options = ["--headless=new", "--remote-debugging-pipe", f"--user-data-dir={home}", "--no-first-run"]
    options += ["--disable-background-networking", "--disable-gpu", "--disable-dev-shm-usage"]
    if os.geteuid() == 0:
        options.append("--no-sandbox")  # root may not have one
    shell = f'exec 3<&{command_out} 4>&{event_in}; exec "$@"'
    process = subprocess.Popen(
        ["bash", "-c", shell, "bash", path, *options, "about:blank"],
        pass_fds=(command_out, event_in),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(command_out)
    os.close(event_in)
    try:
        yield Browser(command_in, event_out)
    finally:
        os.close(command_in)
        os.close(event_out)  # before it ends: it would wait for somebody to read what it said last
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
