"""A webhook that answers what it is told to, byte for byte, and keeps what it was sent."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

PATIENCE = 20.0  # real seconds that a test waits for something before it fails
HANG = b""  # no answer
CLOSE = b"close"  # the end of the connection instead


def response(status: int = 200, body: bytes = b"", **headers: str) -> bytes:
    """A response; `_` in a header's name stands for `-`."""
    lines = [f"HTTP/1.1 {status} {'OK' if status == 200 else 'Reason'}", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@dataclass(frozen=True)
class Request:
    """What came: the lines of the head, and the body; on which connection, counted from 0."""

    line: str
    headers: list[tuple[str, str]]
    body: bytes
    connection: int

    @property
    def update(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found

    @property
    def update_id(self) -> int:
        return int(self.update["update_id"])

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.headers]


@dataclass
class Hook:
    """Answers with `answers` one after the other, then with `always`; `answer` may look at the request instead."""

    answers: deque[bytes] = field(default_factory=deque)
    always: bytes = field(default_factory=response)
    answer: Callable[[Request], bytes] | None = None
    requests: list[Request] = field(default_factory=list)
    connected: int = 0
    closed: int = 0
    idle_close: bool = False
    running: int = 0
    most_running: int = 0
    port: int = 0

    def __post_init__(self) -> None:
        self._changed = asyncio.Condition()
        self._writers: list[asyncio.StreamWriter] = []
        self.held: asyncio.Event | None = None  # while it is set but not released, answers wait

    async def start(self, tls: ssl.SSLContext | None = None) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=tls, limit=4 << 20)
        self.port = self._server.sockets[0].getsockname()[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    def hold(self) -> asyncio.Event:
        """Answers wait until the event is set."""
        self.held = asyncio.Event()
        return self.held

    def close_connections(self) -> None:
        for writer in self._writers:
            writer.close()

    async def stop(self) -> None:
        for _ in range(5):  # a connection that was accepted just now takes some turns of the loop to be known
            await asyncio.sleep(0)
        self._server.close()
        if self.held is not None:
            self.held.set()
        self.close_connections()
        await self._server.wait_closed()  # and for its connections, from Python 3.12 on
        await self.until(lambda hook: hook.closed == hook.connected)

    async def until(self, condition: Callable[[Hook], bool]) -> None:
        """Wait for something to be true of it."""
        async with self._changed:
            await asyncio.wait_for(self._changed.wait_for(lambda: condition(self)), PATIENCE)

    async def until_asked(self, count: int) -> None:
        """Wait for so many requests."""
        await self.until(lambda hook: len(hook.requests) >= count)

    async def _note(self, **more: int) -> None:
        async with self._changed:
            for name, value in more.items():
                setattr(self, name, getattr(self, name) + value)
            self.most_running = max(self.most_running, self.running)
            self._changed.notify_all()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = len(self._writers)
        self._writers.append(writer)
        await self._note(connected=1)
        try:
            while await self._one(reader, writer, number):
                continue
        except (OSError, EOFError):
            pass  # the other side has had enough
        finally:
            writer.close()
            await self._note(closed=1)

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *fields = head.removesuffix("\r\n\r\n").split("\r\n")
        headers = [(name, value) for name, _, value in (field.partition(": ") for field in fields)]
        length = int(dict(headers)["Content-Length"])
        request = Request(line, headers, await reader.readexactly(length), number)
        self.requests.append(request)
        await self._note(running=1)
        if self.held is not None:
            await self.held.wait()
        answer = self.answer(request) if self.answer else self.answers.popleft() if self.answers else self.always
        if answer == HANG:
            await reader.read()
        await self._note(running=-1)
        if answer in (HANG, CLOSE):
            return False
        writer.write(answer)
        return not self.idle_close
