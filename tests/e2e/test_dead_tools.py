"""`fasthook dead`: through a server that runs, and on its files when it doesn't."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest

from e2e.bot import Bot
from e2e.process import SECRET, Server
from e2e.tools import ids, number_of, refused, rows, say, tool, until
from fasthook.queues.deadletter import DeadLetter
from fasthook.queues.store import Store, unpack_update
from fasthook.testing import samples

Start = Callable[..., Server]


@pytest.fixture(params=["memory:", "journal:waiting"])
def queue(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(params=[True, False], ids=["running", "stopped"])
def running(request: pytest.FixtureRequest) -> bool:
    runs: bool = request.param
    return runs


def serve(start: Start, queue: str, *options: str, **env: str) -> Server:
    return start("--secret", SECRET, "--queue", queue, "--retries", "0", "--drain-timeout", "0", *options, env=env)


def with_dead(start: Start, queue: str, running: bool, *updates: tuple[int, str, int], workers: str = "1") -> Server:
    """A server, or one that has stopped, with these dead letters: id, text, chat."""
    server = serve(start, queue, "--workers", workers)
    for update_id, text, chat in updates:
        say(server, update_id, text, chat)
        server.until(f"update {update_id} .message. is a dead letter")
    if not running:
        assert server.stop() == 0
    return server


def heal(bot: Bot) -> None:
    (bot.directory / "healed").touch()


def until_handled(bot: Bot, count: int) -> None:
    until(lambda: len(bot.handled) >= count)


def test_list_and_show(start: Start, bot: Bot, queue: str, running: bool) -> None:
    server = with_dead(start, queue, True, (1, "raise", 1), (2, "raise [red]\x1b[31m\nx", 2))
    assert server.post(b"not an update \x1b[31m").status == 200
    if not running:
        assert server.stop() == 0
    found = rows(bot, "dead", "list")
    assert [(row["update_id"], row["reason"], row["attempts"], row["chat_id"]) for row in found] == [
        (1, "failed", 1, 1),
        (2, "failed", 1, 2),
        (None, "invalid", 0, None),
    ]
    assert ids(bot, "dead", "list", "--reason", "failed", "--chat", "2") == [2]
    assert ids(bot, "dead", "list", "--reason", "invalid") == [None]
    assert ids(bot, "dead", "list", "--older-than", "1h") == []
    assert ids(bot, "dead", "list", "--kind", "message", "--newer-than", "1h", "--limit", "1") == [1]
    table = tool(bot, "dead", "list").output.splitlines()
    assert table[0].split() == ["number", "update", "bot", "kind", "chat", "died", "attempts", "reason"]
    assert len(table) == 4

    number = str(found[1]["number"])
    shown = tool(bot, "dead", "show", number).output
    assert shown.replace("\n", "").isprintable()
    for words in (
        "reason    failed",
        "attempts  1",
        'raise ValueError("the bot is broken"',
        r'"raise [red]\u001b[31m\nx"',
    ):
        assert words in shown
    found_one = json.loads(tool(bot, "dead", "show", number, "--json").output)
    assert found_one["update"]["message"]["text"] == "raise [red]\x1b[31m\nx"
    assert found_one["traceback"].startswith("Traceback")
    assert found_one["received_at"] <= found_one["died_at"]

    number = str(found[2]["number"])
    assert r"not an update \u001b[31m" in tool(bot, "dead", "show", number).output
    found_one = json.loads(tool(bot, "dead", "show", number, "--json").output)
    assert (found_one["update"], found_one["base64"]) == (None, "bm90IGFuIHVwZGF0ZSAbWzMxbQ==")
    assert refused(bot, "dead", "show", "99") == "fasthook: there is no dead letter with the number 99"


def test_nothing_to_see(start: Start, bot: Bot, queue: str, running: bool) -> None:
    with_dead(start, queue, running)
    assert tool(bot, "dead", "list").output == "there is no dead letter\n"
    assert tool(bot, "dead", "list", "--chat", "1").output == "there is no dead letter that this means\n"
    assert tool(bot, "dead", "retry", "--all").output == "there is no dead letter to retry that this means\n"
    assert tool(bot, "dead", "drop", "--all").output == "there is no dead letter that this means\n"


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_retry(start: Start, bot: Bot, queue: str, running: bool, workers: str) -> None:
    """Handled once, as attempt 1, although its id is known; and it stays known."""
    server = with_dead(start, queue, running, (1, "raise", 1), (2, "raise", 2), (3, "raise", 3), workers=workers)
    heal(bot)
    number = number_of(bot, 2, "dead", "list")
    when = "again" if running else "at the next start"
    assert tool(bot, "dead", "retry", number).output == f"1 update will be handled {when}\n"
    assert ids(bot, "dead", "list") == [1, 3]
    if not running:
        assert ids(bot, "queue", "list") == [2]
        server = serve(start, queue, "--workers", workers)
    until_handled(bot, 1)
    if running:
        assert tool(bot, "dead", "retry", "--all").output == "2 updates will be handled again\n"
        until_handled(bot, 3)
    for update_id in (1, 2, 3):
        say(server, update_id, "raise", update_id)
    assert server.stop() == 0
    assert serve(start, queue).stop() == 0
    assert sorted((one.update_id, one.attempt) for one in bot.handled) == (
        [(1, 1), (2, 1), (3, 1)] if running else [(2, 1)]
    )
    assert ids(bot, "dead", "list") == ([] if running else [1, 3])


@pytest.mark.parametrize("workers", ["1", "2"])
def test_one_that_fails_again_is_a_dead_letter_again(start: Start, bot: Bot, queue: str, workers: str) -> None:
    server = with_dead(start, queue, True, (1, "raise", 1), workers=workers)
    assert tool(bot, "dead", "retry", "--all").output == "1 update will be handled again\n"
    server.until("update 1 .message. is a dead letter", count=2)
    assert ids(bot, "dead", "list") == [1]


def test_a_retry_that_waits_is_kept_by_a_stop(start: Start, bot: Bot, queue: str) -> None:
    with_dead(start, queue, False, (1, "raise", 1))
    heal(bot)
    server = serve(start, queue, HELD="1")
    say(server, 5)
    tool(bot, "dead", "retry", "--all")
    assert ids(bot, "queue", "list") == [5, 1]
    assert ids(bot, "dead", "list") == []
    assert server.stop() == 0
    server = serve(start, queue)
    until_handled(bot, 2)
    assert server.stop() == 0
    assert bot.by_chat == {1: [5, 1]}


def test_a_retry_that_was_handled_is_not_run_again_after_a_kill(start: Start, bot: Bot, queue: str) -> None:
    """Although another, which waits, keeps the spill from being emptied."""
    with_dead(start, queue, False, (1, "raise", 1), (2, "raise", 2), (3, "raise", 3))
    heal(bot)
    tool(bot, "dead", "retry", "--all")
    server = serve(start, queue, HELD="1")
    until_handled(bot, 2)
    say(server, 4, chat=4)
    until_handled(bot, 3)
    until(lambda: ids_on_disk(bot, queue) == [1])
    server.kill()
    server = serve(start, queue)
    until_handled(bot, 4)
    assert server.stop() == 0
    assert sorted(one.update_id for one in bot.handled) == [1, 2, 3, 4]


def ids_on_disk(bot: Bot, queue: str) -> list[int]:
    """What a kill would leave."""
    if queue != "memory:":
        return [one for one in ids(bot, "queue", "list") if one is not None]
    store = Store(bot.directory / ".fasthook" / "spill")
    try:
        return [unpack_update(record).update_id for _, record in store.items()]
    finally:
        store.close()


def test_a_retry_in_a_journal_survives_a_kill(start: Start, bot: Bot) -> None:
    with_dead(start, "journal:waiting", False, (1, "raise", 1))
    heal(bot)
    server = serve(start, "journal:waiting", HELD="1")
    tool(bot, "dead", "retry", "--all")
    server.kill()
    server = serve(start, "journal:waiting")
    until_handled(bot, 1)
    assert server.stop() == 0
    assert bot.by_chat == {1: [1]}
    assert ids(bot, "dead", "list") == []


def test_what_has_expired_is_handled_when_it_is_retried(start: Start, bot: Bot, queue: str, running: bool) -> None:
    server = with_dead(start, queue, running)
    raw = samples.update(7, "callback_query", chat_id=7)
    letter = DeadLetter("expired", 0, raw, 1, time.time() - 900, time.time() - 500, "")
    store = Store(bot.directory / ".fasthook" / "dead")
    store.append([letter.pack()])
    store.close()
    assert tool(bot, "dead", "retry", "--reason", "expired").output.startswith("1 update will be handled ")
    if not running:
        server = serve(start, queue)
    until_handled(bot, 1)
    assert server.stop() == 0
    assert [(one.update_id, one.kind) for one in bot.handled] == [(7, "callback_query")]


def test_what_is_not_an_update_cannot_be_retried(start: Start, bot: Bot, queue: str, running: bool) -> None:
    server = with_dead(start, queue, True, (1, "raise", 1))
    assert server.post(b"{}").status == 200
    if not running:
        assert server.stop() == 0
    [number] = [str(row["number"]) for row in rows(bot, "dead", "list", "--reason", "invalid")]
    words = refused(bot, "dead", "retry", number)
    assert words == f"fasthook: dead letter {number} is not an update: it cannot be retried"
    said = tool(bot, "dead", "retry", "--all").output
    assert said.endswith("; 1 letter left, because they are not updates\n")
    assert "invalid" in [row["reason"] for row in rows(bot, "dead", "list")]


def test_drop(start: Start, bot: Bot, queue: str, running: bool) -> None:
    with_dead(start, queue, running, (1, "raise", 1), (2, "raise", 2), (3, "raise", 2))
    number = number_of(bot, 1, "dead", "list")
    words = refused(bot, "dead", "drop", number, code=2)
    assert words == "fasthook: Delete 1 dead letter for ever? There is no terminal to ask on: give --yes"
    missing = refused(bot, "dead", "drop", number, "98", "99", "--yes")
    assert missing == "fasthook: there is no dead letter with the number 98, 99; nothing was done"
    assert tool(bot, "dead", "drop", number, "--yes").output == "1 dead letter deleted\n"
    assert ids(bot, "dead", "list") == [2, 3]
    assert tool(bot, "dead", "drop", "--chat", "2", "--yes").output == "2 dead letters deleted\n"
    assert ids(bot, "dead", "list") == []
