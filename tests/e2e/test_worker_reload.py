"""SIGHUP and --reload: new workers with new code take over, and nobody outside notices."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from e2e.bot import Bot
from e2e.process import PATIENCE, SECRET, Server
from e2e.steady import Steady, check_once, children, is_alive, state, until, worker_pids
from fasthook.testing import samples

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="worker processes need Linux or macOS")
Start = Callable[..., Server]
TIMES = 10
BROKEN = "the new code does not start, the old workers go on: "


@pytest.mark.parametrize("queue", ["memory:", "journal:waiting"])
def test_rolling_restarts_under_load(start: Start, bot: Bot, queue: str) -> None:
    server = start("--secret", SECRET, "--workers", "2", "--queue", queue, env={"PAUSE": "0.002"})

    async def main() -> None:
        steady = Steady(server)

        async def reloads() -> None:
            for n in range(TIMES if queue == "memory:" else 2):
                server.signal(signal.SIGHUP)
                await until(lambda n=n: len(server.find("reloaded: workers")) > n)  # type: ignore[misc]
                await steady.until_acknowledged(50)

        await steady.during(reloads)
        assert await asyncio.to_thread(server.stop) == 0
        check_once(bot, steady)

    asyncio.run(asyncio.wait_for(main(), 4 * PATIENCE))
    pids = worker_pids(server)
    assert not any(map(is_alive, pids))
    assert not server.find("ERROR|WARNING|Traceback|died")


def test_a_bad_new_version_leaves_the_old_one(start: Start, bot: Bot) -> None:
    good = (bot.directory / "bot.py").read_text()
    server = start("--secret", SECRET, "--workers", "2")

    async def main() -> None:
        steady = Steady(server)

        async def versions() -> None:
            await steady.until_acknowledged(50)
            (bot.directory / "bot.py").write_text(good.replace("async def handler", "async dfe handler"))
            server.signal(signal.SIGHUP)
            await until(lambda: server.find(BROKEN + "bot:handler: the module 'bot' fails to import: SyntaxError"))
            await steady.until_acknowledged(50)
            (bot.directory / "bot.py").write_text(good + "\nraise SystemExit(3)\n")
            server.signal(signal.SIGHUP)
            await until(
                lambda: server.find(BROKEN + "bot:handler: the module 'bot' calls sys.exit.3. when it is imported")
            )
            await steady.until_acknowledged(50)
            (bot.directory / "bot.py").write_text(good + "\nos._exit(4)  # not a word\n")
            server.signal(signal.SIGHUP)
            await until(lambda: server.find(BROKEN + r"a new worker died before it was ready \(exit code 4\)"))
            await steady.until_acknowledged(50)
            (bot.directory / "bot.py").write_text(good)
            server.signal(signal.SIGHUP)
            await until(lambda: server.find("reloaded: workers"))

        await steady.during(versions)
        assert await asyncio.to_thread(server.stop) == 0
        check_once(bot, steady)

    asyncio.run(asyncio.wait_for(main(), PATIENCE))
    assert len(server.find(BROKEN)) == 3
    assert not server.find("died: ")


def write(file: Path, text: str) -> None:
    """A file that is whole whenever somebody looks: who looks at a part of it looks again."""
    file.with_suffix(".new").write_text(text)
    file.with_suffix(".new").replace(file)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_reload_when_the_source_changes(start: Start, bot: Bot, workers: str) -> None:
    """Of any module of the bot, also of one that failed to import."""
    write(bot.directory / "words.py", "WORD = 'one'\n")
    source = "import os\nimport words\n\nasync def handler(update):\n    "
    source += "os.write(os.open('said', os.O_WRONLY | os.O_CREAT | os.O_APPEND), words.WORD.encode() + b'\\n')\n"
    (bot.directory / "bot.py").write_text(source)
    server = start("--secret", SECRET, "--reload", "--workers", workers)
    assert server.post(samples.update(1)).status == 200
    write(bot.directory / "words.py", "WORD = 'another'\n")
    server.until(r"words.py changed$")
    server.until("reloaded: workers")
    assert server.post(samples.update(2)).status == 200
    write(bot.directory / "words.py", "WORD = = 'third time'\n")
    server.until(BROKEN)
    assert server.post(samples.update(3)).status == 200
    write(bot.directory / "words.py", "WORD = 'the fourth one'\n")
    server.until("reloaded: workers", 2)
    assert server.post(samples.update(4)).status == 200
    assert server.stop() == 0
    assert (bot.directory / "said").read_text().splitlines() == ["one", "another", "another", "the fourth one"]


def test_two_versions_of_one_second_and_one_size(start: Start, bot: Bot) -> None:
    """The newer one runs, though Python takes the bytecode of the older for its own."""
    source = "import os\nimport words\n\ndef handler(update):\n    "
    source += "os.write(os.open('said', os.O_WRONLY | os.O_CREAT | os.O_APPEND), words.WORD.encode() + b'\\n')\n"
    (bot.directory / "bot.py").write_text(source)
    second = int(time.time()) - 60
    for n, word in enumerate(("one", "two")):
        file = bot.directory / f"{word}.txt"
        file.write_text(f"WORD = '{word}'\n")
        os.utime(file, ns=(0, second * 10**9 + n * 10**8))
    (bot.directory / "one.txt").rename(bot.directory / "words.py")
    server = start("--secret", SECRET, "--reload", "--workers", "2", env={"PYTHONDONTWRITEBYTECODE": ""})
    assert server.post(samples.update(1)).status == 200
    asyncio.run(until(lambda: (bot.directory / "said").exists()))
    (bot.directory / "two.txt").rename(bot.directory / "words.py")
    server.until("reloaded: workers")
    assert server.post(samples.update(2)).status == 200
    assert server.stop() == 0
    assert (bot.directory / "said").read_text().splitlines() == ["one", "two"]


def test_what_an_old_worker_has_in_hand_is_finished_there(start: Start, bot: Bot) -> None:
    """And only then comes the chat's next, from a new one."""
    source = "import asyncio, os\n\nasync def handler(update):\n    "
    source += "while update.update_id == 1 and not os.path.exists('go'):\n        await asyncio.sleep(0.01)\n    "
    source += "os.write(os.open('said', os.O_WRONLY | os.O_CREAT | os.O_APPEND), b'%d old\\n' % update.update_id)\n"
    (bot.directory / "bot.py").write_text(source)
    server = start("--secret", SECRET, "--workers", "2")
    for update_id in (1, 2):
        assert server.post(samples.update(update_id, chat_id=5)).status == 200
    (bot.directory / "bot.py").write_text(source.replace(" old", " of a new one"))
    server.signal(signal.SIGHUP)
    server.until("reloaded: workers")
    assert server.post(samples.update(3, chat_id=6)).status == 200
    assert server.post(samples.update(4, chat_id=5)).status == 200
    asyncio.run(until(lambda: (bot.directory / "said").exists()))
    (bot.directory / "go").touch()
    assert server.stop() == 0
    said = ["3 of a new one", "1 old", "2 of a new one", "4 of a new one"]
    assert (bot.directory / "said").read_text().splitlines() == said


