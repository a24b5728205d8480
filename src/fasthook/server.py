"""`fasthook run`: sockets, start, signals, drain, stop."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import shlex
import socket
import ssl
import sys
from collections.abc import Callable, Coroutine, Iterator
from time import monotonic, monotonic_ns
from typing import TYPE_CHECKING, Any

import uvicorn

from fasthook import descriptors, logs
from fasthook._core import CODES
from fasthook.asgi import Hook
from fasthook.listeners import ListenError, Listeners, address, listen, listen_ops, name_of
from fasthook.ops.app import OpsServer
from fasthook.ops.health import Health
from fasthook.settings import Settings
from fasthook.stopping import Stop
from fasthook.systemd import Notifier

if TYPE_CHECKING:
    from fasthook.bots import Bots

log = logging.getLogger("fasthook")

_OPS = "127.0.0.1:9090"
_TOLD_SO = 16  # TLS connections above the limit that get through the handshake, and then 503
_TO_ASK = 1.0  # seconds that a connection which has just come has to ask, when the server stops
_TURNS = 3  # of the loop, after which a connection that was accepted is known, and what had come on it has been read
_LOOK = 0.01  # seconds between two looks whether they have
_GRACE = 5  # seconds of the drain for requests that are still coming in
_TO_LEAVE = 0.3  # seconds after the drain for peers to read their last answers
_DRAINING = CODES["draining"]


class ServerError(Exception):
    """The server cannot start. The message is one line that says what to do."""


class _Counted(ssl.SSLObject):
    """TLS of a connection."""

    live: int  # how many there are


def _counted(most: int) -> type[_Counted]:
    """TLS connections of which there are `most` at once, those in their handshake among them; more are refused."""

    class Limited(_Counted):
        live = 0

        def __new__(cls) -> Limited:
            if cls.live >= most:
                raise ConnectionRefusedError("too many connections")  # the loop closes this one without a word
            cls.live += 1
            return super().__new__(cls)

        def __del__(self) -> None:
            type(self).live -= 1

    return Limited


class _Uvicorn(uvicorn.Server):
    """uvicorn without its signal handlers, ours drain first, with a limit and a deadline for TLS handshakes, and with
    a stop that answers who waits before it ends. `serves`: called when connections are taken. `left`: seconds of the
    drain.
    """

    def __init__(
        self, config: uvicorn.Config, hook: Hook, serves: Callable[[], None], left: Callable[[], float]
    ) -> None:
        super().__init__(config)
        settings = hook.settings
        self._hook = hook
        self._serves = serves
        self._left = left
        self._handshake = settings.header_timeout
        self._room = descriptors.room(settings.max_connections)
        self._watch = descriptors.Watch()
        self._tls: type[_Counted] | None = None

    async def on_tick(self, counter: int) -> bool:
        if counter % 10 == 0:  # ten of them are a second
            self._watch.look()
        return await super().on_tick(counter)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        config, loop = self.config, asyncio.get_running_loop()
        if config.ssl:
            # a handshake costs more than a connection; some more than are served are let through it to be told so
            most = min(self._room.served + _TOLD_SO, self._room.answered)
            config.ssl.sslobject_class = self._tls = _counted(most)
        make: Callable[..., asyncio.Protocol] = config.http_protocol_class
        protocol = functools.partial(make, config, self.server_state, self.lifespan.state, loop)
        self.servers = [
            await loop.create_server(
                protocol,
                sock=listener,
                ssl=config.ssl,
                ssl_handshake_timeout=self._handshake if config.ssl else None,
                backlog=config.backlog,
            )
            for listener in sockets or ()
        ]
        self.started = True
        self._serves()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()  # from now on they wait with the service manager, or for another server
        await self._take_last()
        for listener in sockets or ():
            listener.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        await self._until_gone(min(_GRACE, self._left()))
        await self._cut_all()
        if self._hook.settings.ack == "handled":  # a request that waits for its handler has all of the drain
            while not self.force_exit and self.server_state.connections and self._left():
                await asyncio.sleep(_LOOK)
                await self._cut_all()  # what stood behind another

    async def leave(self) -> None:
        """The drain is over, and who waited for a handler has the answer: let it be written, and read."""
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        await self._cut_all()  # what stood behind these
        await self._until_gone(_TO_LEAVE)
        for connection in list(self.server_state.connections):
            if _unread(connection):
                connection.transport.abort()

    async def _until_gone(self, seconds: float) -> None:
        """Wait until all connections are closed, for so long at most, and not after a second signal."""
        end = monotonic() + seconds
        while not self.force_exit and monotonic() < end:
            if not self.server_state.connections:
                break
            await asyncio.sleep(_LOOK)

    async def _cut_all(self) -> None:
        for connection in list(self.server_state.connections):
            try:
                async with asyncio.timeout(_TO_LEAVE):
                    await self._cut(connection)
            except TimeoutError:  # its peer does not read
                connection.transport.abort()

    async def _cut(self, connection: Any) -> None:
        """Wait no longer for a request that is still coming in: it gets 503, and comes again."""
        if hasattr(connection, "cut"):
            connection.cut()
            return
        cycle = connection.cycle  # uvicorn's own
        if cycle is None or cycle.response_complete:
            connection.transport.close()
        elif cycle.more_body and not connection.pipeline and not connection.flow.write_paused:
            verdict = self._hook.receiver.gate.refuse(None, _DRAINING)
            await self._hook.refuse(cycle.scope, cycle.send, verdict, monotonic_ns())

    async def _take_last(self) -> None:
        """Answer those that have just come: what they ask may not have been read yet, or be under way."""
        state = self.server_state
        state.default_headers = [*state.default_headers, (b"connection", b"close")]  # --http asgi
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        end = monotonic() + _TO_ASK
        while not self.force_exit and monotonic() < end:
            connections = list(state.connections)
            shaking = self._tls.live - len(connections) if self._tls else 0  # hands, and not known yet
            if not sum(map(_end_soon, connections)) and shaking <= 0:
                break
            await asyncio.sleep(_LOOK)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _end_soon(connection: Any) -> bool:
    """Let a connection end when it has its answer. True: it has just come, and stays until it has asked."""
    if hasattr(connection, "end_soon"):
        return bool(connection.end_soon())
    if connection.cycle is None:  # uvicorn's own: no head has come
        return True
    connection.shutdown()
    return False


def _unread(connection: Any) -> bool:
    """Whether a task of uvicorn's own HTTP waits for a peer to read: it would do so beyond the end."""
    return not hasattr(connection, "cut") and connection.flow.write_paused


