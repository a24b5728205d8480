"""`fasthook run`: sockets, start, signals, drain, stop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
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
from pathlib import Path
from time import monotonic
from types import FrameType

import uvicorn

from fasthook.asgi import Hook
from fasthook.ops.app import OpsServer
from fasthook.ops.health import Health
from fasthook.queues import QueueError
from fasthook.settings import Settings
from fasthook.state import StateError

log = logging.getLogger("fasthook")

_BACKLOG = 2048
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
    with contextlib.ExitStack() as open_:
        listener = open_.enter_context(contextlib.closing(_listen(hook.settings)))
        ops_listener, warning = _listen_ops(hook.settings)
        if ops_listener:
            open_.enter_context(contextlib.closing(ops_listener))
        runner = open_.enter_context(asyncio.Runner(loop_factory=loop_factory))
        code = runner.run(_serve(hook, listener, ops_listener, warning))
        if hook.receiver.stuck:  # the end of the loop and of the interpreter would wait for them
            log.error("%d handlers still run and cannot be stopped: leaving without them", hook.receiver.stuck)
            sys.stdout.flush()
            logging.shutdown()
            os._exit(code)
    return code


async def _serve(
    hook: Hook, listener: socket.socket, ops_listener: socket.socket | None = None, warning: str = ""
) -> int:
    settings, receiver = hook.settings, hook.receiver
    server = _Uvicorn(_config(hook), settings.header_timeout)
    health = Health(receiver, lambda: len(server.server_state.connections))
    ops = OpsServer(ops_listener, health) if ops_listener else None
    stop = _Stop(hook, server, health)
    stop.watch()
    try:
        await receiver.start()
    except (StateError, QueueError):
        raise
    except Exception as error:
        log.error("the bot does not start", exc_info=error)
        return 1
    announce(settings, listener, ops_listener)
    if warning:
        log.warning("%s", warning)
    if ops:
        ops.start()
    code = 0
    try:
        await server.serve(sockets=[listener])
    finally:
        try:
            await receiver.stop(stop.left())
        except QueueError as error:
            log.error("%s", error)
            code = 1
        if ops:
            await asyncio.to_thread(ops.stop)
        await asyncio.sleep(0)  # the last answers leave with the end of a turn of the loop
    if stop.signals > 1:
        return 130
    return code


class _Stop:
    """SIGINT and SIGTERM: the first drains, after `drain_delay`; the second stops at once."""

    def __init__(self, hook: Hook, server: uvicorn.Server, health: Health) -> None:
        self._health = health
        self.signals = 0
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


def _config(hook: Hook) -> uvicorn.Config:
    settings = hook.settings
    grace = math.ceil(settings.drain_timeout)  # a request that waits for its handler has all of it
    config = uvicorn.Config(
        hook,
        http="fasthook._protocol:HookProtocol" if settings.http == "compiled" else "httptools",
        ws="none",
        lifespan="off",  # the receiver is started before the first connection is taken, and stopped after the last
        log_config=None,
        access_log=False,  # the hook has its own, which knows the verdict
        server_header=False,
        date_header=False,
        proxy_headers=False,
        backlog=_BACKLOG,
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


# ---------------------------------------------------------------- the listener


def _listen(settings: Settings) -> socket.socket:
    try:
        return _bind(settings)
    except (OSError, UnicodeError) as error:  # the second: a host name that is none
        where = settings.uds or (f"descriptor {settings.fd}" if settings.fd is not None else address(settings))
        why = getattr(error, "strerror", None) or str(error)
        raise ServerError(f"cannot listen on {where}: {why}") from None


def _bind(settings: Settings) -> socket.socket:
    if settings.fd is not None:
        listener = socket.socket(fileno=settings.fd)
        if listener.type != socket.SOCK_STREAM:
            raise OSError(errno.EINVAL, "it is not a stream socket")
    elif settings.uds:
        listener = _bind_unix(str(settings.uds))
    else:
        family, _, _, _, place = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.create_server(place[:2], family=family, backlog=_BACKLOG)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # asyncio does not; accepted ones inherit it
    listener.setblocking(False)
    return listener


def _listen_ops(settings: Settings) -> tuple[socket.socket | None, str]:
    """The listener of the ops server, or why there is none although nobody forbade it."""
    where = settings.ops or _OPS
    if where == "off":
        return None, ""
    try:
        if where.startswith("unix:"):
            listener = _bind_unix(where[5:])
        else:
            host, _, port = where.rpartition(":")
            family, _, _, _, place = socket.getaddrinfo(
                host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            listener = socket.create_server(place[:2], family=family)
    except (OSError, UnicodeError) as error:
        words = (getattr(error, "strerror", None) or str(error)).partition(" (while")[0]  # create_server adds to it
        why = f"cannot listen on {where}: {words}"
        if settings.ops:
            raise ServerError(f"--ops: {why}") from None
        return None, f"no ops server: {why}; set --ops to another address, or --no-ops"
    listener.setblocking(False)
    return listener, ""


def _bind_unix(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as probe:
        try:
            probe.connect(path)
        except FileNotFoundError:
            pass  # a free name
        except ConnectionRefusedError:
            if not Path(path).is_socket():
                raise OSError(errno.EEXIST, "a file is there that is not a socket") from None
            Path(path).unlink()  # left by a process that is gone
        else:
            raise OSError(errno.EADDRINUSE, "Address already in use")
    listener.bind(path)
    listener.listen(_BACKLOG)
    return listener


def address(settings: Settings, listener: socket.socket | None = None) -> str:
    """Where the server is, as a person writes it."""
    if settings.uds:
        return f"unix:{settings.uds}"
    scheme = "https" if settings.ssl_certfile else "http"
    if listener is not None:
        return _name(scheme, listener)
    host, port = settings.host, settings.port
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _name(scheme: str, listener: socket.socket) -> str:
    name = listener.getsockname()
    if not isinstance(name, tuple):
        return f"unix:{name}"
    return f"{scheme}://[{name[0]}]:{name[1]}" if ":" in name[0] else f"{scheme}://{name[0]}:{name[1]}"


def announce(settings: Settings, listener: socket.socket, ops: socket.socket | None = None) -> None:
    """Tell a person, on standard error, where the hook is and how to try it."""
    where = address(settings, listener)
    if settings.secret:
        made = "as it was set"
    elif settings.token:
        made = "made from the token: the same on every machine and after every restart"
    else:
        made = "thrown away at the end, because there is neither a token nor a secret"
    lines = [
        f"fasthook serves {where}{settings.path}",
        f"  secret  {made}",
        f"  queue   {settings.queue}",
    ]
    if ops is not None:
        lines.append(f"  ops     {_name('http', ops)}")
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
