"""`--ack handled` over real sockets, with the compiled edge and the other one."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable

import pytest

from e2e.bot import Bot
from e2e.process import SECRET, Server
from e2e.telegram import Wire, request
from fasthook.testing import samples

Start = Callable[..., Server]


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("queue", ["memory:", "journal:waiting"])
def test_the_reply_is_in_the_response(start: Start, door: str, queue: str, workers: str) -> None:
    options = ["--ack", "handled", "--http", door, "--queue", queue, "--workers", workers]
    server = start("--secret", SECRET, *options)
    for _ in range(2):
        response = server.post(samples.update(1, chat_id=5, text="say hello"))
        assert (response.status, response.headers["content-type"]) == (200, "application/json")
        assert json.loads(response.body) == {"method": "sendMessage", "chat_id": 5, "text": "hello"}
    response = server.post(samples.update(2, chat_id=6, text="fail once"))
    assert (response.status, response.body) == (500, b"the handler failed\n")
    assert server.post(samples.update(2, chat_id=6, text="fail once")).status == 200
    assert server.stop() == 0


def test_pipelined_requests_at_the_deadline(start: Start, bot: Bot) -> None:
    """The answer to one lets the next in while others are still to be answered."""
    server = start("--secret", SECRET, "--ack", "handled", "--ack-deadline", "100ms", "--drain-timeout", "0")
    wires = [Wire(server) for _ in range(5)]
    for n, wire in enumerate(wires):
        wire.send(b"".join(request(10 * n + k, "hang", chat=10 * n + k) for k in range(3)))
    for wire in wires:
        assert [wire.status() for _ in range(3)] == [200] * 3
        wire.close()
    assert server.stop() == 0
    assert not server.find("Traceback|RuntimeError")
    assert server.find("15 updates are not handled yet: they are kept")


@pytest.mark.parametrize("queue", ["memory:", "journal:waiting"])
def test_a_stop_answers_503_to_what_was_not_acknowledged(start: Start, bot: Bot, door: str, queue: str) -> None:
    options = ["--secret", SECRET, "--ack", "handled", "--http", door, "--queue", queue, "--drain-timeout", "200ms"]
    server = start(*options, env={"HELD": "1"})
    wire, last = Wire(server), Wire(server)
    wire.send(request(1, "", chat=1))
    last.send(request(2, "", chat=2))
    assert last.status() == 200
    server.signal(signal.SIGTERM)
    assert wire.status() == 503
    assert server.wait() == 0
    assert not server.find("ERROR|task|Traceback")
    wire.close()
    last.close()
    server = start(*options)
    assert server.post(samples.update(1, chat_id=1, text="")).status == 200
    assert server.stop() == 0
    assert [one.update_id for one in bot.handled] == [2, 1]
