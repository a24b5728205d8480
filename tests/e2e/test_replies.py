"""A Bot API method that a handler returns is really sent."""

from __future__ import annotations

from collections.abc import Callable

from botapi import HTML, OK, Answer, BotServer, flooded
from e2e.bot import Bot
from e2e.process import SECRET, Server
from fasthook.testing import samples

TOKEN = "123456789:AAF-abc_DEF"
BLOCKED = Answer.json(403, error_code=403, description="Forbidden: bot was blocked by the user")
UNLIMITED = ["--reply-chat-rate", "off"]
Start = Callable[..., Server]


def say(server: Server, update_id: int, text: str, chat: int) -> None:
    assert server.post(samples.update(update_id, chat_id=chat, text=text)).status == 200


def test_a_reply_reaches_the_bot_api(start: Start, bot: Bot) -> None:
    with BotServer() as api:
        server = start("--secret", SECRET, "--token", TOKEN, "--api-url", api.url)
        say(server, 1, "say hello", chat=-1001)
        [call] = api.until_called(1)
        assert server.stop() == 0
    assert (call.token, call.method, call.params) == (TOKEN, "sendMessage", {"chat_id": -1001, "text": "hello"})
    assert len(bot.handled) == 1


def test_what_telegram_may_say_to_it(start: Start, bot: Bot) -> None:
    """And the token is in no line of the log, however much of it there is."""
    with BotServer(flooded(1), OK, BLOCKED, HTML, Answer(500, b""), OK) as api:
        options = ["--secret", SECRET, "--api-url", api.url, "--log-level", "debug", "--access-log", *UNLIMITED]
        server = start(*options, env={"BOT_TOKEN": TOKEN})
        for update_id, text in [(1, "say one"), (2, "say two"), (3, "say three"), (4, "say four")]:
            say(server, update_id, text, chat=5)
        calls = [call.params["text"] for call in api.until_called(7)]
        assert server.stop() == 0
    assert calls == ["one", "one", "two", "three", "three", "three", "four"]
    refused = r" WARNING +fasthook: update 2: Telegram refused sendMessage: 403 Forbidden: bot was blocked by the user "
    assert len(server.find(refused)) == 1
    assert server.find("HTTP Request: POST")
    assert not server.find("AAF")
    assert [one.update_id for one in bot.handled] == [1, 2, 3, 4]
    assert bot.dead == []


def test_a_user_who_blocked_the_bot_is_told_of_once(start: Start, bot: Bot) -> None:
    with BotServer(*[BLOCKED] * 4) as api:
        server = start("--secret", SECRET, "--token", TOKEN, "--api-url", api.url, *UNLIMITED)
        for update_id, chat in enumerate([5, 5, 6, 5]):
            say(server, update_id, "say hello", chat=chat)
        api.until_called(4)
        assert server.stop() == 0
    assert len(api.calls) == 4
    assert len(server.find("bot was blocked by the user")) == 2
    assert bot.dead == []


def test_a_token_that_is_revoked_while_it_runs(start: Start, bot: Bot) -> None:
    """Nothing is lost: what could not be said is a dead letter."""
    with BotServer(OK, Answer.json(401, error_code=401, description="Unauthorized")) as api:
        server = start("--secret", SECRET, "--token", TOKEN, "--api-url", api.url, *UNLIMITED)
        for update_id in (1, 2):
            say(server, update_id, "say hello", chat=5)
        server.until(r"GaveUp: Telegram doesn't know the token \(sendMessage: 401 Unauthorized\): if it was revoked, ")
        assert server.stop() == 0
    assert [letter.reason for letter in bot.dead] == ["reply failed"]
    assert not server.find("AAF")


def test_a_chat_has_its_replies_at_the_rate_that_is_set(start: Start) -> None:
    """The third waits for a place in the window of its chat; another chat doesn't wait for it."""
    with BotServer() as api:
        options = ["--reply-chat-rate", "2/h", "--drain-timeout", "0"]
        server = start("--secret", SECRET, "--token", TOKEN, "--api-url", api.url, *options)
        for update_id, chat in enumerate([5, 5, 5, 6]):
            say(server, update_id, "say hello", chat=chat)
        calls = api.until_called(3)
        assert server.stop() == 0
    assert sorted(call.params["chat_id"] for call in calls) == [5, 5, 6]
    server.until("the server stopped before Telegram had the reply")


def test_without_a_token_it_is_logged(start: Start) -> None:
    server = start("--secret", SECRET)
    say(server, 1, "say hello", chat=5)
    server.until(r"ERROR +fasthook: update 1: sendMessage cannot be sent without a token; set --token$")
    assert server.stop() == 0
