"""`--workers`: the bot in processes of its own does what it does in one."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from e2e.bot import Bot
from e2e.process import LONG, PATIENCE, SECRET, Server, fasthook
from e2e.steady import Steady, check_once, is_alive, until, worker_pids
from e2e.telegram import Telegram
from e2e.test_main_job import check, planned
from fasthook.testing import samples

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="worker processes need Linux or macOS")
Start = Callable[..., Server]

LIFESPAN = """
import contextlib

@contextlib.asynccontextmanager
async def lifespan(app):
    os.write(record, b"begins %d\\n" % os.getpid())
    yield {"pid": os.getpid()}
    os.write(record, b"ends %d\\n" % os.getpid())

async def stateful(update):
    assert update.state["pid"] == os.getpid()
    done(update)
"""


@pytest.mark.parametrize("options", [("1", "--max-requests", "1000"), ("2",), ("4",), ("2", "--max-requests", "100")])
def test_in_order_and_exactly_once(start: Start, bot: Bot, options: tuple[str, ...]) -> None:
    """With a fifth sent twice, half of these at the same instant, and with workers that are recycled meanwhile."""
    ids, bodies, kinds = planned(3)
    server = start("--secret", SECRET, "--concurrency", "32", "--workers", *options, env={"PAUSE": "0.002"})

    async def main() -> None:
        with closing(Telegram(lambda: server.address, connections=16, again=0.2)) as telegram:
            await telegram.send(bodies)

    asyncio.run(asyncio.wait_for(main(), LONG))
    if "--max-requests" in options:
        server.until("is ready$", int(options[0]) + 1)
    assert server.stop() == 0
    check(bot, ids, kinds)
    assert not server.find("Traceback|died|ERROR")


def test_a_stop_and_a_restart(start: Start, bot: Bot) -> None:
    """What is left is kept, from all workers."""
    server = start("--secret", SECRET, "--workers", "2", "--drain-timeout", "200ms", env={"HELD": "1"})
    for update_id in range(40):
        assert server.post(samples.update(update_id, chat_id=update_id % 4)).status == 200
    asyncio.run(until(lambda: len(bot.handled) == 30))  # the drain may be too short for a worker whose turn is late
    assert server.stop() == 0
    server.until("10 updates are not handled yet: they are kept")
    assert start("--secret", SECRET, "--workers", "2").stop() == 0
    assert bot.by_chat == {chat: list(range(chat, 40, 4)) for chat in range(4)}


def test_a_second_signal_does_not_wait(start: Start, bot: Bot) -> None:
    server = start("--secret", SECRET, "--workers", "2", "--drain-timeout", "1h", env={"HELD": "1"})
    for update_id in range(4):
        assert server.post(samples.update(update_id, chat_id=update_id % 2)).status == 200
    asyncio.run(until(lambda: len(bot.handled) == 2))  # what is cut short between its end and the door is run again
    server.signal(signal.SIGINT)
    server.until("SIGINT: stopping")
    server.signal(signal.SIGINT)
    assert server.wait() == 130
    assert start("--secret", SECRET).stop() == 0
    assert bot.by_chat == {0: [0, 2], 1: [1, 3]}


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_second_signal_does_not_wait_for_a_blocked_worker(start: Start, bot: Bot, workers: str) -> None:
    """It is killed, and what waits behind it is kept, which only the door's memory has. The door's own loop is well."""
    options = ("--secret", SECRET, "--workers", workers, "--queue", "memory:", "--max-requests", "1000")
    server = start(*options, "--drain-timeout", "1h")
    for update_id in range(10):
        text = "block" if update_id == 0 else ""
        assert server.post(samples.update(update_id, chat_id=5, text=text)).status == 200
    server.signal(signal.SIGINT)
    server.until("SIGINT: stopping")
    server.signal(signal.SIGINT)
    assert server.wait() == 130
    server.until("10 updates are not handled yet: they are kept, and handled first at the next start")
    assert not server.find("a handler blocks the loop")
    assert not any(map(is_alive, worker_pids(server)))
    source = (bot.directory / "bot.py").read_text()
    (bot.directory / "bot.py").write_text(source.replace('text == "block"', "False"))
    assert start(*options).stop() == 0
    assert bot.by_chat == {5: list(range(10))}


@pytest.mark.parametrize("target", ["bot:plain", "bot:handler"])
def test_retries_and_dead_letters(start: Start, bot: Bot, target: str) -> None:
    server = start("--secret", SECRET, "--workers", "2", "--retries", "1", "--handler-timeout", "200ms", target=target)
    texts = ["hang", "after it"] if target == "bot:plain" else ["hang", "raise", "fail once", "nonsense"]
    for update_id, text in enumerate(texts):
        assert server.post(samples.update(update_id, chat_id=update_id, text=text)).status == 200
    server.until("update 0 .message. is a dead letter after [12] attempts: timeout")
    if target == "bot:handler":
        server.until("update 1 .message. is a dead letter after 2 attempts: failed")
        server.until("^ValueError: the bot is broken")
        server.until("update 3: the handler returned int, not None or a Bot API method")
        server.until("WARNING fasthook.dispatch: update 1 .message.: attempt 1 of 2 failed, .*: ValueError: the bot is")
    assert server.stop() == 0
    letters = {letter.reason: letter for letter in bot.dead}
    if target == "bot:plain":
        assert letters.keys() == {"timeout"}
        assert letters["timeout"].attempts == 1
        assert bot.by_chat == {1: [1]}
    else:
        assert letters.keys() == {"timeout", "failed"}
        assert 'bot.py", line' in letters["failed"].traceback
        assert letters["failed"].traceback.endswith("ValueError: the bot is broken\n")
        assert sorted((one.update_id, one.attempt) for one in bot.handled) == [(2, 2), (3, 1)]


def test_a_reply_survives_the_worker(start: Start, bot: Bot) -> None:
    """The request waits while another worker handles its update."""
    server = start("--secret", SECRET, "--ack", "handled", "--workers", "2", env={"PAUSE": "0.5"})
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(server.post, samples.update(1, chat_id=5, text="say hello"))
        for pid in worker_pids(server):
            os.kill(pid, signal.SIGKILL)
        assert json.loads(answer.result().body)["text"] == "hello"
    assert server.stop() == 0


def test_lifespan_runs_in_every_worker_and_not_in_the_door(start: Start, bot: Bot) -> None:
    with (bot.directory / "bot.py").open("a") as file:
        file.write(LIFESPAN)
    server = start("--secret", SECRET, "--workers", "3", target="bot:stateful")
    for update_id in range(9):
        assert server.post(samples.update(update_id, chat_id=update_id)).status == 200
    assert server.stop() == 0
    lines = [line.split() for line in (bot.directory / "handled").read_text().splitlines()]
    pids = {str(pid) for pid in worker_pids(server)}
    assert len(pids) == 3
    for word in ("begins", "ends"):
        assert {line[1] for line in lines if line[0] == word} == pids
    assert len([line for line in lines if len(line) == 4]) == 9


def test_sigterm_to_a_worker_replaces_it_in_order(start: Start, bot: Bot) -> None:
    server = start("--secret", SECRET, "--workers", "2", env={"PAUSE": "0.002"})

    async def main() -> None:
        steady = Steady(server)

        async def terms() -> None:
            for n in range(3):
                os.kill(worker_pids(server)[n], signal.SIGTERM)
                await until(lambda n=n: len(worker_pids(server)) == 3 + n)  # type: ignore[misc]
                await steady.until_acknowledged(50)

        await steady.during(terms)
        assert await asyncio.to_thread(server.stop) == 0
        check_once(bot, steady)

    asyncio.run(asyncio.wait_for(main(), PATIENCE))
    assert not server.find("died|ERROR")


FINISHES = """
async def finishes(update):
    os.write(record, b"begun %d\\n" % update.update_id)
    while not os.path.exists("go"):
        await asyncio.sleep(0.01)
    os.write(record, b"over %d\\n" % update.update_id)
