"""Random handlers over random chats: order in each chat, each exactly once."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dispatch.recorded import Recorded, Run, turns
from fasthook import Update
from updates import update

RETRIES = 2


@dataclass(frozen=True)
class Job:
    """What the handler does with an update: wait for some turns of the loop, and fail so often."""

    chat: int
    turns: int
    failures: int
    pause: int  # turns before it is submitted


jobs = st.builds(
    Job,
    chat=st.integers(0, 4),
    turns=st.sampled_from([0, 0, 0, 1, 3]),
    failures=st.sampled_from([0, 0, 0, 0, 1, 2, 3]),
    pause=st.sampled_from([0, 0, 0, 1, 4]),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(todo=st.lists(jobs, max_size=40), concurrency=st.integers(1, 6), ordered=st.booleans())
def test_each_exactly_once_and_in_order(run: Run, todo: list[Job], concurrency: int, ordered: bool) -> None:
    begun: Counter[int] = Counter()
    done: dict[int, list[int]] = defaultdict(list)
    busy: Counter[int] = Counter()

    async def handler(update: Update) -> None:
        job = todo[update.update_id]
        begun[update.update_id] += 1
        busy[job.chat] += 1
        try:
            assert busy.total() <= concurrency
            assert not ordered or busy[job.chat] == 1
            await turns(job.turns)
        finally:
            busy[job.chat] -= 1
        if update.attempt <= job.failures:
            raise ValueError
        done[job.chat].append(update.update_id)

    async def main() -> None:
        recorded = Recorded(handler, concurrency=concurrency, retries=RETRIES, ordered=ordered, first_retry=0.0001)
        for n, job in enumerate(todo):
            await turns(job.pause)
            recorded.submit(update(n, chat=job.chat))
        await recorded.until_settled(len(todo))
        assert await recorded.drain(0) == []
        assert sorted(recorded.settled) == list(range(len(todo)))
        assert set(recorded.buried) == {n for n, job in enumerate(todo) if job.failures > RETRIES}
        if ordered:
            for chat in range(5):
                of_chat = [n for n in recorded.settled if todo[n].chat == chat]
                assert of_chat == sorted(of_chat)

    run(main())
    assert begun == {n: min(job.failures, RETRIES) + 1 for n, job in enumerate(todo)}
    for chat, handled in done.items():
        expected = [n for n, job in enumerate(todo) if job.chat == chat and job.failures <= RETRIES]
        assert handled == expected if ordered else sorted(handled) == expected


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
@given(todo=st.lists(jobs, max_size=30), concurrency=st.integers(1, 6), after=st.integers(0, 10))
def test_what_is_cut_off_and_what_was_handled_are_all_there_is(
    run: Run, todo: list[Job], concurrency: int, after: int
) -> None:
    async def handler(update: Update) -> None:
        job = todo[update.update_id]
        await turns(job.turns)
        if update.attempt <= job.failures:
            raise ValueError

    async def main() -> None:
        recorded = Recorded(handler, concurrency=concurrency, retries=RETRIES, first_retry=0.0001)
        recorded.submit(*(update(n, chat=job.chat) for n, job in enumerate(todo)))
        await turns(after)
        left = await recorded.drain(0)
        assert sorted(recorded.settled + left) == list(range(len(todo)))
        for chat in range(5):
            of_chat = [n for n in recorded.settled + left if todo[n].chat == chat]
            assert of_chat == sorted(of_chat)

    run(main())
