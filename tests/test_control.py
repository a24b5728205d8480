"""The control socket: what a command line and a server say to each other, and who may."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import stat
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

import pytest

from fasthook.control import NAME, PROTOCOL, Command, Control, ControlError, NoServer, Refused, Send, ask

PATIENCE = 20.0


async def count(arguments: Mapping[str, Any], send: Send) -> Any:
    for n in range(arguments["to"]):
        await send(n)
    return {"counted": arguments["to"]}


async def refuse(arguments: Mapping[str, Any], send: Send) -> Any:
    raise Refused("not today")


async def fail(arguments: Mapping[str, Any], send: Send) -> Any:
    raise ZeroDivisionError("a secret of the server")


COMMANDS: dict[str, Command] = {"count": count, "refuse": refuse, "fail": fail}


@contextlib.asynccontextmanager
async def serving(directory: Path, commands: Mapping[str, Command] = COMMANDS) -> AsyncIterator[Control]:
    control = Control(directory, commands)
    await control.start()
    try:
        yield control
    finally:
        await control.stop()


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, PATIENCE))


def asked(directory: Path, command: str, **arguments: Any) -> tuple[list[Any], Any]:
    """The rows and the result."""
    answer, rows = ask(directory, command, arguments), []
    while True:
        try:
            rows.append(next(answer))
        except StopIteration as end:
            return rows, end.value


def asked_of_server(directory: Path, command: str, **arguments: Any) -> tuple[list[Any], Any]:
    async def main() -> Any:
        async with serving(directory):
            return await asyncio.to_thread(asked, directory, command, **arguments)

    return run(main())


def raw(directory: Path, request: bytes) -> list[dict[str, Any]]:
    """What a server says to these bytes, the hello first."""

    def talk() -> list[dict[str, Any]]:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PATIENCE)
            connection.connect(str(directory / NAME))
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(request)
            answers = []
            with contextlib.suppress(ConnectionResetError), connection.makefile("rb") as lines:
                for line in lines:
                    answers.append(json.loads(line))
            return answers

    async def main() -> Any:
        async with serving(directory):
            return await asyncio.to_thread(talk)

    return run(main())


def test_rows_and_a_result(tmp_path: Path) -> None:
    assert asked_of_server(tmp_path, "count", to=3000) == (list(range(3000)), {"counted": 3000})


def test_what_a_command_refuses(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"^not today$"):
        asked_of_server(tmp_path, "refuse")


def test_a_command_that_fails_tells_no_more_than_its_kind(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(Refused, match=r"^the command failed \(ZeroDivisionError\); the server's log says why$"):
        asked_of_server(tmp_path, "fail")
    assert "a secret of the server" in caplog.text


def test_an_unknown_command(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"^this server knows no command 'dance'$"):
        asked_of_server(tmp_path, "dance")


def test_commands_may_be_added_while_it_runs(tmp_path: Path) -> None:
    async def main() -> None:
        commands: dict[str, Command] = {}
        async with serving(tmp_path, commands):
            commands["count"] = count
            assert await asyncio.to_thread(asked, tmp_path, "count", to=1) == ([0], {"counted": 1})

    run(main())


@pytest.mark.parametrize(
    "request_line",
    [b"\n", b"{}\n", b"[]\n", b'"count"\n', b"\xff\n", b'{"command":"count"}\n', b'{"command":{},"arguments":{}}\n',
     b'{"command":"count","arguments":[]}\n', b"[" * 5000 + b"\n"],
)  # fmt: skip
def test_a_request_that_is_none(tmp_path: Path, request_line: bytes) -> None:
    hello, answer = raw(tmp_path, request_line)
    assert hello["protocol"] == PROTOCOL
    assert "\n" not in answer["error"]


def test_a_request_that_is_too_long(tmp_path: Path) -> None:
    assert raw(tmp_path, b"x" * (3 << 20))[1:] in ([{"error": "the request is longer than 1048576 bytes"}], [])


def test_a_client_that_goes_away_harms_nobody(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path):
            for _ in range(3):
                answer = ask(tmp_path, "count", {"to": 100_000})
                assert await asyncio.to_thread(next, answer) == 0
                answer.close()
            assert (await asyncio.to_thread(asked, tmp_path, "count", to=2))[0] == [0, 1]

    run(main())


# ---------------------------------------------------------------- the socket


def test_nobody_else_may_connect_and_nothing_is_left(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    before = os.umask(0)
    try:

        async def main() -> None:
            async with serving(tmp_path):
                assert stat.S_IMODE((tmp_path / NAME).stat().st_mode) == 0o600
                assert list(tmp_path.iterdir()) == [tmp_path / NAME]

        run(main())
    finally:
        os.umask(before)
    assert list(tmp_path.iterdir()) == []


def test_it_is_private_from_its_first_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is bound, another user cannot reach it."""
    bound: list[int] = []
    bind = socket.socket.bind

    def watched(self: socket.socket, address: Any) -> None:
        bind(self, address)
        bound.append(stat.S_IMODE(Path(address).parent.stat().st_mode))

    monkeypatch.setattr(socket.socket, "bind", watched)
    asked_of_server(tmp_path, "count", to=0)
    assert bound == [0o700]


