"""A Bot API method that a handler returns is really sent."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from botapi import Answer, BotServer
from e2e.bot import Bot
from e2e.process import LONG, PATIENCE, SECRET, Server
from e2e.tools import until
from fasthook.settings import secret_of
from fasthook.testing import TOKEN, Call, samples
from fasthook.testing.running import Telegram

UNLIMITED = ["--reply-chat-rate", "off"]
PLAIN = TOKEN.partition(":")[2]
Start = Callable[..., Server]


def served(start: Start, telegram: Telegram, *options: str) -> Server:
    """The bot, with this Telegram's token, and its webhook set."""
    server = start("--api-url", telegram.url, *options, env={"BOT_TOKEN": TOKEN})
    telegram.set_webhook(f"http://127.0.0.1:{server.address[1]}{server.path}", secret_of(TOKEN))
    return server


def sent(telegram: Telegram) -> list[Call]:
    return [call for call in telegram.calls if call.method == "sendMessage"]


def test_a_reply_reaches_the_bot_api(start: Start, bot: Bot, telegram: Telegram) -> None:
    server = served(start, telegram)
    group = telegram.chat(-1001, "supergroup")
    group.send("say hello").result()
    call = group.expect("sendMessage", timeout=PATIENCE).result()
    assert server.stop() == 0
    assert (call.params, call.via) == ({"chat_id": -1001, "text": "hello"}, "api")
    assert len(bot.handled) == 1


def test_what_telegram_may_say_to_it(start: Start, bot: Bot, telegram: Telegram) -> None:
    """And the token is in no line of the log, however much of it there is."""
    server = served(start, telegram, "--log-level", "debug", "--access-log", *UNLIMITED)
    chat = telegram.chat()
    for text, kinds in {"one": ["429"], "two": ["403"], "three": ["html", "500"], "four": []}.items():
        for kind in reversed(kinds):  # the last one that is asked for comes first
            telegram.fail(kind, "sendMessage", times=1)
        chat.send(f"say {text}").result()
        chat.expect("sendMessage", text=text, status=403 if text == "two" else 200, timeout=PATIENCE).result()
    assert server.stop() == 0
    statuses = [("one", 429), ("one", 200), ("two", 403), ("three", 502), ("three", 500), ("three", 200), ("four", 200)]
    assert [(call.text, call.status) for call in sent(telegram)] == statuses
    assert len(server.find(" WARNING +fasthook: update .*: Telegram refused sendMessage: 403 Forbidden: bot was ")) == 1
    assert server.find("HTTP Request: POST")
    assert not server.find(PLAIN)
    assert len(bot.handled) == 4
    assert bot.dead == []


def test_a_gateway_that_refuses_in_json_is_not_telegram(start: Start, bot: Bot) -> None:
    """It is tried again, and not settled as refused."""
    gateway = [Answer(403, b'{"message":"Forbidden"}'), Answer(400, b'{"error":"no upstream"}')]
    with BotServer(*gateway) as api:
        server = start("--api-url", api.url, *UNLIMITED, "--token", TOKEN, "--secret", SECRET)
        assert server.post(samples.update(1, text="say hello")).status == 200
        assert [call.params["text"] for call in api.until_called(3)] == ["hello"] * 3
        assert server.stop() == 0
    assert not server.find("refused")
    assert bot.dead == []


def test_a_user_who_blocked_the_bot_is_told_of_once(start: Start, bot: Bot, telegram: Telegram) -> None:
    """And not tried again."""
    server = served(start, telegram, *UNLIMITED)
    for chat_id in (5, 6):
        telegram.chat(chat_id).block().result()
    for chat_id in (5, 5, 6, 5):
        chat = telegram.chat(chat_id)
        chat.send("say hello").result()
        chat.expect("sendMessage", status=403, timeout=PATIENCE).result()
    assert server.stop() == 0
    assert len(sent(telegram)) == 4
    assert len(server.find("bot was blocked by the user")) == 2
    assert bot.dead == []


def test_a_token_that_is_revoked_while_it_runs(start: Start, bot: Bot, telegram: Telegram) -> None:
    """Nothing is lost: what could not be said is a dead letter."""
    server = served(start, telegram, *UNLIMITED)
    chat = telegram.chat()
    chat.send("say hello").result()
    chat.expect("sendMessage", timeout=PATIENCE).result()
    telegram.simulator.bot.revoked = True
    chat.send("say hello").result()
    server.until(r"GaveUp: Telegram doesn't know the token \(sendMessage: 401 Unauthorized\): if it was revoked, ")
    assert server.stop() == 0
    assert [letter.reason for letter in bot.dead] == ["reply failed"]
    assert not server.find(PLAIN)


