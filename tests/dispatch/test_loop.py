"""What the dispatcher costs the loop, and what a handler finds in it."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
from typing import Any

import pytest

from dispatch.recorded import Recorded, Run, turns
from fasthook import Update
from updates import update


async def nothing(update: Update) -> None:
    pass


@pytest.mark.parametrize("chats", [1, 1000])
def test_a_busy_dispatcher_yields_to_the_loop(run: Run, chats: int, monkeypatch: pytest.MonkeyPatch) -> None:
    microseconds = itertools.count()
    monkeypatch.setattr("fasthook.dispatch.monotonic", lambda: next(microseconds) / 1e6)

    async def main() -> None:
        recorded = Recorded(nothing)
        at_beat: list[int] = []

        def beat() -> None:
            at_beat.append(len(recorded.settled))
            if len(recorded.settled) < 50_000:
                loop.call_soon(beat)

        loop = asyncio.get_running_loop()
        recorded.submit(*[update(n, chat=n) for n in range(chats)] * (50_000 // chats))
        loop.call_soon(beat)
        await recorded.until_settled(50_000)
        between = [b - a for a, b in itertools.pairwise(at_beat)]
        assert max(between) <= 6_000  # of a clock that says each look at it takes a microsecond

    run(main())


@pytest.mark.parametrize("chats", [1, 10_000])
def test_no_task_for_each_update(run: Run, chats: int) -> None:
    tasks = 0

    def counting(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        nonlocal tasks
        tasks += 1
        return asyncio.Task(coroutine, loop=loop, **options)

    async def main() -> None:
        recorded = Recorded(nothing)
        asyncio.get_running_loop().set_task_factory(counting)
        recorded.submit(*(update(n, chat=n % chats) for n in range(10_000)))
        await recorded.until_settled(10_000)

    run(main())
    assert tasks <= 10


def test_context_variables_end_with_their_update(run: Run) -> None:
    mine: contextvars.ContextVar[int] = contextvars.ContextVar("mine")
    outer: contextvars.ContextVar[str] = contextvars.ContextVar("outer")
    found: list[tuple[int | None, str]] = []

    async def handler(update: Update) -> None:
        found.append((mine.get(None), outer.get()))
        mine.set(update.update_id)
        if update.update_id % 3 == 0:
            await asyncio.sleep(0)
        assert mine.get() == update.update_id
        if update.update_id % 5 == 0:
            raise ValueError

    async def main() -> None:
        outer.set("from the server")
        recorded = Recorded(handler, retries=0)
        outer.set("set later")
        recorded.submit(*(update(n, chat=n % 7) for n in range(100)))
        await recorded.until_settled(100)

    run(main())
    assert found == [(None, "from the server")] * 100


def test_a_handler_may_use_timeouts_and_task_groups(run: Run) -> None:
    timed_out: list[int] = []

    async def handler(update: Update) -> None:
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        if update.update_id % 2:
            try:
                async with asyncio.timeout(0):
                    await asyncio.Event().wait()
            except TimeoutError:
                timed_out.append(update.update_id)
        else:
            async with asyncio.TaskGroup() as group:
                group.create_task(turns(2))

    async def main() -> None:
        recorded = Recorded(handler, retries=0)
        recorded.submit(*(update(n, chat=n % 3) for n in range(30)))
        await recorded.until_settled(30)
        assert not recorded.buried

    run(main())
    assert sorted(timed_out) == list(range(1, 30, 2))


def test_a_handler_that_cancels_its_own_task_harms_no_other(run: Run) -> None:
    async def handler(update: Update) -> None:
        if update.update_id == 0:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            return
        await asyncio.sleep(0)

    async def main() -> None:
        recorded = Recorded(handler, retries=0)
        recorded.submit(*(update(n, chat=n) for n in range(5)))
        await recorded.until_settled(5)
        assert not recorded.buried

    run(main())


def test_whoever_cancels_all_tasks_stops_no_dispatcher(run: Run) -> None:
    """A loop that ends does this before it lets anything drain."""

    async def main() -> None:
        ours = asyncio.all_tasks()

        def cancel_all() -> None:
            for task in asyncio.all_tasks() - ours:
                task.cancel()

        recorded = Recorded(nothing)
        recorded.submit(update(1))
        cancel_all()  # a runner that has not begun
        await recorded.until_settled(1)
        cancel_all()  # a runner that is idle
        await turns(3)
        recorded.submit(update(2))
        await recorded.until_settled(2)
        recorded.submit(update(3))
        cancel_all()  # a runner that was just called
        await turns(3)
        recorded.submit(update(4, chat=4))
        await recorded.until_settled(4)
        assert await recorded.drain(0) == []

    run(main())
