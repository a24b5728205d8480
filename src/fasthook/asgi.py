"""`Hook`, the raw ASGI door: for any ASGI server, and to be mounted in any ASGI framework."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
from collections.abc import Awaitable, Callable, MutableMapping
from time import monotonic_ns, time
from typing import Any

from fasthook._core import CODES, Route, Verdict
from fasthook._protocol import read_headers
from fasthook.receiver import Receiver
from fasthook.settings import Settings, load
from fasthook.telegram.networks import caller
from fasthook.update import Update

log = logging.getLogger("fasthook")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_INVALID, _TOO_LARGE, _FORBIDDEN, _ENCODED = (CODES[name] for name in ("invalid", "too_large", "forbidden", "encoded"))


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
        self._checks_address = settings.allow_ip is not None or settings.trusted_proxy is not None
        self._started: asyncio.Future[None] | None = None
        self._keeper: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._other(scope, receive, send)
        receiver = self.receiver
        if not receiver.running:
            await self._start_late()
        judged = self._head(scope)
        if isinstance(judged, Route):
            message = await receive()
            if message["type"] != "http.request":
                return None
            raw = message.get("body", b"")
            if message.get("more_body", False):
                raw = await self._rest(receive, raw)
                if raw is None:
                    return None
            admitted = self._admit(judged, raw)
            verdict = await admitted.future if isinstance(admitted, _Waiter) else admitted
        else:
            verdict = judged
        start, body = self._messages(scope, verdict)
        await send(start)
        return await send(body)

    async def _other(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1003, "reason": "updates come by POST"})
        else:
            raise ValueError(f"fasthook serves http and lifespan, not {scope['type']!r}")

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

    def _head(self, scope: Scope) -> Verdict | Route:
        secret, length, encoded, forwarded = read_headers(scope["headers"])
        path, root = scope["path"], scope.get("root_path")
        if root and path.startswith(root):
            path = path[len(root) :]
        client = scope.get("client")
        peer = client[0] if client else None
        gate = self.receiver.gate
        if self._checks_address:
            settings = self.settings
            if settings.trusted_proxy is not None:
                peer = caller(peer, forwarded.decode("latin-1"), settings.trusted_proxy)
            if settings.allow_ip is not None and peer not in settings.allow_ip:
                return gate.refuse(None, _FORBIDDEN)
        verdict = gate.head(path.encode(), scope["method"] == "POST", length, secret, peer, monotonic_ns())
        if encoded and type(verdict) is Route:
            return gate.refuse(verdict, _ENCODED)
        return verdict

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

    def _admit(self, route: Route, raw: bytes) -> Verdict | _Waiter:
        receiver = self.receiver
        gate = receiver.gate
        if len(raw) > gate.max_body:
            return gate.refuse(route, _TOO_LARGE)
        result = gate.body(route, raw, time(), monotonic_ns())
        if type(result) is Update:
            waiter = _Waiter()
            try:
                return receiver.accept(result, waiter) or waiter
            except BaseException:
                if not result.redelivery:
                    gate.release(result)
                raise
        assert isinstance(result, Verdict)
        if result.code != _INVALID:
            return result
        waiter = _Waiter()
        receiver.reject(route, raw, waiter)
        return waiter

    def _messages(self, scope: Scope, verdict: Verdict) -> tuple[Message, Message]:
        """The two messages that answer a request, its own: a middleware may add to them."""
        headers = [*verdict.headers]
        if verdict.closes and scope["http_version"] not in ("1.0", "1.1"):
            headers = [pair for pair in headers if pair[0] != b"connection"]  # RFC 9113, section 8.2.2
        start = {"type": "http.response.start", "status": verdict.status, "headers": headers}
        return start, {"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else verdict.body}


class _Waiter:
    """A request of this door that waits for its answer."""

    def __init__(self) -> None:
        self._verdict: Verdict | None = None
        self._future: asyncio.Future[Verdict] | None = None

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