PLAIN = """
import threading

def runs_on(update):
    begins(update)
    while update.update_id == 1 and not os.path.exists("go"):
        threading.Event().wait(0.01)
    done(update)
"""
SWALLOWS = """
async def runs_on(update):
    begins(update)
    while update.update_id == 1 and not os.path.exists("go"):
        try:
            await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            pass
    done(update)
"""
ENDS_SLOWLY = """
import contextlib

@contextlib.asynccontextmanager
async def lifespan(app):
    yield
    open("ends", "w").close()
    while not os.path.exists("end"):
        await asyncio.sleep(0.01)

def begins(update):
    before = [int(name.split("-")[1]) for name in os.listdir() if name.startswith(f"{update.update_id}-")]
    where = "beside" if any(map(runs, before)) else "alone"
    open(f"{update.update_id}-{os.getpid()}", "w").close()
    os.write(os.open("begun", os.O_WRONLY | os.O_CREAT | os.O_APPEND), b"%d %s\\n" % (update.update_id, where.encode()))

def runs(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
"""


@pytest.mark.parametrize("source", [PLAIN, SWALLOWS], ids=["a thread", "a coroutine"])
def test_what_cannot_be_stopped_is_not_begun_beside_itself(start: Start, bot: Bot, source: str) -> None:
    """Another worker gets it when the old one is gone, whose lifespan may take its time to end."""
    with (bot.directory / "bot.py").open("a") as file:
        file.write(ENDS_SLOWLY + source)
    server = start("--secret", SECRET, "--workers", "2", "--drain-timeout", "100ms", target="bot:runs_on")

    def begun() -> list[str]:
        file = bot.directory / "begun"
        return file.read_text().splitlines() if file.exists() else []

    for update_id in (1, 2):
        assert server.post(samples.update(update_id, chat_id=7)).status == 200
    asyncio.run(until(begun))
    server.signal(signal.SIGHUP)
    server.until("reloaded: workers")
    old = worker_pids(server)
    asyncio.run(until(lambda: sum(map(is_alive, old)) == 2 and (bot.directory / "ends").exists()))
    assert server.post(samples.update(3, chat_id=8)).status == 200
    asyncio.run(until(lambda: bot.handled))
    assert begun() == ["1 alone", "3 alone"]
    (bot.directory / "end").touch()
    asyncio.run(until(lambda: len(begun()) == 3))
    (bot.directory / "go").touch()
    assert server.stop() == 0
    assert begun() == ["1 alone", "3 alone", "1 alone", "2 alone"]
    assert bot.by_chat == {7: [1, 2], 8: [3]}
    server.until("has ended while handlers ran that cannot be stopped; it had in hand, and they are .*: update 1$")
    assert not server.find("died")


