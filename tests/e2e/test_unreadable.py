"""A record that cannot be read, in the queue or among the dead letters: it is listed, and can be taken out."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from e2e.bot import Bot
from e2e.process import SECRET, Server
from e2e.tools import refused, rows, say, tool
from fasthook.queues.rows import NUMBER
from fasthook.queues.store import Store
from fasthook.queues.tables import Journal

Start = Callable[..., Server]
HELD = {"HELD": "1"}


def with_letters(start: Start, bot: Bot, *, running: bool) -> Server:
    """Two letters, and between them what is none."""
    server = start("--secret", SECRET, "--retries", "0")
    say(server, 1, "raise", chat=1)
    server.until("update 1 .message. is a dead letter")
    assert server.stop() == 0
    store = Store(bot.directory / ".fasthook/dead")
    store.append([b"nonsense"])
    store.close()
    server = start("--secret", SECRET, "--retries", "0")
    say(server, 3, "raise", chat=3)
    server.until("update 3 .message. is a dead letter")
    if not running:
        assert server.stop() == 0
    return server


@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
def test_a_dead_letter(start: Start, bot: Bot, running: bool) -> None:
    with_letters(start, bot, running=running)
    found = rows(bot, "dead", "list")
    assert [(row["number"], row["update_id"], row["reason"]) for row in found] == [
        (1, 1, "failed"),
        (2, None, "unreadable"),
        (3, 3, "failed"),
    ]
    assert (found[1]["died_at"], found[1]["received_at"], found[1]["bot_id"], found[1]["bytes"]) == (None,) * 3 + (8,)
    [_, _, line, _] = tool(bot, "dead", "list").output.splitlines()
    assert line.split() == ["2", "-", "-", "-", "-", "-", "0", "unreadable"]
    words = refused(bot, "dead", "show", "2")
    assert words.startswith("fasthook: dead letter 2 cannot be read: ")
    assert words.endswith("; fasthook dead drop 2 deletes it")
    for a_filter in ("--older-than=0s", "--newer-than=1h"):  # nobody knows when it died
        assert [row["number"] for row in rows(bot, "dead", "list", a_filter)] == [1, 3]
    assert tool(bot, "dead", "retry", "--reason", "unreadable").output == (
        "there is no dead letter to retry that this means; 1 letter left, because they are not updates\n"
    )
    assert tool(bot, "dead", "drop", "2", "--yes").output == "1 dead letter deleted\n"
    assert [row["number"] for row in rows(bot, "dead", "list")] == [1, 3]


@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
def test_all_dead_letters_are_dropped_with_it(start: Start, bot: Bot, running: bool) -> None:
    with_letters(start, bot, running=running)
    assert tool(bot, "dead", "drop", "--reason", "unreadable", "--yes").output == "1 dead letter deleted\n"
    assert tool(bot, "dead", "drop", "--all", "--yes").output == "2 dead letters deleted\n"
    assert rows(bot, "dead", "list") == []


def with_record(start: Start, bot: Bot) -> None:
    """Two updates that wait, and behind them what is none."""
    server = start("--secret", SECRET, "--drain-timeout", "0", env=HELD)
    for update_id in (1, 2):
        say(server, update_id)
    assert server.stop() == 0
    journal = Journal(bot.directory / ".fasthook/journal")
    with journal.env.begin(write=True) as txn:
        txn.put(NUMBER.pack(7), b"nonsense", db=journal.waiting)
    journal.close()


def test_a_waiting_update(start: Start, bot: Bot) -> None:
    with_record(start, bot)
    found = rows(bot, "queue", "list")
    assert [(row["number"], row["update_id"], row["state"]) for row in found] == [
        (1, 1, "waiting"),
        (2, 2, "waiting"),
        (7, None, "unreadable"),
    ]
    assert tool(bot, "queue", "list").output.splitlines()[-1].split() == ["7", *"------", "unreadable"]
    assert tool(bot, "queue", "stats").output.count("unreadable") == 1
    words = "fasthook: update number 7 cannot be read: fasthook queue purge 7 throws it away"
    assert refused(bot, "queue", "show", "7") == words
    assert [row["number"] for row in rows(bot, "queue", "list", "--older-than", "0s")] == [1, 2]
    assert tool(bot, "queue", "purge", "7", "--yes").output == "1 update thrown away\n"
    server = start("--secret", SECRET)
    assert server.stop() == 0
    assert not server.find("cannot be read")
    assert bot.by_chat == {1: [1, 2]}


def test_all_that_waits_is_thrown_away_with_it(start: Start, bot: Bot) -> None:
    with_record(start, bot)
    assert tool(bot, "queue", "purge", "--all", "--yes").output == "3 updates thrown away\n"
    server = start("--secret", SECRET, "--queue", "journal:another")  # which nothing keeps it from
    assert server.stop() == 0
    assert not bot.handled


def test_what_cannot_be_read_keeps_nobody_from_another_queue(start: Start, bot: Bot) -> None:
    """To start once with the last one would not make it go away."""
    with_record(start, bot)
    assert start("--secret", SECRET).stop() == 0
    assert start("--secret", SECRET, "--queue", "journal:another").stop() == 0
    assert bot.by_chat == {1: [1, 2]}
