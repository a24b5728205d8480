"""`fasthook poll`, against a Bot API server on loopback."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import botapi
from botapi import HANG_UP, TOKEN, Answer
from e2e.bot import Bot
from e2e.process import COMMAND, PATIENCE, Polling, environment, fasthook
from fasthook.testing import samples

CONFLICT = "Conflict: terminated by other getUpdates request; make sure that only one bot instance is running"


Start = Callable[..., Polling]


@pytest.fixture
def api() -> Iterator[botapi.Telegram]:
    with botapi.Telegram() as server:
        yield server


@pytest.fixture
def poll(bot: Bot, api: botapi.Telegram) -> Iterator[Start]:
    """Start `fasthook poll` for the bot; what still runs at the end is killed."""
    running: list[Polling] = []

    def started(*options: str, target: str = "bot:handler", env: dict[str, str] | None = None) -> Polling:
        arguments = [target, "--token", TOKEN, "--api-url", api.url, *options]
        running.append(Polling(bot.directory, *arguments, env=env))
        return running[-1]

    yield started
    for one in running:
        one.kill()


def updates(count: int, *, chats: int = 5, text: str = "") -> list[dict[str, Any]]:
    return [json.loads(samples.update(n, chat_id=n % chats, text=text)) for n in range(1, count + 1)]


def until_confirmed(api: botapi.Telegram, update_id: int) -> None:
    """Wait until Telegram may forget all up to this one."""
    count = 1
    while api.until("getUpdates", count)[-1].get("offset", 0) <= update_id:
        count = len(api.calls_of("getUpdates")) + 1


@pytest.mark.parametrize("queue", ["memory:", "journal:waiting"])
@pytest.mark.parametrize("ack", ["queued", "handled"])
def test_updates_in_order_and_exactly_once(poll: Start, bot: Bot, api: botapi.Telegram, queue: str, ack: str) -> None:
    api.give(*updates(1000))
    server = poll("--queue", queue, "--ack", ack)
    until_confirmed(api, 1000)
    assert server.stop() == 0
    assert bot.by_chat == {chat: [n for n in range(1, 1001) if n % 5 == chat] for chat in range(5)}
    assert api.waiting == []
    assert not server.find("Traceback|TEST-token")


def test_a_reply_is_sent(poll: Start, api: botapi.Telegram) -> None:
    """With --ack handled too: there is no answer that could hold it."""
    for ack, update_id in [("queued", 1), ("handled", 2)]:
        api.give(json.loads(samples.update(update_id, chat_id=update_id, text=f"say {ack}")))
        server = poll("--ack", ack)
        assert api.until("sendMessage", update_id)[-1] == {"chat_id": update_id, "text": ack}
        assert server.stop() == 0


def test_bytes_that_only_telegram_sends(poll: Start, bot: Bot, api: botapi.Telegram) -> None:
    body = b'{"ok":true,"result":[{"message":{"chat":{"id":5},"text":"\\ud83d"},"update_id":7}]}'
    api.answers.append(Answer.json(200, result={"url": ""}))
    api.answers.append(Answer(200, body))
    server = poll()
    until_confirmed(api, 7)
    assert server.stop() == 0
    assert [one.update_id for one in bot.handled] == [7]


def test_the_kinds_of_the_bot_are_asked_for_once(poll: Start, api: botapi.Telegram) -> None:
    server = poll("--allowed-updates", "message,poll")
    calls = api.until("getUpdates", 2)
    assert server.stop() == 0
    assert calls[0] == {"limit": 100, "timeout": 30, "allowed_updates": ["message", "poll"]}
    assert "allowed_updates" not in calls[1]


# ---------------------------------------------------------------- what is not safe stays with Telegram


def test_a_full_queue(poll: Start, bot: Bot, api: botapi.Telegram) -> None:
    api.give(*updates(60))
    server = poll("--queue-size", "7", "--concurrency", "3", env={"PAUSE": "0.01"})
    until_confirmed(api, 60)
    assert server.stop() == 0
    assert sorted(one.update_id for one in bot.handled) == list(range(1, 61))
    assert bot.by_chat == {chat: [n for n in range(1, 61) if n % 5 == chat] for chat in range(5)}


def test_a_failure_is_fetched_again_with_ack_handled(poll: Start, bot: Bot, api: botapi.Telegram) -> None:
    api.give(*updates(3, text="fail once"))
    server = poll("--ack", "handled")
    until_confirmed(api, 3)
    assert server.stop() == 0
    assert sorted((one.update_id, one.attempt) for one in bot.handled) == [(1, 2), (2, 2), (3, 2)]


def test_a_stop_drains_and_confirms(poll: Start, bot: Bot, api: botapi.Telegram) -> None:
    api.give(*updates(20))
    server = poll("--concurrency", "1", env={"PAUSE": "0.05"})
    until_confirmed(api, 20)
    server.signal(signal.SIGINT)
    assert server.wait() == 0
    assert sorted(one.update_id for one in bot.handled) == list(range(1, 21))
    assert api.calls_of("getUpdates")[-1] == {"offset": 21, "limit": 1, "timeout": 0}


def test_what_a_stop_leaves_is_handled_at_the_next_start(poll: Start, bot: Bot, api: botapi.Telegram) -> None:
    api.give(*updates(10))
    server = poll("--drain-timeout", "0", env={"HELD": "1"})
    until_confirmed(api, 10)
    assert server.stop() == 0
    server.until("2 updates are not handled yet: they are kept")
    assert poll().stop() == 0
    assert sorted(one.update_id for one in bot.handled) == list(range(1, 11))


def test_a_second_signal(poll: Start, api: botapi.Telegram) -> None:
    api.give(*updates(5))
    server = poll("--drain-timeout", "1h", env={"HELD": "1"})
    until_confirmed(api, 5)
    server.signal(signal.SIGTERM)
    server.until("SIGTERM: stopping")
    server.signal(signal.SIGTERM)
    assert server.wait() == 130


# ---------------------------------------------------------------- what Telegram may say


def test_a_bot_that_has_a_webhook_is_left_alone(bot: Bot, api: botapi.Telegram) -> None:
    api.info["url"] = "https://bot.example.com/webhook"
    ended = fasthook(bot.directory, "poll", "bot:handler", "--token", TOKEN, "--api-url", api.url)
    words = (
        "bot 42 has a webhook at https://bot.example.com/webhook, and its updates go there; try things with another "
    )
    assert ended.lines == (ended.line,)
    assert ended.line.startswith(f"fasthook: {words}")
    assert ended.line.endswith("--take-over")
    assert ended.code == 1
    assert [call.method for call in api.calls] == ["getWebhookInfo"]


def test_take_over_removes_the_webhook(poll: Start, api: botapi.Telegram) -> None:
    api.info["url"] = "https://bot.example.com/webhook"
    server = poll("--take-over")
    api.until("getUpdates")
    assert server.stop() == 0
    assert api.info["url"] == ""
    assert api.calls_of("deleteWebhook") == [{}]


@pytest.mark.parametrize(("answer", "stays"), [(b"n\n", True), (b"y\n", False)])
def test_take_over_asks_first_on_a_terminal(bot: Bot, api: botapi.Telegram, answer: bytes, stays: bool) -> None:
    api.info["url"] = "https://bot.example.com/webhook"
    ours, theirs = pty.openpty()
    arguments = ["poll", "bot:handler", "--token", TOKEN, "--api-url", api.url, "--take-over"]
    process = subprocess.Popen(
        [str(COMMAND), *arguments],
        cwd=bot.directory,
        env=environment(),
        stdin=theirs,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.write(ours, answer)
    if not stays:
        api.until("getUpdates")
        process.terminate()
    _, said = process.communicate(timeout=PATIENCE)
    os.close(ours)
    os.close(theirs)
    assert "Remove the webhook of bot 42 at https://bot.example.com/webhook?" in said
    assert bool(api.info["url"]) == stays
    assert process.returncode == stays
    assert ("the webhook stays" in said) == stays


def test_another_program_polls(poll: Start, bot: Bot, api: botapi.Telegram) -> None:
    server = poll()
    api.answers.append(Answer.json(409, error_code=409, description=CONFLICT))
    server.until("no updates, tried again in . s: getUpdates: 409 Conflict: .*: another program polls this bot; end it")
    server.until("Telegram answers again")
    api.give(*updates(1))
    until_confirmed(api, 1)
    assert server.stop() == 0
    assert len(bot.handled) == 1


def test_telegram_goes_away_and_comes_back(poll: Start, bot: Bot, api: botapi.Telegram) -> None:
    server = poll()
    api.answers.extend([HANG_UP, Answer.json(502, description="Bad Gateway")])
    server.until("no updates, tried again in . s: getUpdates: no answer from the Bot API", 2)
    api.give(*updates(3))
    until_confirmed(api, 3)
    assert server.stop() == 0
    assert len(bot.handled) == 3


@pytest.mark.parametrize(
    ("code", "description", "words"),
    [
        (401, "Unauthorized", "Telegram doesn't know the token"),
        (409, "Conflict: can't use getUpdates method while webhook is active; use deleteWebhook to delete the webhook "
              "first", "the bot has a webhook"),
    ],
)  # fmt: skip
def test_what_ends_it(poll: Start, bot: Bot, api: botapi.Telegram, code: int, description: str, words: str) -> None:
    server = poll()
    api.answers.append(Answer.json(code, error_code=code, description=description))
    assert server.wait() == 1
    server.until(f"^fasthook: getUpdates: {code} .*{words}")
    assert not server.find("Traceback")


def test_without_a_token(bot: Bot) -> None:
    ended = fasthook(bot.directory, "poll", "bot:handler")
    assert ended.lines == ("fasthook: no token: set --token, FASTHOOK_TOKEN or BOT_TOKEN",)
    assert ended.code == 2


def test_a_wrong_token(bot: Bot, api: botapi.Telegram) -> None:
    ended = fasthook(bot.directory, "poll", "bot:handler", "--token", "43:TEST", "--api-url", api.url)
    assert ended.line.startswith("fasthook: getWebhookInfo: 401 Unauthorized: Telegram doesn't know the token; ")
    assert (ended.code, ended.lines) == (1, (ended.line,))
