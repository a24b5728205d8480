"""`Hook`, the raw ASGI door: for any ASGI server, and to be mounted in any ASGI framework."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from time import monotonic_ns, time
from typing import Any

from fasthook._core import Route, Verdict
from fasthook.receiver import Receiver
from fasthook.settings import Settings, load
from fasthook.update import Update

log = logging.getLogger("fasthook")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_INVALID, _TOO_LARGE = 4, 7  # their places in _core.VERDICTS


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
        self.settings = settings
        self.receiver = Receiver(handler, settings, lifespan=lifespan, app=self)
        self._starting: asyncio.Lock | None = None
        self._until_loop_ends: AsyncGenerator[None, None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "http":
            if not self.receiver.running:
                await self._start_late()
            await self._http(scope, receive, send)
        elif kind == "lifespan":
            await self._lifespan(receive, send)
        elif kind == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1003, "reason": "updates come by POST"})
        else:
            raise ValueError(f"fasthook serves http and lifespan, not {kind!r}")

    # ------------------------------------------------------------ start and stop

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
        if self._starting is None:
            self._starting = asyncio.Lock()
        async with self._starting:
            if not self.receiver.running:
                await self.receiver.start()
                self._until_loop_ends = self._stop_with_loop()
                await anext(self._until_loop_ends)

    async def _stop_with_loop(self) -> AsyncGenerator[None, None]:
        # A loop that ends in order closes the asynchronous generators that began in it: our only sign here.
        try:
            yield
        finally:
            self._starting = self._until_loop_ends = None
            await self.receiver.stop()

    # ------------------------------------------------------------ a request

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        secret, length = None, -1
        for name, value in scope["headers"]:
            if name == b"x-telegram-bot-api-secret-token":
                secret = value
            elif name == b"content-length":
                length = int(value) if value.isdigit() else -1
        path, root = scope["path"], scope.get("root_path", "")
        if root and path.startswith(root):
            path = path[len(root) :]
        client = scope.get("client")
        gate = self.receiver.gate
        verdict = gate.head(
            path.encode(), scope["method"] == "POST", length, secret, client[0] if client else None, monotonic_ns()
        )
        if type(verdict) is Route:
            raw = await self._body(receive)
            if raw is None:
                return
            verdict = await self._admit(verdict, raw)
        await _send(scope, send, verdict)

    async def _body(self, receive: Receive) -> bytes | None:
        """The whole body; one byte too many, if it is larger than allowed; None if the peer went away."""
        message = await receive()
        if message["type"] != "http.request":
            return None
        body: bytes = message.get("body", b"")
        if not message.get("more_body", False):
            return body
        parts, size = [body], len(body)
        while message.get("more_body", False) and size <= self.settings.max_body:
            message = await receive()
            if message["type"] != "http.request":
                return None
            parts.append(message.get("body", b""))
            size += len(parts[-1])
        return b"".join(parts)

    async def _admit(self, route: Route, raw: bytes) -> Verdict:
        gate = self.receiver.gate
        if len(raw) > self.settings.max_body:
            return gate.refuse(route, _TOO_LARGE)
        result = gate.body(route, raw, time(), monotonic_ns())
        waiter = _Waiter()
        if isinstance(result, Update):
            return self.receiver.accept(result, waiter) or await waiter.future
        assert isinstance(result, Verdict)
        if result.code != _INVALID:
            return result
        self.receiver.reject(route, raw, waiter)
        return await waiter.future


class _Waiter:
    """A request of this door that waits for its answer."""

    __slots__ = ("_future",)

    def __init__(self) -> None:
        self._future: asyncio.Future[Verdict] | None = None

    @property
    def future(self) -> asyncio.Future[Verdict]:
        if self._future is None:
            self._future = asyncio.get_running_loop().create_future()
        return self._future

    def answer(self, verdict: Verdict) -> None:
        if not self.future.done():
            self.future.set_result(verdict)


async def _send(scope: Scope, send: Send, verdict: Verdict) -> None:
    headers = verdict.headers
    if verdict.closes and scope["http_version"] not in ("1.0", "1.1"):
        headers = tuple(pair for pair in headers if pair[0] != b"connection")  # RFC 9113, section 8.2.2
    await send({"type": "http.response.start", "status": verdict.status, "headers": headers})
    body = b"" if scope["method"] == "HEAD" else verdict.body
    await send({"type": "http.response.body", "body": body})
