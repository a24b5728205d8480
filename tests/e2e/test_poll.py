"""`fasthook poll`, against a simulated Telegram."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

import botapi
from botapi import Answer, BotServer
from e2e.bot import Bot
from e2e.process import COMMAND, LONG, PATIENCE, Polling, environment, fasthook, killed_in_the_end
from e2e.tools import until
from fasthook.testing import TOKEN, Call
from fasthook.testing.account import Account
from fasthook.testing.delivery import Attempt
from fasthook.testing.running import Telegram
from fasthook.testing.updates import Pending

Start = Callable[..., Polling]
WEBHOOK = "http://127.0.0.1:9/webhook"


@pytest.fixture
def poll(bot: Bot, telegram: Telegram) -> Iterator[Start]:
    """Start `fasthook poll` for the bot; what still runs at the end is killed."""
    running: list[Polling] = []

    def started(*options: str, api: str = telegram.url, env: dict[str, str] | None = None) -> Polling:
        arguments = ["bot:handler", "--token", TOKEN, "--api-url", api, *options]
        running.append(Polling(bot.directory, *arguments, env=env))
        return running[-1]

    yield started
    for one in running:
        one.kill()


class Quiet(BotServer):
    """Has no more updates than it is given."""

    def usual(self, call: botapi.Call) -> Answer:
        return Answer.json(200, result=[])


class Polls:
    """What getUpdates was asked with."""

    def __init__(self, telegram: Telegram) -> None:
        self.params: list[dict[str, Any]] = []
        telegram.simulator.watchers.append(self)

    def sent(self, account: Account, update: Pending) -> None:
        pass

    def attempted(self, account: Account, attempt: Attempt) -> None:
        pass

    def called(self, account: Account, call: Call) -> None:
        if call.method == "getUpdates":
            self.params.append(call.params)


def give(telegram: Telegram, count: int, text: str = "hello") -> None:
    """So many messages, in five chats by turns."""
    for n in range(count):
        telegram.chat(1 + n % 5).send(text)


def in_turns(bot: Bot, count: int) -> dict[int, list[int]]:
    """What `give` gave, by chat, if nothing came before it."""
    first = min(one.update_id for one in bot.handled)
    return {1 + chat: [first + n for n in range(chat, count, 5)] for chat in range(5)}


@pytest.mark.parametrize("queue", ["memory:", "journal:waiting"])
@pytest.mark.parametrize("ack", ["queued", "handled"])
def test_updates_in_order_and_exactly_once(poll: Start, bot: Bot, telegram: Telegram, queue: str, ack: str) -> None:
    give(telegram, 1000)
    server = poll("--queue", queue, "--ack", ack)
    telegram.settled(LONG).result()
    assert server.stop() == 0
    assert bot.by_chat == in_turns(bot, 1000)
    assert not server.find("Traceback|" + TOKEN.partition(":")[2])


def test_a_reply_is_sent(poll: Start, telegram: Telegram) -> None:
    """With --ack handled too: there is no answer that could hold it."""
    for ack in ("queued", "handled"):
        telegram.chat().send(f"say {ack}").result()
        server = poll("--ack", ack)
        assert telegram.chat().expect("sendMessage", text=ack, timeout=PATIENCE).result().via == "api"
        assert server.stop() == 0


def test_bytes_that_only_telegram_sends(poll: Start, bot: Bot) -> None:
    """A lone surrogate, and an `update_id` that doesn't come first."""
    body = b'{"ok":true,"result":[{"message":{"chat":{"id":5},"text":"\\ud83d"},"update_id":7}]}'
    with Quiet(Answer.json(200, result={"url": ""}), Answer(200, body)) as api:
        server = poll(api=api.url)
        api.until_called(3)
        assert server.stop() == 0
    assert [one.update_id for one in bot.handled] == [7]


