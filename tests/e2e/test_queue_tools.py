"""`fasthook queue`: through a server that runs, and on its files when it doesn't."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from e2e.bot import Bot
from e2e.process import COMMAND, PATIENCE, SECRET, Server, environment, fasthook, killed_in_the_end
from e2e.tools import ids, number_of, refused, rows, say, tool, until
from fasthook.queues.store import Store, pack_update
from fasthook.testing import samples
from updates import update

Start = Callable[..., Server]
HELD = {"HELD": "1"}  # the chat whose handlers never end
OFTEN = ("--retries", "10")  # so that what fails waits for its next try, and is no dead letter, for minutes


@pytest.fixture(params=["memory:", "journal:waiting"])
def queue(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def serve(start: Start, queue: str, *options: str, held: bool = False) -> Server:
    more = HELD if held else {}
    return start("--secret", SECRET, "--queue", queue, "--drain-timeout", "0", *options, env=more)


# ---------------------------------------------------------------- looking


@pytest.mark.parametrize("workers", ["1", "2"])
def test_what_waits_and_what_is_in_hand(start: Start, bot: Bot, queue: str, workers: str) -> None:
    server = serve(start, queue, "--workers", workers, *OFTEN, held=True)
    say(server, 1)
    say(server, 2, kind="edited_message")
    say(server, 3, "raise", chat=5)
    server.until("update 3 .message.: attempt 3 of 11 failed")  # it is not in hand again for some seconds
    found = rows(bot, "queue", "list")
    assert [(row["update_id"], row["kind"], row["chat_id"], row["state"]) for row in found] == [
        (1, "message", 1, "in hand"),
        (2, "edited_message", 1, "waiting"),
        (3, "message", 5, "waiting"),
    ]
    assert found[2]["attempt"] > 1
    assert found[0]["bytes"] == len(samples.update(1, chat_id=1, text=""))
    stats = json.loads(tool(bot, "queue", "stats", "--json").output)
    assert (stats["depth"], stats["in_flight"], stats["pid"]) == (3, 1, server.process.pid)
    assert stats["by_kind"] == {"message": 2, "edited_message": 1}
    assert stats["by_bot"] == {"0": 3}
    assert (stats["queue"], stats["trouble"]) == (queue, None)
    assert 0 <= stats["oldest_age"] < PATIENCE
    assert server.stop() == 0
    # the queue of the last server is known, so that it needs no --queue
    assert [(row["update_id"], row["state"]) for row in rows(bot, "queue", "list")] == [
        (1, "waiting"),
        (2, "waiting"),
        (3, "waiting"),
    ]
    stats = json.loads(tool(bot, "queue", "stats", "--json").output)
    assert (stats["depth"], stats["in_flight"], stats["pid"]) == (3, 0, None)
    assert stats["bytes"] > 0


@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
def test_filters(start: Start, bot: Bot, queue: str, running: bool) -> None:
    server = serve(start, queue, "--concurrency", "1", "--token", "42:TEST", held=True)
    for update_id, chat, kind in [(1, 1, "message"), (2, 1, "poll_answer"), (3, 7, "message"), (4, -7, "channel_post")]:
        say(server, update_id, chat=chat, kind=kind)
    if not running:
        assert server.stop() == 0

    def found(*filters: str) -> list[int | None]:
        return ids(bot, "queue", "list", *filters)

    assert found() == [1, 2, 3, 4]
    assert found("--chat", "7") == [3]
    assert found("--chat", "-7") == [4]
    assert found("--chat", "1", "--chat", "7") == [1, 3]
    assert found("--kind", "message", "--chat", "1") == [1]
    assert found("--kind", "poll_answer") == [2]
    assert found("--bot", "42") == [1, 2, 3, 4]
    assert found("--bot", "43") == []
    assert found("--older-than", "1h") == []
    assert found("--newer-than", "1h") == [1, 2, 3, 4]
    assert found("--older-than", "0s", "--limit", "2") == [1, 2]
    ended = fasthook(bot.directory, "queue", "list", "--limit", "3")
    assert (len(ended.output.splitlines()), ended.lines) == (4, ("there are more: --limit 0 lists all",))
    assert tool(bot, "queue", "list", "--bot", "43").output == "no update waits that this means\n"


@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
def test_one_update_whole(start: Start, bot: Bot, queue: str, running: bool) -> None:
    server = serve(start, queue, held=True)
    say(server, 1, "first")
    say(server, 2, "sécond")
    if not running:
        assert server.stop() == 0
    number = number_of(bot, 2, "queue", "list")
    found = json.loads(tool(bot, "queue", "show", number, "--json").output)
    assert found["update"] == json.loads(samples.update(2, chat_id=1, text="sécond"))
    shown = tool(bot, "queue", "show", number).output
    assert '"text": "sécond"' in shown
    assert "state     waiting" in shown
    assert refused(bot, "queue", "show", "99") == "fasthook: there is no update with the number 99 in the queue"


def test_nothing_to_see(start: Start, bot: Bot, queue: str) -> None:
    server = serve(start, queue)
    for running in (True, False):
        if not running:
            assert server.stop() == 0
        assert tool(bot, "queue", "list").output == "no update waits\n"
        assert tool(bot, "queue", "list", "--handled").output == "no handled update is kept\n"
        assert tool(bot, "queue", "list", "--json").output == ""
        assert tool(bot, "queue", "purge", "--all").output == "no update waits that this means\n"
        assert json.loads(tool(bot, "queue", "stats", "--json").output)["oldest_age"] is None


def test_nothing_in_an_update_reaches_the_terminal(start: Start, bot: Bot, queue: str) -> None:
    server = serve(start, queue, held=True)
    say(server, 1, "\x1b[31m\x07\x9b2J\u202e[bold red]not[/] \x7f\ud83d\ude00")
    number = number_of(bot, 1, "queue", "list")
    for running in (True, False):
        if not running:
            assert server.stop() == 0
            number = number_of(bot, 1, "queue", "list")
        shown = tool(bot, "queue", "show", number).output
        assert shown.replace("\n", "").isprintable()
        assert r"\u001b[31m\u0007\u009b2J\u202e[bold red]not[/] \u007f" in shown
        assert "\N{GRINNING FACE}" in shown
        assert tool(bot, "queue", "show", number, "--json").output.rstrip("\n").isprintable()


# ---------------------------------------------------------------- purge


@pytest.mark.parametrize(
    ("running", "workers"), [(True, "1"), (True, "2"), (False, "1")], ids=["running", "workers", "stopped"]
)
def test_what_is_purged_is_never_handled(start: Start, bot: Bot, queue: str, running: bool, workers: str) -> None:
    server = serve(start, queue, "--workers", workers, *OFTEN, held=True)
    for update_id in (1, 2, 3, 4):
        say(server, update_id)
    say(server, 5, "raise", chat=5)
    server.until("update 5 .message.: attempt 3 of 11 failed")  # it is not in hand again for some seconds
    if not running:
        assert server.stop() == 0
    number = number_of(bot, 3, "queue", "list")
    left = "; 1 in hand left" if running else ""
    assert tool(bot, "queue", "purge", number, "--yes").output == "1 update thrown away\n"
    assert ids(bot, "queue", "list") == [1, 2, 4, 5]
    assert tool(bot, "queue", "purge", "--chat", "5", "--yes").output == "1 update thrown away\n"
    assert ids(bot, "queue", "list") == [1, 2, 4]
    if running:
        assert tool(bot, "queue", "purge", "--all", "--yes").output == f"2 updates thrown away{left}\n"
        assert ids(bot, "queue", "list") == [1]
        assert server.stop() == 0
    server = serve(start, queue)
    if running or queue != "memory:":
        for update_id in (2, 3):  # their ids stay known
            say(server, update_id)
    say(server, 9, chat=9)
    assert server.stop() == 0
    assert serve(start, queue).stop() == 0
    assert bot.by_chat == ({1: [1], 9: [9]} if running else {1: [1, 2, 4], 9: [9]})


def test_a_purge_takes_what_waits_on_disk_only(start: Start, bot: Bot) -> None:
    server = serve(start, "journal:waiting", "--queue-size", "3", "--keep-handled", "1d", held=True)
    for update_id in range(1, 41):
        say(server, update_id, kind="message" if update_id % 2 else "edited_message")
    assert len(ids(bot, "queue", "list")) == 40
    assert tool(bot, "queue", "purge", "--kind", "message", "--yes").output == (
        "19 updates thrown away; 1 in hand left\n"
    )
    assert ids(bot, "queue", "list") == [1, *range(2, 41, 2)]
    assert ids(bot, "queue", "list", "--handled") == []  # they were not
    assert server.stop() == 0
    server = serve(start, "journal:waiting", "--queue-size", "3")
    until(lambda: not ids(bot, "queue", "list"))
    assert server.stop() == 0
    assert bot.by_chat[1] == [1, *range(2, 41, 2)]


# ---------------------------------------------------------------- replay


@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
def test_what_was_handled_can_be_handled_again(start: Start, bot: Bot, running: bool) -> None:
    options = ["--keep-handled", "1d"]
    server = serve(start, "journal:waiting", *options)
    for update_id in (1, 2, 3):
        say(server, update_id, chat=update_id)
    until(lambda: len(rows(bot, "queue", "list", "--handled")) == 3)
    if not running:
        assert server.stop() == 0
    kept = rows(bot, "queue", "list", "--handled")
    assert [(row["update_id"], row["state"]) for row in kept] == [(1, "handled"), (2, "handled"), (3, "handled")]
    number = number_of(bot, 2, "queue", "list", "--handled")
    assert tool(bot, "queue", "show", number).output.startswith("number")
    words = refused(bot, "queue", "replay", number, "99")
    assert words == "fasthook: there is no handled update that is kept with the number 99; nothing was done"
    assert tool(bot, "queue", "replay", number).output == "1 update will be handled again\n"
    assert tool(bot, "queue", "replay", "--chat", "1", "--chat", "3").output == "2 updates will be handled again\n"
    if not running:
        assert ids(bot, "queue", "list") == [2, 1, 3]
        server = serve(start, "journal:waiting", *options)
    until(lambda: len(bot.handled) == 6)
    assert server.stop() == 0
    assert bot.by_chat == {1: [1, 1], 2: [2, 2], 3: [3, 3]}


@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
def test_the_id_of_what_is_purged_is_known(start: Start, bot: Bot, queue: str, running: bool) -> None:
    """Telegram may send it once more: it isn't handled then either."""
    server = serve(start, queue, held=True)
    for update_id in (1, 2):
        say(server, update_id)
    if not running:
        assert server.stop() == 0
    number = number_of(bot, 2, "queue", "list")
    tool(bot, "queue", "purge", number, "--yes")
    assert ids(bot, "queue", "list") == [1]
    if running:
        assert server.stop() == 0
    server = serve(start, queue)
    say(server, 2)
    say(server, 3)
    until(lambda: len(bot.handled) >= 2)
    assert server.stop() == 0
    assert bot.by_chat == {1: [1, 3]}


