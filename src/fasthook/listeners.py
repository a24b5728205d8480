"""Where the server listens: each address of a host name, a Unix socket, or a descriptor that it inherits."""

from __future__ import annotations

import contextlib
import errno
import socket
from pathlib import Path
from types import TracebackType
from typing import Any

from fasthook.settings import Settings

_BACKLOG = 2048
_UNIX_MODE = 0o666  # as uvicorn's: a proxy is another user, and the secret protects
_FREE_PORTS = 20  # tried, until one is free on each address
_NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


class ListenError(Exception):
    """The server cannot listen. The message is one line that says what to do."""


class Listeners:
    """Sockets that listen; `path` is the file of a Unix socket, which the end removes if it is still the same."""

    def __init__(self, sockets: list[socket.socket], path: Path | None = None) -> None:
        self.sockets = sockets
        self._path = path
        self._file = _identity(path) if path else None
        for one in sockets:
            one.setblocking(False)

    def close(self) -> None:
        """Close the sockets. It may be called twice."""
        for one in self.sockets:
            one.close()
        if self._path and self._file == _identity(self._path):
            self._path.unlink(missing_ok=True)
        self._path = None

    def __enter__(self) -> Listeners:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def listen(settings: Settings) -> Listeners:
    """Listen where the settings say. ListenError: one line."""
    try:
        if settings.fd is not None:
            return Listeners([_inherited(settings.fd)])
        if settings.uds:
            return Listeners([_bind_unix(str(settings.uds))], settings.uds)
        return Listeners(_bind_host(settings.host, settings.port))
    except (OSError, UnicodeError) as error:  # the second: a host name that is none
        where = settings.uds or (f"descriptor {settings.fd}" if settings.fd is not None else address(settings))
        raise ListenError(f"cannot listen on {where}: {_why(error, settings)}") from None


def _why(error: Exception, settings: Settings) -> str:
    option = "--uds" if settings.uds else "--port"
    code = getattr(error, "errno", None)
    if code == errno.EADDRINUSE:
        return f"Address already in use; stop what listens there, or choose another {option}"
    if isinstance(error, PermissionError) and not settings.uds:
        return "Permission denied; a port below 1024 needs CAP_NET_BIND_SERVICE, or choose another --port"
    if code == errno.EADDRNOTAVAIL:
        return "this machine has no such address; --host 0.0.0.0 is all that it has"
    return getattr(error, "strerror", None) or str(error)


def address(settings: Settings, sockets: list[socket.socket] | None = None) -> str:
    """Where the server is, as a person writes it."""
    if settings.uds:
        return f"unix:{settings.uds}"
    scheme = "https" if settings.ssl_certfile else "http"
    host, port = settings.host, settings.port
    if sockets:
        name = sockets[0].getsockname()
        if not isinstance(name, tuple):
            return f"unix:{name}"
        host, port = name[0] if len(sockets) == 1 else host, name[1]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


# ---------------------------------------------------------------- the kinds


def _inherited(fd: int) -> socket.socket:
    listener = socket.socket(fileno=fd)
    if listener.type != socket.SOCK_STREAM:
        raise OSError(errno.EINVAL, "it is not a stream socket")
    return listener


def _bind_host(host: str, port: int) -> list[socket.socket]:
    """A socket for each address of the host, all on one port."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    places: list[tuple[int, tuple[Any, ...]]] = list(dict.fromkeys((family, place) for family, _, _, _, place in found))
    if host == "::":  # all addresses of the machine, and not only those of one family
        places.append((socket.AF_INET, ("0.0.0.0", port)))
    for tries in range(_FREE_PORTS):
        try:
            return _bind_places(places, port)
        except OSError as error:
            if port or len(places) == 1 or error.errno != errno.EADDRINUSE or tries == _FREE_PORTS - 1:
                raise
    raise AssertionError  # the last try has returned or raised


def _bind_places(places: list[tuple[int, tuple[Any, ...]]], port: int) -> list[socket.socket]:
    made: list[socket.socket] = []
    missing: OSError | None = None
    with contextlib.ExitStack() as stack:
        for family, place in places:
            try:
                one = socket.create_server((place[0], port, *place[2:]), family=family, backlog=_BACKLOG)
            except OSError as error:
                if error.errno not in _NOT_HERE:
                    raise
                missing = error  # a name may have an address of a family that is switched off
                continue
            stack.callback(one.close)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # asyncio does not; accepted ones inherit it
            made.append(one)
            port = one.getsockname()[1]
        stack.pop_all()
    if not made and missing:
        raise missing
    return made


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
    Path(path).chmod(_UNIX_MODE)
    listener.listen(_BACKLOG)
    return listener


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