def test_hang_up_without_workers_is_an_orderly_stop(start: Start, bot: Bot) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it would be ignored, by the server too
    try:
        server = start("--secret", SECRET, env={"PAUSE": "0.01"})
    finally:
        signal.signal(signal.SIGHUP, before)
    for update_id in range(20):
        assert server.post(samples.update(update_id)).status == 200
    server.signal(signal.SIGHUP)
    assert server.wait() == 0
    assert len(bot.handled) == 20


HANGS = "\n\nwhile os.path.exists('hang'):\n    __import__('time').sleep(0.01)\n"


def test_new_code_that_hangs_is_given_up(start: Start, bot: Bot) -> None:
    """The log says where it hangs, the old workers go on, and the next reload is as any."""
    with (bot.directory / "bot.py").open("a") as file:
        file.write(HANGS)
    server = start("--secret", SECRET, "--workers", "2", "--worker-timeout", "3s")
    (bot.directory / "hang").touch()
    server.signal(signal.SIGHUP)
    server.until(BROKEN + r"a new worker died before it was ready .killed, because it has not come to the end of its ")
    server.until(r'^  File ".*/bot.py", line \d+ in <module>$', 2)  # of each, one after the other
    threads = server.find("hread 0x")
    assert len(threads) == len(server.find(r"^(Current t|T)hread 0x[0-9a-f]+ .most recent call first.:$"))
    asyncio.run(until(lambda: sum(map(is_alive, children(server))) == 2))
    assert server.post(samples.update(1)).status == 200
    (bot.directory / "hang").unlink()
    server.signal(signal.SIGHUP)
    server.until("reloaded: workers")
    assert server.post(samples.update(2)).status == 200
    assert server.stop() == 0
    assert [one.update_id for one in bot.handled] == [1, 2]


def test_a_worker_that_is_to_be_replaced_during_a_reload_that_fails(start: Start, bot: Bot) -> None:
    """It is replaced behind it."""
    good = (bot.directory / "bot.py").read_text()
    server = start("--secret", SECRET, "--workers", "2")
    tries = "import os\nopen(f'tries-{os.getpid()}', 'w').close()\n"
    (bot.directory / "bot.py").write_text(tries + HANGS + "\n1 / 0\n")
    (bot.directory / "hang").touch()
    server.signal(signal.SIGHUP)
    asyncio.run(until(lambda: len(list(bot.directory.glob("tries-*"))) == 2))
    first, second = worker_pids(server)
    os.kill(first, signal.SIGTERM)
    assert server.post(samples.update(1)).status == 200
    asyncio.run(until(lambda: bot.handled))
    (bot.directory / "bot.py").write_text(good)
    (bot.directory / "hang").unlink()
    server.until(BROKEN)
    asyncio.run(until(lambda: not is_alive(first)))
    assert is_alive(second)
    server.until("is ready$", 3)
    assert server.stop() == 0
    assert not server.find("died: ")