def test_nothing_handled_is_kept(start: Start, bot: Bot, queue: str) -> None:
    server = serve(start, queue)
    say(server, 1)
    for running in (True, False):
        if not running:
            assert server.stop() == 0
        assert tool(bot, "queue", "replay", "--all").output == "no handled update is kept that this means\n"
        assert "no handled update that is kept with the number 1;" in refused(bot, "queue", "replay", "1")


# ---------------------------------------------------------------- who is asked, and what


def answered(bot: Bot, answer: str, *arguments: str) -> tuple[int, str]:
    """A command whose standard input is a terminal on which somebody says this: the exit code, and what it printed."""
    ours, theirs = pty.openpty()
    os.write(ours, f"{answer}\n".encode())
    done = subprocess.run(
        [str(COMMAND), *arguments], cwd=bot.directory, env=environment(), stdin=theirs, capture_output=True,
        text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    os.close(theirs)
    os.close(ours)
    return done.returncode, done.stdout


def test_it_asks_on_a_terminal(start: Start, bot: Bot, queue: str) -> None:
    server = serve(start, queue, held=True)
    for update_id in (1, 2, 3):
        say(server, update_id)
    assert answered(bot, "n", "queue", "purge", "--all") == (1, "")
    assert ids(bot, "queue", "list") == [1, 2, 3]
    assert answered(bot, "y", "queue", "purge", "--all") == (0, "2 updates thrown away; 1 in hand left\n")
    assert ids(bot, "queue", "list") == [1]
    assert server.stop() == 0
    words = refused(bot, "queue", "purge", "--all", code=2)
    assert words == "fasthook: Throw away 1 update? There is no terminal to ask on: give --yes"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["queue", "show", "0"], "fasthook queue show: invalid value for 'NUMBER': 0 is not in the range"),
        (["queue", "show", "x"], "fasthook queue show: invalid value for 'NUMBER': 'x' is not a valid integer range"),
        (["queue", "show"], "fasthook queue show: missing argument 'NUMBER'"),
        (["queue", "dance"], "fasthook queue: no such command 'dance'"),
        (["queue", "list", "--kind", "massage"], "fasthook queue list: invalid value for '--kind': 'massage'"),
        (["queue", "list", "--older-than", "soon"], "fasthook queue list: invalid value for '--older-than': must be a"),
        (["queue", "list", "--limit"], "fasthook queue list: option '--limit' requires an argument"),
        (["queue", "list", "--reason", "failed"], "fasthook queue list: no such option --reason"),
        (["queue", "purge"], "fasthook queue purge: say what to purge: NUMBERs, filters or --all"),
        (["queue", "purge", "1", "--chat", "1"], "fasthook queue purge: give numbers or filters, not both"),
        (["queue", "purge", "1", "--all"], "fasthook queue purge: give --all, or numbers or filters"),
        (["queue", "replay"], "fasthook queue replay: say what to replay: NUMBERs, filters or --all"),
        (["dead", "retry", "--all", "--chat", "1"], "fasthook dead retry: give --all, or numbers or filters"),
        (["dead", "drop", "1", "--reason", "failed"], "fasthook dead drop: give numbers or filters, not both"),
        (
            ["dead", "list", "--reason", "nonsense"],
            "fasthook dead list: invalid value for '--reason': 'nonsense' is none of failed, timeout, invalid, reply "
            "failed, expired, crashed the worker, unreadable",
        ),
        (
            ["dead", "retry", "--reason", "reply_failed"],
            "fasthook dead retry: invalid value for '--reason': 'reply_failed' is no reason; did you mean reply failed",
        ),
        (["queue", "stats", "--queue", "disk:"], "fasthook: --queue: must be memory: or journal:DIRECTORY"),
        (["queue", "stats", "--config", "none.toml"], "fasthook: none.toml: no such file"),
    ],
)  # fmt: skip
def test_a_command_line_that_means_nothing(bot: Bot, arguments: list[str], words: str) -> None:
    assert refused(bot, *arguments, code=2).startswith(words)


