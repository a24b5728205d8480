"""Dead letters that are given to the handler again, by several at once and after a crash."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fasthook.control import ControlError
from fasthook.queues import Delivery
from fasthook.queues.deadletter import DeadLetter, DeadLetters
from fasthook.queues.memory import MemoryQueue
from fasthook.queues.resting import RestingTools
from fasthook.queues.running import RunningTools
from fasthook.queues.selection import Selection
from fasthook.queues.store import Store
from fasthook.settings import load
from fasthook.state import Lock
from fasthook.testing import samples
from queues.opened import PATIENCE

COUNT = 500
ALL = {"selection": Selection().packed(), "count_only": False}


class NoHands:
    """Nobody has anything."""

    def deliveries(self) -> Iterator[tuple[Delivery, bool]]:
        return iter(())

    def take_out(self, match: Callable[[Delivery], bool]) -> list[Delivery]:
        return []


def letter(update_id: int) -> bytes:
    return DeadLetter("failed", 42, samples.update(update_id), 1, 0.0, 0.0, "").pack()


def dead(directory: Path, *update_ids: int) -> None:
    letters = DeadLetters(directory / "dead")
    letters._open().append(letter(update_id) for update_id in update_ids)
    letters.close()


def finish(answer: Any) -> Any:
    while True:
        try:
            next(answer)
        except StopIteration as end:
            return end.value


async def nothing(row: object) -> None:
    raise AssertionError(row)


def test_two_retries_at_once_give_each_letter_once(tmp_path: Path) -> None:
    dead(tmp_path, *range(COUNT))

    async def main() -> None:
        queue, letters, got = MemoryQueue(tmp_path / "spill"), DeadLetters(tmp_path / "dead"), list[int]()

        def redeliver(delivery: Delivery) -> bool:
            got.append(delivery.update.update_id)
            return True

        await queue.open(lambda delivery: None, redeliver, lambda update, outcome: None)
        tools = RunningTools("memory:", queue, NoHands(), letters, capacity=10 * COUNT, settled=lambda delivery: None)
        answers = await asyncio.gather(*(tools.retry(ALL, nothing) for _ in range(2)))
        assert sorted(answer["count"] for answer in answers) == [0, COUNT]
        assert sorted(got) == list(range(COUNT))
        letters.close()

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


@pytest.mark.parametrize("queue", ["memory:", "journal:waiting"])
def test_a_crash_before_the_letter_is_deleted(tmp_path: Path, queue: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    dead(tmp_path, 1, 2)
    tools = RestingTools(load({"queue": queue, "state_dir": tmp_path}, {}))
    assert finish(tools.ask("dead.retry", ALL))["count"] == 2
    dead(tmp_path, 1, 2)
    assert finish(tools.ask("dead.retry", ALL))["count"] == 2
    listed = list(tools.ask("queue.list", {"selection": Selection().packed(), "handled": False, "limit": 0}))
    assert [row["update_id"] for row in listed] == [1, 2]
    assert list(tools.ask("dead.list", {"selection": Selection().packed(), "limit": 0})) == []


def test_on_files_one_process_retries(tmp_path: Path) -> None:
    dead(tmp_path, 1)
    tools = RestingTools(load({"queue": "memory:", "state_dir": tmp_path}, {}))
    other = Lock(tmp_path / "lock", "the state directory")
    with pytest.raises(ControlError, match="has the state directory"):
        finish(tools.ask("dead.retry", ALL))
    other.close()
    assert finish(tools.ask("dead.retry", ALL))["count"] == 1


def test_a_spill_that_is_empty_takes_them(tmp_path: Path) -> None:
    Store(tmp_path / "spill").close()
    dead(tmp_path, 1)
    tools = RestingTools(load({"queue": "memory:", "state_dir": tmp_path}, {}))
    assert finish(tools.ask("dead.retry", ALL))["count"] == 1
    listed = list(tools.ask("queue.list", {"selection": Selection().packed(), "handled": False, "limit": 0}))
    assert [row["update_id"] for row in listed] == [1]
