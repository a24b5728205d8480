"""Several bots in one server: `[[bot]]` tables, their shares, and how they come and go."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import botapi
from e2e.libraries import aiogram
from e2e.process import Ended, Response, Server, fasthook
from e2e.steady import until
from e2e.telegram import HEAD
from fasthook.queues.deadletter import DeadLetters
from fasthook.testing import samples
from ops.scrape import Ops

SOURCE = """
import asyncio
import contextlib
import os

record = os.open("record", os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def write(*words):
    os.write(record, (" ".join(map(str, words)) + "\\n").encode())


@contextlib.asynccontextmanager
async def lifespan(app):
    write("begins")
    yield {"pool": 7}
    write("ends")


async def handler(update):
    assert update.state == {"pool": 7}
    text = update["message"]["text"]
    if text.startswith("leak "):
        raise ValueError(text[5:])
    if text == "raise":
        raise ValueError("the bot is broken")
    if text in ("hang", "wait"):
        write("hangs", update.bot_id, update.update_id)
        while not os.path.exists("released" if text == "hang" else "gone-on"):
            await asyncio.sleep(0.01)
    write("handled", update.bot_id, update.update_id)
    if text.startswith("say "):
        return update.reply("sendMessage", text=text[4:])


other = handler
"""

FIRST, SECOND, THIRD = 42, 43, 44


def token(bot: int) -> str:
    return f"{bot}:TEST-token_of_bot_{bot}"


def secret(bot: int) -> str:
    return f"secret-of-{bot}"


def table(bot: int, **more: str) -> str:
    """A table as most tests have it: its own secret, the path that it has by itself."""
    keys = {"token": token(bot), "secret": secret(bot), **more}
    return "\n".join(["[[bot]]", *(f'{key} = "{value}"' for key, value in keys.items()), ""])


class Bots:
    """A directory with the file, the bots' module and their record."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "bot.py").write_text(SOURCE)

    def write(self, *tables: str, above: str = "") -> None:
        (self.directory / "fasthook.toml").write_text("\n".join([above, *tables]))

    def release(self) -> None:
        (self.directory / "released").touch()

    def lines(self, word: str) -> list[tuple[int, ...]]:
        """What stands behind a word in the record."""
        file = self.directory / "record"
        found = [line.split() for line in file.read_text().splitlines()] if file.exists() else []
        return [tuple(map(int, line[1:])) for line in found if line[0] == word]

    def handled(self, bot: int) -> list[int]:
        return [update_id for one, update_id in self.lines("handled") if one == bot]


@pytest.fixture
def bots(tmp_path: Path) -> Bots:
    return Bots(tmp_path)


@pytest.fixture
def serve(bots: Bots) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def started(*options: str, target: Sequence[str] = ("bot:handler",)) -> Server:
        servers.append(Server(bots.directory, *target, "--port", "0", *options))
        return servers[-1]

    yield started
    for server in servers:
        server.kill()


def post(server: Server, bot: int, update_id: int, text: str = "hello", **more: Any) -> Response:
    path, given = more.pop("path", f"/webhook/{bot}"), more.pop("secret", secret(bot))
    body = samples.update(update_id, text=text, **{"chat_id": update_id, **more})
    return server.ask("POST", path, body, {"X-Telegram-Bot-Api-Secret-Token": given})


class TwoBots(botapi.BotServer):
    """A Bot API server that knows any bot, and no webhook of it."""

    def usual(self, call: botapi.Call) -> botapi.Answer:
        return botapi.Answer.json(200, result={"url": "https://old"} if call.method == "getWebhookInfo" else True)


class Outage(TwoBots):
    """Hangs up until `up`, and then on the third bot's next call once more."""

    up = False
    again = True

    def usual(self, call: botapi.Call) -> botapi.Answer:
        if not self.up:
            return botapi.HANG_UP
        if call.token == token(THIRD) and self.again:
            self.again = False
            return botapi.HANG_UP
        return super().usual(call)

    def registered(self, bot: int) -> list[str]:
        return [call.params["url"] for call in self.calls if (call.token, call.method) == (token(bot), "setWebhook")]


def reload(server: Server, count: int = 1) -> None:
    server.signal(signal.SIGHUP)
    server.until("the bots are read again|nothing has changed", count)


def wait(condition: Callable[[], object]) -> None:
    asyncio.run(until(condition))


# ---------------------------------------------------------------- who is who


@pytest.mark.parametrize("queue", ["memory:", "journal:waiting"])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_two_bots(serve: Callable[..., Server], bots: Bots, door: str, queue: str, workers: str) -> None:
    """Each with its own path, secret and ids; the module's lifespan runs once in a process."""
    bots.write(table(FIRST), table(SECOND, path="/second", target="bot:other"))
    server = serve("--http", door, "--queue", queue, "--workers", workers)
    assert server.find("^  bot     43: bot:other$")
    assert server.find("^fasthook serves .*/webhook/42$")
    assert server.find("^fasthook serves .*/second$")
    assert post(server, FIRST, 5).status == 200
    assert post(server, SECOND, 5, path="/second").status == 200
    assert post(server, SECOND, 5, path="/second").status == 200
    assert post(server, SECOND, 6, path="/second", secret=secret(FIRST)).status == 401
    assert post(server, FIRST, 6, secret=secret(SECOND)).status == 401
    assert post(server, SECOND, 6).status == 404
    assert server.stop() == 0
    assert sorted(bots.lines("handled")) == [(FIRST, 5), (SECOND, 5)]
    assert len(bots.lines("begins")) == len(bots.lines("ends")) == int(workers)


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize(
    ("end", "words"), [("exit", "it calls sys.exit.'enough'."), ("raise", r"/bot\*\*\*/close fails")]
)
def test_a_lifespan_that_fails_at_its_end(
    serve: Callable[..., Server], bots: Bots, workers: str, end: str, words: str
) -> None:
    """It is told in the log, with no bot's token, and what waits is kept as ever."""
    raised = 'SystemExit("enough")' if end == "exit" else f'ValueError("/bot{token(SECOND)}/close fails")'
    (bots.directory / "bot.py").write_text(SOURCE.replace('    write("ends")', f"    raise {raised}"))
    bots.write(table(FIRST), table(SECOND))
    server = serve("--workers", workers, "--drain-timeout", "0")
    assert post(server, FIRST, 1, "hang").status == 200
    wait(lambda: bots.lines("hangs"))
    assert server.stop() == 1
    server.until(words)
    server.until("1 updates are not handled yet: they are kept")
    assert not server.find("TEST-token")
    assert not server.find("asyncio|runpy")


def test_a_reply_has_its_own_token(serve: Callable[..., Server], bots: Bots) -> None:
    bots.write(table(FIRST), table(SECOND))
    with botapi.BotServer() as api:
        server = serve("--api-url", api.url)
        assert post(server, FIRST, 1, "say one").status == 200
        assert post(server, SECOND, 1, "say two").status == 200
        calls = api.until_called(2)
        assert server.stop() == 0
    assert {(call.token, call.params["text"]) for call in calls} == {(token(FIRST), "one"), (token(SECOND), "two")}


def test_each_is_registered_at_its_own_path(serve: Callable[..., Server], bots: Bots) -> None:
    bots.write(
        table(FIRST), table(SECOND, **{"allowed-updates": "message"}), above='public-url = "https://example.org"'
    )
    with TwoBots() as api:
        server = serve("--api-url", api.url)
        server.until("the webhook is registered", 2)
        assert server.stop() == 0
        calls = {call.token: call.params for call in api.calls if call.method == "setWebhook"}
        told = fasthook(bots.directory, "webhook", "delete", "--bot", "43", "--api-url", api.url)
        assert [call.token for call in api.calls if call.method == "deleteWebhook"] == [token(SECOND)]
    assert {bot: params["url"] for bot, params in calls.items()} == {
        token(bot): f"https://example.org/webhook/{bot}" for bot in (FIRST, SECOND)
    }
    assert calls[token(SECOND)]["allowed_updates"] == ["message"]
    assert told.output.startswith("the webhook of bot 43 is removed")


class OneUnknown(botapi.BotServer):
    """A Bot API server that doesn't know the first bot."""

    def usual(self, call: botapi.Call) -> botapi.Answer:
        if call.token == token(FIRST):
            return botapi.Answer.json(401, error_code=401, description="Unauthorized")
        url = f"https://example.org/webhook/{SECOND}"
        return botapi.Answer.json(200, result={"url": url} if call.method == "getWebhookInfo" else True)


def test_the_webhooks_beside_one_that_fails(bots: Bots) -> None:
    """The others are set, shown and removed all the same; the line says whose failed, the exit code that one did."""
    bots.write(table(FIRST), table(SECOND, target="bot:handler"), above='public-url = "https://example.org"')
    with OneUnknown() as api:
        for what, words in {
            "set": "the webhook of bot 43 is https://example.org/webhook/43",
            "delete": "the webhook of bot 43 is removed: https://example.org/webhook/43",
        }.items():
            ended = fasthook(bots.directory, "webhook", what, "--api-url", api.url)
            assert (ended.code, ended.output) == (1, f"{words}\n")
            assert len(ended.lines) == 1
            assert ended.line.startswith("fasthook: bot 42: getWebhookInfo: 401 Unauthorized")
        shown = fasthook(bots.directory, "webhook", "info", "--api-url", api.url)
        assert shown.code == 1
        assert shown.output.startswith("bot 42: getWebhookInfo: 401 Unauthorized")
        assert "\nthe webhook of bot 43, at " in shown.output
        rows = fasthook(bots.directory, "webhook", "info", "--json", "--api-url", api.url).output.splitlines()
        assert [(row["bot"], "error" in row) for row in map(json.loads, rows)] == [(FIRST, True), (SECOND, False)]
        assert fasthook(bots.directory, "webhook", "set", "--bot", "43", "--api-url", api.url).code == 0


@pytest.mark.parametrize("what", ["set", "info"])
def test_the_webhook_of_a_bot_that_does_not_import(bots: Bots, what: str) -> None:
    """It is told; what can be done without the kinds is done for it, and for the others."""
    bots.write(table(FIRST, target="nowhere:bot"), table(SECOND), above='public-url = "https://example.org"')
    with TwoBots() as api:
        ended = fasthook(bots.directory, "webhook", what, "--api-url", api.url)
    assert ended.code == 1
    assert ended.lines == (ended.line,)
    assert ended.line.startswith(
        "fasthook: bot 42: nowhere:bot: there is no module 'nowhere' here or on the Python path"
    )
    assert all(f"the webhook of bot {bot}" in ended.output for bot in (FIRST, SECOND))


def test_the_secret_of_each(bots: Bots) -> None:
    bots.write(table(FIRST), f'[[bot]]\ntoken = "{token(SECOND)}"\n')
    said = fasthook(bots.directory, "secret").output
    first = f"bot           42\nsecret_token  {secret(FIRST)}\npath          /webhook/42\n\n"
    assert said.startswith(f"{first}bot           43\n")
    alone = fasthook(bots.directory, "secret", "--bot", "43").output
    assert alone == said.partition("bot           43\n")[2]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_metrics_of_each(serve: Callable[..., Server], bots: Bots, workers: str) -> None:
    """SECOND comes while the server runs; who went before it keeps its numbers."""
    bots.write(table(FIRST), table(THIRD))
    server = serve("--ops", "127.0.0.1:0", "--retries", "0", "--workers", workers)
    assert post(server, THIRD, 1).status == 200
    wait(lambda: bots.handled(THIRD))
    bots.write(table(SECOND), table(FIRST))
    reload(server)
    for update_id in range(3):
        assert post(server, FIRST, update_id).status == 200
    assert post(server, SECOND, 1).status == 200
    assert post(server, SECOND, 2, "raise").status == 200
    assert post(server, SECOND, 2, "raise").status == 200
    ops = Ops.of(server)
    page = ops.until(
        lambda page: (
            [
                sum(page.by("fasthook_handler_seconds_count", "bot", outcome=outcome).values())
                for outcome in ("handled", "failed")
            ]
            == [5, 1]
        )
    )
    assert page.by("fasthook_updates_total", "bot", kind="message") == {"42": 3, "43": 2, "44": 1}
    assert page.by("fasthook_duplicates_total", "bot") == {"43": 1}
    assert page.by("fasthook_handler_seconds_count", "bot", outcome="handled") == {"42": 3, "43": 1, "44": 1}
    assert page.by("fasthook_handler_seconds_count", "bot", outcome="failed") == {"43": 1}


# ---------------------------------------------------------------- shares


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("options", [("memory:",), ("journal:waiting",), ("journal:waiting", "--ack", "handled")])
def test_a_flood_of_slow_updates_leaves_the_other_its_share(
    serve: Callable[..., Server], bots: Bots, options: Sequence[str], workers: str
) -> None:
    """More of the first bot than there is room for, none of which ends; meanwhile all of the second are handled."""
    bots.write(table(FIRST), table(SECOND))
    server = serve(
        "--queue", *options, "--workers", workers, "--concurrency", "8", "--queue-size", "40", "--ack-deadline", "50ms",
        "--drain-timeout", "20s",
    )  # fmt: skip
    statuses = [post(server, FIRST, update_id, "hang").status for update_id in range(60)]
    most = 8 - 8 // 4 if workers == "1" else 0
    wait(lambda: len(bots.lines("hangs")) >= (most or 8))
    for update_id in range(200):
        # its own share of the room is full for a moment
        wait(lambda n=update_id: post(server, SECOND, n, chat_id=n % 20).status != 503)  # type: ignore[misc]
    wait(lambda: len(bots.handled(SECOND)) == 200)
    assert bots.handled(FIRST) == []
    assert not most or len(bots.lines("hangs")) == most
    kept = statuses.count(200)
    assert kept == (60 if options == ("journal:waiting",) else 30)
    bots.release()
    assert server.stop() == 0
    assert len(bots.handled(FIRST)) == kept


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_what_waits_on_disk_for_one_is_not_held_up_by_another(
    serve: Callable[..., Server], bots: Bots, workers: str, killed: bool
) -> None:
    """The second bot fills its part of the journal's memory, too, while nothing of the first one's ends."""
    bots.write(table(FIRST), table(SECOND))
    options = ("--queue", "journal:waiting", "--workers", workers, "--concurrency", "8", "--queue-size", "40")
    server = serve(*options)
    for bot, text in ((FIRST, "hang"), (SECOND, "wait")):
        for update_id in range(100):
            assert post(server, bot, update_id, text).status == 200
    if killed:
        server.kill()
        server = serve(*options)
    (bots.directory / "gone-on").touch()
    wait(lambda: sorted(bots.handled(SECOND)) == list(range(100)))
    assert bots.handled(FIRST) == []
    bots.release()
    wait(lambda: sorted(bots.handled(FIRST)) == list(range(100)))
    assert server.stop() == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_poison_in_one(serve: Callable[..., Server], bots: Bots, workers: str) -> None:
    bots.write(table(FIRST), table(SECOND))
    server = serve("--retries", "0", "--concurrency", "4", "--workers", workers)
    for update_id in range(40):
        assert post(server, FIRST, update_id, "raise").status == 200
        assert post(server, SECOND, update_id).status == 200
    wait(lambda: len(bots.handled(SECOND)) == 40)
    assert server.stop() == 0
    letters = DeadLetters(bots.directory / ".fasthook" / "dead")
    dead = [letter.bot_id for _, letter in letters.items()]
    letters.close()
    assert dead == [FIRST] * 40
    said = fasthook(bots.directory, "dead", "list", "--bot", str(SECOND), "--json")
    assert said.output == ""


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_dead_letter_shows_no_bots_token(serve: Callable[..., Server], bots: Bots, workers: str) -> None:
    """Nor that of a bot that has gone since."""
    bots.write(table(FIRST), table(SECOND))
    server = serve("--retries", "0", "--workers", workers)
    assert post(server, FIRST, 1, f"leak its {token(SECOND)} and my {token(FIRST)}").status == 200
    wait(lambda: fasthook(bots.directory, "dead", "list", "--json").output)
    bots.write(table(FIRST))
    reload(server)
    assert post(server, FIRST, 2, f"leak its {token(SECOND)} and my {token(FIRST)}").status == 200
    wait(lambda: fasthook(bots.directory, "dead", "list", "--json").output.count("\n") == 2)
    assert server.stop() == 0
    for number in ("1", "2"):
        shown = json.loads(fasthook(bots.directory, "dead", "show", number, "--json").output)
        assert "ValueError: its *** and my ***" in shown["traceback"]
        assert "TEST-token" not in shown["traceback"]


# ---------------------------------------------------------------- SIGHUP


@pytest.mark.parametrize("workers", ["1", "2"])
def test_one_comes_and_one_goes_under_load(serve: Callable[..., Server], bots: Bots, workers: str) -> None:
    """No request for the one that stays fails, and each of its updates is handled once."""
    bots.write(table(FIRST), table(SECOND))
    server = serve("--workers", workers)
    sent: list[int] = []

    async def load(chat: int, ending: asyncio.Event) -> None:
        reader, writer = await asyncio.open_connection(*server.address)
        update_id = chat * 1_000_000
        while not ending.is_set():
            body = samples.update(update_id, chat_id=chat, text="hello")
            head = HEAD.replace("/webhook", f"/webhook/{FIRST}").format(secret(FIRST), len(body))
            writer.write(head.encode() + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 200"), answer
            sent.append(update_id)
            update_id += 1
            await asyncio.sleep(0.002)
        writer.close()

    async def main() -> None:
        ending = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for chat in range(1, 5):
                group.create_task(load(chat, ending))
            for turn in range(4):
                coming, going = (THIRD, SECOND) if turn % 2 == 0 else (SECOND, THIRD)
                bots.write(table(FIRST), table(coming))
                await asyncio.to_thread(reload, server, turn + 1)
                assert (await asyncio.to_thread(post, server, coming, turn)).status == 200
                assert (await asyncio.to_thread(post, server, going, turn)).status == 404
            ending.set()

    asyncio.run(main())
    assert server.stop() == 0
    assert sorted(bots.handled(FIRST)) == sorted(sent)
    assert (bots.handled(THIRD), bots.handled(SECOND)) == ([0, 2], [1, 3])
    assert not server.find("ERROR|Traceback")


@pytest.mark.parametrize("queue", ["memory:", "journal:waiting"])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_what_waits_for_a_bot_that_went_is_kept_until_it_is_back(
    serve: Callable[..., Server], bots: Bots, queue: str, workers: str
) -> None:
    bots.write(table(FIRST), table(SECOND))
    server = serve("--queue", queue, "--workers", workers, "--concurrency", "2", "--drain-timeout", "10s")
    for update_id in range(10):
        assert post(server, SECOND, update_id, "hang", chat_id=1).status == 200
    wait(lambda: bots.lines("hangs"))
    bots.write(table(FIRST))
    reload(server)
    bots.release()
    wait(lambda: bots.handled(SECOND) == [0])
    assert post(server, FIRST, 1).status == 200
    wait(lambda: bots.handled(FIRST) == [1])
    assert fasthook(bots.directory, "queue", "list", "--bot", "43", "--json").output.count("\n") == 9
    assert server.stop() == 0
    assert bots.handled(SECOND) == [0]
    server = serve("--queue", queue, "--workers", workers)
    bots.write(table(FIRST), table(SECOND))
    reload(server)
    wait(lambda: bots.handled(SECOND) == list(range(10)))
    assert server.stop() == 0


def test_a_file_that_cannot_be_served_changes_nothing(serve: Callable[..., Server], bots: Bots) -> None:
    bots.write(table(FIRST), table(SECOND))
    server = serve()
    wrong = {
        table(THIRD, target="bot:nobody"): r"fasthook.toml: \[\[bot\]\] 2: bot:nobody: the module 'bot' has no attr",
        table(FIRST, path="/other"): r"fasthook.toml: \[\[bot\]\] 2: token: bot 42 is that of \[\[bot\]\] 1 already$",
        "port = = 5": "fasthook.toml: not TOML: ",
    }
    for count, (text, words) in enumerate(wrong.items(), 1):
        bots.write(table(FIRST), text)
        reload(server, count)
        server.until(f"ERROR   fasthook: nothing has changed: {words}")
    bots.write()
    reload(server, 4)
    server.until(r"nothing has changed: there is no \[\[bot\]\] in the file any more")
    assert post(server, FIRST, 1).status == 200
    assert post(server, SECOND, 1).status == 200
    assert server.stop() == 0
    assert (bots.handled(FIRST), bots.handled(SECOND)) == ([1], [1])


@pytest.mark.parametrize("name", ["concurrency", "queue-size"])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_more_bots_than_this_server_has_places(
    serve: Callable[..., Server], bots: Bots, workers: str, name: str
) -> None:
    """What the file says of places takes a restart; until then a file with fewer bots is taken as ever."""
    bots.write(table(FIRST), above=f"{name} = 1")
    server = serve("--workers", workers)
    bots.write(table(FIRST), table(SECOND), table(THIRD), above=f"{name} = 256")
    reload(server)
    server.until(f"nothing has changed: --{name} is 1 since the start, too few for 3 bots; start again")
    bots.write(table(SECOND), above=f"{name} = 256")
    reload(server, 2)
    assert post(server, SECOND, 1).status == 200
    wait(lambda: bots.handled(SECOND) == [1])
    assert server.stop() == 0
    assert not server.find("Traceback")


class Starting(Server):
    """`fasthook run` that has come to the lifespan of its bots."""

    banner = "starts now()()()()"


@pytest.mark.parametrize("workers", ["1", "2"])
def test_sighup_during_the_start(bots: Bots, workers: str) -> None:
    """The file is read again when the server has started."""
    held = "contextmanager\nasync def lifespan(app):\n"
    assert held in SOURCE
    waits = '    print("starts now", file=sys.stderr, flush=True)\n    while not os.path.exists("go"):\n'
    source = SOURCE.replace(held, f"{held}{waits}        await asyncio.sleep(0.01)\n")
    (bots.directory / "bot.py").write_text(f"import sys\n{source}")
    bots.write(table(FIRST))
    server = Starting(bots.directory, "bot:handler", "--port", "0", "--workers", workers)
    try:
        bots.write(table(FIRST), table(SECOND))
        server.signal(signal.SIGHUP)
        (bots.directory / "go").touch()
        server.until("the bots are read again: added 43")
        assert server.stop() == 0
    finally:
        server.kill()


SLOW = """
import asyncio
import contextlib
import os
import sys
import time

print("imported now", file=sys.stderr, flush=True)
while {imports} and not os.path.exists("released"):
    time.sleep(0.01)


@contextlib.asynccontextmanager
async def lifespan(app):
    print("starts now", file=sys.stderr, flush=True)
    try:
        while not {imports} and not os.path.exists("released"):
            await asyncio.sleep(0.01)
        yield {{"pool": 7}}
    finally:
        print("ends now", file=sys.stderr, flush=True)


from bot import handler
"""


@pytest.mark.parametrize("imports", [True, False])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_start_that_hangs_holds_nobody_up(
    serve: Callable[..., Server], bots: Bots, workers: str, imports: bool
) -> None:
    """The others are served meanwhile, and the next SIGHUP gives it up and takes what the file says then."""
    (bots.directory / "slow.py").write_text(SLOW.format(imports=imports))
    bots.write(table(FIRST))
    server = serve("--workers", workers)
    bots.write(table(FIRST), table(SECOND, target="slow:handler"))
    server.signal(signal.SIGHUP)
    server.until("imported now" if imports else "starts now")
    assert post(server, FIRST, 1).status == 200
    wait(lambda: bots.handled(FIRST) == [1])
    bots.write(table(FIRST), table(THIRD))
    server.signal(signal.SIGHUP)
    server.until("the bots are read again: added 44")
    assert server.find("what was about to start is given up")
    assert post(server, THIRD, 1).status == 200
    assert post(server, SECOND, 1).status == 404
    assert imports or workers == "2" or server.find("ends now")
    bots.release()
    bots.write(table(FIRST), table(SECOND, target="slow:handler"))
    reload(server, 2)
    assert post(server, SECOND, 1).status == 200
    assert server.stop() == 0
    assert bots.handled(SECOND) == [1]


@pytest.mark.parametrize("imports", [True, False])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_start_that_hangs_is_given_up(serve: Callable[..., Server], bots: Bots, workers: str, imports: bool) -> None:
    """By itself after --worker-timeout, and at once by a stop."""
    (bots.directory / "slow.py").write_text(SLOW.format(imports=imports))
    bots.write(table(FIRST))
    server = serve("--workers", workers, "--worker-timeout", "3s")
    bots.write(table(FIRST), table(SECOND, target="slow:handler"))
    reload(server)
    server.until(
        r"nothing has changed: fasthook.toml: \[\[bot\]\] 2: slow:handler: it has not started in 3 s"
        if workers == "1"
        else "nothing has changed: the new workers do not start"
    )
    server.signal(signal.SIGHUP)
    assert post(server, FIRST, 1).status == 200
    assert server.stop() == 0
    assert bots.handled(FIRST) == [1]


def test_a_bot_with_other_keys(serve: Callable[..., Server], bots: Bots) -> None:
    bots.write(table(FIRST), table(SECOND))
    server = serve()
    bots.write(table(FIRST, secret="another"), table(SECOND, path="/moved"), above="retries = 5")
    reload(server)
    server.until("a restart is needed for what else has changed: --retries")
    server.until("the bots are read again: changed 42, 43")
    assert post(server, FIRST, 1).status == 401
    assert post(server, FIRST, 1, secret="another").status == 200
    assert post(server, SECOND, 1).status == 404
    assert post(server, SECOND, 1, path="/moved").status == 200
    assert server.stop() == 0
    assert len(bots.lines("begins")) == len(bots.lines("ends")) == 1


def test_nothing_old_is_registered_after_an_outage(serve: Callable[..., Server], bots: Bots) -> None:
    """Handlers still run for a bot that has moved and for one that is gone: nobody tries for those any more."""
    bots.write(table(FIRST), table(SECOND), table(THIRD), above='public-url = "https://example.org"')
    with Outage() as api:
        server = serve("--api-url", api.url)
        for bot in (FIRST, SECOND):
            assert post(server, bot, 1, "hang").status == 200
        wait(lambda: len(bots.lines("hangs")) == 2)
        server.until("the webhook is not registered yet", 3)
        bots.write(
            table(FIRST, path="/moved", target="bot:other"), table(THIRD), above='public-url = "https://example.org"'
        )
        reload(server)
        api.up = True
        wait(lambda: api.registered(THIRD) and api.registered(FIRST))
        assert (api.registered(FIRST), api.registered(SECOND)) == (["https://example.org/moved"], [])
        bots.release()
        assert server.stop() == 0


# ---------------------------------------------------------------- what cannot be


def check(ended: Ended, begins: str) -> None:
    assert ended.lines == (ended.line,)
    assert ended.line.startswith(f"fasthook: {begins}"), ended.line
    assert ended.code == 2
    assert "TEST-token" not in ended.line


@pytest.mark.parametrize(
    ("second", "line"),
    [
        ("[[bot]]\n", "fasthook.toml: [[bot]] 2: token: is missing"),
        (table(FIRST, path="/other"), "fasthook.toml: [[bot]] 2: token: bot 42 is that of [[bot]] 1 already"),
        (table(SECOND, path="/webhook/42"), "fasthook.toml: [[bot]] 2: path: /webhook/42 is that of [[bot]] 1 already"),
        (table(SECOND, pth="/x"), "fasthook.toml: [[bot]] 2: pth: a bot has no such setting; did you mean path?"),
        (table(SECOND, path="x"), "fasthook.toml: [[bot]] 2: path: must begin with /"),
        (table(SECOND, token="nonsense"), "fasthook.toml: [[bot]] 2: token: must look like"),
        (table(SECOND, secret="non sense"), "fasthook.toml: [[bot]] 2: secret: must be "),
        (table(SECOND) + "path = 5\n", "fasthook.toml: [[bot]] 2: path: must begin with /"),
        (table(SECOND) + "target = 5\n", "fasthook.toml: [[bot]] 2: target: must be module:attribute, not 5"),
        (table(SECOND, target="bot:none"), "fasthook.toml: [[bot]] 2: bot:none: the module 'bot' has no attribute"),
        (
            table(SECOND, **{"allowed-updates": "chat-member"}),
            "fasthook.toml: [[bot]] 2: allowed-updates: must be kinds",
        ),
        (table(SECOND, port="5"), "fasthook.toml: [[bot]] 2: port: a bot has no such setting"),
    ],
)
def test_a_table_that_is_wrong(bots: Bots, second: str, line: str) -> None:
    bots.write(table(FIRST), second)
    check(fasthook(bots.directory, "run", "bot:handler"), line)


@pytest.mark.parametrize(
    ("options", "env", "line"),
    [
        (["--token", "5:TEST"], {}, "--token: fasthook.toml has [[bot]] tables, each with its own token: leave this"),
        (["--secret", "x"], {}, "--secret: fasthook.toml has [[bot]] tables, each with its own secret: leave this"),
        (["--path", "/x"], {}, "--path: fasthook.toml has [[bot]] tables, each with its own path: leave this"),
        ([], {"BOT_TOKEN": "5:TEST"}, "BOT_TOKEN: fasthook.toml has [[bot]] tables, each with its own token: leave"),
        (["--concurrency", "1"], {}, "--concurrency: must be 2 or more, one for each [[bot]]"),
        (["--public-url", "https://a.example/webhook/42"], {}, "--public-url: each bot's path is put behind it"),
    ],
)
def test_what_is_said_for_all(bots: Bots, options: list[str], env: dict[str, str], line: str) -> None:
    bots.write(table(FIRST), table(SECOND))
    check(fasthook(bots.directory, "run", "bot:handler", *options, env=env), line)


def test_without_a_target(bots: Bots) -> None:
    bots.write(table(FIRST, target="bot:handler"), table(SECOND))
    check(fasthook(bots.directory, "run"), "fasthook.toml: [[bot]] 2: target: is missing: give it there, or as TARGET")
    (bots.directory / "fasthook.toml").write_text(f'[bot]\ntoken = "{token(FIRST)}"\n')
    check(fasthook(bots.directory, "run"), "fasthook.toml: bot: write [[bot]] above each bot's keys")


def test_poll_is_for_one(bots: Bots) -> None:
    bots.write(table(FIRST))
    check(fasthook(bots.directory, "poll", "bot:handler"), "poll fetches for one bot, and fasthook.toml has [[bot]]")


AIOGRAM = """
from aiogram import Dispatcher
from aiogram.methods import SendMessage

dp = Dispatcher()


@dp.message()
async def echo(message, bot):
    return SendMessage(chat_id=message.chat.id, text=f"{bot.id}: {message.text}")
"""


TWO_DISPATCHERS = """
from aiogram import Dispatcher

first, second = Dispatcher(), Dispatcher()


@first.message()
async def message(message):
    pass


@second.callback_query()
async def button(query):
    pass
"""


@pytest.mark.parametrize("workers", ["1", "2"])
def test_each_is_registered_for_what_it_handles(serve: Callable[..., Server], bots: Bots, workers: str) -> None:
    aiogram()
    (bots.directory / "library.py").write_text(TWO_DISPATCHERS)
    above = 'public-url = "https://example.org"'
    first, second, third = (
        table(bot, target=f"library:{name}") for bot, name in ((FIRST, "first"), (SECOND, "second"), (THIRD, "second"))
    )
    bots.write(first, second, table(45), above=above)
    with TwoBots() as api:
        server = serve("--api-url", api.url, "--workers", workers)
        server.until("the webhook is registered", 3)
        bots.write(first, second, third, table(45), above=above)
        reload(server)
        server.until("the webhook is registered", 4)
        assert server.stop() == 0
        kinds = {call.token: call.params.get("allowed_updates") for call in api.calls if call.method == "setWebhook"}
    assert kinds == {
        token(FIRST): ["message"],
        token(SECOND): ["callback_query"],
        token(THIRD): ["callback_query"],
        token(45): None,
    }


def test_a_librarys_dispatcher_for_two_bots(serve: Callable[..., Server], bots: Bots) -> None:
    """Each table has an adapter of its own, with its token; the first bot goes, and the other one still answers."""
    aiogram()
    (bots.directory / "library.py").write_text(AIOGRAM)
    bots.write(table(FIRST), table(SECOND))
    message = {"message_id": 1, "date": 0, "chat": {"id": 1, "type": "private"}}
    with botapi.BotServer(*[botapi.Answer.json(200, result=message)] * 3) as api:
        server = serve("--api-url", api.url, target=["library:dp"])
        assert post(server, FIRST, 1, "a").status == 200
        assert post(server, SECOND, 1, "b").status == 200
        calls = {(call.token, call.params["text"]) for call in api.until_called(2)}
        assert calls == {(token(FIRST), "42: a"), (token(SECOND), "43: b")}
        bots.write(table(SECOND))
        reload(server)
        assert post(server, SECOND, 2, "c").status == 200
        assert api.until_called(3)[2].params["text"] == "43: c"
        assert server.stop() == 0
    assert not server.find("ERROR|Unclosed")
