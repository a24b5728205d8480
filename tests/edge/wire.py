"""The compiled protocol without sockets: a transport that is two lists, and a rig that runs connections on it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from edge.serving import PROTOCOL, SECRET
from fasthook import Hook, Update, Verdict

ACCEPTED, INVALID = Verdict(0), Verdict(4)


class Wire(asyncio.Transport):
    """A connection to a protocol; the bytes that it answers are in `answered`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, protocol: Any, *, half_closes: bool = True) -> None:
        super().__init__({"peername": ("192.0.2.1", 1234), "sockname": ("192.0.2.2", 80)})
        self.answered = bytearray()
        self.paused = False
        self.eof = False  # the protocol has shut down its side
        self.closing = False
        self.lost = False
        self._loop = loop
        self.protocol = protocol
        self._half_closes = half_closes
        protocol.connection_made(self)

    # what the protocol calls

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.eof, "a write behind the end"
        if not self.closing:
            self.answered += data

    def get_write_buffer_size(self) -> int:
        return 0

    def can_write_eof(self) -> bool:
        return self._half_closes

    def write_eof(self) -> None:
        assert self._half_closes
        self.eof = True

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            self._loop.call_soon(self._lose, None)

    def abort(self) -> None:
        self.close()

    def _lose(self, error: Exception | None) -> None:
        self.lost = True
        self.protocol.connection_lost(error)

    # what the peer does

    async def feed(self, piece: bytes) -> bool:
        """Let bytes arrive; False if they were not read, because the connection is over or reading paused for good."""
        for _ in range(1000):
            if not self.paused or self.closing:
                break
            await asyncio.sleep(0)
        if self.paused or self.closing:
            return False
        self.protocol.data_received(piece)
        return True

    async def half_close(self) -> None:
        if not self.closing and not self.protocol.eof_received():
            self.close()

    async def lose(self) -> None:
        """The peer is gone."""
        if not self.lost:
            self.closing = True
            self._lose(ConnectionResetError())

    async def finish(self) -> bytes:
        """Nothing more comes from the peer: what was answered by the end."""
        await rest()
        await self.half_close()
        for _ in range(1000):
            if self.lost:
                return bytes(self.answered)
            await asyncio.sleep(0)
        raise AssertionError(f"the connection does not end after {bytes(self.answered)!r}")


async def rest() -> None:
    """Let everything that is ready run."""
    for _ in range(8):
        await asyncio.sleep(0)


class Rig:
    """A hook that keeps the bodies it is given in `taken` and forgets their ids, so that none is a duplicate.

    `later`: it answers in a later turn of the loop, as a queue does that has to write first.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, state_dir: Path, *, remember: bool = True, **settings: Any):
        self.loop = loop
        self.taken: list[bytes] = []
        self.later = False
        self.closed = False  # the last connection was ended by the server, not by its peer
        given = {"secret": SECRET, "auth_rate": "off"} | settings
        self.hook = Hook(_nothing, state_dir=state_dir, **given)
        self.receiver = self.hook.receiver
        self.server_state = ServerState()
        self.config = uvicorn.Config(self.hook, http=PROTOCOL, ws="none", log_config=None, proxy_headers=False)
        self.config.load()
        loop.run_until_complete(self.receiver.start())
        self.receiver.remember_heads = remember
        self.receiver.accept = self._accept  # type: ignore[method-assign]
        self.receiver.reject = self._reject  # type: ignore[method-assign]

    def _accept(self, update: Update, waiter: Any) -> Verdict | None:
        self.receiver.gate.release(update)
        return self._take(update.raw, ACCEPTED, waiter)

    def _reject(self, route: object, raw: bytes, waiter: Any) -> None:
        self.taken.append(raw)
        self.loop.call_soon(waiter.answer, INVALID)

    def _take(self, raw: bytes, verdict: Verdict, waiter: Any) -> Verdict | None:
        self.taken.append(raw)
        if not self.later:
            return verdict
        self.loop.call_soon(waiter.answer, verdict)
        return None

    def connect(self, **options: Any) -> Wire:
        """A new connection; needs the loop to run."""
        protocol = self.config.http_protocol_class(self.config, self.server_state, {}, self.loop)  # type: ignore[call-arg]
        return Wire(self.loop, protocol, **options)

    def talk(self, pieces: Iterable[bytes], *, between: Callable[[int], None] = lambda _: None) -> bytes:
        """Send the pieces one by one over a new connection, then its end; what was answered.

        `between`: called before each piece with its number.
        """

        async def talking() -> bytes:
            wire = self.connect()
            for number, piece in enumerate(pieces):
                between(number)
                if not await wire.feed(piece):
                    break
            await rest()
            self.closed = wire.closing or wire.eof
            return await wire.finish()

        return self.loop.run_until_complete(talking())

    def close(self) -> None:
        assert not self.server_state.connections
        self.loop.run_until_complete(self.receiver.stop())


async def _nothing(update: Update) -> None:
    pass


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    """The bytes in pieces. `places`: any numbers; each is taken modulo the length."""
    cuts = sorted({place % len(data) for place in places} - {0}) if data else []
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