def run(hook: Hook) -> int:
    """Serve until a signal says stop; the exit code. ServerError, StateError, QueueError: one line."""
    descriptors.raise_limit()
    descriptors.warn_if_few(hook.settings.max_connections)
    if hook.settings.http == "asgi":
        log.warning(
            "--http asgi: uvicorn's own HTTP keeps neither --header-timeout nor a limit of what it reads of a head, "
            "and --max-connections only for requests; put a proxy in front that does"
        )
    with _listen(hook.settings) as listeners, open_ops(hook.settings) as ops:
        return run_loop(hook, _serve(hook, listeners, ops, Notifier(os.environ)), listeners.close)


def run_loop(hook: Hook, work: Coroutine[Any, Any, int], leave: Callable[[], None] = lambda: None) -> int:
    """Run what serves a hook in a loop of its own; the exit code. `leave`: called before the process ends abruptly."""
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    if sys.platform != "win32":
        import uvloop

        loop_factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        code = runner.run(work)
        if hook.receiver.stuck:  # the end of the loop and of the interpreter would wait for them
            leave()
            log.error("%d handlers still run and cannot be stopped: leaving without them", hook.receiver.stuck)
            sys.stdout.flush()
            logging.shutdown()
            os._exit(code)
    return code


def _listen(settings: Settings) -> Listeners:
    try:
        return listen(settings)
    except ListenError as error:
        raise ServerError(str(error)) from None


def open_ops(settings: Settings) -> Listeners:
    """Where the ops server listens; nowhere if its address is taken and was not asked for."""
    where = settings.ops or _OPS
    try:
        return Listeners([]) if where == "off" else listen_ops(where)
    except ListenError as error:
        if settings.ops:
            raise ServerError(f"--ops: {error}") from None
        return Listeners([], trouble=f"no ops server: {error}; set --ops to another address, or --no-ops")


async def _serve(hook: Hook, listeners: Listeners, ops_listeners: Listeners, notifier: Notifier) -> int:
    def serves() -> None:
        health.starting = False
        ops.hurry()
        announce(hook.settings, listeners, ops_listeners, hook.receiver.bots)
        notifier.ready()
        if ops_listeners.trouble:
            log.warning("%s", ops_listeners.trouble)
        stop.serves()

    server = _Uvicorn(_config(hook), hook, serves, lambda: stop.left())
    health = Health(hook.receiver, lambda: len(server.server_state.connections))
    stop = Stop(hook, server, health, notifier)
    hook.receiver.leave = server.leave
    async with OpsServer(ops_listeners.sockets, health) as ops:
        code = await stop.begin()
        if code is not None:
            return code
        code = 0
        try:
            await server.serve(sockets=listeners.sockets)
        finally:
            notifier.stopping()
            code = await stop.end()
            notifier.close()
            await asyncio.sleep(0)  # the last answers leave with the end of a turn of the loop
    if stop.failure:
        raise stop.failure
    if stop.signals > 1:
        return 130
    return code