def test_new_code_that_hangs_makes_room_for_newer(start: Start, bot: Bot) -> None:
    """Long before --worker-timeout."""
    good = (bot.directory / "bot.py").read_text()
    server = start("--secret", SECRET, "--workers", "2", "--reload")
    (bot.directory / "hang").touch()
    write(bot.directory / "bot.py", good + "\n\nopen(f'hangs-{os.getpid()}', 'w').close()\n" + HANGS)
    asyncio.run(until(lambda: len(list(bot.directory.glob("hangs-*"))) == 2))
    write(bot.directory / "bot.py", good + "\n# mended\n")
    server.until("reloaded: workers")
    assert len(server.find(BROKEN)) == 1
    assert server.stop() == 0


@pytest.mark.parametrize("how", ["it left", "it was killed"])
def test_what_a_worker_said_last_is_heard(start: Start, bot: Bot, how: str) -> None:
    """Although the door writes to its socket, which is closed, before it reads."""
    begins = "\n\nasync def begins(update):\n    open('begun', 'w').close()\n    await handler(update)\n"
    with (bot.directory / "bot.py").open("a") as file:
        file.write(begins)
    server = start("--secret", SECRET, "--workers", "2", env={"PAUSE": "0.5"}, target="bot:begins")
    old = worker_pids(server)
    assert server.post(samples.update(1)).status == 200
    asyncio.run(until((bot.directory / "begun").exists))
    if how == "it left":
        server.signal(signal.SIGHUP)
        server.until("reloaded: workers")
    server.signal(signal.SIGSTOP)
    try:
        asyncio.run(until(lambda: bot.handled))
        if how == "it left":
            asyncio.run(until(lambda: not any(map(is_alive, old))))
        for pid in old if how == "it was killed" else []:
            asyncio.run(until(lambda pid=pid: is_asleep(pid)))  # type: ignore[misc]
            os.kill(pid, signal.SIGKILL)
            asyncio.run(until(lambda pid=pid: not is_alive(pid)))  # type: ignore[misc]
    finally:
        server.signal(signal.SIGCONT)
    if how == "it was killed":
        server.until("died: SIGKILL .* it had nothing in hand$", 2)
    assert server.post(samples.update(2)).status == 200
    assert server.stop() == 0
    assert [one.update_id for one in bot.handled] == [1, 2]


def is_asleep(pid: int) -> bool:
    """It waits for something: it has said what it had to say."""
    return state(pid) == "S"


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_workers_that_left_leave_nothing_in_the_door(start: Start, bot: Bot) -> None:
    """Neither a descriptor nor a mapping, long before the time is over in which they had to leave."""
    server = start("--secret", SECRET, "--workers", "2", "--queue", "memory:", "--drain-timeout", "60")

    def held() -> tuple[int, int]:
        place = Path(f"/proc/{server.process.pid}")
        maps = [line for line in (place / "maps").read_text().splitlines() if ".stats" in line]
        return len(list((place / "fd").iterdir())), len(maps)

    before = held()
    assert before[1] == 3  # of the door and of both workers
    for n in range(5):
        server.signal(signal.SIGHUP)
        server.until("reloaded: workers", n + 1)
        assert server.post(samples.update(n)).status == 200
    asyncio.run(until(lambda: len(children(server)) == 2))
    asyncio.run(until(lambda: held() == before))
    for number in (signal.SIGTERM, signal.SIGKILL):
        ready = len(worker_pids(server))
        os.kill(children(server)[0], number)
        server.until(r"worker \d+ .* is ready$", ready + 1)
        asyncio.run(until(lambda: len(children(server)) == 2))
    asyncio.run(until(lambda: held() == before))
    assert server.stop() == 0


STARTS_SLOWLY = """
with open(f"door-{os.getpid()}", "w") as file:
    file.write(str(os.getppid()))
while not os.path.exists("go"):
    __import__("time").sleep(0.01)
"""


def test_a_hang_up_during_the_start_is_followed_after_it(start: Start, bot: Bot) -> None:
    with (bot.directory / "bot.py").open("a") as file:
        file.write(STARTS_SLOWLY)

    def doors() -> list[str]:
        return [one.read_text() for one in bot.directory.glob("door-*")]

    with ThreadPoolExecutor() as pool:
        starting = pool.submit(start, "--secret", SECRET, "--workers", "2")
        try:
            asyncio.run(until(lambda: len(list(filter(None, doors()))) == 2))
            os.kill(int(doors()[0]), signal.SIGHUP)
        finally:
            (bot.directory / "go").touch()
        server = starting.result()
    server.until("reloaded: workers 3, 4 take over")
    assert server.post(samples.update(1)).status == 200
    assert server.stop() == 0
    assert len(bot.handled) == 1
