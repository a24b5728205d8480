"""Workers that are killed, crash or hang under load: nothing that was acknowledged is lost, and order is kept."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from e2e.bot import Bot
from e2e.process import PATIENCE, SECRET, Server
from e2e.steady import Steady, check_order, is_alive, kill_one, until, worker_pids
from fasthook.frames import Kind, frame, pack
from fasthook.testing import samples

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="worker processes need Linux or macOS")
Start = Callable[..., Server]

#: For how long workers are killed; `make kill` has the minute of it that is too long for each run.
SECONDS = float(os.environ.get("TEST_SECONDS", "4"))
STACK = r'File ".*/bot.py", line \d+ in handler'


#: One worker that is a process of its own: `--max-requests` makes it one.
ONE = ("1", "--max-requests", "1000000")


@pytest.mark.parametrize("ack", ["queued", "handled"])
@pytest.mark.parametrize(
    ("queue", "workers"), [("memory:", ONE), ("memory:", ("2",)), ("memory:", ("4",)), ("journal:waiting", ("2",))]
)
def test_kill_9_of_a_worker_every_second(
    start: Start, bot: Bot, queue: str, workers: tuple[str, ...], ack: str
) -> None:
    """No request fails meanwhile, and no update becomes a dead letter."""
    options = ("--queue", queue, "--ack", ack, "--workers", *workers)
    server = start("--secret", SECRET, *options, env={"PAUSE": "0.005"})
    kills = 0

    async def main() -> None:
        steady = Steady(server, chats=20)

        async def killing() -> None:
            nonlocal kills
            end = time.monotonic() + SECONDS
            while time.monotonic() < end:
                await asyncio.sleep(1.0)  # between kills, as `make kill` says
                ready = len(worker_pids(server))
                kills += kill_one(server)
            # One that is killed as the stop begins has not left in order, and the exit code says so.
            await until(lambda: len(worker_pids(server)) > ready)

        await steady.during(killing)
        assert await asyncio.to_thread(server.stop) == 0
        check_order(bot, steady)

    asyncio.run(asyncio.wait_for(main(), SECONDS + PATIENCE))
    assert len(server.find(r"died: SIGKILL .*; it had ")) >= min(kills, 3)
    assert not bot.dead
    assert not server.find("Traceback")


def test_kill_9_of_door_and_workers_with_a_journal(start: Start, bot: Bot) -> None:
    options = ["--secret", SECRET, "--workers", "2", "--queue", "journal:waiting"]

    async def main() -> None:
        steady = Steady(start(*options, env={"PAUSE": "0.002"}))

        async def killing() -> None:
            end = time.monotonic() + SECONDS
            while time.monotonic() < end:
                await steady.until_acknowledged(50)
                kill_one(steady.server)
                await steady.until_acknowledged(50)
                steady.up.clear()
                await asyncio.to_thread(steady.server.kill)
                steady.server = await asyncio.to_thread(start, *options, env={"PAUSE": "0.002"})
                steady.up.set()

        await steady.during(killing)
        steady.failures.clear()  # of connections to a door that was killed
        assert await asyncio.to_thread(steady.server.stop) == 0
        check_order(bot, steady)

    asyncio.run(asyncio.wait_for(main(), SECONDS + PATIENCE))
    assert not bot.dead


def test_others_go_on_while_a_worker_is_blocked(start: Start, bot: Bot) -> None:
    server = start("--secret", SECRET, "--workers", "2")  # --worker-timeout is a minute: nobody ends it meanwhile
    assert server.post(samples.update(1, chat_id=999, text="block")).status == 200

    async def main() -> None:
        steady = Steady(server, chats=6)

        async def enough() -> None:
            await steady.until_acknowledged(30)
            await until(lambda: len(bot.handled) >= 20)  # chats of the other worker

        await steady.during(enough)

    asyncio.run(asyncio.wait_for(main(), PATIENCE))
    assert not server.find("has not answered")
    server.signal(signal.SIGTERM)
    server.until("SIGTERM: stopping")
    server.signal(signal.SIGTERM)  # else the blocked one would take a core for as long as others may take to finish
    assert server.wait() == 130


def test_a_worker_that_is_blocked(start: Start, bot: Bot) -> None:
    """It is killed with its stacks in the log, under load, and its update is a dead letter in the end."""
    server = start("--secret", SECRET, "--workers", "2", "--worker-timeout", "1")
    assert server.post(samples.update(1, chat_id=999, text="block")).status == 200

    async def main() -> None:
        steady = Steady(server, chats=6)

        async def enough() -> None:
            await until(lambda: server.find("update 1 .message. is a dead letter"))

        await steady.during(enough)
        assert await asyncio.to_thread(server.stop) == 0
        check_order(bot, steady)

    asyncio.run(asyncio.wait_for(main(), PATIENCE))
    server.until(r"has not answered for 1 s: it tells where it is, then it is killed$", 3)
    server.until(STACK, 3)
    server.until(r"died: killed, because it has not answered for 1 s; it had in hand, .*update", 3)
    [letter] = bot.dead
    assert letter.reason == "crashed the worker"
    assert samples.update(1, chat_id=999, text="block") == letter.raw
    assert not server.find("block$|'block'")


SPINS = """
async def spins(update):
    text = update["message"]["text"]
    open("begun %d" % update.update_id, "w").close()
    while text in ("spin", "wait") and not os.path.exists("go"):
        await asyncio.sleep(0.01)
    while text == "spin":
        pass
    done(update)