def test_a_state_directory_that_is_not_there(bot: Bot) -> None:
    words = "fasthook: there is no state directory .fasthook: go to where the bot runs, or set --state-dir"
    assert refused(bot, "queue", "list") == words
    assert refused(bot, "dead", "list") == words
    assert not (bot.directory / ".fasthook").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read all")
def test_a_state_directory_of_somebody_else(bot: Bot) -> None:
    (bot.directory / ".fasthook").mkdir(mode=0)
    try:
        assert "Permission denied" in refused(bot, "queue", "list")
    finally:
        (bot.directory / ".fasthook").chmod(0o700)


def test_a_server_without_its_socket(start: Start, bot: Bot) -> None:
    server = start("--secret", SECRET)
    (bot.directory / ".fasthook" / "control").unlink()
    words = f"fasthook: process {server.process.pid} has the state directory .fasthook and no control socket that answ"
    assert refused(bot, "queue", "list").startswith(words)
    assert refused(bot, "dead", "list").startswith(words)
    assert server.stop() == 0


def test_a_journal_that_another_server_has(start: Start, bot: Bot) -> None:
    start("--secret", SECRET, "--queue", "journal:waiting", "--state-dir", "here")
    (bot.directory / "there").mkdir()
    words = refused(bot, "queue", "list", "--queue", "journal:waiting", "--state-dir", "there")
    assert words.startswith("fasthook: the journal waiting is in use by process ")