"""


class Waiting(Server):
    """`fasthook run` that waits with its start."""

    banner = "()()()()workers of a server that died still have updates in hand"


def test_the_next_server_waits_for_the_workers_of_one_that_died(start: Start, bot: Bot) -> None:
    """Else a chat would be handled twice at the same time."""
    with (bot.directory / "bot.py").open("a") as file:
        file.write(FINISHES)
    record = bot.directory / "handled"
    options = ["--secret", SECRET, "--workers", "2"]
    server = start(*options, target="bot:finishes")
    for update_id in (1, 2, 3):
        assert server.post(samples.update(update_id, chat_id=1)).status == 200
    asyncio.run(until(lambda: record.read_text() == "begun 1\n"))
    server.process.kill()
    server.process.wait()
    server = Waiting(bot.directory, "bot:finishes", "--port", "0", *options)
    try:
        assert record.read_text() == "begun 1\n"
        (bot.directory / "go").touch()
        server.until("fasthook serves")
        assert server.stop() == 0
    finally:
        server.kill()
    ids = [int(line.split()[1]) for line in record.read_text().splitlines()]
    assert ids in ([1, 1, 1, 1, 2, 2, 3, 3], [1, 1, 2, 2, 3, 3])
    assert record.read_text().split()[::2] == ["begun", "over"] * (len(ids) // 2)


@pytest.mark.parametrize("queue", ["memory:", "journal:waiting"])
def test_the_door_dies_and_its_workers_leave(start: Start, bot: Bot, queue: str) -> None:
    """They finish what they have in hand; one that never ends doesn't hold its process."""
    server = start("--secret", SECRET, "--workers", "2", "--queue", queue, env={"PAUSE": "0.3"})
    for update_id in (1, 2):
        assert server.post(samples.update(update_id, chat_id=update_id)).status == 200
    pids = worker_pids(server)
    server.process.kill()
    assert server.wait() == -signal.SIGKILL
    asyncio.run(until(lambda: not any(map(is_alive, pids))))
    if queue == "memory:":
        assert {one.update_id for one in bot.handled} <= {1, 2}
    else:
        assert start("--secret", SECRET, "--workers", "2", "--queue", queue).stop() == 0
        assert {one.update_id for one in bot.handled} == {1, 2}


