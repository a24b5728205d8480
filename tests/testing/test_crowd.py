"""Many people at once."""

from __future__ import annotations

import asyncio

from fasthook.testing import Simulator
from fasthook.testing.crowd import Crowd
from fasthook.testing.recording import Recorded, replay
from testing.hook import PATIENCE

MANY = 500


def test_people_who_say_more_than_this_machine_can_do_leave_the_rest_its_turn() -> None:
    """They are late for ever, and the bot is answered all the same."""

    async def main() -> None:
        async with Simulator(seed=1) as simulator:
            crowd = Crowd(simulator.bot, simulator.clock, rate=1e6, seed=1)
            talking = asyncio.create_task(crowd.run(MANY))
            while not crowd.done:
                await asyncio.sleep(0)
            assert crowd.done < MANY
            await talking
            assert crowd.done == MANY

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


def test_so_does_a_long_recording() -> None:
    async def main() -> None:
        async with Simulator(seed=1) as simulator:
            recorded = [Recorded(0.0, None, "poll", {"id": "5"}, b"{}")] * MANY
            sending = asyncio.create_task(replay(simulator.bot, simulator.clock, recorded))
            while not len(simulator.bot.updates):
                await asyncio.sleep(0)
            assert len(simulator.bot.updates) < MANY
            await sending
            assert len(simulator.bot.updates) == MANY

    asyncio.run(asyncio.wait_for(main(), PATIENCE))
