"""What Telegram does to a webhook, and more than the simulator would: the same update twice at the same instant, a
server that comes back at another address and is tried again at once, each connection in the hands of the test.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Callable

from e2e.process import PATIENCE, SECRET, Server
from fasthook.testing import samples

HEAD = (
    "POST /webhook HTTP/1.1\r\nHost: localhost\r\nX-Telegram-Bot-Api-Secret-Token: {}\r\n"
    "Content-Type: application/json\r\nContent-Length: {}\r\nConnection: keep-alive\r\n"
    "Accept-Encoding: gzip, deflate\r\n\r\n"
)


def request(update_id: int, text: str, chat: int = 1) -> bytes:
    """A whole one, with a message of that text in it."""
    body = samples.update(update_id, chat_id=chat, text=text)
    return HEAD.format(SECRET, len(body)).encode() + body


class Wire:
    """A connection whose answers are read one by one."""

    def __init__(self, server: Server) -> None:
        self._socket = socket.create_connection(server.address, PATIENCE)
        self._file = self._socket.makefile("rb")

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def status(self) -> int:
        """The status of the next answer; 0 if there is none."""
        line = self._file.readline()
        if not line:
            return 0
        length = 0
        while (header := self._file.readline().strip().lower()) != b"":
            if header.startswith(b"content-length:"):
                length = int(header[15:])
        self._file.read(length)
        return int(line.split()[1])

    def close(self) -> None:
        self._file.close()
        self._socket.close()


class Connection:
    """A keep-alive connection that is opened when it is needed."""

    def __init__(self, where: Callable[[], tuple[str, int]]) -> None:
        self._where = where
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, body: bytes) -> int:
        """Post an update: the status. OSError, EOFError: there was none. AssertionError: nor was there an end."""
        try:
            async with asyncio.timeout(PATIENCE):
                head = await self._ask(body)
        except TimeoutError:
            raise AssertionError(f"no answer in {PATIENCE:g} s") from None
        if b"\r\nconnection: close\r\n" in head:
            self.close()
        return int(head.split()[1])

    async def _ask(self, body: bytes) -> bytes:
        """Post an update: the head of the answer."""
        reader, writer = self._streams = self._streams or await asyncio.open_connection(*self._where())
        try:
            writer.write(HEAD.format(SECRET, len(body)).encode() + body)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
        except (OSError, EOFError):
            self.close()
            raise
        return head

    def close(self) -> None:
        if self._streams:
            self._streams[1].transport.abort()  # what is not sent by now, of a body that was refused, never will be
            self._streams = None


class Telegram:
    """Sends each chat's updates in order over some connections.

    `where`: the address to connect to, asked for at each connect. `again`: the share that is sent twice, half of these
    at the same instant. `up`: while it is not set, what was refused waits.
    """

    def __init__(self, where: Callable[[], tuple[str, int]], *, connections: int, again: float) -> None:
        self.up = asyncio.Event()
        self.up.set()
        self.accepted = 0
        self._free: asyncio.LifoQueue[Connection] = asyncio.LifoQueue()
        self._all = [Connection(where) for _ in range(connections)]
        for connection in self._all:
            self._free.put_nowait(connection)
        self._again = again
        self._random = random.Random(5)
        self._progress = asyncio.Condition()

    async def send(self, chats: dict[int, list[bytes]]) -> None:
        """Send all; it returns when the last one is accepted."""
        async with asyncio.TaskGroup() as group:
            for updates in chats.values():
                group.create_task(self._send_chat(updates))

    async def until_accepted(self, count: int) -> None:
        async with self._progress:
            await self._progress.wait_for(lambda: self.accepted >= count)

    def close(self) -> None:
        for connection in self._all:
            connection.close()

    async def _send_chat(self, updates: list[bytes]) -> None:
        for body in updates:
            if self._random.random() >= self._again:
                await self._deliver(body)
            elif self._random.random() < 0.5:
                await asyncio.gather(self._deliver(body), self._deliver(body))
            else:
                await self._deliver(body)
                await self._deliver(body)
            async with self._progress:
                self.accepted += 1
                self._progress.notify_all()

    async def _deliver(self, body: bytes) -> None:
        while True:
            connection = await self._free.get()
            try:
                status = await connection.post(body)
            except (OSError, EOFError):
                status = 0
            finally:
                self._free.put_nowait(connection)
            if status == 200:
                return
            assert status in (0, 503)
            await self.up.wait()
