"""Another `--queue` than the last server's: what waits in that one is not left behind in silence."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from e2e.bot import Bot
from e2e.process import SECRET, Ended, Server, fasthook
from e2e.tools import ids, say, tool
from fasthook import Hook
from fasthook.queues import QueueError
from fasthook.queues.store import Store, pack_update
from fasthook.testing import TOKEN
from fasthook.testing.running import Telegram
from updates import update

Start = Callable[..., Server]
HELD = {"HELD": "1"}
DEFAULT = "journal:.fasthook/journal"
CHANGES = [("memory:", DEFAULT), (DEFAULT, "memory:"), (DEFAULT, "journal:.fasthook/other")]


def leave(start: Start, queue: str, count: int, *options: str) -> None:
    """Stop a server while so many updates wait."""
    server = start("--secret", SECRET, "--queue", queue, "--drain-timeout", "0", *options, env=HELD)
    for update_id in range(1, count + 1):
        say(server, update_id)
    assert server.stop() == 0


def run(bot: Bot, *options: str, command: str = "run") -> Ended:
    """A start that is refused."""
    return fasthook(bot.directory, command, "bot:handler", "--port", "0", *options)


@pytest.mark.parametrize(("last", "queue"), CHANGES)
def test_a_start_that_would_leave_updates_behind_is_refused(start: Start, bot: Bot, last: str, queue: str) -> None:
    leave(start, last, 4)
    for _ in range(2):  # however often
        ended = run(bot, "--queue", queue)
        assert (ended.code, ended.line) == (
            1,
            f"fasthook: 4 updates wait in {last}, the queue of the last server: start once with --queue {last} to "
            f"handle what waits, or throw it away with fasthook queue purge --all --queue {last}",
        )
    assert ids(bot, "queue", "list") == [1, 2, 3, 4]
    assert start("--secret", SECRET, "--queue", last).stop() == 0  # which drains
    server = start("--secret", SECRET, "--queue", queue)
    say(server, 5)
    assert server.stop() == 0
    assert bot.by_chat == {1: [1, 2, 3, 4, 5]}


@pytest.mark.parametrize(("last", "queue"), CHANGES)
def test_what_waits_can_be_thrown_away(start: Start, bot: Bot, last: str, queue: str) -> None:
    """The file names the new queue already: the tools look at the last server's, as that line says they do."""
    leave(start, last, 1)
    more = "" if queue == "memory:" else 'keep-handled = "1d"\njournal-max = "2GiB"\n'  # which memory: has not
    (bot.directory / "fasthook.toml").write_text(f'queue = "{queue}"\n{more}')
    assert run(bot).line.startswith(f"fasthook: 1 update waits in {last}, the queue of the last server: ")
    assert ids(bot, "queue", "list") == [1]
    assert tool(bot, "queue", "purge", "--all", "--queue", last, "--yes").output == "1 update thrown away\n"
    server = start("--secret", SECRET)
    say(server, 2)
    assert server.stop() == 0
    assert not server.find("WARNING|ERROR")
    assert bot.by_chat == {1: [2]}


def test_the_state_directory_is_named_where_it_must_be(start: Start, bot: Bot) -> None:
    leave(start, "memory:", 1, "--state-dir", "deep state")
    words = run(bot, "--state-dir", "deep state").line
    assert words.endswith(" fasthook queue purge --all --queue memory: --state-dir 'deep state'")
    assert tool(bot, "queue", "purge", "--all", "--yes", "--queue", "memory:", "--state-dir", "deep state").output == (
        "1 update thrown away\n"
    )
    assert start("--secret", SECRET, "--state-dir", "deep state").stop() == 0


def test_the_same_queue_by_another_name_is_no_other_one(start: Start, bot: Bot) -> None:
    leave(start, "journal:waiting", 2)
    (bot.directory / "link").symlink_to("waiting")
    for name in (str(bot.directory / "waiting"), "./waiting", "link", "waiting"):
        leave(start, f"journal:{name}", 0)
    assert start("--secret", SECRET, "--queue", "journal:waiting").stop() == 0
    assert bot.by_chat == {1: [1, 2]}


