"""`--ack handled` through the ASGI door: one run for each update, and its outcome in the answer."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import lmdb
import pytest

from fasthook import Gate, Hook, Update
from fasthook.queues.deadletter import DeadLetter, DeadLetters
from fasthook.queues.journal import Journal
from fasthook.testing import TOKEN, samples
from fasthook.testing.running import Telegram

PATIENCE = 60.0  # seconds
HEADERS = {"X-Telegram-Bot-Api-Secret-Token": "secret"}
SOON = 0.05  # seconds: the shortest --ack-deadline


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting comes from the environment of who runs the tests."""
    for name in list(os.environ):
        if re.fullmatch("FASTHOOK_.*|BOT_TOKEN|.*_proxy", name, re.IGNORECASE):
            monkeypatch.delenv(name)


@pytest.fixture(params=["memory:", "journal:"])
def queue(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """`--queue`."""
    return f"journal:{tmp_path / 'journal'}" if request.param == "journal:" else "memory:"


@pytest.fixture
def journal(tmp_path: Path) -> str:
    return f"journal:{tmp_path / 'journal'}"


Start = Callable[..., Any]


class Bot:
    """A handler that does for each id what it is told, and keeps what it was called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []  # update_id and attempt
        self.results: dict[int, Callable[[Update], Any]] = {}
        self._held: dict[int, asyncio.Event] = {}
        self._called = asyncio.Condition()

    async def __call__(self, update: Update) -> Any:
        async with self._called:
            self.calls.append((update.update_id, update.attempt))
            self._called.notify_all()
        if update.update_id in self._held:
            await self._held[update.update_id].wait()
        result = self.results.get(update.update_id)
        return result(update) if result else None

    def hold(self, *update_ids: int) -> None:
        """These don't end until they are let go."""
        for update_id in update_ids:
            self._held[update_id] = asyncio.Event()

    def let_go(self, *update_ids: int) -> None:
        for update_id in update_ids:
            self._held[update_id].set()

    def say(self, update_id: int, text: str) -> None:
        self.results[update_id] = lambda update: update.reply("sendMessage", text=text)

    def fail(self, update_id: int, times: int) -> None:
        """Fail at the first so many attempts, then say so."""

        def result(update: Update) -> Any:
            if update.attempt <= times:
                raise ValueError(f"attempt {update.attempt}")
            return update.reply("sendMessage", text=f"attempt {update.attempt}")

        self.results[update_id] = result

    async def until_called(self, count: int) -> list[int]:
        """Wait for so many calls: their ids."""
        async with self._called:
            await self._called.wait_for(lambda: len(self.calls) >= count)
        return [update_id for update_id, _ in self.calls]


class Door:
    """A hook that runs, and a client."""

    def __init__(self, hook: Hook, client: httpx.AsyncClient) -> None:
        self.hook = hook
        self._client = client

    async def post(self, update_id: int, *, chat: int = 1, size: int | None = None) -> httpx.Response:
        body = samples.update(update_id, chat_id=chat, user_id=chat, size=size)
        return await self._client.post("/webhook", content=body, headers=HEADERS)

    async def send(self, update_id: int, *, chat: int = 1, size: int | None = None) -> asyncio.Task[httpx.Response]:
        """Post, and go on as soon as the gate has judged it."""
        before = self._counted
        task = asyncio.create_task(self.post(update_id, chat=chat, size=size))
        while self._counted == before:
            await asyncio.sleep(0)
        return task

    @property
    def _counted(self) -> list[int]:
        stats = self.hook.receiver.gate.stats
        return [stats.counter(number) for number in range(Gate.counters(1))]

    async def stop(self) -> None:
        await self.hook.receiver.stop()


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Start a hook with `--ack handled`; it stops at the end of the block."""

    @asynccontextmanager
    async def started(bot: Bot, **settings: Any) -> AsyncIterator[Door]:
        given: dict[str, Any] = {
            "secret": "secret",
            "ack": "handled",
            "state_dir": tmp_path / "state",
            "drain_timeout": 5,
        } | settings
        hook = Hook(bot, **given)
        await hook.receiver.start()
        try:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(hook), base_url="http://bot") as client:
                yield Door(hook, client)
        finally:
            await hook.receiver.stop()

    return started


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, PATIENCE))


def dead(tmp_path: Path) -> list[DeadLetter]:
    letters = DeadLetters(tmp_path / "state" / "dead")
    try:
        return [letter for _, letter in letters.items()]
    finally:
        letters.close()


# ---------------------------------------------------------------- the reply


def test_the_reply_is_in_the_response(start: Start, queue: str, telegram: Telegram) -> None:
    async def main() -> None:
        bot = Bot()
        bot.say(1, "hällo\n")
        async with start(bot, queue=queue, token=TOKEN, api_url=telegram.url) as door:
            response = await door.post(1, chat=-1001)
            assert response.status_code == 200
            assert response.headers["content-type"] == "application/json"
            assert response.json() == {"method": "sendMessage", "chat_id": -1001, "text": "hällo\n"}
            response = await door.post(2)
            assert (response.status_code, response.content) == (200, b"")
        assert telegram.calls == []
        assert bot.calls == [(1, 1), (2, 1)]

    run(main())


@pytest.mark.parametrize("method", ["setWebhook", "deleteWebhook", "close", "logOut", "getMe", "getFile", "GETCHAT"])
def test_what_telegram_forbids_in_a_response_is_sent(start: Start, queue: str, method: str, telegram: Telegram) -> None:
    async def main() -> None:
        bot = Bot()
        bot.results[1] = lambda update: {"method": method, "chat_id": 5}
        async with start(bot, queue=queue, token=TOKEN, api_url=telegram.url) as door:
            response = await door.post(1)
            assert (response.status_code, response.content) == (200, b"")
        [call] = telegram.calls
        assert (call.method.lower(), call.params) == (method.lower(), {"chat_id": 5})

    run(main())


def test_a_reply_that_is_too_large_for_a_response_is_sent(
    start: Start, telegram: Telegram, caplog: pytest.LogCaptureFixture
) -> None:
    """What Telegram then says to so much JSON is in the log."""

    async def main() -> None:
        bot = Bot()
        bot.say(1, "x" * (1 << 20))
        async with start(bot, queue="memory:", token=TOKEN, api_url=telegram.url) as door:
            assert (await door.post(1)).content == b""
        assert "Telegram refused sendMessage: 400 Bad Request: can't parse the body: more than 1 MiB" in caplog.text

    run(main())


def test_a_reply_that_is_no_json(start: Start, queue: str, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        bot = Bot()
        bot.results[1] = lambda update: update.reply("sendMessage", text=object())
        async with start(bot, queue=queue, token=TOKEN) as door:
            response = await door.post(1)
            assert (response.status_code, response.content) == (200, b"")

    run(main())
    assert "update 1: what the handler returned cannot be sent" in caplog.text


# ---------------------------------------------------------------- redeliveries


def test_a_redelivery_joins_the_run(start: Start, queue: str) -> None:
    async def main() -> None:
        bot = Bot()
        bot.hold(1)
        bot.say(1, "once")
        async with start(bot, queue=queue) as door:
            first = await door.send(1)
            second = await door.send(1)
            await bot.until_called(1)
            third = await door.send(1)
            assert not any(task.done() for task in (first, second, third))
            bot.let_go(1)
            answers = [await task for task in (first, second, third)]
            assert [answer.status_code for answer in answers] == [200] * 3
            assert [answer.json()["text"] for answer in answers] == ["once"] * 3
        assert bot.calls == [(1, 1)]

    run(main())


def test_a_redelivery_gets_the_same_reply_again(start: Start, queue: str) -> None:
    async def main() -> None:
        bot = Bot()
        bot.say(1, "once")
        async with start(bot, queue=queue) as door:
            first = await door.post(1)
            assert (await door.post(2, chat=2)).content == b""
            for _ in range(3):
                again = await door.post(1)
                assert (again.status_code, again.content) == (200, first.content)
                again = await door.post(2, chat=2)
                assert (again.status_code, again.content) == (200, b"")
        assert bot.calls == [(1, 1), (2, 1)]

    run(main())


def test_a_redelivery_after_a_restart_is_not_handled_again(start: Start, queue: str) -> None:
    async def main() -> None:
        bot = Bot()
        bot.say(1, "once")
        async with start(bot, queue=queue) as door:
            await door.post(1)
        async with start(bot, queue=queue) as door:
            assert (await door.post(1)).status_code == 200
        assert bot.calls == [(1, 1)]

    run(main())


def test_no_update_overtakes_another_of_its_chat(start: Start, queue: str) -> None:
    async def main() -> None:
        bot = Bot()
        bot.hold(1)
        async with start(bot, queue=queue) as door:
            first = await door.send(1)
            second = await door.send(2)
            other = await door.post(3, chat=2)
            assert other.status_code == 200
            assert not any(task.done() for task in (first, second))
            bot.let_go(1)
            assert (await first).status_code == (await second).status_code == 200
        assert [update_id for update_id, _ in bot.calls if update_id != 3] == [1, 2]

    run(main())


# ---------------------------------------------------------------- failures


def test_a_failure_is_tried_again_by_telegram(start: Start, queue: str, tmp_path: Path) -> None:
    async def main() -> None:
        bot = Bot()
        bot.fail(1, times=2)
        async with start(bot, queue=queue, retries=3) as door:
            for _ in range(2):
                response = await door.post(1)
                assert (response.status_code, response.content) == (500, b"the handler failed\n")
            assert (await door.post(2)).status_code == 200  # the chat doesn't wait for it
            response = await door.post(1)
            assert response.json()["text"] == "attempt 3"
            assert (await door.post(1)).json() == response.json()
        assert bot.calls == [(1, 1), (1, 2), (2, 1), (1, 3)]

    run(main())
    assert dead(tmp_path) == []


def test_after_the_last_retry_it_is_a_dead_letter(start: Start, queue: str, tmp_path: Path) -> None:
    async def main() -> None:
        bot = Bot()
        bot.fail(1, times=100)
        async with start(bot, queue=queue, retries=2) as door:
            statuses = [(await door.post(1)).status_code for _ in range(5)]
            assert statuses == [500, 500, 200, 200, 200]
        assert bot.calls == [(1, 1), (1, 2), (1, 3)]
        async with start(bot, queue=queue) as door:
            assert (await door.post(1)).status_code == 200
        assert len(bot.calls) == 3

    run(main())
    [letter] = dead(tmp_path)
    assert (letter.reason, letter.attempts, letter.raw) == ("failed", 3, samples.update(1, chat_id=1, user_id=1))
    assert "ValueError: attempt 3" in letter.traceback


def test_a_failure_answers_all_who_joined(start: Start, queue: str) -> None:
    async def main() -> None:
        bot = Bot()
        bot.hold(1)
        bot.fail(1, times=1)
        async with start(bot, queue=queue) as door:
            tasks = [await door.send(1), await door.send(1)]
            bot.let_go(1)
            assert [(await task).status_code for task in tasks] == [500, 500]
            assert (await door.post(1)).json()["text"] == "attempt 2"

    run(main())


# ---------------------------------------------------------------- the deadline


def test_at_the_deadline_an_update_is_acknowledged_and_goes_on(start: Start, queue: str, telegram: Telegram) -> None:
    async def main() -> None:
        bot = Bot()
        bot.hold(1)
        bot.say(1, "late")
        bot.say(2, "after it")
        async with start(bot, queue=queue, token=TOKEN, api_url=telegram.url, ack_deadline=SOON) as door:
            for _ in range(2):
                response = await door.post(1)
                assert (response.status_code, response.content) == (200, b"")
            response = await door.post(2)  # whose own deadline comes while it waits for its turn
            assert (response.status_code, response.content) == (200, b"")
            assert await bot.until_called(1) == [1]
            bot.let_go(1)
            assert await bot.until_called(2) == [1, 2]
            await telegram.chat(1).expect("sendMessage", text="after it", timeout=PATIENCE)
            assert [call.text for call in telegram.calls] == ["late", "after it"]
            assert (await door.post(1)).content == b""
        assert bot.calls == [(1, 1), (2, 1)]

    run(main())


def test_what_fails_after_the_deadline_is_tried_again_here(start: Start, queue: str, telegram: Telegram) -> None:
    async def main() -> None:
        bot = Bot()
        bot.hold(1)
        bot.fail(1, times=1)
        async with start(bot, queue=queue, token=TOKEN, api_url=telegram.url, ack_deadline=SOON) as door:
            assert (await door.post(1)).status_code == 200
            bot.let_go(1)
            await bot.until_called(2)
            await telegram.chat(1).expect("sendMessage", text="attempt 2", timeout=PATIENCE)
        assert bot.calls == [(1, 1), (1, 2)]

    run(main())


class Stalled:
    """`lmdb.open` whose commits wait."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._loop = asyncio.get_running_loop()
        self._go = asyncio.Event()
        self._begun = asyncio.Event()
        real = lmdb.open
        monkeypatch.setattr(lmdb, "open", lambda *args, **options: _Part(real(*args, **options), self))

    async def begun(self) -> None:
        await self._begun.wait()

    def go(self) -> None:
        self._go.set()

    def wait(self) -> None:
        """In the writer's thread."""
        self._loop.call_soon_threadsafe(self._begun.set)
        asyncio.run_coroutine_threadsafe(self._go.wait(), self._loop).result(PATIENCE)


class _Part:
    """An environment, or a transaction."""

    def __init__(self, part: Any, stalled: Stalled) -> None:
        self._part = part
        self._stalled = stalled

    def __enter__(self) -> Any:
        return self._part.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._part.__exit__(*error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name)

    def begin(self, *args: Any, **options: Any) -> Any:
        txn = self._part.begin(*args, **options)
        return _Part(txn, self._stalled) if options.get("write") else txn

    def commit(self) -> None:
        self._stalled.wait()
        self._part.commit()


def test_what_is_not_on_disk_at_the_deadline_is_not_acknowledged(
    start: Start, journal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        bot = Bot()
        bot.hold(1)
        stalled = Stalled(monkeypatch)
        async with start(bot, queue=journal, ack_deadline=SOON) as door:
            answer = await door.send(1)
            await stalled.begun()
            await asyncio.sleep(SOON)  # timers run out in order: its deadline has passed
            await asyncio.sleep(0)
            assert not answer.done()
            stalled.go()
            assert (await answer).status_code == 200
            assert await bot.until_called(1) == [1]
            bot.let_go(1)

    run(main())


# ---------------------------------------------------------------- the end, and the next start


def test_a_drain_waits_for_what_runs(start: Start, queue: str) -> None:
    async def main() -> None:
        bot = Bot()
        bot.hold(1)
        bot.say(1, "done")
        async with start(bot, queue=queue) as door:
            answer = await door.send(1)
            await bot.until_called(1)
            stop = asyncio.create_task(door.stop())
            while door.hook.receiver.gate.draining is False:
                await asyncio.sleep(0)
            assert (await door.post(2)).status_code == 503
            joined = await door.send(1)
            bot.let_go(1)
            assert (await answer).json()["text"] == (await joined).json()["text"] == "done"
            await stop
        assert bot.calls == [(1, 1)]

    run(main())


def test_a_stop_answers_503_to_what_was_not_acknowledged(start: Start, queue: str) -> None:
    """`memory:` leaves it with Telegram, which sends it again; the journal has it too, and that is one run still."""

    async def main() -> None:
        bot = Bot()
        bot.hold(1, 3)
        async with start(bot, queue=queue, drain_timeout=0) as door:
            tasks = [await door.send(1), await door.send(1), await door.send(2), await door.send(3, chat=3)]
            await bot.until_called(2)
            await door.stop()
            assert [(await task).status_code for task in tasks] == [503] * 4
        bot.calls.clear()
        bot.let_go(1, 3)
        async with start(bot, queue=queue) as door:
            for update_id, chat in [(1, 1), (2, 1), (3, 3)]:
                assert (await door.post(update_id, chat=chat)).status_code == 200
        assert sorted(bot.calls) == [(1, 1), (2, 1), (3, 1)]

    run(main())


def test_what_was_acknowledged_at_its_deadline_is_kept_at_a_stop(start: Start, queue: str, telegram: Telegram) -> None:
    async def main() -> None:
        bot = Bot()
        bot.hold(1)
        async with start(bot, queue=queue, drain_timeout=0, ack_deadline=SOON) as door:
            assert (await door.post(1)).status_code == 200
        bot.let_go(1)
        bot.say(1, "after the restart")
        async with start(bot, queue=queue, token=None, api_url=telegram.url):
            await bot.until_called(2)
        assert bot.calls == [(1, 1), (1, 1)]

    run(main())


def test_a_redelivery_joins_what_waited_at_the_start_until_the_deadline(start: Start, journal: str) -> None:
    async def main() -> None:
        bot = Bot()
        bot.hold(1)
        async with start(bot, queue=journal, drain_timeout=0) as door:
            answer = await door.send(1)
            await bot.until_called(1)
            await door.stop()
            assert (await answer).status_code == 503
        async with start(bot, queue=journal, ack_deadline=SOON) as door:
            await bot.until_called(2)
            assert (await door.post(1)).status_code == 200  # it is held still
            bot.let_go(1)
        assert bot.calls == [(1, 1), (1, 1)]

    run(main())


def test_who_waits_for_an_update_that_waits_on_disk_is_answered(start: Start, journal: str, tmp_path: Path) -> None:
    """More was left than --queue-size: what comes now is on disk until there is room in memory."""

    async def main() -> None:
        bot = Bot()
        ids = list(range(1, 7))
        async with start(bot, queue=journal, drain_timeout=0) as door:
            bot.hold(*ids)
            tasks = [await door.send(update_id, chat=update_id) for update_id in ids]
            await bot.until_called(6)
            await door.stop()
            assert [(await task).status_code for task in tasks] == [503] * 6
        bot.calls.clear()
        bot.say(100, "mine")
        async with start(bot, queue=journal, queue_size=2) as door:
            assert await bot.until_called(2) == [1, 2]
            assert (await door.post(100, chat=100)).status_code == 503
            bot.let_go(1)
            assert await bot.until_called(3) == [1, 2, 3]
            answer = await door.send(100, chat=100)
            while door.hook.receiver._queue.depth < 6:  # until it is on disk
                await asyncio.sleep(0)
            bot.let_go(*ids[1:])
            response = await answer
            assert (response.status_code, response.json()["text"]) == (200, "mine")
        assert bot.calls == [(update_id, 1) for update_id in [*ids, 100]]

    run(main())


# ---------------------------------------------------------------- a queue that refuses


def test_a_full_journal_is_503_and_heals(start: Start, journal: str) -> None:
    async def main() -> None:
        bot = Bot()
        bot.hold(1)
        ids = list(range(1, 21))
        async with start(bot, queue=journal, journal_max="1MiB", dedup_size=1) as door:
            tasks = {update_id: await door.send(update_id, size=100_000) for update_id in ids}
            done, _ = await asyncio.wait(tasks.values(), return_when=asyncio.FIRST_COMPLETED)
            assert {task.result().status_code for task in done} == {503}
            bot.let_go(1)
            for update_id in ids:
                response = await tasks[update_id]
                while response.status_code == 503:
                    response = await door.post(update_id, size=100_000)
                assert response.status_code == 200
        assert sorted(bot.calls) == [(update_id, 1) for update_id in ids]

    run(main())


def test_the_journal_is_empty_after_all_are_handled(start: Start, journal: str, tmp_path: Path) -> None:
    async def main() -> None:
        bot = Bot()
        bot.fail(2, times=1)
        async with start(bot, queue=journal) as door:
            assert [(await door.post(update_id)).status_code for update_id in (1, 2, 2, 3)] == [200, 500, 200, 200]

    run(main())
    journal_ = Journal(tmp_path / "journal")
    assert list(journal_.items()) == []
    assert journal_.counts() == (0, 3, 4)
    journal_.close()


# ---------------------------------------------------------------- a connection that fails


class Broken:
    """A request whose answer cannot be given."""

    def __init__(self) -> None:
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def answer(self, verdict: Any) -> None:
        self.future.cancel()
        raise RuntimeError("it cannot be written")


@pytest.mark.parametrize("ack", ["queued", "handled"])
def test_an_answer_that_fails_keeps_none_of_the_others_back(
    start: Start, journal: str, ack: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither those of the same update nor those of the same commit."""

    async def main() -> None:
        bot = Bot()
        async with start(bot, queue=journal, ack=ack) as door:
            with monkeypatch.context() as patch:
                patch.setattr("fasthook.asgi.Waiter", Broken)
                broken = await door.send(1)
            others = [await door.send(update_id) for update_id in (1, 2, 1)]
            assert [(await other).status_code for other in others] == [200, 200, 200]
            with pytest.raises(asyncio.CancelledError):
                await broken

    run(main())
    [record] = [record for record in caplog.records if record.getMessage() == "an answer is lost"]
    assert record.exc_info