# ---------------------------------------------------------------- bots that do not start

MEND = "mend what the bot does at its start or in threads of its own; the log above has more"


def said_once(bot: Bot, *options: str, target: str = "bot:handler") -> tuple[int, str, str]:
    """The exit code, the line and all of standard error."""
    ended = fasthook(bot.directory, "run", target, "--port", "0", "--workers", "3", *options)
    return ended.code, ended.line, "\n".join(ended.lines)


def test_a_bot_that_fails_to_import_is_reported_once(bot: Bot) -> None:
    (bot.directory / "bot.py").write_text("def broken():\n    return 1 / 0\n\n\nbroken()\n")
    code, line, said = said_once(bot)
    assert code == 2
    assert line == "fasthook: bot:handler: the module 'bot' fails to import: ZeroDivisionError: division by zero"
    assert said.count("Traceback") == 1
    assert 'bot.py", line 2, in broken' in said
    assert "worker.py" not in said
    assert "importlib" not in said
    assert "serves" not in said


def test_a_lifespan_that_fails_is_reported_once(bot: Bot) -> None:
    with (bot.directory / "bot.py").open("a") as file:
        file.write("\n\nasync def lifespan(app):\n    yield\n")
    code, line, said = said_once(bot)
    assert code == 1
    assert line.startswith("fasthook: the bot does not start: TypeError: ")
    assert said.count("Traceback") == 1


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("bot:nothing", "the module 'bot' has no attribute 'nothing'"),
        ("none:handler", "there is no module 'none' here or on the Python path"),
        ("bot:TEXT", "a str is not a handler: it cannot be called with an update"),
    ],
)
def test_a_target_that_is_none(bot: Bot, target: str, words: str) -> None:
    code, line, said = said_once(bot, target=target)
    assert (code, line) == (2, f"fasthook: {target}: {words}")
    assert "Traceback" not in said


