"""`fasthook run`: sockets, start, signals, drain, stop."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import math
import os
import shlex
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from time import monotonic
from types import FrameType

import uvicorn

from fasthook.asgi import Hook
from fasthook.handlers import WorkersError
from fasthook.listeners import ListenError, Listeners, address, listen, listen_ops, name_of
from fasthook.ops.app import OpsServer
from fasthook.ops.health import Health
from fasthook.queues import QueueError
from fasthook.settings import Settings
from fasthook.state import StateError
from fasthook.systemd import Notifier
from fasthook.wording import bots_frames

log = logging.getLogger("fasthook")

_PATIENCE = 3.0  # seconds after the second signal for a loop that is blocked
_OPS = "127.0.0.1:9090"
_GRACE = 5  # seconds of the drain for requests that are still coming in


class ServerError(Exception):
    """The server cannot start. The message is one line that says what to do."""


class _Uvicorn(uvicorn.Server):
    """uvicorn without its signal handlers, ours drain first, and with a deadline for TLS handshakes."""

    def __init__(self, config: uvicorn.Config, handshake: float) -> None:
        super().__init__(config)
        self._handshake = handshake

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        config, loop = self.config, asyncio.get_running_loop()
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

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def run(hook: Hook) -> int:
    """Serve until a signal says stop; the exit code. ServerError, StateError, QueueError: one line."""
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    if sys.platform != "win32":
        import uvloop

        loop_factory = uvloop.new_event_loop
    notifier = Notifier(os.environ)
    with (
        _listen(hook.settings) as listeners,
        _listen_ops(hook.settings) as ops,
        asyncio.Runner(loop_factory=loop_factory) as runner,
    ):
        code = runner.run(_serve(hook, listeners, ops, notifier))
        if hook.receiver.stuck:  # the end of the loop and of the interpreter would wait for them
            listeners.close()
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


def _listen_ops(settings: Settings) -> Listeners:
    """Where the ops server listens; nowhere if its address is taken and was not asked for."""
    where = settings.ops or _OPS
    try:
        return Listeners([]) if where == "off" else listen_ops(where)
    except ListenError as error:
        if settings.ops:
            raise ServerError(f"--ops: {error}") from None
        return Listeners([], trouble=f"no ops server: {error}; set --ops to another address, or --no-ops")


async def _serve(hook: Hook, listeners: Listeners, ops_listeners: Listeners, notifier: Notifier) -> int:
    settings, receiver = hook.settings, hook.receiver
    server = _Uvicorn(_config(hook), settings.header_timeout)
    health = Health(receiver, lambda: len(server.server_state.connections))
    ops = OpsServer(ops_listeners.sockets, health) if ops_listeners.sockets else None
    stop = _Stop(hook, server, health, notifier)
    stop.watch()
    receiver.failed = stop.failed
    try:
        stop.starting = asyncio.current_task()
        await receiver.start()
    except asyncio.CancelledError:
        return 0
    except (StateError, QueueError, WorkersError):
        raise
    except SystemExit as error:
        log.error("the bot does not start: its lifespan calls sys.exit(%r)", error.code)
        return 1
    except Exception as error:
        log.error("the bot does not start", exc_info=bots_frames(error))
        return 1
    finally:
        stop.starting = None
    announce(settings, listeners, ops_listeners)
    notifier.ready()
    if ops_listeners.trouble:
        log.warning("%s", ops_listeners.trouble)
    if ops:
        ops.start()
    code = 0
    try:
        await server.serve(sockets=listeners.sockets)
    finally:
        notifier.stopping()
        try:
            await receiver.stop(stop.left())
        except QueueError as error:
            log.error("%s", error)
            code = 1
        if ops:
            await asyncio.to_thread(ops.stop)
        notifier.close()
        await asyncio.sleep(0)  # the last answers leave with the end of a turn of the loop
    if stop.failure:
        raise stop.failure
    if stop.signals > 1:
        return 130
    return code


class _Stop:
    """SIGINT and SIGTERM: the first drains, after `drain_delay`; the second stops at once.

    SIGHUP: new workers, or a stop if none are.
    """

    def __init__(self, hook: Hook, server: uvicorn.Server, health: Health, notifier: Notifier) -> None:
        self._health = health
        self.signals = 0
        self.failure: Exception | None = None  # why the server stops by itself
        self.starting: asyncio.Task[int] | None = None  # while it does
        self._notifier = notifier
        self._received = 0
        self._since = 0.0
        self._hook = hook
        self._server = server

    def left(self) -> float:
        """Seconds of the drain that are left."""
        drain = self._hook.settings.drain_timeout
        return max(0.0, drain - (monotonic() - self._since)) if self._since else drain

    def watch(self) -> None:
        # The interpreter calls these even while a handler blocks the loop; what they ask for is done in the loop.
        self._loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._signalled)
        if sys.platform == "win32":
            return
        if self._hook.settings.in_processes:
            signal.signal(signal.SIGHUP, lambda *_: self._loop.call_soon_threadsafe(self._reload))
        elif signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
            signal.signal(signal.SIGHUP, self._signalled)

    def failed(self, error: Exception) -> None:
        """The workers cannot go on: stop, and keep what is not handled for the next start."""
        self.failure = error
        self._hook.receiver.refuse_new()
        self._hook.receiver.hurry()
        self._server.should_exit = True

    def _reload(self) -> None:
        workers = self._hook.receiver.workers
        if workers is not None and not self._server.should_exit:
            self._notifier.reloading()
            workers.crew.reload(self._notifier.ready)

    def _signalled(self, number: int, _: FrameType | None) -> None:
        self._health.stopping = True
        self._received += 1
        self._loop.call_soon_threadsafe(self._stop, signal.Signals(number))
        if self._received == 2:
            last = threading.Timer(_PATIENCE, self._leave)
            last.daemon = True
            last.start()

    def _leave(self) -> None:
        log.error("a handler blocks the loop: leaving without it, and without what only memory has")
        logging.shutdown()
        os._exit(130)

    def _stop(self, number: signal.Signals) -> None:
        self.signals += 1
        settings = self._hook.settings
        if self.signals == 1 and settings.drain_delay:
            log.info("%s: not ready any more; stopping in %g s", number.name, settings.drain_delay)
            self._loop.call_later(settings.drain_delay, self._drain)
            return
        if self.signals == 1:
            log.info("%s: stopping; running handlers have %g s", number.name, settings.drain_timeout)
        else:
            self._server.force_exit = True
            self._hook.receiver.hurry()
        self._drain()

    def _drain(self) -> None:
        self._since = self._since or monotonic()
        self._hook.receiver.refuse_new()
        self._server.should_exit = True
        if self.starting:
            self.starting.cancel()


def _config(hook: Hook) -> uvicorn.Config:
    settings = hook.settings
    grace = math.ceil(settings.drain_timeout)  # a request that waits for its handler has all of it
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
        timeout_keep_alive=int(settings.keep_alive),
        timeout_graceful_shutdown=grace if settings.ack == "handled" else min(_GRACE, grace),
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


def announce(settings: Settings, listeners: Listeners, ops: Listeners) -> None:
    """Tell a person, on standard error, where the hook is and how to try it."""
    sockets = listeners.sockets
    places = [address(settings, [one]) for one in sockets] if listeners.handed else [address(settings, sockets)]
    where = places[0]
    if settings.secret:
        made = "as it was set"
    elif settings.token:
        made = "made from the token: the same on every machine and after every restart"
    else:
        made = "thrown away at the end, because there is neither a token nor a secret"
    lines = [
        *(f"fasthook serves {place}{settings.path}" for place in places),
        f"  secret  {made}",
        f"  queue   {settings.queue}",
    ]
    if ops.sockets:
        lines.append(f"  ops     {name_of('http', ops.sockets[0])}")
    if not settings.secret and not settings.token:
        lines.append(f"  try it  {_curl(settings, where)}")
    print("\n".join(lines), file=sys.stderr, flush=True)


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
