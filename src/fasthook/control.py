"""The control socket: how the command line talks to a running server.

A Unix socket named `control` in the state directory. Each side writes lines of JSON. The server begins with a hello,
`{"fasthook": VERSION, "protocol": N, "pid": PID}`; the client asks one thing, `{"command": NAME, "arguments": {…}}`;
the server answers with any number of `{"row": …}` and one `{"result": …}` or `{"error": "a line"}`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Generator, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

log = logging.getLogger("fasthook.control")

PROTOCOL = 1  # another number: the two sides don't understand each other
NAME = "control"
_LARGEST_REQUEST = 1 << 20  # bytes of a line
_LONGEST_PATH = 100  # bytes; sun_path has 104 to 108 (unix(7)), of which one is the end
_ASKING = 10.0  # seconds that a client may take to ask
_HELLO = 10.0  # seconds that a server may take to say hello: a handler may block its loop for a while
_BACKLOG = 16

Send = Callable[[Any], Awaitable[None]]
Command = Callable[[Mapping[str, Any], Send], Awaitable[Any]]
"""What a command does: gets the arguments, sends rows, returns the result. Both are JSON. Refused: one line."""


class Refused(Exception):
    """A command that cannot be done. The message is one line for whoever asked."""


class ControlError(Exception):
    """A server that cannot be talked to. The message is one line that says what to do."""


class NoServer(Exception):
    """Nobody listens in this state directory."""


class Control:
    """The server's side. `commands` may get more names while it runs.

    It belongs to the owner of the state directory: a socket that is there already is a dead process's, and replaced.
    """

    def __init__(self, directory: Path, commands: Mapping[str, Command]) -> None:
        self._path = directory / NAME
        self._commands = commands
        self._server: asyncio.Server | None = None
        self._asked: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen. ControlError: no such socket can be made here."""
        if not hasattr(socket, "AF_UNIX"):
            raise ControlError("this system has no Unix sockets")
        try:
            listener = _listen(self._path)
        except OSError as error:
            raise ControlError(f"{self._path}: {error.strerror or error}") from None
        self._server = await asyncio.start_unix_server(self._connected, sock=listener, limit=_LARGEST_REQUEST)

    async def stop(self) -> None:
        """Close and remove the socket; commands under way are cancelled."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        for task in self._asked:
            task.cancel()
        if self._asked:
            await asyncio.wait(self._asked)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._asked.add(task)
        try:
            await self._serve(reader, writer)
        except (OSError, EOFError, TimeoutError):
            pass  # whoever asked has gone, or never asked
        except asyncio.CancelledError:
            if self._server is not None:
                raise
        finally:
            self._asked.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def send(message: Any) -> None:
            writer.write(json.dumps(message).encode() + b"\n")
            await writer.drain()

        async def send_row(row: Any) -> None:
            await send({"row": row})

        await send({"fasthook": version("fasthook"), "protocol": PROTOCOL, "pid": os.getpid()})
        try:
            async with asyncio.timeout(_ASKING):
                line = await reader.readuntil(b"\n")
        except asyncio.LimitOverrunError:
            await send({"error": f"the request is longer than {_LARGEST_REQUEST} bytes"})
            return
        try:
            command, arguments = self._asked_for(line)
            result = await command(arguments, send_row)
        except Refused as error:
            await send({"error": str(error)})
        except OSError:
            raise
        except Exception as error:
            log.exception("a command of the control socket failed")
            await send({"error": f"the command failed ({type(error).__name__}); the server's log says why"})
        else:
            await send({"result": result})

    def _asked_for(self, line: bytes) -> tuple[Command, Mapping[str, Any]]:
        try:
            request = json.loads(line)
            name, arguments = request["command"], request["arguments"]
        except (ValueError, LookupError, TypeError, RecursionError):
            raise Refused("the request is not a command in JSON") from None
        command = self._commands.get(name) if isinstance(name, str) else None
        if command is None or not isinstance(arguments, dict):
            raise Refused(f"this server knows no command {name!r}")
        return command, arguments


# ---------------------------------------------------------------- the client


def ask(directory: Path, command: str, arguments: Mapping[str, Any]) -> Generator[Any, None, Any]:
    """Have the server of a state directory do something: yields the rows, returns the result.

    Refused: the server's word on it. NoServer: there is none. ControlError: there is one, and no understanding it.
    """
    with contextlib.closing(_connect(directory)) as connection, connection.makefile("rb") as lines:
        try:
            _greet(connection, lines)
            connection.sendall(json.dumps({"command": command, "arguments": arguments}).encode() + b"\n")
            for line in lines:
                answer = json.loads(line)
                if "error" in answer:
                    raise Refused(answer["error"])
                if "result" in answer:
                    return answer["result"]
                yield answer["row"]
        except TimeoutError:
            raise ControlError(
                f"the server (process {owner(directory)}) doesn't answer: something blocks its loop, a handler perhaps"
            ) from None
        except (OSError, ValueError):
            pass  # in the middle of a line, too
    raise ControlError("the server went away before it had answered")


def _greet(connection: socket.socket, lines: IO[bytes]) -> None:
    hello = json.loads(lines.readline())
    if hello["protocol"] != PROTOCOL:
        raise ControlError(
            f"the server (process {hello['pid']}) is fasthook {hello['fasthook']} and this is {version('fasthook')}: "
            "use the command of the server's version"
        )
    connection.settimeout(None)


def _connect(directory: Path) -> socket.socket:
    if not hasattr(socket, "AF_UNIX"):
        raise NoServer
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(_HELLO)
        with _reachable(directory / NAME) as address:
            connection.connect(address)
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
        connection.close()
        raise NoServer from None
    except OSError as error:
        connection.close()
        raise ControlError(
            f"{directory / NAME}: the server cannot be reached: {error.strerror or error}; be the user it runs as"
        ) from None
    return connection


def owner(directory: Path) -> str:
    """The number of the process that has a state directory, as its lock file says."""
    try:
        return (directory / "lock").read_text("ascii").strip() or "unknown"
    except (OSError, ValueError):
        return "unknown"


# ---------------------------------------------------------------- the socket


def _listen(path: Path) -> socket.socket:
    """A listening socket that no other user can reach at any moment: made in a directory of its own, then moved."""
    if path.exists() and not path.is_socket():
        raise OSError(errno.EEXIST, "a file is there that is not a socket")
    private = path.with_name(f"{path.name}.new")
    made = private / path.name
    with contextlib.suppress(FileNotFoundError):  # left by a process that was killed just here
        made.unlink(missing_ok=True)
        private.rmdir()
    private.mkdir(mode=0o700)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _reachable(made) as address:
            listener.bind(address)
        made.chmod(0o600)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
        made.replace(path)
    except BaseException:
        listener.close()
        raise
    finally:
        made.unlink(missing_ok=True)
        private.rmdir()
    return listener


@contextlib.contextmanager
def _reachable(path: Path) -> Iterator[str]:
    """A name for a socket that fits into its address however long the path is."""
    if len(os.fsencode(path)) <= _LONGEST_PATH:
        yield str(path)
        return
    if not Path("/proc/self/fd").is_dir():
        raise OSError(errno.ENAMETOOLONG, f"a socket's path has {_LONGEST_PATH} bytes at most here; set --state-dir")
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/{path.name}"
    finally:
        os.close(descriptor)