"""


def test_what_is_behind_an_update_that_blocks_waits_for_one_death(start: Start, bot: Bot) -> None:
    """It was not begun: it is not suspected, and another worker handles it."""
    with (bot.directory / "bot.py").open("a") as file:
        file.write(SPINS)
    options = ("--workers", "2", "--concurrency", "1", "--worker-timeout", "1")
    server = start("--secret", SECRET, *options, target="bot:spins")
    for n, text in enumerate(["spin", "wait", "behind", "behind"]):  # one is begun, and one more in each worker's hand
        assert server.post(samples.update(n, chat_id=n, text=text)).status == 200
    asyncio.run(until(lambda: {file.name for file in bot.directory.glob("begun *")} == {"begun 0", "begun 1"}))
    (bot.directory / "go").touch()
    server.until("update 0 .message. is a dead letter after 3 attempts: crashed the worker")
    assert server.stop() == 0
    assert sorted(one.update_id for one in bot.handled) == [1, 2, 3]
    had = [found[1] for found in server.find("died: .* and they are delivered again: (update 0|. updates 0, .*)$")]
    assert had == ["2 updates 0, 2", "update 0"]
    assert len(server.find("died: .* it had in hand, and that is given up on: update 0$")) == 1


@pytest.mark.parametrize("options", [("2",), ("1", "--max-requests", "5")])
def test_a_worker_that_is_blocked_while_it_is_replaced(start: Start, bot: Bot, options: tuple[str, ...]) -> None:
    """Its chats wait for --worker-timeout, as those of any that is blocked, not for --drain-timeout."""
    blocks = "\n\nasync def blocks(update):\n    if update.update_id == 1:\n        open('begun', 'w').close()\n"
    blocks += (
        "        while not os.path.exists('go'):\n            await asyncio.sleep(0.01)\n    await handler(update)\n"
    )
    with (bot.directory / "bot.py").open("a") as file:
        file.write(blocks)
    patience = ("--worker-timeout", "1s", "--drain-timeout", "1h")
    server = start("--secret", SECRET, *patience, "--workers", *options, target="bot:blocks")
    assert server.post(samples.update(1, chat_id=1, text="block")).status == 200
    asyncio.run(until((bot.directory / "begun").exists))
    if "--max-requests" in options:
        n = 10
        while not server.find("is ready$")[1:]:
            n += 1
            assert server.post(samples.update(n, chat_id=n)).status == 200
            asyncio.run(until(lambda n=n: len(bot.handled) == n - 10))  # type: ignore[misc]
    else:
        server.signal(signal.SIGHUP)
        server.until("reloaded: workers")
    assert server.post(samples.update(2, chat_id=1)).status == 200
    (bot.directory / "go").touch()
    server.until("has not answered for 1 s: it tells where it is, then it is killed$")
    server.until("update 1 .message. is a dead letter")
    asyncio.run(until(lambda: 2 in [one.update_id for one in bot.handled]))
    assert not server.find("did not leave")


def test_a_stopped_worker_is_replaced(start: Start, bot: Bot) -> None:
    server = start("--secret", SECRET, "--workers", "2", "--worker-timeout", "300ms")
    stopped = worker_pids(server)[0]
    os.kill(stopped, signal.SIGSTOP)
    for update_id in range(10):
        assert server.post(samples.update(update_id, chat_id=update_id)).status == 200
    server.until("is ready$", 3)
    assert not is_alive(stopped)
    assert server.stop() == 0
    assert sorted(one.update_id for one in bot.handled) == list(range(10))


def test_one_update_that_crashes_brings_down_no_other(start: Start, bot: Bot) -> None:
    """It is found among many, and its chat goes on."""
    crash = '    if text == "crash":\n        os.kill(os.getpid(), signal.SIGSEGV)\n'
    source = (bot.directory / "bot.py").read_text()
    source = source.replace("import os\n", "import os\nimport signal\n", 1).replace(
        "    if pause:\n", crash + "    if pause:\n"
    )
    (bot.directory / "bot.py").write_text(source)
    server = start("--secret", SECRET, "--workers", "2", env={"PAUSE": "0.2"})
    for update_id in range(60):
        text = "crash" if update_id == 20 else ""
        assert server.post(samples.update(update_id, chat_id=update_id % 40, text=text)).status == 200
    server.until("update 20 .message. is a dead letter after 3 attempts: crashed the worker")
    server.until("3 workers died with it in hand, the last: SIGSEGV")
    assert server.stop() == 0
    assert {one.update_id for one in bot.handled} == set(range(60)) - {20}
    assert len(server.find("died: SIGSEGV; it had in hand, and they are delivered again: .*20")) == 2
    assert len(server.find("died: SIGSEGV; it had in hand, .*given up on: update 20$")) == 1
    [letter] = bot.dead
    assert (letter.reason, letter.attempts) == ("crashed the worker", 3)
    server.until(STACK, 3)


DIES = """
async def dies(update):
    text = update["message"]["text"]
    while text in ("crash", "wait") and not os.path.exists("go"):
        await asyncio.sleep(0.01)
    if text == "crash":
        os.abort()
    done(update)
