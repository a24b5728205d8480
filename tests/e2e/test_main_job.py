"""Thousands of updates over real sockets, with a stop in the middle: in order, each exactly once, none missing."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from contextlib import closing

import pytest

from e2e.bot import Bot
from e2e.process import LONG, SECRET, Server
from e2e.telegram import Telegram
from fasthook.testing import samples

CHATS = 50
UPDATES = 3000
Plan = dict[int, list[int]]


def planned(seed: int) -> tuple[Plan, dict[int, list[bytes]], dict[int, str]]:
    """The ids of each chat's updates, their bytes, and each id's kind. What has neither chat nor user is in chat 0."""
    chosen = random.Random(seed)
    ids: Plan = {}
    bodies: dict[int, list[bytes]] = {}
    kinds: dict[int, str] = {}
    for update_id in range(700_000_000, 700_000_000 + UPDATES):
        kind = chosen.choice(samples.KINDS)
        chat = 0 if kind == "poll" else chosen.randint(1, CHATS)
        ids.setdefault(chat, []).append(update_id)
        bodies.setdefault(chat, []).append(samples.update(update_id, kind, chat_id=chat, user_id=chat))
        kinds[update_id] = kind
    return ids, bodies, kinds


def check(bot: Bot, ids: Plan, kinds: dict[int, str]) -> None:
    handled = bot.handled
    assert Counter(one.update_id for one in handled) == Counter(kinds.keys())
    assert bot.by_chat == ids
    assert {one.update_id: one.kind for one in handled} == kinds
    assert {one.attempt for one in handled} == {1}
    assert len(set(kinds.values())) >= 15


def test_in_order_and_exactly_once(start: Callable[..., Server], bot: Bot, door: str) -> None:
    ids, bodies, kinds = planned(1)
    server = start("--http", door, "--secret", SECRET, "--concurrency", "32", env={"PAUSE": "0.002"})

    async def main() -> None:
        with closing(Telegram(lambda: server.address, connections=16, again=0.2)) as telegram:
            await telegram.send(bodies)

    asyncio.run(asyncio.wait_for(main(), LONG))
    assert server.stop() == 0
    check(bot, ids, kinds)


def test_a_stop_in_the_middle_and_a_restart(start: Callable[..., Server], bot: Bot, door: str) -> None:
    """Chat 7 never ends in the first process, and the others lag behind: its stop has to leave a spill."""
    ids, bodies, kinds = planned(2)
    options = ["--http", door, "--secret", SECRET, "--concurrency", "8"]
    servers = [start(*options, "--drain-timeout", "100ms", env={"PAUSE": "0.002", "HELD": "7"})]

    async def main() -> None:
        with closing(Telegram(lambda: servers[-1].address, connections=8, again=0.2)) as telegram:
            async with asyncio.TaskGroup() as group:
                group.create_task(telegram.send(bodies))
                await telegram.until_accepted(UPDATES // 2)
                telegram.up.clear()
                assert await asyncio.to_thread(servers[0].stop) == 0
                servers.append(await asyncio.to_thread(start, *options))
                telegram.up.set()

    asyncio.run(asyncio.wait_for(main(), LONG))
    first, second = servers
    assert second.stop() == 0
    left = int(first.until(r"(\d+) updates are not handled yet: they are kept")[1])
    assert left >= 1
    assert second.until(r"(\d+) updates from before the last stop are handled first")[1] == str(left)
    check(bot, ids, kinds)


@pytest.mark.parametrize("times", [2, 3])
def test_stops_one_after_the_other(start: Callable[..., Server], bot: Bot, times: int) -> None:
    """What is left at one stop and again at the next is still there."""
    options = ["--secret", SECRET, "--drain-timeout", "0"]
    server = start(*options, env={"HELD": "1"})
    for update_id in range(20):
        assert server.post(samples.update(update_id, chat_id=update_id % 2 + 1, user_id=5)).status == 200
    server.stop()
    for n in range(1, times):
        server = start(*options, env={"HELD": "1"})
        assert server.post(samples.update(20 + n, chat_id=1)).status == 200
        assert server.stop() == 0
    server = start("--secret", SECRET)
    assert server.stop() == 0
    assert bot.by_chat == {2: [*range(1, 20, 2)], 1: [*range(0, 20, 2), *range(21, 20 + times)]}
