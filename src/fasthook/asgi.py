"""`Hook`, the raw ASGI door: for any ASGI server, and to be mounted in any ASGI framework."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import os
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator, MutableMapping
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from fasthook._asgi import Door, Waiter
from fasthook._core import CODES, Verdict
from fasthook.access import AccessLog
from fasthook.handlers import complete
from fasthook.ops.blocks import Layout
from fasthook.receiver import Receiver
from fasthook.settings import Settings, SettingsError, load
from fasthook.telegram.networks import caller

if TYPE_CHECKING:
    from fasthook.bots import Bots

log = logging.getLogger("fasthook")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_HTTP_2 = ("2", "3")
_ACK = Layout.ack
_INVALID, _BAD_REQUEST, _TIMEOUT = CODES["invalid"], CODES["bad_request"], CODES["timeout"]


class Hook:
    """An ASGI 3 application that gives a bot's updates to `handler`.

    `settings`: those of `fasthook run` by their names, `path="/hook"` for instance; what is not given comes from the
    environment (`FASTHOOK_…`), then from the defaults. `lifespan`: an async context manager, called with this object;
    what it yields is `update.state`.

    Its queue is `memory:` unless `queue` says otherwise. Under a server with several processes each of them knows only
    its own duplicates, and says so. It starts with the server's lifespan. Mounted where no lifespan reaches it, it
    starts on its first request and stops when its loop does. SettingsError, TargetError: one line.
    """

    def __init__(
        self,
        handler: Any,
        *,
        lifespan: Callable[[Any], Any] | None = None,
        **settings: Any,
    ) -> None:
        for name in ("workers", "worker_timeout", "max_requests", "reload"):
            if settings.get(name) is not None:
                raise SettingsError(f"{name}: a Hook runs its handler in its own process; use `fasthook run`")
        self._set_up(handler, load(settings, os.environ, keywords=True), lifespan, shared=True)

    @classmethod
    def of(
        cls,
        handler: Any,
        settings: Settings,
        *,
        lifespan: Callable[[Any], Any] | None = None,
        target: str | None = None,
        bots: Bots | None = None,
    ) -> Hook:
        """A hook with settings that are already made. `target`: of a handler that runs in worker processes. `bots`:
        several, in place of one handler."""
        hook = cls.__new__(cls)
        hook._set_up(handler, settings, lifespan, shared=False, target=target, bots=bots)
        return hook

    def _set_up(
        self,
        handler: Any,
        settings: Settings,
        lifespan: Callable[[Any], Any] | None,
        *,
        shared: bool,
        target: str | None = None,
        bots: Bots | None = None,
    ) -> None:
        settings = complete(handler, settings)
        self.receiver = Receiver(
            handler, settings, lifespan=lifespan, app=self, shared=shared, target=target, bots=bots
        )
        if bots:
            bots.app = self
        self._door = Door(settings)
        self._access = AccessLog(lambda: self.receiver.hidden) if settings.access_log else None
        self._started: asyncio.Future[None] | None = None
        self._keeper: asyncio.Task[None] | None = None

    @property
    def settings(self) -> Settings:
        """With the bot's own token, if it has one; when it runs in worker processes, once they have started."""
        return self.receiver.settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._other(scope, receive, send)
        receiver = self.receiver
        if not receiver.running:
            await self._start_late()
        gate, came, update = receiver.gate, monotonic_ns(), None
        judged = self._door.head(gate, scope)
        if isinstance(judged, Verdict):
            await self.refuse(scope, send, judged, came)
            return gate.stats.observe(_ACK, monotonic_ns() - came)
        try:
            message = await _in_time(receive, self.settings.body_timeout)
            raw = message.get("body", b"") if message["type"] == "http.request" else None
            if raw is not None and message.get("more_body", False):
                async with asyncio.timeout(self.settings.body_timeout - (monotonic_ns() - came) / 1e9):
                    raw = await self._rest(receive, raw)
        except TimeoutError:
            return await self.refuse(scope, send, gate.refuse(judged, _TIMEOUT), came)
        if raw is None:
            return receiver.counts.disconnected()
        came = monotonic_ns()
        verdict = self._door.body(gate, judged, raw)
        if not isinstance(verdict, Verdict):
            waiter, update = Waiter(), verdict
            verdict = receiver.accept(update, waiter) or await waiter.future
            if gate.answers_later:
                gate.count(judged, verdict.code)
        elif verdict.code == _INVALID and _is_cut(scope, raw):
            verdict = gate.refuse(judged, _BAD_REQUEST)
        elif verdict.code == _INVALID:
            waiter = Waiter()
            receiver.reject(judged, raw, waiter)
            verdict = await waiter.future
        if self._access is not None:
            self._log(scope, verdict, judged.bot_id, update, came)
        headers = _without_connection(verdict) if scope["http_version"] in _HTTP_2 else verdict.headers
        await send({"type": "http.response.start", "status": verdict.status, "headers": [*headers]})
        await send({"type": "http.response.body", "body": verdict.body})
        return gate.stats.observe(_ACK, monotonic_ns() - came)

    async def refuse(self, scope: Scope, send: Send, verdict: Verdict, came: int) -> None:
        """Answer a head alone. Where its peer may send the body or not, the connection ends with it."""
        if self._access is not None:
            self._log(scope, verdict, None, None, came)
        version = scope["http_version"]
        headers = [*(_without_connection(verdict) if version in _HTTP_2 else verdict.headers)]
        if version == "1.1" and not verdict.closes and any(name == b"expect" for name, _ in scope["headers"]):
            headers.append((b"connection", b"close"))
        body = b"" if scope["method"] == "HEAD" else verdict.body
        await send({"type": "http.response.start", "status": verdict.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

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

    def _log(self, scope: Scope, verdict: Verdict, bot: int | None, update: Any, came: int) -> None:
        assert self._access is not None
        address = scope["client"][0] if scope.get("client") else None
        if (trusted := self.settings.trusted_proxy) is not None:
            forwarded = b",".join(value for name, value in scope["headers"] if name == b"x-forwarded-for")
            address = caller(address, forwarded.decode("latin-1"), trusted)
        path = scope.get("raw_path") or scope["path"].encode()
        self._access(address, scope["method"], path, verdict, bot, update, monotonic_ns() - came)

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


@types.coroutine
def _in_time(receive: Receive, seconds: float) -> Generator[Any, Any, Message]:
    """What `receive` gives. TimeoutError: not within so many seconds.

    A body that is there already, as nearly all are, costs no timer.
    """
    receiving = receive().__await__()
    try:
        step = next(receiving)
    except StopIteration as message:
        return message.value  # type: ignore[no-any-return]
    return (yield from _late(_Begun(receiving, step), seconds).__await__())


async def _late(receiving: _Begun, seconds: float) -> Message:
    async with asyncio.timeout(seconds):
        return await receiving


class _Begun:
    """Something awaited that has taken its first step outside of what awaits it now. It goes on as under `yield from`
    (PEP 380): what `__await__` gives has to be an iterator, and may be no generator."""

    def __init__(self, running: Iterator[Any], step: Any) -> None:
        self._running = running
        self._step = step

    def __await__(self) -> Generator[Any, Any, Message]:
        step, running = self._step, self._running
        try:
            while True:
                try:
                    sent = yield step
                except BaseException as error:
                    if not hasattr(running, "throw"):
                        raise
                    step = running.throw(error)
                else:
                    step = next(running) if sent is None else running.send(sent)  # type: ignore[attr-defined]
        except StopIteration as message:
            return message.value  # type: ignore[no-any-return]


def _without_connection(verdict: Verdict) -> list[tuple[bytes, bytes]]:
    """The headers of an answer over HTTP/2, which has none for the connection (RFC 9113, section 8.2.2)."""
    return [pair for pair in verdict.headers if pair[0] != b"connection"]


def _is_cut(scope: Scope, raw: bytes) -> bool:
    """Whether the server kept a part of the body back, as uvicorn does behind a request to upgrade."""
    headers = dict(scope["headers"])
    length = headers.get(b"content-length")
    return (length is not None and int(length) != len(raw)) or (not raw and b"upgrade" in headers)
