"""Signals: what runs may finish, what is left is kept, and a second signal does not wait."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable

import pytest

from e2e.bot import Bot
from e2e.process import SECRET, Server
from e2e.steady import children, until, worker_pids
from e2e.telegram import Wire, request
from fasthook.testing import samples

Start = Callable[..., Server]


def say(server: Server, update_id: int, text: str, chat: int = 1) -> None:
    assert server.post(samples.update(update_id, chat_id=chat, text=text)).status == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_drain_handles_what_was_accepted(start: Start, bot: Bot, number: int) -> None:
    server = start("--secret", SECRET, "--concurrency", "1", env={"PAUSE": "0.01"})
    for update_id in range(20):
        say(server, update_id, "", chat=update_id % 3)
    server.signal(number)
    assert server.wait() == 0
    assert sorted(one.update_id for one in bot.handled) == list(range(20))
    server.until(f"{signal.Signals(number).name}: stopping; running handlers have 30 s")


def test_a_retry_is_waited_for(start: Start, bot: Bot) -> None:
    server = start("--secret", SECRET)
    say(server, 1, "fail once")
    say(server, 2, "")
    server.until("update 1 .message.: attempt 1 of 4 failed")
    assert server.stop() == 0
    assert [(one.update_id, one.attempt) for one in bot.handled] == [(1, 2), (2, 1)]


def test_a_second_signal_stops_at_once_and_loses_nothing(start: Start, bot: Bot) -> None:
    server = start("--secret", SECRET, "--drain-timeout", "1h", env={"HELD": "1"})
    for update_id in range(10):
        say(server, update_id, "", chat=update_id % 2)
    server.signal(signal.SIGINT)
    server.until("SIGINT: stopping")
    server.signal(signal.SIGINT)
    assert server.wait() == 130
    server.until("5 updates are not handled yet: they are kept, and handled first at the next start")
    assert start("--secret", SECRET).stop() == 0
    assert bot.by_chat == {0: [0, 2, 4, 6, 8], 1: [1, 3, 5, 7, 9]}


@pytest.mark.parametrize("ack", ["queued", "handled"])
def test_a_stop_without_time_says_only_what_was_left(start: Start, bot: Bot, door: str, ack: str) -> None:
    options = ["--secret", SECRET, "--ack", ack, "--http", door, "--drain-timeout", "0"]
    server = start(*options, env={"HELD": "1"})
    wire = Wire(server)
    wire.send(request(1, "", chat=1))
    say(server, 2, "", chat=2)
    if ack == "queued":
        assert wire.status() == 200
    server.signal(signal.SIGTERM)
    assert wire.status() == (0 if ack == "queued" else 503)
    assert server.wait() == 0
    wire.close()
    assert len(server.find("updates are not handled yet")) == 1
    assert not server.find("ERROR|task|Traceback")
    server = start(*options[:-2])
    say(server, 1, "", chat=1)
    assert server.stop() == 0
    assert bot.by_chat == {2: [2], 1: [1]}


@pytest.mark.parametrize("part", [30, -30], ids=["head", "body"])
@pytest.mark.parametrize("ack", ["queued", "handled"])
def test_a_stop_waits_for_half_a_request_only_so_long(start: Start, bot: Bot, door: str, ack: str, part: int) -> None:
    options = ["--secret", SECRET, "--ack", ack, "--http", door]
    server = start(*options, "--drain-timeout", "300ms")
    wire = Wire(server)
    wire.send(request(1, "", chat=1))
    assert wire.status() == 200
    wire.send(request(2, "", chat=1)[:part])
    server.signal(signal.SIGTERM)
    # uvicorn knows nothing of a head before its end, and closes
    assert wire.status() == (0 if door == "asgi" and part > 0 else 503)
    assert server.wait() == 0
    wire.close()
    assert not server.find("ERROR|task|Traceback")
    server = start(*options)
    say(server, 2, "", chat=1)
    assert server.stop() == 0
    assert bot.by_chat == {1: [1, 2]}


def test_half_a_request_behind_one_that_waits(start: Start, bot: Bot, door: str) -> None:
    """It gets its answer, or the end of the connection, when the other has its own."""
    options = ["--secret", SECRET, "--ack", "handled", "--http", door]
    server = start(*options, "--drain-timeout", "300ms", env={"HELD": "1"})
    wire = Wire(server)
    wire.send(request(1, "", chat=1) + request(2, "", chat=2)[:-30])
    server.signal(signal.SIGTERM)
    assert wire.status() == 503
    assert wire.status() in (0, 503)
    assert server.wait() == 0
    wire.close()
    assert not server.find("ERROR|task|Traceback")
    server = start(*options)
    for update_id in (1, 2):
        say(server, update_id, "", chat=update_id)
    assert server.stop() == 0
    assert bot.by_chat == {1: [1], 2: [2]}


def test_two_signals_at_the_same_instant(start: Start, bot: Bot) -> None:
    server = start("--secret", SECRET, "--drain-timeout", "1h", env={"HELD": "1"})
    say(server, 1, "")
    server.signal(signal.SIGTERM)
    server.signal(signal.SIGINT)
    assert server.wait() == 130
    assert start("--secret", SECRET).stop() == 0
    assert bot.by_chat == {1: [1]}


def test_a_handler_that_blocks_the_loop_does_not_hold_a_second_signal(start: Start) -> None:
    server = start("--secret", SECRET)
    say(server, 1, "block")
    server.signal(signal.SIGINT)
    server.signal(signal.SIGTERM)
    assert server.wait() == 130
    server.until("a handler blocks the loop: leaving without it")


def test_an_idle_connection_does_not_hold_the_stop(start: Start, door: str) -> None:
    server = start("--secret", SECRET, "--http", door)
    connection = server.connect()
    assert server.post(samples.update(1), connection).status == 200
    assert server.stop() == 0
    connection.close()


def test_a_plain_function_that_hangs_does_not_hold_the_stop(start: Start, bot: Bot) -> None:
    server = start("--secret", SECRET, "--drain-timeout", "0", target="bot:plain")
    say(server, 1, "hang")
    say(server, 2, "after it")
    assert server.stop() == 0
    server.until("1 (handlers|plain functions) still run .*: leaving without them")
    (bot.directory / "bot.py").write_text((bot.directory / "bot.py").read_text().replace('"hang"', '"never"'))
    assert start("--secret", SECRET, target="bot:plain").stop() == 0
    assert bot.by_chat == {1: [1, 2]}


def test_a_handler_that_swallows_its_cancellation_does_not_hold_the_stop(start: Start, bot: Bot) -> None:
    server = start("--secret", SECRET, "--drain-timeout", "0")
    say(server, 1, "swallow")
    say(server, 2, "after it")
    assert server.stop() == 0
    (bot.directory / "bot.py").write_text((bot.directory / "bot.py").read_text().replace('"swallow"', '"never"'))
    assert start("--secret", SECRET).stop() == 0
    assert bot.by_chat == {1: [1, 2]}


def test_what_was_handled_before_a_crash_is_not_handled_again(start: Start, bot: Bot) -> None:
    """Nor is what came from the spill and was settled in between."""
    server = start("--secret", SECRET, "--drain-timeout", "0", env={"HELD": "1"})
    say(server, 1, "")
    say(server, 2, "", chat=2)
    assert server.stop() == 0
    server = start("--secret", SECRET, env={"HELD": "3"})
    say(server, 3, "", chat=3)
    say(server, 4, "raise", chat=4)
    server.until("update 4 .message.: attempt 1 of 4 failed")  # so that what came before it is handled
    server.kill()
    server = start("--secret", SECRET)
    for update_id, chat in [(1, 1), (2, 2), (3, 3)]:
        say(server, update_id, "", chat=chat)
    assert server.stop() == 0
    assert bot.by_chat == {2: [2], 1: [1], 3: [3]}


def test_a_queue_that_is_smaller_after_a_restart_loses_nothing(start: Start, bot: Bot) -> None:
    server = start("--secret", SECRET, "--drain-timeout", "0", env={"HELD": "1"})
    for update_id in range(20):
        say(server, update_id, "")
    assert server.stop() == 0
    assert start("--secret", SECRET, "--queue-size", "3").stop() == 0
    assert bot.by_chat == {1: list(range(20))}


WAITS = """
async def waits(update):
    open(f"begun-{os.getpid()}", "w").close()
    while not os.path.exists("go"):
        await asyncio.sleep(0.01)
    done(update)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_a_drain_recycles_no_worker(start: Start, bot: Bot) -> None:
    """A service manager may tell all processes to stop. One that dies is replaced then, too."""
    with (bot.directory / "bot.py").open("a") as file:
        file.write(WAITS)
    server = start("--secret", SECRET, "--workers", "2", target="bot:waits")
    for update_id in (1, 2):
        say(server, update_id, "", chat=update_id)
    asyncio.run(until(lambda: len(list(bot.directory.glob("begun-*"))) == 2))
    asked, dies = worker_pids(server)
    server.signal(signal.SIGTERM)
    server.until("SIGTERM: stopping")
    os.kill(asked, signal.SIGTERM)
    os.kill(dies, signal.SIGKILL)
    server.until("is ready$", 3)
    assert len(children(server)) == 2
    (bot.directory / "go").touch()
    assert server.wait() == 0
    assert sorted(one.update_id for one in bot.handled) == [1, 2]