@pytest.mark.parametrize("kind", ["slow", "hang"])
def test_a_bot_api_that_is_slow_or_says_nothing_holds_up_no_update(
    start: Start, bot: Bot, telegram: Telegram, kind: str
) -> None:
    """Of another chat; and a stop waits for it no longer than it is told to."""
    server = served(start, telegram, "--drain-timeout", "1s")
    telegram.fail(kind, "sendMessage", chat_id=5, seconds=3600)
    telegram.chat(5).send("say hello").result()
    for _ in range(3):
        telegram.chat(6).send("nothing").result()
    chat = telegram.chat(7)
    chat.send("say hello").result()
    chat.expect("sendMessage", timeout=PATIENCE).result()
    telegram.settled(LONG).result()
    until(lambda: len(bot.handled) == 5)
    assert server.stop() == 0
    assert [letter.reason for letter in bot.dead] == ["reply failed"]


# ---------------------------------------------------------------- rates


def test_a_chat_has_its_replies_at_the_rate_that_is_set(start: Start, bot: Bot, telegram: Telegram) -> None:
    """The third waits for a place in the window of its chat; another chat doesn't wait for it."""
    server = served(start, telegram, "--reply-chat-rate", "2/h", "--drain-timeout", "0")
    for chat_id, count in [(5, 3), (6, 1)]:
        for _ in range(count):
            telegram.chat(chat_id).send("say hello").result()
    for chat_id in (5, 5, 6):
        telegram.chat(chat_id).expect("sendMessage", timeout=PATIENCE).result()
    until(lambda: len(bot.handled) == 4)
    assert server.stop() == 0
    assert sorted(call["chat_id"] for call in sent(telegram)) == [5, 5, 6]
    server.until("the server stopped before Telegram had the reply")


def flooded(server: Server, telegram: Telegram, chats: dict[int, int]) -> list[int]:
    """Ask for so many replies in each chat: the statuses of all that was sent until each was there."""
    telegram.limit()
    for chat_id, count in chats.items():
        chat = telegram.chat(chat_id, "private" if chat_id > 0 else "supergroup")
        for n in range(count):
            chat.send(f"say {n}").result()
    for chat_id, count in chats.items():
        for n in range(count):
            telegram.chat(chat_id).expect("sendMessage", text=str(n), timeout=2 * PATIENCE).result()
    assert server.stop() == 0
    return [call.status for call in sent(telegram)]


#: The options; how fast Telegram's clock goes, which in all but a chat leaves a third to what is not exact; how much is
#: asked for.
RATES = {
    "a chat": ([], 1.0, {1: 4, 2: 4}),
    "each as it is": ([], 1.33, {1: 4, 2: 2} | dict.fromkeys(range(3, 45), 1)),
    "a minute in a second": (["--reply-group-rate", "20/s"], 80.0, {-1: 50, -2: 20}),
}


@pytest.mark.parametrize("rates", RATES)
def test_telegrams_limits_are_kept(start: Start, rates: str) -> None:
    options, speed, chats = RATES[rates]
    telegram = Telegram(speed=speed)
    try:
        statuses = flooded(served(start, telegram, *options), telegram, chats)
    finally:
        telegram.stop()
    assert statuses == [200] * sum(chats.values())


def test_without_rates_telegram_says_429_and_is_obeyed(start: Start, bot: Bot, telegram: Telegram) -> None:
    server = served(start, telegram, "--reply-rate", "off", *UNLIMITED)
    statuses = flooded(server, telegram, {1: 3} | dict.fromkeys(range(2, 40), 1))
    assert statuses.count(200) == 41
    assert 429 in statuses
    assert bot.dead == []


def test_without_a_token_it_is_logged(start: Start, telegram: Telegram) -> None:
    server = start("--secret", "a-secret")
    telegram.set_webhook(f"http://127.0.0.1:{server.address[1]}{server.path}", "a-secret")
    telegram.chat().send("say hello").result()
    server.until(r"ERROR +fasthook: update .*: sendMessage cannot be sent without a token; set --token$")
    assert server.stop() == 0
