"""Retries, dead letters, replies."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter

import pytest

from dispatch.recorded import Recorded, Run
from fasthook import Update
from fasthook.lanes import GaveUp
from fasthook.queues import Delivery
from updates import update


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def delays(caplog: pytest.LogCaptureFixture) -> list[float]:
    """The seconds to the next attempt, as they were logged."""
    return [round(record.args[4], 6) for record in caplog.records if "the next is in" in record.msg]  # type: ignore


def test_a_failed_update_is_tried_again(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    attempts: list[int] = []

    async def handler(update: Update) -> None:
        attempts.append(update.attempt)
        if update.attempt < 4:
            raise ValueError("not\nyet")

    async def main() -> None:
        recorded = Recorded(handler)
        recorded.submit(update(1))
        await recorded.until_settled(1)
        assert not recorded.buried

    run(main())
    assert attempts == [1, 2, 3, 4]
    first = caplog.records[0].getMessage()
    assert first == "update 1 (message): attempt 1 of 4 failed, the next is in 0.0 s: ValueError: not yet"


def test_each_retry_waits_twice_as_long_with_jitter(
    run: Run, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        asked.append((low, high))
        return high

    monkeypatch.setattr("fasthook.lanes.random.uniform", uniform)

    async def handler(update: Update) -> None:
        raise ValueError

    async def main() -> None:
        recorded = Recorded(handler, retries=4)
        recorded.submit(update(1))
        await recorded.until_settled(1)
        assert isinstance(recorded.buried[1], ValueError)

    run(main())
    assert delays(caplog) == [0.00125, 0.0025, 0.005, 0.01]
    assert set(asked) == {(0.75, 1.25)}


def test_no_retry_waits_longer_than_a_minute_and_a_quarter(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def handler(update: Update) -> None:
        raise ValueError

    async def main() -> None:
        recorded = Recorded(handler, retries=100, first_retry=1.0)
        recorded.submit(update(1, attempt=90))
        while not delays(caplog):
            await asyncio.sleep(0)
        assert await recorded.drain(0) == [1]

    run(main())
    assert 45 <= delays(caplog)[0] <= 75


def test_a_failing_update_holds_its_chat_and_no_other(run: Run) -> None:
    calls: Counter[int] = Counter()

    async def handler(update: Update) -> None:
        calls[update.update_id] += 1
        if update.update_id == 0:
            raise ValueError

    async def main() -> None:
        recorded = Recorded(handler, retries=3, first_retry=0.02)
        recorded.submit(*(update(n, chat=n % 2) for n in range(100)))
        await recorded.until_settled(100)
        assert recorded.settled == [*range(1, 100, 2), *range(0, 100, 2)]
        assert list(recorded.buried) == [0]

    run(main())
    assert calls == {0: 4} | dict.fromkeys(range(1, 100), 1)


@pytest.mark.parametrize("error", [asyncio.CancelledError, SystemExit, Unprintable, ValueError("\ud800")])
def test_whatever_a_handler_raises_is_a_failure(run: Run, error: BaseException | type[BaseException]) -> None:
    async def handler(update: Update) -> None:
        if update.chat_id == 1:
            raise error

    async def main() -> None:
        recorded = Recorded(handler, retries=1)
        recorded.submit(update(1, chat=1), update(2, chat=1), update(3, chat=2))
        await recorded.until_settled(3)
        assert recorded.settled == [3, 1, 2]
        assert list(recorded.buried) == [1, 2]

    run(main())


def test_giving_up_takes_no_second_try(run: Run) -> None:
    calls = 0

    async def handler(update: Update) -> None:
        nonlocal calls
        calls += 1
        raise GaveUp("there is no use")

    async def main() -> None:
        recorded = Recorded(handler)
        recorded.submit(update(1))
        await recorded.until_settled(1)
        assert isinstance(recorded.buried[1], GaveUp)

    run(main())
    assert calls == 1


def test_an_update_stays_until_its_dead_letter_is_written(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    calls = 0

    async def handler(update: Update) -> None:
        nonlocal calls
        if update.update_id == 1:
            calls += 1
            raise ValueError("broken")

    async def main() -> None:
        tries: list[BaseException | None] = []

        async def bury(delivery: Delivery) -> None:
            tries.append(delivery.failure)
            if len(tries) < 3:
                raise OSError("no space left on device")

        recorded = Recorded(handler, retries=1, bury=bury)
        recorded.submit(update(1), update(2))
        await recorded.until_settled(2)
        assert recorded.settled == [1, 2]
        assert [str(failure) for failure in tries] == ["broken"] * 3

    run(main())
    assert calls == 2
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert (
        errors == ["update 1 stays in the queue: no dead letter could be written: OSError: no space left on device"] * 2
    )


def test_a_cancelled_burial_is_tried_again(run: Run) -> None:
    async def handler(update: Update) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()  # meets the dispatcher at its next wait, which is for the dead letter
        raise ValueError

    async def main() -> None:
        buried: list[int] = []

        async def bury(delivery: Delivery) -> None:
            await asyncio.sleep(0)
            buried.append(delivery.update.update_id)

        recorded = Recorded(handler, retries=0, bury=bury)
        recorded.submit(update(1), update(2))
        await recorded.until_settled(2)
        assert buried == [1, 2]

    run(main())


def test_what_a_handler_returns_is_the_reply(run: Run) -> None:
    async def handler(update: Update) -> object:
        return None if update.update_id == 2 else {"method": "sendMessage", "text": update["message"]["text"]}

    async def main() -> None:
        recorded = Recorded(handler)
        recorded.submit(*(update(n) for n in range(1, 4)))
        await recorded.until_settled(3)
        assert recorded.replies == [(n, {"method": "sendMessage", "text": str(n)}) for n in (1, 3)]

    run(main())


def test_a_reply_that_cannot_be_sent_is_a_dead_letter_at_once(run: Run) -> None:
    calls = 0

    async def handler(update: Update) -> object:
        nonlocal calls
        calls += 1
        return {}

    async def reply(update: Update, result: object) -> None:
        raise GaveUp("sendMessage: no answer", "reply failed")

    async def main() -> None:
        recorded = Recorded(handler, reply=reply)
        recorded.submit(update(1))
        await recorded.until_settled(1)
        failure = recorded.buried[1]
        assert isinstance(failure, GaveUp)
        assert failure.reason == "reply failed"

    run(main())
    assert calls == 1
