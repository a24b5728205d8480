"""The connections that updates come over."""

from __future__ import annotations

import asyncio
import itertools

from testing.hook import CLOSE, response
from testing.stage import Stage, played


@played
async def test_one_request_in_flight_on_a_connection(s: Stage) -> None:
    await s.set()
    await s.warm(3)
    held = s.hook.hold()
    before = len(s.hook.requests)
    for chat in range(10):
        s.message(chat=chat)
    await s.hook.until_asked(before + 3)
    busy = [request.connection for request in s.hook.requests[before:]]
    assert len(set(busy)) == len(busy)
    held.set()
    await s.until_settled()


@played
async def test_at_most_max_connections(s: Stage) -> None:
    await s.set(max_connections=3)
    await s.warm(3)
    for chat in range(50):
        s.message(chat=chat)
    await s.until_settled()
    assert s.hook.connected == 3
    assert s.hook.most_running == 3


@played
async def test_without_max_connections_there_are_40(s: Stage) -> None:
    await s.set()
    await s.warm(40)
    held = s.hook.hold()
    for chat in range(60):
        s.message(chat=chat)
    s.clock.advance(5)
    await s.hook.until(lambda hook: hook.running == 40)
    assert s.hook.connected == 40
    held.set()
    await s.until_settled()


@played
async def test_free_ones_are_used_in_turn(s: Stage) -> None:
    """So a chat has no connection of its own."""
    await s.set(max_connections=3)
    await s.warm(3)
    before = len(s.hook.requests)
    for _ in range(9):
        s.message(chat=7)
    await s.until_settled()
    used = [request.connection for request in s.hook.requests[before:]]
    assert used[:3] == used[3:6] == used[6:]
    assert len(set(used)) == 3


@played
async def test_new_ones_come_at_20_a_second(s: Stage) -> None:
    await s.set()
    s.message()
    await s.until_settled()
    held = s.hook.hold()
    start, seen = s.clock.now(), []
    for chat in range(60):
        s.message(chat=chat)
    while s.hook.connected < 40:
        known = s.hook.connected
        s.clock.skip()
        await s.hook.until(lambda hook, known=known: hook.connected > known)  # type: ignore[misc]
        await s.hook.until(lambda hook: hook.running == hook.connected)
        seen.append((s.clock.now() - start, s.hook.connected))
    for at, connected in seen:
        assert connected <= 1 + 10 + 20 * at + 0.001
    held.set()
    await s.until_settled()


@played
async def test_one_in_two_seconds_while_nothing_succeeds(s: Stage) -> None:
    s.hook.answer = lambda request: CLOSE
    await s.set()
    for chat in range(5):
        s.message(chat=chat)
    await s.until_attempted(6)
    assert s.times == [0, 2, 4, 6, 8, 10]
    assert s.hook.most_running == 1


@played
async def test_ten_seconds_without_a_success_make_it_careful_again(s: Stage) -> None:
    await s.set()
    await s.warm(3)
    s.hook.answer = lambda request: CLOSE
    start, opened = s.clock.now(), [s.hook.connected]
    for chat in range(30):
        s.message(chat=chat)
    for seconds in (10, 20, 40):
        await s.until(lambda seconds=seconds: s.clock.now() > start + seconds)  # type: ignore[misc]
        opened.append(s.hook.connected)
    early, _, late = (after - before for before, after in itertools.pairwise(opened))
    assert early >= 30
    assert 1 <= late <= 11


@played
async def test_one_at_a_time_while_nothing_succeeds(s: Stage) -> None:
    await s.set()
    held = s.hook.hold()
    for chat in range(5):
        s.message(chat=chat)
    await s.hook.until_asked(1)
    s.clock.advance(30)
    await asyncio.wait_for(s.call("getMe"), 5)
    assert s.hook.connected == 1
    held.set()
    await s.until_settled()


@played
async def test_an_idle_one_is_closed_after_60_seconds(s: Stage) -> None:
    await s.set()
    s.message()
    await s.until_settled()
    s.clock.advance(59.9)
    assert s.bot.delivery is not None
    assert s.bot.delivery.open == 1
    s.clock.advance(0.1)
    assert s.bot.delivery.open == 0
    await s.hook.until(lambda hook: hook.closed == 1)
    assert "last_error_message" not in await s.info()


@played
async def test_a_server_that_closes_between_requests_does_no_harm(s: Stage) -> None:
    s.hook.always = response(connection="close")
    s.hook.idle_close = True
    await s.set()
    for _ in range(5):
        s.message()
    await s.until_settled()
    assert [attempt.status for attempt in s.attempts] == [200] * 5
    assert s.hook.connected >= 5


@played
async def test_a_server_that_closes_as_a_request_arrives_costs_an_attempt(s: Stage) -> None:
    s.hook.answers.extend([response(), CLOSE])
    await s.set()
    first, second = s.message(), s.message()
    await s.until_settled()
    assert [(attempt.update_id, attempt.status) for attempt in s.attempts] == [(first, 200), (second, 0), (second, 200)]
    assert (await s.info())["last_error_message"] == "Connection closed"


@played
async def test_a_retry_lands_elsewhere(s: Stage) -> None:
    await s.set()
    await s.warm(3)
    before = len(s.hook.requests)
    s.hook.answers.append(response(500))
    s.message()
    await s.until_settled()
    first, second = s.hook.requests[before:]
    assert first.connection != second.connection
    assert first.body == second.body


@played
async def test_nobody_listens(s: Stage) -> None:
    url = s.hook.url
    await s.hook.stop()
    await s.set(url)
    s.message()
    await s.until_attempted(2)
    assert (await s.info())["last_error_message"] == "Connection refused"
    assert len(s.bot.updates) == 1