"""


def test_crashes_with_work_between_them_do_not_stop_the_server(start: Start, bot: Bot) -> None:
    """Only workers that die by themselves one after the other, and nobody handles anything meanwhile, do."""
    with (bot.directory / "bot.py").open("a") as file:
        file.write(DIES)
    server = start("--secret", SECRET, "--workers", "2", target="bot:dies")
    for n in range(8):  # the least busy gets them: one those that crash, the other those that do not
        text = "wait" if n % 2 else "crash"
        assert server.post(samples.update(n, chat_id=n, text=text)).status == 200
    (bot.directory / "go").touch()
    server.until("died: SIGABRT; it had in hand, and they are delivered again: 4 updates 0, 2, 4, 6$")
    asyncio.run(until(lambda: len(bot.handled) == 4))
    more = 0
    while len(server.find(r"update \d .message. is a dead letter after 3 attempts: crashed the worker")) < 4:
        more += 1
        assert server.post(samples.update(100 + more, chat_id=more)).status == 200
        asyncio.run(until(lambda more=more: len(bot.handled) == 4 + more))  # type: ignore[misc]
    assert len(server.find("died: SIGABRT")) == 9  # one with all four, then two with each
    assert server.stop() == 0


@pytest.mark.parametrize(("updates", "chats"), [(3, 1), (6, 6)])
def test_crashes_one_after_the_other_do_not_stop_the_server(start: Start, bot: Bot, updates: int, chats: int) -> None:
    """Each becomes a dead letter, though nothing is handled between them."""
    with (bot.directory / "bot.py").open("a") as file:
        file.write(DIES)
    (bot.directory / "go").touch()
    server = start("--secret", SECRET, "--workers", "2", target="bot:dies")
    for n in range(updates):
        assert server.post(samples.update(n, chat_id=n % chats, text="crash")).status == 200
    server.until("is a dead letter after 3 attempts: crashed the worker", updates)
    assert server.post(samples.update(100, chat_id=0)).status == 200
    assert server.stop() == 0
    assert [one.update_id for one in bot.handled] == [100]
    assert sorted(letter.reason for letter in bot.dead) == ["crashed the worker"] * updates


def test_a_bot_that_crashes_whatever_it_is_given_stops_the_server(start: Start, bot: Bot) -> None:
    with (bot.directory / "bot.py").open("a") as file:
        file.write(DIES)
    (bot.directory / "go").touch()
    server = start("--secret", SECRET, "--workers", "2", target="bot:dies")
    for n in range(20):
        assert server.post(samples.update(n, chat_id=1, text="crash")).status == 200
    server.until("is a dead letter after 3 attempts: crashed the worker", 10)
    assert server.wait() == 1
    server.until(
        r"30 workers in a row died of what they were given \(the last: SIGABRT\): mend the handler; .fasthook dead"
    )
    assert [letter.reason for letter in bot.dead] == ["crashed the worker"] * 10


COUNTS = """
async def counts(update):
    os.write(record, b"begun %d\\n" % update.attempt)
    if update.attempt == 1:
        os.abort()
    raise ValueError("the bot is broken")
