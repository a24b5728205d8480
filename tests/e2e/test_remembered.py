"""`--ack handled`: a redelivery of a handled update gets the same reply after a restart, too."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Callable

import pytest

from e2e.bot import Bot
from e2e.process import PATIENCE, SECRET, Server
from e2e.telegram import HEAD
from fasthook.testing import samples

Start = Callable[..., Server]
OPTIONS = ("--secret", SECRET, "--ack", "handled")


def say(server: Server, update_id: int, text: str) -> str:
    """Post an update that asks for this answer: the text in the response."""
    response = server.post(samples.update(update_id, chat_id=update_id, text=f"say {text}"))
    assert response.status == 200
    return str(json.loads(response.body)["text"])


@pytest.mark.parametrize("queue", ["memory:", "journal:waiting"])
def test_after_an_orderly_stop(start: Start, bot: Bot, queue: str) -> None:
    for _ in range(3):  # however often
        server = start(*OPTIONS, "--queue", queue)
        assert [say(server, n, str(n)) for n in range(1, 6)] == ["1", "2", "3", "4", "5"]
        assert server.stop() == 0
    assert len(bot.handled) == 5


def test_after_a_crash(start: Start, bot: Bot) -> None:
    server = start(*OPTIONS)
    assert [say(server, n, str(n)) for n in range(1, 6)] == ["1", "2", "3", "4", "5"]
    assert server.post(samples.update(9, chat_id=9)).status == 200  # what was handled is on disk with or before it
    server.kill()
    server = start(*OPTIONS)
    assert [say(server, n, "another text") for n in range(1, 6)] == ["1", "2", "3", "4", "5"]
    assert [one.update_id for one in bot.handled if one.update_id != 9] == [1, 2, 3, 4, 5]


def test_when_only_the_journal_knows(start: Start, bot: Bot) -> None:
    server = start(*OPTIONS, "--queue", "journal:waiting")
    assert say(server, 1, "one") == "one"
    assert server.stop() == 0
    (bot.directory / ".fasthook" / "ring").unlink()
    server = start(*OPTIONS, "--queue", "journal:waiting")
    assert say(server, 1, "one") == "one"
    assert server.stop() == 0
    assert len(bot.handled) == 1


def test_damaged_replies_are_set_aside(start: Start, bot: Bot) -> None:
    server = start(*OPTIONS, "--queue", "memory:")
    assert say(server, 1, "one") == "one"
    assert server.stop() == 0
    file = bot.directory / ".fasthook/replies/data.mdb"
    file.write_bytes(b"\xff" * file.stat().st_size)
    server = start(*OPTIONS, "--queue", "memory:")
    server.until(r"ERROR .*what the handlers returned is damaged .*: it is kept as .fasthook/replies.damaged-\w+$")
    response = server.post(samples.update(1, chat_id=1, text="say one"))
    assert (response.status, response.body) == (200, b"")
    assert server.stop() == 0
    assert len(bot.handled) == 1


def received(wire: socket.socket) -> bytes:
    """The beginning of the answer; nothing on a connection that nobody had taken when the listener closed."""
    with wire, contextlib.suppress(ConnectionResetError):
        return wire.recv(64)
    return b""


def test_a_stop_leaves_nobody_without_an_answer(start: Start, bot: Bot) -> None:
    """Requests whose updates are on their way to the disk, at the end of the drain."""
    server = start(*OPTIONS, "--drain-timeout", "0", env={"HELD": "1"})
    wires = [socket.create_connection(server.address, PATIENCE) for _ in range(200)]
    for n, wire in enumerate(wires):
        body = samples.update(n, chat_id=1)
        wire.sendall(HEAD.format(SECRET, len(body)).encode() + body)
    assert server.stop() == 0
    answers = [received(wire) for wire in wires]
    assert {answer[:12] for answer in answers if answer} <= {b"HTTP/1.1 503"}
    assert not server.find("Traceback")