def test_a_journal_that_is_gone_is_told_of(start: Start, bot: Bot) -> None:
    """A person moved it, or threw it away."""
    leave(start, "journal:waiting", 2)
    (bot.directory / "waiting").rename(bot.directory / "moved")
    server = start("--secret", SECRET, "--queue", "journal:moved")
    said = server.until("WARNING.*journal:waiting")
    assert said.string.endswith(
        "journal:waiting, the queue of the last server, is gone: what waited there is handled only if it is in "
        "journal:moved now"
    )
    assert server.stop() == 0
    assert bot.by_chat == {1: [1, 2]}
    server = start("--secret", SECRET, "--queue", "journal:moved")
    assert server.stop() == 0
    assert not server.find("WARNING")


def test_a_journal_that_another_server_has_is_told_of(start: Start, bot: Bot) -> None:
    leave(start, "journal:waiting", 2)
    other = start("--secret", SECRET, "--queue", "journal:waiting", "--state-dir", "there", env=HELD)
    server = start("--secret", SECRET)
    said = server.until("ERROR.*journal:waiting")
    assert "cannot be looked at, and what waits there is not handled: the journal " in said.string
    assert f"is in use by process {other.process.pid}" in said.string
    assert server.stop() == 0


def test_one_that_cannot_be_read_is_told_of(start: Start, bot: Bot) -> None:
    leave(start, "memory:", 2)
    shutil.rmtree(bot.directory / ".fasthook/spill")
    (bot.directory / ".fasthook/spill").write_text("in the way")
    server = start("--secret", SECRET)
    server.until("ERROR.*memory:, the queue of the last server, cannot be looked at, .*: .*spill: cannot be opened: ")
    assert server.stop() == 0


def test_a_journal_that_cannot_be_opened_is_told_of(start: Start, bot: Bot) -> None:
    leave(start, "journal:waiting", 1)
    (bot.directory / "waiting").rename(bot.directory / "moved")
    (bot.directory / "waiting").symlink_to("waiting")
    words = "the journal waiting cannot be opened: "
    ended = fasthook(bot.directory, "queue", "list")
    assert (ended.code, ended.line[: len(words) + 10]) == (1, f"fasthook: {words}")
    server = start("--secret", SECRET)
    server.until(f"ERROR.*journal:waiting, the queue of the last server, cannot be looked at, .*: {words}")
    assert server.stop() == 0


def test_several_bots(start: Start, bot: Bot) -> None:
    table = '[[bot]]\ntoken = "{}:TEST"\npath = "/{}"\n'
    (bot.directory / "fasthook.toml").write_text("".join(table.format(n, n) for n in (42, 43)))
    store = Store(bot.directory / ".fasthook/spill")
    store.append(pack_update(update(n)) for n in (1, 2))
    store.close()
    (bot.directory / ".fasthook/queue").write_text("memory:\n")
    assert run(bot).line.startswith("fasthook: 2 updates wait in memory:, the queue of the last server: ")


def test_polling(start: Start, bot: Bot, telegram: Telegram) -> None:
    leave(start, "memory:", 2)
    ended = run(bot, "--token", TOKEN, "--api-url", telegram.url, command="poll")
    assert ended.line.startswith("fasthook: 2 updates wait in memory:, the queue of the last server: ")


def test_a_hook_says_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a process left that did not have the state directory counts, too."""
    monkeypatch.chdir(tmp_path)

    async def handler(update: object) -> None: ...

    async def begin(queue: str) -> None:
        hook = Hook(handler, secret="secret", queue=queue)
        await hook.receiver.start()
        await hook.receiver.stop()

    asyncio.run(begin("memory:"))
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for n, name in enumerate(("spill", f"spill-{gone.pid}"), start=1):
        store = Store(tmp_path / ".fasthook" / name)
        store.append([pack_update(update(n))])
        store.close()
    with pytest.raises(QueueError, match=r"^2 updates wait in memory:, the queue of the last server: "):
        asyncio.run(begin("journal:waiting"))
    asyncio.run(begin("memory:"))
    asyncio.run(begin("journal:waiting"))