"""


def test_runs_that_ended_with_their_worker_count(start: Start, bot: Bot) -> None:
    """The handler can tell that it may have run before; of the retries none is used up."""
    with (bot.directory / "bot.py").open("a") as file:
        file.write(COUNTS)
    server = start("--secret", SECRET, "--workers", "2", "--retries", "1", target="bot:counts")
    assert server.post(samples.update(1)).status == 200
    server.until("update 1 .message.: attempt 1 of 2 failed")
    server.until("update 1 .message. is a dead letter after 3 attempts: failed")
    assert server.stop() == 0
    assert (bot.directory / "handled").read_text().splitlines() == ["begun 1", "begun 2", "begun 3"]
    [letter] = bot.dead
    assert (letter.reason, letter.attempts) == ("failed", 3)


LONG = """
begun = []

async def long(update):
    begun.append(update.update_id)
    os.write(record, b"begun\\n")
    seconds = 0.0
    while update["message"]["text"] == "late":
        await asyncio.sleep(0.01)
        seconds += 0.01
        if len(begun) > 2 or seconds > 4.0:
            os.abort()
    while not os.path.exists("go"):
        await asyncio.sleep(0.01)
    done(update)
"""


def test_long_handlers_run_beside_each_other_after_two_deaths(start: Start, bot: Bot) -> None:
    """Not each to its end before the next begins: they did no harm."""
    with (bot.directory / "bot.py").open("a") as file:
        file.write(LONG)
    server = start("--secret", SECRET, "--workers", *ONE, target="bot:long")
    for n in range(5):
        assert server.post(samples.update(n, chat_id=n)).status == 200
    for runs in (5, 10, 15):
        asyncio.run(until(lambda runs=runs: (bot.directory / "handled").read_text().count("begun") == runs))  # type: ignore[misc]
        if runs < 15:
            server.until("is ready$", runs // 5)
            os.kill(worker_pids(server)[-1], signal.SIGKILL)
    assert server.post(samples.update(5, chat_id=5)).status == 200
    asyncio.run(until(lambda: (bot.directory / "handled").read_text().count("begun") == 16))
    (bot.directory / "go").touch()
    assert server.stop() == 0
    lines = (bot.directory / "handled").read_text().replace("begun\n", "").splitlines()
    assert sorted(line.rstrip() for line in lines) == [
        f"{n} {n} message {attempt}" for n, attempt in enumerate([3, 3, 3, 3, 3, 1])
    ]
    assert not bot.dead


def test_an_update_that_crashes_late_buries_no_other(start: Start, bot: Bot) -> None:
    """When it has run alone for a while others are begun beside it; with these it is not yet a dead letter."""
    with (bot.directory / "bot.py").open("a") as file:
        file.write(LONG)
    server = start("--secret", SECRET, "--workers", *ONE, target="bot:long")
    for n in range(5):
        assert server.post(samples.update(n, chat_id=n, text="" if n else "late")).status == 200
    server.until("died: SIGABRT", 3)
    (bot.directory / "go").touch()
    server.until("update 0 .message. is a dead letter after 4 attempts: crashed the worker")
    server.until("4 workers died with it in hand, the last: SIGABRT")
    assert server.stop() == 0
    assert [letter.raw for letter in bot.dead] == [samples.update(0, chat_id=0, text="late")]
    lines = {line.rstrip()[:-1] for line in (bot.directory / "handled").read_text().splitlines()} - {"begu"}
    assert lines == {f"{n} {n} message " for n in range(1, 5)}


def test_what_a_dead_worker_had_does_not_wait_for_a_successor_that_hangs(start: Start, bot: Bot) -> None:
    with (bot.directory / "bot.py").open("a") as file:
        file.write(HANGS)
    begun = bot.directory / "begun"
    server = start("--secret", SECRET, "--workers", "2", target="bot:begins")
    assert server.post(samples.update(1, chat_id=1)).status == 200
    asyncio.run(until(lambda: begun.exists() and begun.read_text()))  # it is there before anything is in it
    (bot.directory / "hang").touch()
    os.kill(int(begun.read_text()), signal.SIGKILL)
    server.until("died: SIGKILL .* it had in hand, and they are delivered again: update 1$")
    (bot.directory / "go").touch()
    assert server.post(samples.update(2, chat_id=1)).status == 200
    asyncio.run(until(lambda: len(bot.handled) == 2))
    assert len(worker_pids(server)) == 2
    (bot.directory / "hang").unlink()
    server.until("is ready$", 3)
    assert server.stop() == 0
    assert bot.by_chat == {1: [1, 2]}


HANGS = """
import time

