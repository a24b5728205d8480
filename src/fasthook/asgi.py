"""`Hook`, the raw ASGI door: for any ASGI server, and to be mounted in any ASGI framework."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

from fasthook._core import CODES, Route, Verdict
from fasthook._protocol import asgi_body, asgi_head
from fasthook.handlers import complete
from fasthook.receiver import Receiver
from fasthook.settings import Settings, load
from fasthook.telegram.networks import caller

log = logging.getLogger("fasthook")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_INVALID = CODES["invalid"]


class Hook:
    """An ASGI 3 application that gives a bot's updates to `handler`.

    `settings`: those of `fasthook run` by their names, `path="/hook"` for instance; what is not given comes from the
    environment (`FASTHOOK_…`), then from the defaults. `lifespan`: an async context manager, called with this object;
    what it yields is `update.state`.

    It starts with the server's lifespan. Mounted where no lifespan reaches it, it starts on its first request and stops
    when its loop does. SettingsError, TargetError: one line.
    """

    def __init__(
        self,
        handler: Any,
        *,
        lifespan: Callable[[Any], Any] | None = None,
        **settings: Any,
    ) -> None:
        self._set_up(handler, load(settings, os.environ), lifespan)

    @classmethod
    def of(cls, handler: Any, settings: Settings, *, lifespan: Callable[[Any], Any] | None = None) -> Hook:
        """A hook with settings that are already made."""
        hook = cls.__new__(cls)
        hook._set_up(handler, settings, lifespan)
        return hook

    def _set_up(self, handler: Any, settings: Settings, lifespan: Callable[[Any], Any] | None) -> None:
        self.settings = settings = complete(handler, settings)
        self.target = handler
        self.receiver = Receiver(handler, settings, lifespan=lifespan, app=self)
        checks = settings.allow_ip is not None or settings.trusted_proxy is not None
        self._addresses = self._address if checks else None
        self._answers: dict[Verdict, tuple[Message, Message]] = {}
        self._started: asyncio.Future[None] | None = None
        self._keeper: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._other(scope, receive, send)
        receiver = self.receiver
        if not receiver.running:
            await self._start_late()
        gate = receiver.gate
        judged = asgi_head(gate, scope, self._addresses)
        if isinstance(judged, Route):
            message = await receive()
            if message["type"] != "http.request":
                return None
            raw = message.get("body", b"")
            if message.get("more_body", False):
                raw = await self._rest(receive, raw)
                if raw is None:
                    return None
            answer = asgi_body(gate, judged, raw)
            if not isinstance(answer, Verdict):
                waiter = _Waiter()
                verdict = receiver.accept(answer, waiter) or await waiter.future
            elif answer.code == _INVALID:
                waiter = _Waiter()
                receiver.reject(judged, raw, waiter)
                verdict = await waiter.future
            else:
                verdict = answer
        else:
            verdict = judged
        known = self._answers.get(verdict) if scope["method"] == "POST" else None
        start, body = known or self._messages(scope, verdict)
        await send({**start, "headers": [*start["headers"]]})  # its own: a middleware may add to it
        return await send({**body})

    async def _other(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1003, "reason": "updates come by POST"})
        else:
            raise ValueError(f"fasthook serves http and lifespan, not {scope['type']!r}")

    # ------------------------------------------------------------ start and stop

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """For the lifespan of an application that this is mounted in: started inside, drained at the end."""
        await self.receiver.start()
        try:
            yield
        finally:
            await self.receiver.stop()

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self.receiver.start()
        except Exception as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            raise
        await send({"type": "lifespan.startup.complete"})
        await receive()
        try:
            await self.receiver.stop()
        except Exception as error:
            await send({"type": "lifespan.shutdown.failed", "message": str(error)})
            raise
        await send({"type": "lifespan.shutdown.complete"})

    async def _start_late(self) -> None:
        if self._started is None:
            loop = asyncio.get_running_loop()
            self._started = loop.create_future()
            keeping = self._keep(self._started)
            self._keeper = loop.create_task(keeping, context=contextvars.Context())  # not that of this request
        await asyncio.shield(self._started)

    async def _keep(self, started: asyncio.Future[None]) -> None:
        """Start, and stop with the loop: one that ends in order cancels its tasks first, which is our only sign."""
        try:
            await self.receiver.start()
            started.set_result(None)
            await asyncio.get_running_loop().create_future()
        except BaseException as error:
            if not started.done():
                started.set_exception(error)
        finally:
            self._started = self._keeper = None
            await self.receiver.stop()

    # ------------------------------------------------------------ a request

    def _address(self, peer: str | None, forwarded: str) -> tuple[str | None, bool]:
        """Who calls, and whether it may."""
        trusted, allowed = self.settings.trusted_proxy, self.settings.allow_ip
        address = caller(peer, forwarded, trusted) if trusted is not None else peer
        return address, allowed is None or address in allowed

    async def _rest(self, receive: Receive, first: bytes) -> bytes | None:
        """A body of several parts; more than is allowed, if it is too large; None if the peer went away."""
        parts, size, more = [first], len(first), True
        while more and size <= self.settings.max_body:
            message = await receive()
            if message["type"] != "http.request":
                return None
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            more = message.get("more_body", False)
        return b"".join(parts)

    def _messages(self, scope: Scope, verdict: Verdict) -> tuple[Message, Message]:
        """The two messages that answer a request; what they are for most is kept."""
        headers = verdict.headers
        if verdict.closes and scope["http_version"] not in ("1.0", "1.1"):
            headers = tuple(pair for pair in headers if pair[0] != b"connection")  # RFC 9113, section 8.2.2
        start = {"type": "http.response.start", "status": verdict.status, "headers": headers}
        body = {"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else verdict.body}
        if scope["method"] == "POST" and not verdict.closes:
            self._answers[verdict] = start, body
        return start, body


class _Waiter:
    """A request of this door that waits for its answer."""

    _verdict: Verdict | None = None
    _future: asyncio.Future[Verdict] | None = None

    @property
    def future(self) -> asyncio.Future[Verdict]:
        if self._future is None:
            self._future = asyncio.get_running_loop().create_future()
            if self._verdict is not None:
                self._future.set_result(self._verdict)
        return self._future

    def answer(self, verdict: Verdict) -> None:
        self._verdict = verdict
        if self._future is not None and not self._future.done():
            self._future.set_result(verdict)