def test_the_kinds_of_the_bot_are_asked_for_once(poll: Start, telegram: Telegram) -> None:
    polls = Polls(telegram)
    give(telegram, 1)
    server = poll("--allowed-updates", "message,foo")
    telegram.settled(LONG).result()
    assert server.stop() == 0
    assert polls.params[0] == {"limit": 100, "timeout": 30, "allowed_updates": ["message", "foo"]}
    assert len(server.find("WARNING +fasthook: --allowed-updates: foo is not a kind of update known here")) == 1
    assert "allowed_updates" not in polls.params[1]


# ---------------------------------------------------------------- what is not safe stays with Telegram


def test_a_full_queue(poll: Start, bot: Bot, telegram: Telegram) -> None:
    give(telegram, 60)
    server = poll("--queue-size", "7", "--concurrency", "3", env={"PAUSE": "0.01"})
    telegram.settled(LONG).result()
    assert server.stop() == 0
    assert bot.by_chat == in_turns(bot, 60)


def test_a_failure_is_fetched_again_with_ack_handled(poll: Start, bot: Bot, telegram: Telegram) -> None:
    give(telegram, 3, "fail once")
    server = poll("--ack", "handled")
    telegram.settled(LONG).result()
    assert server.stop() == 0
    assert sorted((one.chat, one.attempt) for one in bot.handled) == [(1, 2), (2, 2), (3, 2)]


def test_a_stop_drains_and_confirms(poll: Start, bot: Bot, telegram: Telegram) -> None:
    polls = Polls(telegram)
    give(telegram, 20)
    server = poll("--concurrency", "1", env={"PAUSE": "0.05"})
    telegram.settled(LONG).result()
    server.signal(signal.SIGINT)
    assert server.wait() == 0
    assert bot.by_chat == in_turns(bot, 20)
    assert {"offset": max(one.update_id for one in bot.handled) + 1, "limit": 1, "timeout": 0} in polls.params


def test_what_a_stop_leaves_is_handled_at_the_next_start(poll: Start, bot: Bot, telegram: Telegram) -> None:
    give(telegram, 10)
    server = poll("--drain-timeout", "0", env={"HELD": "1"})
    telegram.settled(LONG).result()
    assert server.stop() == 0
    server.until("2 updates are not handled yet: they are kept")
    assert poll().stop() == 0
    assert bot.by_chat == in_turns(bot, 10)


def test_a_second_signal(poll: Start, telegram: Telegram) -> None:
    give(telegram, 5)
    server = poll("--drain-timeout", "1h", env={"HELD": "1"})
    telegram.settled(LONG).result()
    server.signal(signal.SIGTERM)
    server.until("SIGTERM: stopping")
    server.signal(signal.SIGTERM)
    assert server.wait() == 130


# ---------------------------------------------------------------- what Telegram may say


def test_a_bot_that_has_a_webhook_is_left_alone(bot: Bot, telegram: Telegram) -> None:
    telegram.set_webhook(WEBHOOK)
    ended = fasthook(bot.directory, "poll", "bot:handler", "--token", TOKEN, "--api-url", telegram.url)
    words = f"bot 42 has a webhook at {WEBHOOK}, and its updates go there; try things with another "
    assert ended.lines == (ended.line,)
    assert ended.line.startswith(f"fasthook: {words}")
    assert ended.line.endswith("--take-over")
    assert ended.code == 1
    assert [call.method for call in telegram.calls] == ["setWebhook", "getWebhookInfo"]


def test_take_over_removes_the_webhook(poll: Start, bot: Bot, telegram: Telegram) -> None:
    """And not what waits."""
    telegram.set_webhook(WEBHOOK)
    telegram.advance(1)
    give(telegram, 5)
    server = poll("--take-over")
    telegram.settled(LONG).result()
    assert server.stop() == 0
    assert telegram.webhook_info()["url"] == ""
    assert [call.params for call in telegram.calls if call.method == "deleteWebhook"] == [{}]
    assert len(bot.handled) == 5