while os.path.exists("hang"):
    time.sleep(0.01)

async def begins(update):
    with open("begun", "w") as file:
        file.write(str(os.getpid()))
    while not os.path.exists("go"):
        await asyncio.sleep(0.01)
    await handler(update)
"""


def test_a_worker_that_ends_by_itself(start: Start, bot: Bot) -> None:
    leaves = "\n\nasync def leaves(update):\n    if os.path.exists('left'):\n        done(update)\n    else:\n"
    leaves += "        open('left', 'w').close()\n        os._exit(3)\n"
    with (bot.directory / "bot.py").open("a") as file:
        file.write(leaves)
    server = start("--secret", SECRET, "--workers", "2", target="bot:leaves")
    assert server.post(samples.update(5)).status == 200
    server.until("died: exit code 3; it had in hand, and they are delivered again: update 5$")
    server.until("is ready$", 3)
    assert server.stop() == 0
    assert [one.update_id for one in bot.handled] == [5]


def test_a_bot_that_does_not_start_any_more_leaves_the_others(start: Start, bot: Bot) -> None:
    """What is on disk is broken, nobody has reloaded, and a worker dies."""
    server = start("--secret", SECRET, "--workers", "2")
    good = (bot.directory / "bot.py").read_text()
    (bot.directory / "bot.py").write_text("import nothing_of_this_name\n")
    os.kill(worker_pids(server)[0], signal.SIGKILL)
    server.until(
        "ERROR .* the bot does not start any more: bot:handler: the module 'bot' imports 'nothing_of_this_name'"
    )
    for update_id in range(10):
        assert server.post(samples.update(update_id, chat_id=update_id)).status == 200
    (bot.directory / "bot.py").write_text(good + "\n# mended\n")
    server.until("is ready$", 3)
    assert server.stop() == 0
    assert len(bot.handled) == 10
    assert len(server.find("does not start any more")) == 1


BREAKS = """
import struct
import sys

