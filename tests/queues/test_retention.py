"""Dead letters have an age and a number."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from fasthook.queues.deadletter import DeadLetter, DeadLetters
from fasthook.queues.store import Store
from queues.opened import PATIENCE


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, PATIENCE))


def letter(number: int, age: float = 0.0) -> DeadLetter:
    return DeadLetter("failed", 5, b"%d" % number, 1, 1.5, time.time() - age, "")


async def added(directory: Path, *letters: DeadLetter, **retention: Any) -> list[int]:
    """Add these, and what is kept then."""
    dead = DeadLetters(directory, **retention)
    dead.start()
    for one in letters:
        await dead.add(one)
    kept = [int(found.raw) for _, found in await dead.aitems()]
    dead.close()
    return kept


def test_by_number(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert run(added(tmp_path / "dead", *map(letter, range(8)), max_count=5)) == [3, 4, 5, 6, 7]
    assert {record.getMessage() for record in caplog.records} == {
        "1 dead letters were dropped: there are more than --dead-max-count, or they are older than --dead-max-age"
    }
    assert len(caplog.records) == 3
    assert run(added(tmp_path / "dead", max_count=2)) == [6, 7]  # at a start
    assert run(added(tmp_path / "dead", letter(8), max_count=0)) == [6, 7, 8]


def test_many_are_not_dropped_one_by_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    store = Store(tmp_path / "dead")
    store.append(letter(n).pack() for n in range(1000))
    store.close()
    assert run(added(tmp_path / "dead", letter(1000), max_count=1000)) == list(range(11, 1001))
    assert len(caplog.records) == 1


def test_by_age(tmp_path: Path) -> None:
    old = [letter(n, age=100.0) for n in range(3)]
    assert run(added(tmp_path / "dead", *old, max_age=1000.0)) == [0, 1, 2]
    assert run(added(tmp_path / "dead", letter(3), max_age=50.0)) == [3]
    assert run(added(tmp_path / "dead", *old)) == [3, 0, 1, 2]
    assert run(added(tmp_path / "dead", max_age=1000.0)) == [3, 0, 1, 2]


def test_a_clock_that_was_ahead_does_not_keep_what_is_behind(tmp_path: Path) -> None:
    letters = [letter(1, age=-1e6), letter(2, age=100.0), letter(3, age=-1e6), letter(4), letter(5, age=-1e6)]
    assert run(added(tmp_path / "dead", *letters)) == [1, 2, 3, 4, 5]
    assert run(added(tmp_path / "dead", max_age=50.0)) == [3, 4, 5]


def test_one_of_them(tmp_path: Path) -> None:
    async def main() -> None:
        dead = DeadLetters(tmp_path / "dead")
        assert (await dead.aget(1), await dead.adelete([1]), await dead.aitems()) == (None, 0, [])
        for n in range(1, 6):
            await dead.add(letter(n))
        found = await dead.aget(3)
        assert found is not None
        assert found.raw == b"3"
        assert await dead.adelete([3, 4, 99]) == 2
        assert await dead.aget(3) is None
        assert [number for number, _ in await dead.aitems()] == [1, 2, 5]
        assert [number for number, _ in await dead.aitems(behind=1, most=1)] == [2]
        dead.close()

    run(main())


def test_one_that_cannot_be_read_stays(tmp_path: Path) -> None:
    store = Store(tmp_path / "dead")
    store.append([letter(1).pack(), b"2", letter(3).pack()])
    store.close()
    assert run(added(tmp_path / "dead", max_age=1000.0)) == [1, 2, 3]
    dead = DeadLetters(tmp_path / "dead")
    assert [found.reason for _, found in dead.items()] == ["failed", "unreadable", "failed"]
    with pytest.raises(ValueError, match=r"; fasthook dead drop 2 deletes it$"):
        dead.get(2)
    dead.close()
