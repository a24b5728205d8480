"""The rates at which replies leave. Time is a number that these tests set."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from fasthook.settings import Rate, rate
from fasthook.telegram import flood
from fasthook.telegram.flood import Governor, is_message


class Clock:
    """Time stands still until all wait for it; then it is what the first of them waits for."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._count = 0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self._count += 1
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.now + seconds, self._count, future))
        await future

    def call_later(self, delay: float, callback: Callable[[], None], *_: object) -> Any:
        async def later() -> None:
            await self.sleep(delay)
            callback()

        return asyncio.get_running_loop().create_task(later())

    async def run(self, *work: Coroutine[Any, Any, None]) -> None:
        tasks = [asyncio.ensure_future(one) for one in work]
        while not all(task.done() for task in tasks):
            for _ in range(50 + 5 * len(tasks)):
                await asyncio.sleep(0)
            if self._sleepers and not all(task.done() for task in tasks):
                self.now, _, future = heapq.heappop(self._sleepers)
                if not future.done():
                    future.set_result(None)
        await asyncio.gather(*tasks)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(flood, "monotonic", made)
    monkeypatch.setattr(flood, "sleep", made.sleep)
    return made


def sends(clock: Clock, governor: Governor, chats: list[Any]) -> list[tuple[float, Any, int]]:
    """When the n-th message of each chat went, in the order in which they went."""
    gone: list[tuple[float, Any, int]] = []

    async def send(n: int, chat: Any) -> None:
        async with governor.turn(chat):
            gone.append((round(clock.now - 1000, 3), chat, n))

    async def main() -> None:
        asyncio.get_running_loop().call_later = clock.call_later  # type: ignore[assignment,method-assign]
        await clock.run(*(send(n, chat) for n, chat in enumerate(chats)))

    asyncio.run(main())
    return gone


def governor(bot: str = "off", chat: str = "off", group: str = "off") -> Governor:
    return Governor(bot=rate(bot), chat=rate(chat), group=rate(group))


def test_without_rates_nothing_waits(clock: Clock) -> None:
    assert [time for time, _, _ in sends(clock, governor(), [1] * 100)] == [0] * 100


def test_one_a_second_in_a_chat_in_order(clock: Clock) -> None:
    gone = sends(clock, governor(chat="1/s"), [7, 7, 8, 7, 8])
    assert gone == [(0, 7, 0), (0, 8, 2), (1, 7, 1), (1, 8, 4), (2, 7, 3)]


@pytest.mark.parametrize("chat", [-1001, "-1001", "@parcels"])
def test_twenty_a_minute_in_a_group(clock: Clock, chat: Any) -> None:
    gone = sends(clock, governor(chat="1/s", group="20/m"), [chat] * 41)
    assert [time for time, _, _ in gone] == [0] * 20 + [60] * 20 + [120]
    assert [n for _, _, n in gone] == list(range(41))


def test_thirty_a_second_in_all(clock: Clock) -> None:
    gone = sends(clock, governor(bot="30/s"), list(range(75)))
    assert [time for time, _, _ in gone] == [0] * 30 + [1] * 30 + [2] * 15
    assert [n for _, _, n in gone] == list(range(75))


def test_a_chat_that_floods_leaves_the_others_their_share(clock: Clock) -> None:
    """While others wait it has one place among them."""
    gone = sends(clock, governor(bot="2/s"), [1] * 6 + [2, 3, 4])
    assert [chat for _, chat, _ in gone] == [1, 1, 1, 2, 3, 4, 1, 1, 1]


def test_one_that_gives_up_lets_the_next_go(clock: Clock) -> None:
    gone: list[str] = []
    ours = governor(bot="30/s", chat="1/s")

    async def send(name: str) -> None:
        async with ours.turn(1):
            gone.append(name)

    async def main() -> None:
        tasks = {name: asyncio.ensure_future(send(name)) for name in "abcd"}
        for _ in range(20):
            await asyncio.sleep(0)
        assert gone == ["a"]
        tasks["b"].cancel()  # it waits for the time
        tasks["c"].cancel()  # it waits for b
        await clock.run(_wait(tasks["d"]))
        assert gone == ["a", "d"]
        assert ours.waiting == 0

    async def _wait(task: asyncio.Future[None]) -> None:
        await task

    asyncio.run(main())


def test_a_message_counts_from_when_it_has_gone(clock: Clock) -> None:
    """Telegram told the first to wait; the second goes a second behind its end, and another chat's at once."""
    gone: list[tuple[float, str]] = []
    ours = governor(bot="30/s", chat="1/s")

    async def send(chat: int, name: str, seconds: float) -> None:
        async with ours.turn(chat):
            gone.append((clock.now - 1000, name))
            if seconds:
                await clock.sleep(seconds)

    async def main() -> None:
        asyncio.get_running_loop().call_later = clock.call_later  # type: ignore[assignment,method-assign]
        await clock.run(send(1, "first", 5), send(1, "second", 0), send(2, "another", 0))

    asyncio.run(main())
    assert gone == [(0, "first"), (0, "another"), (6, "second")]


def test_what_takes_long_counts_for_the_bot_when_it_has_gone(clock: Clock) -> None:
    gone: list[tuple[float, int]] = []
    ours = governor(bot="2/s")

    async def send(chat: int) -> None:
        async with ours.turn(chat):
            gone.append((clock.now - 1000, chat))
            await clock.sleep(0.5)

    async def main() -> None:
        asyncio.get_running_loop().call_later = clock.call_later  # type: ignore[assignment,method-assign]
        await clock.run(*(send(chat) for chat in range(6)))

    asyncio.run(main())
    assert gone == [(0, 0), (0, 1), (1.5, 2), (1.5, 3), (3, 4), (3, 5)]


def test_memory_is_bounded(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flood, "_REMEMBERED", 100)
    ours = Governor(bot=None, chat=Rate(1, 3600), group=None)

    async def main() -> None:
        for chat in range(1000):
            async with ours.turn(chat):
                pass

    asyncio.run(main())
    assert len(ours._chats) == 100
    assert list(ours._chats) == list(range(900, 1000))


@pytest.mark.parametrize(
    ("method", "counts"),
    [
        ("sendMessage", True), ("sendMediaGroup", True), ("copyMessages", True), ("forwardMessage", True),
        ("editMessageText", True), ("sendChatAction", False), ("answerCallbackQuery", False), ("deleteMessage", False),
    ],
)  # fmt: skip
def test_what_counts(method: str, counts: bool) -> None:
    assert is_message(method) is counts