@pytest.mark.parametrize("copied", [True, False], ids=["copied", "moved"])
@pytest.mark.parametrize("queue", ["journal:.fasthook/journal", "journal:waiting", "journal:../bot/deep/waiting"])
def test_a_bot_in_another_place(tmp_path: Path, queue: str, copied: bool) -> None:
    """The tools act on what lies there, not on what lies, or lay, where it was."""
    for name in ("bot", "new"):
        (tmp_path / name).mkdir()
    old, new = Bot(tmp_path / "bot"), Bot(tmp_path / "new")
    options = ("bot:handler", "--port", "0", "--secret", SECRET, "--queue", queue, "--retries", "0")
    server = Server(old.directory, *options)
    try:
        say(server, 1, "raise")
        server.until("update 1 .message. is a dead letter")
        assert server.stop() == 0
    finally:
        server.kill()
    shutil.rmtree(new.directory)
    if copied:
        shutil.copytree(old.directory, new.directory)
    else:
        old.directory.rename(new.directory)
    assert tool(new, "dead", "retry", "--all").output == "1 update will be handled at the next start\n"
    assert ids(new, "queue", "list") == [1]
    if copied:
        assert ids(old, "queue", "list") == []
    else:
        assert not old.directory.exists()


def test_a_journal_that_is_gone_is_not_made(start: Start, bot: Bot, tmp_path: Path) -> None:
    far = tmp_path / "far"
    server = serve(start, f"journal:{far}", "--state-dir", "deep/state", "--retries", "0")
    assert server.post(samples.update(1, chat_id=1, text="raise")).status == 200
    server.until("update 1 .message. is a dead letter")
    assert server.stop() == 0
    far.rename(tmp_path / "farther")
    words = f"fasthook: the last server's journal {far} is gone: set --queue to where it is now"
    for command in (["queue", "stats"], ["queue", "list"], ["dead", "retry", "--all"]):
        assert refused(bot, *command, "--state-dir", "deep/state") == words
    assert not far.exists()
    assert ids(bot, "dead", "list", "--state-dir", "deep/state") == [1]