BAD = {
    "fails to import": ("1 / 0", "handler"),
    "imports what is not there": ("import not_installed_here", "handler"),
    "is no Python": ("def (", "handler"),
    "exits at its import": ("raise SystemExit(5)", "handler"),
    "has no handler": ("", "nothing"),
    "has no handler by this name": ("", "TEXT"),
    "does not begin": ("async def lifespan(app):\n    yield", "handler"),
    "exits when it begins": ("async def lifespan(app):\n    raise SystemExit(5)", "handler"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bot_that_does_not_start_ends_as_with_one_process(bot: Bot, what: str) -> None:
    """With the same exit code."""
    more, name = BAD[what]
    with (bot.directory / "bot.py").open("a") as file:
        file.write(f"\n\n{more}\n")
    alone = fasthook(bot.directory, "run", f"bot:{name}", "--port", "0")
    ended = fasthook(bot.directory, "run", f"bot:{name}", "--port", "0", "--workers", "2")
    assert ended.code == alone.code


@pytest.mark.parametrize("workers", ["1", "2"])
def test_what_a_bot_prints_is_standard_output(bot: Bot, workers: str) -> None:
    """Whatever process it is in."""
    (bot.directory / "bot.py").write_text("print('hello')\n\nraise SystemExit(5)\n")
    ended = fasthook(bot.directory, "run", "bot:handler", "--port", "0", "--workers", workers)
    assert set(ended.output.splitlines()) == {"hello"}
    assert "hello" not in ended.lines


def test_workers_that_die_before_they_are_ready_stop_the_server(bot: Bot) -> None:
    (bot.directory / "bot.py").write_text("import os\n\nos._exit(7)\n")
    code, line, said = said_once(bot)
    assert (code, line) == (1, f"fasthook: 5 workers in a row died at once (the last: exit code 7): {MEND}")
    assert "serves" not in said


def test_the_reason_is_json_where_the_log_is(bot: Bot) -> None:
    """One object a line, to the last."""
    (bot.directory / "bot.py").write_text("import os\n\nos._exit(7)\n")
    ended = fasthook(bot.directory, "run", "bot:handler", "--port", "0", "--workers", "3", "--log-format", "json")
    last = [json.loads(line) for line in ended.lines][-1]
    assert (ended.code, last["level"]) == (1, "error")
    assert last["message"] == f"5 workers in a row died at once (the last: exit code 7): {MEND}"
    (bot.directory / "bot.py").write_text("1 / 0\n")
    ended = fasthook(bot.directory, "run", "bot:handler", "--port", "0", "--log-format", "json")
    [last] = [json.loads(line) for line in ended.lines]
    assert last["message"] == "bot:handler: the module 'bot' fails to import: ZeroDivisionError: division by zero"
    assert last["traceback"].endswith("ZeroDivisionError: division by zero\n")


ENDS = """
import contextlib

@contextlib.asynccontextmanager
async def lifespan(app):
    def look():
        if os.path.exists("end"):
            os.kill(os.getpid(), 11)
        loop.call_later(0.1, look)

    if os.path.exists("end at start"):
        os.kill(os.getpid(), 11)
    loop = asyncio.get_running_loop()
    loop.call_later(0.1, look)
    yield
"""


def test_workers_that_die_at_once_stop_the_server(start: Start, bot: Bot) -> None:
    """When they are ready, by themselves."""
    with (bot.directory / "bot.py").open("a") as file:
        file.write(ENDS)
    server = start("--secret", SECRET, "--workers", "2", env={"HELD": "5"})
    assert server.post(samples.update(1, chat_id=5)).status == 200
    (bot.directory / "end").touch()
    assert server.wait() == 1
    server.until(f"^fasthook: 5 workers in a row died at once .the last: SIGSEGV.: {MEND}$")
    (bot.directory / "end").unlink()
    assert start("--secret", SECRET).stop() == 0
    assert len(bot.handled) + len(bot.dead) == 1


@pytest.mark.parametrize("queue", ["memory:", "journal:waiting"])
def test_workers_that_do_not_start_any_more_stop_the_server(start: Start, bot: Bot, queue: str) -> None:
    """And what was accepted is kept."""
    with (bot.directory / "bot.py").open("a") as file:
        file.write(ENDS)
    server = start("--secret", SECRET, "--workers", "2", "--queue", queue, env={"HELD": "5"})
    for update_id in range(20):
        assert server.post(samples.update(update_id, chat_id=5)).status == 200
    (bot.directory / "end at start").touch()
    for pid in worker_pids(server):
        os.kill(pid, signal.SIGKILL)
    assert server.wait() == 1
    server.until(f"^fasthook: 5 workers in a row died at once .the last: SIGSEGV.: {MEND}$")
    server.until("20 updates are not handled yet: they are kept")
    (bot.directory / "end at start").unlink()
    assert start("--secret", SECRET, "--queue", queue).stop() == 0
    assert bot.by_chat == {5: list(range(20))}
    assert not bot.dead


def test_the_tools_see_what_workers_have_in_hand(start: Start, bot: Bot) -> None:
    server = start(
        "--secret", SECRET, "--workers", "2", "--queue", "memory:", "--concurrency", "1", "--drain-timeout", "0",
        env={"HELD": "1"},
    )  # fmt: skip
    for update_id in range(1, 41):
        assert (
            server.post(samples.update(update_id, chat_id=1 if update_id < 3 else update_id, text="hang")).status == 200
        )
    listed = json.loads(fasthook(bot.directory, "queue", "stats", "--json").output)
    assert (listed["depth"], listed["in_flight"]) == (40, 4)  # a window of two for each
    ended = fasthook(bot.directory, "queue", "purge", "--yes", "--kind", "message")
    assert ended.code == 0, ended.lines
    listed = json.loads(fasthook(bot.directory, "queue", "stats", "--json").output)
    assert (listed["depth"], listed["in_flight"]) == (4, 4)
    assert server.stop() == 0
    server.until("4 updates are not handled yet: they are kept")


def test_what_workers_log_is_as_it_was_asked_for(start: Start, bot: Bot) -> None:
    """In JSON, and without the token."""
    token = "42:TEST_never_in_a_log"
    (bot.directory / "bot.py").write_text(
        "import logging\n\nasync def handler(update):\n"
        f"    logging.getLogger('bot').warning('it is {token}')\n    raise ValueError('{token}')\n"
    )
    server = start("--secret", SECRET, "--token", token, "--workers", "2", "--retries", "0", "--log-format", "json")
    assert server.post(samples.update(1)).status == 200
    server.until("is a dead letter")
    assert server.stop() == 0
    assert json.loads(server.until('"logger":"bot"').string)["message"] == "it is ***"
    assert not server.find(token)


# ---------------------------------------------------------------- bots that do not end

LEAVING = """
import contextlib
import os

@contextlib.asynccontextmanager
async def lifespan(app):
    yield
    {end}
"""


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_lifespan_that_fails_at_its_end(start: Start, bot: Bot, workers: str, log_format: str) -> None:
    """What it raises is in the log, without the token; all that was handled is told of."""
    token = "42:TEST_never_in_a_log"
    with (bot.directory / "bot.py").open("a") as file:
        file.write(LEAVING.format(end='raise ValueError("/bot" + os.environ["TOKEN"] + "/close fails")'))
    server = start(
        "--secret", SECRET, "--token", token, "--workers", workers, "--log-format", log_format, env={"TOKEN": token}
    )
    assert server.post(samples.update(1)).status == 200
    assert server.stop() == 1
    said = server.find("the bot does not end in order")
    assert len(said) == int(workers)
    if log_format == "json":
        assert json.loads(said[0].string)["traceback"].endswith("ValueError: /bot***/close fails")
    assert len(server.find(r"ValueError: /bot\*\*\*/close fails")) == int(workers)
    assert not server.find(token)
    assert not server.find("runpy|asyncio|kept")
    assert [one.update_id for one in bot.handled] == [1]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_lifespan_that_exits_at_its_end(start: Start, bot: Bot, workers: str) -> None:
    with (bot.directory / "bot.py").open("a") as file:
        file.write(LEAVING.format(end='raise SystemExit("enough")'))
    server = start("--secret", SECRET, "--workers", workers)
    assert server.stop() == 1
    assert len(server.find("the bot does not end in order: it calls sys.exit.'enough'.$")) == int(workers)
    assert not server.find("Traceback")


@pytest.mark.parametrize(("code", "words"), [("3", "3"), ("'no database'", "'no database'"), ("", "None")])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_lifespan_that_exits_at_the_start(bot: Bot, workers: str, code: str, words: str) -> None:
    with (bot.directory / "bot.py").open("a") as file:
        file.write(LEAVING.format(end="pass").replace("    yield", f"    __import__('sys').exit({code})\n    yield"))
    ended = fasthook(bot.directory, "run", "bot:handler", "--port", "0", "--workers", workers)
    [line] = [line for line in ended.lines if "the bot does not start" in line]
    assert line.endswith(f"the bot does not start: its lifespan calls sys.exit({words})")
    assert ended.code == 1
    assert not any("Traceback" in line or "died" in line for line in ended.lines)


@pytest.mark.parametrize("where", ["handler", "asleep", "start", "end"])
def test_the_door_dies_and_a_worker_is_blocked(start: Start, bot: Bot, where: str) -> None:
    """It gets the time that others have to finish what they do, and no more."""
    ends = "open(f'hangs-{os.getpid()}', 'w').close()\n    __import__('time').sleep(3600)"
    with (bot.directory / "bot.py").open("a") as file:
        file.write(LEAVING.format(end=ends if where == "end" else "pass"))
        file.write("async def asleep(update):\n    " + ends + "\n")
        if where == "start":
            file.write("if os.path.exists('hang'):\n    " + ends + "\n")
    server = start("--secret", SECRET, "--workers", "2", target="bot:asleep" if where == "asleep" else "bot:handler")
    pids = worker_pids(server)
    if where in ("handler", "asleep"):
        assert server.post(samples.update(1, text="block")).status == 200
    if where == "asleep":
        asyncio.run(until(lambda: list(bot.directory.glob("hangs-*"))))
    elif where == "start":
        (bot.directory / "hang").touch()
        server.signal(signal.SIGHUP)
        asyncio.run(until(lambda: len(list(bot.directory.glob("hangs-*"))) == 2))
        pids += [int(path.name.partition("-")[2]) for path in bot.directory.glob("hangs-*")]
    server.process.kill()
    asyncio.run(until(lambda: not any(map(is_alive, pids))))
    assert server.wait() == -signal.SIGKILL
