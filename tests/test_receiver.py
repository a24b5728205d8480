"""The parts put together, without a door."""

from __future__ import annotations

import asyncio
import logging
import urllib.error
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from fasthook import Update, Verdict
from fasthook._core import Route
from fasthook.control import Control
from fasthook.queues.deadletter import DeadLetter, DeadLetters
from fasthook.receiver import Receiver
from fasthook.settings import load
from fasthook.testing import samples

PATIENCE = 60.0  # seconds


class Waiter:
    """Who waits for an answer that is not known at once."""

    def __init__(self) -> None:
        self.answered: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()

    def answer(self, verdict: Verdict) -> None:
        self.answered.set_result(verdict)


async def post(receiver: Receiver, raw: bytes) -> str:
    """What a door does with a genuine request: the name of the answer."""
    route = receiver.gate.head(b"/webhook", True, len(raw), b"secret", None, 0)
    assert isinstance(route, Route)
    result = receiver.gate.body(route, raw, 1.5, 0)
    waiter = Waiter()
    if isinstance(result, Update):
        return (receiver.accept(result, waiter) or await waiter.answered).name
    assert isinstance(result, Verdict)
    if result.name != "invalid":
        return result.name
    receiver.reject(route, raw, waiter)
    return (await waiter.answered).name


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Receiver]:
    def made(handler: Any, **settings: Any) -> Receiver:
        given = {"secret": "secret", "state_dir": tmp_path / "state", "retries": 0} | settings
        return Receiver(handler, load(given, {}))

    return made


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, PATIENCE))


def dead(directory: Path) -> list[DeadLetter]:
    letters = DeadLetters(directory / "state" / "dead")
    found = [letter for _, letter in letters.items()]
    letters.close()
    return found


@pytest.mark.parametrize(
    "error",
    [
        urllib.error.URLError(OSError("its reason is an object")),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "its reason is text"),
        ExceptionGroup("several", [ValueError("one"), KeyError("two")]),
    ],
)
def test_a_dead_letters_reason_is_ours(make: Callable[..., Receiver], tmp_path: Path, error: Exception) -> None:
    async def handler(update: Update) -> None:
        raise error

    async def main() -> None:
        receiver = make(handler)
        await receiver.start()
        assert await post(receiver, samples.update(1)) == "accepted"
        await receiver.stop()

    run(main())
    [letter] = dead(tmp_path)
    assert (letter.reason, letter.attempts, letter.received_at) == ("failed", 1, 1.5)
    assert type(error).__name__ in letter.traceback


def test_while_no_dead_letter_can_be_written(
    make: Callable[..., Receiver], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What is no update stays with Telegram, what was given up on stays in the queue; it heals by itself."""
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "dead").write_text("in the way")

    async def handler(update: Update) -> None:
        raise ValueError

    async def main() -> None:
        receiver = make(handler)
        await receiver.start()
        assert await post(receiver, b"not an update") == "busy"
        assert await post(receiver, samples.update(1)) == "accepted"
        while not any("stays in the queue" in record.getMessage() for record in caplog.records):
            await asyncio.sleep(0)
        assert await post(receiver, samples.update(1)) == "in_flight"
        (tmp_path / "state" / "dead").unlink()
        assert await post(receiver, b"not an update") == "invalid"
        await receiver.stop()

    run(main())
    assert sorted(letter.reason for letter in dead(tmp_path)) == ["failed", "invalid"]
    assert all("\n" not in r.getMessage() for r in caplog.records if r.levelno == logging.ERROR)


def test_signals_may_come_at_any_time(make: Callable[..., Receiver]) -> None:
    async def handler(update: Update) -> None: ...

    async def main() -> None:
        receiver = make(handler)
        receiver.refuse_new()
        receiver.hurry()
        await receiver.stop()
        for _ in range(2):
            await receiver.start()
            assert receiver.running
            assert await post(receiver, samples.update(1)) in ("accepted", "duplicate")
            receiver.refuse_new()
            assert await post(receiver, samples.update(2)) == "draining"
            await asyncio.gather(receiver.stop(), receiver.stop())
            assert not receiver.running

    run(main())


def test_what_is_left_is_accepted_once_and_handled_later(make: Callable[..., Receiver]) -> None:
    """Telegram may send an update again that waits in the spill of the last run."""
    handled: list[int] = []

    async def never(update: Update) -> None:
        await asyncio.Event().wait()

    async def handler(update: Update) -> None:
        await asyncio.sleep(0)
        handled.append(update.update_id)

    async def main() -> None:
        first = make(never, drain_timeout=0)
        await first.start()
        for update_id in range(5):
            assert await post(first, samples.update(update_id)) == "accepted"
        await first.stop()
        second = make(handler, queue_size=3)  # smaller than what was left
        await second.start()
        assert await post(second, samples.update(0)) == "in_flight"
        assert await post(second, samples.update(9)) == "busy"
        while len(handled) < 5:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert await post(second, samples.update(0)) == "duplicate"
        assert await post(second, samples.update(9)) == "accepted"
        await second.stop()

    run(main())
    assert handled == [0, 1, 2, 3, 4, 9]


@pytest.mark.parametrize("queue", ["memory:", "journal"])
def test_a_start_that_is_cancelled_at_its_end_leaves_nothing_open(
    make: Callable[..., Receiver], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, queue: str
) -> None:
    """As a signal to stop does that comes just then."""
    queue = queue if queue == "memory:" else f"journal:{tmp_path / 'journal'}"

    async def handler(update: Update) -> None:
        pass

    async def main() -> None:
        listening = asyncio.Event()

        async def never(control: Control) -> None:
            listening.set()
            await asyncio.Event().wait()

        with monkeypatch.context() as patched:
            patched.setattr(Control, "start", never)
            starting = asyncio.create_task(make(handler, queue=queue).start())
            await listening.wait()
            starting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await starting
        second = make(handler, queue=queue)
        await second.start()
        assert await post(second, samples.update(1)) == "accepted"
        await second.stop()

    run(main())
    assert logging.getLogger("httpx").filters == []