async def breaks(update):
    try:
        open("broken", "x").close()  # one of the workers does
    except FileExistsError:
        done(update)
        return
    os.write(int(sys.argv[1]), bytes.fromhex(os.environ["WRITTEN"]))
    done(update)
"""
WRITTEN = {
    "a line": b"\n",
    "no kind": frame(99),  # type: ignore[arg-type]
    "a failure without words": frame(Kind.FAILED, 1, b"bad"),
    "a result that is no JSON": frame(Kind.DONE, 1, b"bad"),
    "files without a call": frame(Kind.DONE, 1, b"\0"),
    "ready again": frame(Kind.READY, 0, pack({"files": [], "token": None, "kinds": {}})),
}


@pytest.mark.parametrize("what", WRITTEN)
def test_a_bot_that_writes_to_the_socket(start: Start, bot: Bot, what: str) -> None:
    """The worker is replaced, with one line, and what it had in hand is handled."""
    with (bot.directory / "bot.py").open("a") as file:
        file.write(BREAKS)
    env = {"WRITTEN": WRITTEN[what].hex()}
    server = start("--secret", SECRET, "--workers", "2", target="bot:breaks", env=env)
    for update_id in range(1, 21):
        assert server.post(samples.update(update_id, chat_id=update_id % 3)).status == 200
    server.until("is ready$", 3)
    assert server.stop() == 0
    assert {one.update_id for one in bot.handled} == set(range(1, 21))
    assert not bot.dead
    lines = [found.string for found in server.find("WARNING|ERROR|Traceback")]
    assert len(lines) == 1, lines
    assert re.search(r"died: killed, because something else writes to its socket: .+; it had ", lines[0])


FORKS = """
worker, child = os.getpid(), os.fork()
if child == 0:
    os.closerange(0, 3)
    __import__("time").sleep(3600)
    os._exit(0)
with open(f"child-{child}", "w") as file:
    file.write(str(worker))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_a_dead_worker_whose_child_holds_its_socket(start: Start, bot: Bot) -> None:
    """It is replaced at once, gets nothing more, and its child ends with it."""
    with (bot.directory / "bot.py").open("a") as file:
        file.write(FORKS)
    server = start("--secret", SECRET, "--workers", "2")

    def born() -> list[int]:
        return [int(one.name.partition("-")[2]) for one in bot.directory.glob("child-*")]

    forked = born()
    assert len(forked) == 2
    try:
        pids = worker_pids(server)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for pid in pids:
            asyncio.run(until(lambda pid=pid: not Path(f"/proc/{pid}").exists()))  # type: ignore[misc]
        for n in range(1, 4):
            assert server.post(samples.update(n, chat_id=n)).status == 200
        asyncio.run(until(lambda: len(bot.handled) == 3))
        server.until("died: SIGKILL .*; it had nothing in hand$", 2)
        asyncio.run(until(lambda: not any(map(is_alive, forked))))
        assert server.stop() == 0
    finally:
        for child in born():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_a_pause_of_all_processes_kills_nobody(start: Start, bot: Bot) -> None:
    """However much longer than --worker-timeout it is: a machine that is suspended, a container that is frozen."""
    server = start("--secret", SECRET, "--workers", "2", "--worker-timeout", "3s")
    all_of_them = [server.process.pid, *worker_pids(server)]
    for pid in all_of_them:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(7)  # a pause is a time
    for pid in all_of_them:
        os.kill(pid, signal.SIGCONT)
    for n in range(20):
        assert server.post(samples.update(n, chat_id=n)).status == 200
    asyncio.run(until(lambda: len(bot.handled) == 20))
    assert server.stop() == 0
    assert len(worker_pids(server)) == 2
    assert not server.find("died|Timeout|ERROR")