def test_the_socket_of_a_dead_process_is_replaced(tmp_path: Path) -> None:
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(tmp_path / NAME))
    dead.close()
    with pytest.raises(NoServer):
        asked(tmp_path, "count", to=1)
    (tmp_path / f"{NAME}.new").mkdir()
    (tmp_path / f"{NAME}.new" / NAME).touch()  # of one that was killed while it made its own
    assert asked_of_server(tmp_path, "count", to=1)[0] == [0]


def test_a_file_in_its_place_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text("precious")

    async def main() -> None:
        with pytest.raises(ControlError, match="a file is there that is not a socket"):
            await Control(tmp_path, COMMANDS).start()

    run(main())
    assert (tmp_path / NAME).read_text() == "precious"


def test_a_path_that_is_too_long_for_an_address(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120) / ("e" * 120)
    deep.mkdir(parents=True)
    assert asked_of_server(deep, "count", to=2) == ([0, 1], {"counted": 2})
    with pytest.raises(NoServer):
        asked(deep, "count", to=2)


@pytest.mark.parametrize("place", ["", "nowhere", "file"])
def test_no_server(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NoServer):
        asked(tmp_path / place, "count", to=1)


# ---------------------------------------------------------------- another server than expected


def imitated(directory: Path, says: bytes) -> Callable[[], None]:
    """Something that answers each connection with these bytes and no more, until the returned function is called."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(directory / NAME))
    listener.listen()
    listener.settimeout(PATIENCE)  # to close it would not wake who waits for a connection

    def serve() -> None:
        with contextlib.suppress(OSError):
            connection, _ = listener.accept()
            with connection:
                connection.sendall(says)
                connection.settimeout(PATIENCE)
                if says:
                    connection.recv(1 << 16)

    thread = threading.Thread(target=serve)
    thread.start()

    def stop() -> None:
        listener.close()
        thread.join(PATIENCE)

    return stop


@pytest.mark.parametrize(
    ("says", "words"),
    [
        (
            b'{"fasthook": "9.9", "protocol": 99, "pid": 7}\n',
            r"^the server \(process 7\) is fasthook 9\.9 and this is .*: use the command of the server's version$",
        ),
        (b'{"fasthook": "0.1", "protocol": 1, "pid": 7}\n', "^the server went away before it had answered$"),
        (b"", "^the server went away before it had answered$"),
        (b"nonsense\n", "^the server went away before it had answered$"),
    ],
)
def test_a_server_that_is_not_understood(tmp_path: Path, says: bytes, words: str) -> None:
    stop = imitated(tmp_path, says)
    try:
        with pytest.raises(ControlError, match=words):
            asked(tmp_path, "count", to=1)
    finally:
        stop()


def test_a_server_that_is_blocked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fasthook.control._HELLO", 0.05)
    (tmp_path / "lock").write_text("77\n")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / NAME))
        listener.listen()
        with pytest.raises(ControlError, match=r"^the server \(process 77\) doesn't answer: something blocks its loop"):
            asked(tmp_path, "count", to=1)


def test_a_stop_ends_the_commands_under_way(tmp_path: Path) -> None:
    async def main() -> None:
        begun = asyncio.Event()

        async def wait(arguments: Mapping[str, Any], send: Send) -> Any:
            begun.set()
            await asyncio.Event().wait()

        async with serving(tmp_path, {"wait": wait}):
            asking = asyncio.create_task(asyncio.to_thread(asked, tmp_path, "wait"))
            await begun.wait()
        with pytest.raises(ControlError, match="went away"):
            await asking

    run(main())