def test_a_server_that_was_killed_leaves_a_socket_that_nobody_minds(start: Start, bot: Bot, queue: str) -> None:
    server = serve(start, queue, held=True)
    say(server, 1)
    server.kill()
    assert (bot.directory / ".fasthook" / "control").is_socket()
    assert ids(bot, "queue", "list") == ([1] if queue != "memory:" else [])
    server = serve(start, queue)
    assert json.loads(tool(bot, "queue", "stats", "--json").output)["pid"] == server.process.pid
    assert server.stop() == 0
    assert not (bot.directory / ".fasthook" / "control").exists()


def test_a_closed_pipe_is_no_error(bot: Bot) -> None:
    state = bot.directory / ".fasthook"
    store = Store(state / "spill")
    store.append(pack_update(update(n)) for n in range(3000))
    store.close()
    for extra in (["--json"], ["--limit", "0"]):
        listing = subprocess.Popen(
            [str(COMMAND), "queue", "list", "--queue", "memory:", *extra], cwd=bot.directory, env=environment(),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        with listing, killed_in_the_end(listing):
            assert listing.stdout is not None
            assert listing.stdout.readline()
            listing.stdout.close()
            assert listing.stderr is not None
            assert listing.stderr.read() == b""
            listing.wait(PATIENCE)


def test_a_deep_directory(start: Start, bot: Bot) -> None:
    """A socket's address has room for about a hundred bytes; a path has more."""
    deep = str(Path("d" * 100, "e" * 100))
    server = start("--secret", SECRET, "--state-dir", deep, env=HELD)
    say(server, 1)
    assert ids(bot, "queue", "list", "--state-dir", deep) == [1]
    assert json.loads(tool(bot, "queue", "stats", "--json", "--state-dir", deep).output)["pid"] == server.process.pid