def _config(hook: Hook) -> uvicorn.Config:
    settings = hook.settings
    config = uvicorn.Config(
        hook,
        http="fasthook._protocol:HookProtocol" if settings.http == "compiled" else "httptools",
        ws="none",
        lifespan="off",  # the receiver is started before the first connection is taken, and stopped after the last
        log_config=None,
        access_log=False,  # both doors write their own
        server_header=False,
        date_header=False,
        proxy_headers=False,
        limit_concurrency=descriptors.room(settings.max_connections).served + 1 if settings.http == "asgi" else None,
        timeout_keep_alive=int(settings.keep_alive),
        ssl_certfile=settings.ssl_certfile,
        ssl_keyfile=settings.ssl_keyfile,
    )
    for name, file in (("--ssl-certfile", settings.ssl_certfile), ("--ssl-keyfile", settings.ssl_keyfile)):
        try:
            if file is not None:
                file.read_bytes()
        except OSError as error:
            raise ServerError(f"{name}: {file} cannot be used: {error.strerror}") from None
    try:
        config.load()
    except OSError as error:  # ssl.SSLError is one
        raise ServerError(
            f"--ssl-certfile: {settings.ssl_certfile} cannot be used: it must be a certificate chain in PEM, with its "
            f"private key there or in --ssl-keyfile ({error.strerror or error})"
        ) from None
    return config


# ---------------------------------------------------------------- what is told


def announce(settings: Settings, listeners: Listeners, ops: Listeners, bots: Bots | None = None) -> None:
    """Tell, on standard error, where the hook is; a person also how to try it."""
    sockets = listeners.sockets
    places = [address(settings, [one]) for one in sockets] if listeners.handed else [address(settings, sockets)]
    if settings.log_format == "json":
        _log_start(settings, places, ops, bots)
        return
    where = places[0]
    if bots:
        tables = bots.tables.values()
        lines = [f"fasthook serves {place}{one.settings.path}" for one in tables for place in places]
        lines += [f"  bot     {one.bot_id}: {one.target}" for one in tables]
    else:
        lines = [f"fasthook serves {place}{settings.path}" for place in places]
        lines.append(f"  secret  {_secret_words(settings)}")
    lines.append(f"  queue   {settings.queue}")
    if ops.sockets:
        lines.append(f"  ops     {name_of('http', ops.sockets[0])}")
    if not bots and not settings.secret and not settings.token:
        lines.append(f"  try it  {_curl(settings, where)}")
    logs.flush()
    print("\n".join(lines), file=sys.stderr, flush=True)


def _log_start(settings: Settings, places: list[str], ops: Listeners, bots: Bots | None) -> None:
    tables = list(bots.tables.values()) if bots else []
    paths = [one.settings.path for one in tables] or [settings.path]
    urls = [f"{place}{path}" for path in paths for place in places]
    told: dict[str, Any] = {"urls": urls, "queue": settings.queue}
    if bots:
        told["bots"] = {str(one.bot_id): one.target for one in tables}
    else:
        told["secret"] = _secret_words(settings)
    if ops.sockets:
        told["ops"] = name_of("http", ops.sockets[0])
    log.info("fasthook serves %s", ", ".join(urls), extra={"server": told})


def _secret_words(settings: Settings) -> str:
    if settings.secret:
        return "as it was set"
    if settings.token:
        return "made from the token: the same on every machine and after every restart"
    return "thrown away at the end, because there is neither a token nor a secret"


def _curl(settings: Settings, where: str) -> str:
    # a new id each time the line is run: the same one twice would be a duplicate
    body = (
        """'{"update_id":'$(date +%s)',"message":{"message_id":1,"date":0,"""
        """"chat":{"id":1,"type":"private"},"text":"hello"}}'"""
    )
    unix, host = "", where
    if where.startswith("unix:"):
        unix, host = f"--unix-socket {shlex.quote(where[5:])} ", "http://localhost"
    return (
        f"curl -i {unix}{'-k ' if settings.ssl_certfile else ''}{shlex.quote(host + settings.path)} "
        f"-H 'X-Telegram-Bot-Api-Secret-Token: {settings.valid_secrets[0].decode()}' "
        f"-H 'Content-Type: application/json' -d {body}"
    )