@pytest.mark.parametrize(("answer", "stays"), [(b"n\n", True), (b"y\n", False)])
def test_take_over_asks_first_on_a_terminal(bot: Bot, telegram: Telegram, answer: bytes, stays: bool) -> None:
    telegram.set_webhook(WEBHOOK)
    telegram.advance(1)
    ours, theirs = pty.openpty()
    arguments = ["poll", "bot:handler", "--token", TOKEN, "--api-url", telegram.url, "--take-over"]
    process = subprocess.Popen(
        [str(COMMAND), *arguments],
        cwd=bot.directory,
        env=environment(),
        stdin=theirs,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.write(ours, answer)
    with killed_in_the_end(process):
        if not stays:
            until(lambda: telegram.simulator.bot.polls)
            process.terminate()
        _, said = process.communicate(timeout=PATIENCE)
    os.close(ours)
    os.close(theirs)
    assert f"Remove the webhook of bot 42 at {WEBHOOK}?" in said
    assert bool(telegram.webhook_info()["url"]) == stays
    assert process.returncode == stays
    assert ("the webhook stays" in said) == stays


def test_another_program_polls(poll: Start, bot: Bot, telegram: Telegram) -> None:
    server = poll()
    until(lambda: telegram.simulator.bot.polls)
    httpx.post(f"{telegram.url}/bot{TOKEN}/getUpdates", timeout=PATIENCE)
    server.until("no updates, tried again in . s: getUpdates: 409 Conflict: .*: another program polls this bot; end it")
    give(telegram, 1)
    server.until("Telegram answers again")
    telegram.settled(LONG).result()
    assert server.stop() == 0
    assert len(bot.handled) == 1


def test_telegram_goes_away_and_comes_back(poll: Start, bot: Bot, telegram: Telegram) -> None:
    for kind in ("close", "html"):
        telegram.fail(kind, "getUpdates", times=1)
    server = poll()
    server.until("no updates, tried again in . s: getUpdates: no answer from the Bot API", 2)
    give(telegram, 3)
    telegram.settled(LONG).result()
    assert server.stop() == 0
    assert len(bot.handled) == 3


@pytest.mark.parametrize("kind", ["hang", "slow"])
def test_a_stop_does_not_wait_for_telegram(poll: Start, bot: Bot, telegram: Telegram, kind: str) -> None:
    fault = telegram.fail(kind, "getUpdates", times=1, seconds=3600)
    server = poll()
    until(lambda: fault.times == 0)
    assert server.stop() == 0


def test_a_token_that_is_revoked_ends_it(poll: Start, telegram: Telegram) -> None:
    server = poll()
    until(lambda: telegram.simulator.bot.polls)
    telegram.simulator.bot.revoked = True
    give(telegram, 1)
    assert server.wait() == 1
    server.until("^fasthook: getUpdates: 401 Unauthorized: Telegram doesn't know the token")
    assert not server.find("Traceback")


def test_a_webhook_that_is_set_meanwhile_ends_it(poll: Start, telegram: Telegram) -> None:
    server = poll()
    until(lambda: telegram.simulator.bot.polls)
    telegram.set_webhook(WEBHOOK)
    assert server.wait() == 1
    server.until("^fasthook: getUpdates: 409 Conflict: .*somebody set a webhook for this bot while it was polled")
    assert not server.find("Traceback")


def test_without_a_token(bot: Bot) -> None:
    ended = fasthook(bot.directory, "poll", "bot:handler")
    assert ended.lines == ("fasthook: no token: set --token, FASTHOOK_TOKEN or BOT_TOKEN",)
    assert ended.code == 2


def test_a_wrong_token(bot: Bot, telegram: Telegram) -> None:
    ended = fasthook(bot.directory, "poll", "bot:handler", "--token", "43:TEST", "--api-url", telegram.url)
    assert ended.line.startswith("fasthook: getWebhookInfo: 401 Unauthorized: Telegram doesn't know the token; ")
    assert (ended.code, ended.lines) == (1, (ended.line,))
