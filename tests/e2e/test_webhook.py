"""`fasthook webhook` and `--public-url`, against a simulated Telegram."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from botapi import Answer, BotServer
from e2e.bot import Bot
from e2e.process import (
    COMMAND,
    PATIENCE,
    SECRET,
    Ended,
    Server,
    environment,
    fasthook,
    killed_in_the_end,
    reserved_port,
)
from e2e.tools import until
from fasthook._scan import KINDS
from fasthook.settings import secret_of
from fasthook.telegram.webhook import Problem, Wanted, problems
from fasthook.testing import TOKEN, Call, Rules, samples
from fasthook.testing.running import Telegram

Start = Callable[..., Server]
URL = "https://bot.example.com/webhook"
PUBLIC = ["--public-url", "https://bot.example.com"]
NAMES = ("bot", "one", "two", "old")  # hosts in example.com that Telegram finds; nobody listens there


@pytest.fixture
def telegram() -> Iterator[Telegram]:
    """It may be told of another webhook at any time: its clock goes as fast as it can."""
    hosts = {(f"{name}.example.com", port): ("127.0.0.1", 9) for name in NAMES for port in (443, 8443)}
    running = Telegram(rules=Rules(connect_to=hosts), speed=1000)
    yield running
    running.stop()


@pytest.fixture
def unhurried() -> Iterator[Telegram]:
    """One whose clock goes as ours: its tries follow each other no faster than those of the real one."""
    running = Telegram()
    yield running
    running.stop()


def webhook(bot: Bot, telegram: Telegram, what: str, *options: str) -> tuple[Ended, str]:
    """Run a subcommand: its end, and what it printed."""
    where = {"BOT_TOKEN": TOKEN, "FASTHOOK_API_URL": telegram.url}
    ended = fasthook(bot.directory, "webhook", what, *options, env=where)
    assert TOKEN.partition(":")[2] not in ended.output + "".join(ended.lines)
    return ended, ended.output


def calls_of(telegram: Telegram, method: str) -> list[Call]:
    return [call for call in telegram.calls if call.method == method]


# ---------------------------------------------------------------- set and delete


def test_set_gives_telegram_all_it_is_told(bot: Bot, telegram: Telegram) -> None:
    made = fasthook(bot.directory, "webhook", "certificate", "bot.example.com")
    assert made.code == 0
    options = [
        *PUBLIC, "--webhook-connections", "70", "--allowed-updates", "message,chat_member", "--ip-address", "192.0.2.7",
        "--certificate", "bot.example.com.pem", "--drop-pending",
    ]  # fmt: skip
    ended, said = webhook(bot, telegram, "set", *options)
    assert (ended.code, ended.lines) == (0, ())
    assert said == f"the webhook of bot 42 is {URL}\n"
    [call] = calls_of(telegram, "setWebhook")
    assert call.params == {
        "url": URL,
        "secret_token": secret_of(TOKEN),
        "max_connections": "70",
        "allowed_updates": '["message","chat_member"]',
        "ip_address": "192.0.2.7",
        "drop_pending_updates": "true",
    }
    assert call.files == {"certificate": (bot.directory / "bot.example.com.pem").read_bytes()}


@pytest.mark.parametrize(
    ("public", "path", "url"),
    [
        ("https://bot.example.com", "/hook", "https://bot.example.com/hook"),
        ("https://bot.example.com/", "/hook", "https://bot.example.com/hook"),
        ("https://bot.example.com:8443/tg", "/hook", "https://bot.example.com:8443/tg/hook"),
        ("https://bot.example.com/tg/hook", "/hook", "https://bot.example.com/tg/hook"),
        ("http://127.0.0.1:8000", "/hook", "http://127.0.0.1:8000/hook"),  # a Bot API server of one's own
    ],
)
def test_the_address(bot: Bot, telegram: Telegram, public: str, path: str, url: str) -> None:
    assert webhook(bot, telegram, "set", "--public-url", public, "--path", path)[0].code == 0
    assert telegram.webhook_info()["url"] == url
    assert "allowed_updates" not in calls_of(telegram, "setWebhook")[0].params


def test_the_kinds_that_a_bot_handles(bot: Bot, telegram: Telegram) -> None:
    (bot.directory / "library_bot.py").write_text(
        "from telegram.ext import ApplicationBuilder, CallbackQueryHandler, ChatMemberHandler, CommandHandler\n"
        "from telegram.ext import ConversationHandler, InlineQueryHandler\n"
        f"app = ApplicationBuilder().token({TOKEN!r}).build()\n"
        "app.add_handler(ConversationHandler([CommandHandler('a', print)], {1: [InlineQueryHandler(print)]}, []))\n"
        "app.add_handler(ChatMemberHandler(print, ChatMemberHandler.ANY_CHAT_MEMBER))\n"
    )
    assert webhook(bot, telegram, "set", "library_bot:app", *PUBLIC)[0].code == 0
    kinds = ["chat_member", "edited_message", "inline_query", "message", "my_chat_member"]
    assert telegram.webhook_info()["allowed_updates"] == kinds
    assert webhook(bot, telegram, "set", "library_bot:app", *PUBLIC, "--allowed-updates", "default")[0].code == 0
    assert "allowed_updates" not in telegram.webhook_info()


def test_what_was_there_is_told(bot: Bot, telegram: Telegram) -> None:
    telegram.set_webhook("https://old.example.com/")
    assert "it was https://old.example.com/ before" in webhook(bot, telegram, "set", *PUBLIC)[1]
    telegram.chat().send("hello").result()
    assert webhook(bot, telegram, "delete", "--drop-pending")[1] == f"the webhook of bot 42 is removed: {URL}\n"
    assert telegram.webhook_info()["pending_update_count"] == 0
    telegram.chat().send("hello").result()
    assert webhook(bot, telegram, "delete")[1] == "bot 42 had no webhook\n"
    assert telegram.webhook_info()["pending_update_count"] == 1


def test_a_wait_is_told(bot: Bot, telegram: Telegram) -> None:
    telegram.fail("429", "setWebhook", times=1, retry_after=1)
    ended, said = webhook(bot, telegram, "set", *PUBLIC)
    assert (ended.code, ended.lines) == (0, ("fasthook: setWebhook: Telegram says wait 1 s",))
    assert said == f"the webhook of bot 42 is {URL}\n"


UNKNOWN = "--allowed-updates: foo is not a kind of update known here, and Telegram ignores what it doesn't know"


def test_a_kind_that_nobody_knows(start: Start, bot: Bot, telegram: Telegram) -> None:
    """There may be new ones. It is no difference to what Telegram has, which drops it, and told in one line."""
    public = [*PUBLIC, "--allowed-updates", "message,foo"]
    ended, _ = webhook(bot, telegram, "set", *public)
    assert (ended.code, ended.lines) == (0, (f"fasthook: {UNKNOWN}",))
    assert calls_of(telegram, "setWebhook")[0].params["allowed_updates"] == ["message", "foo"]
    assert telegram.webhook_info()["allowed_updates"] == ["message"]
    ended, said = webhook(bot, telegram, "info", "--json", *public)
    assert ended.lines == (f"fasthook: {UNKNOWN}",)
    assert not [problem for problem in json.loads(said)["problems"] if "allowed_updates" in problem["what"]]
    for words in ("the webhook is registered", "Telegram has the webhook as it is to be"):
        server = start("--token", TOKEN, "--api-url", telegram.url, *public)
        server.until(words)
        assert server.stop() == 0
        assert len(server.find(UNKNOWN)) == 1


REFUSED = {
    "401": "getWebhookInfo: 401 Unauthorized: Telegram doesn't know the token; it was mistyped or revoked",
    "html": "getWebhookInfo: no answer from the Bot API after 3 tries (HTTP 502, a web page, not what a ",
    "close": "getWebhookInfo: no answer from the Bot API after 3 tries (RemoteProtocolError: the connection ",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_telegram_refuses_is_one_line(bot: Bot, telegram: Telegram, kind: str) -> None:
    telegram.fail(kind)
    ended, said = webhook(bot, telegram, "set", *PUBLIC)
    assert ended.line.startswith(f"fasthook: {REFUSED[kind]}")
    assert (ended.code, ended.lines, said) == (1, (ended.line,), "")


ALIEN = {  # what others answer in JSON, and how the line about it begins
    "a web service": (404, b'{"detail":"Not Found"}', "no answer from the Bot API after 3 tries (HTTP 404, not what a"),
    "a health page": (200, b'{"hello":"world"}', "no answer from the Bot API after 3 tries (HTTP 200, not what a"),
    "another result": (200, b'{"ok":true,"result":true}', "the result is not what a"),
}


@pytest.mark.parametrize("alien", ALIEN)
@pytest.mark.parametrize("what", ["set", "info", "delete"])
def test_an_api_url_where_something_else_answers(bot: Bot, what: str, alien: str) -> None:
    status, body, begins = ALIEN[alien]
    with BotServer(*[Answer(status, body)] * 3) as server:
        ended = fasthook(bot.directory, "webhook", what, *PUBLIC, "--token", TOKEN, "--api-url", server.url)
    line = f"fasthook: getWebhookInfo: {begins} Bot API server says; is --api-url right?"
    assert ended.line.startswith(line)
    assert (ended.code, ended.lines) == (1, (ended.line,))


def test_a_host_that_telegram_does_not_find(bot: Bot, telegram: Telegram) -> None:
    ended, _ = webhook(bot, telegram, "set", "--public-url", "https://bot.invalid")
    assert ended.line.startswith("fasthook: setWebhook: 400 Bad Request: bad webhook: Failed to resolve host: ")
    assert "the host name has no IPv4 address that Telegram can find; add an A record" in ended.line


def test_what_is_missing(bot: Bot, telegram: Telegram) -> None:
    line = webhook(bot, telegram, "set")[0].line
    assert line == "fasthook: no address: set --public-url"
    for what in ("set", "info", "delete"):
        ended = fasthook(bot.directory, "webhook", what, *PUBLIC)
        assert ended.line == "fasthook: no token: set --token, FASTHOOK_TOKEN or BOT_TOKEN"


# ---------------------------------------------------------------- info


def test_info_when_all_is_well(start: Start, bot: Bot, telegram: Telegram) -> None:
    server = start("--token", TOKEN)
    host, port = server.address
    public = ["--public-url", f"http://{host}:{port}", "--allowed-updates", "message"]
    webhook(bot, telegram, "set", *public)
    ended, said = webhook(bot, telegram, "info", *public)
    assert ended.code == 0
    url = f"http://{host}:{port}/webhook"
    assert [line.split() for line in said.splitlines() if url in line] == [["url", url, url]]
    assert said.endswith("\nall is well\n")
    assert server.stop() == 0


def test_info_explains_what_is_wrong(bot: Bot, start: Start, unhurried: Telegram) -> None:
    """Another server has the webhook, wants another secret, and is sent fewer kinds."""
    telegram = unhurried
    server = start("--secret", "its-own")
    other = f"http://127.0.0.1:{server.address[1]}{server.path}"
    telegram.set_webhook(other, "another", allowed_updates=["message"])
    for n in range(3):
        telegram.chat(5).send(str(n)).result()
    until(lambda: "last_error_message" in telegram.webhook_info())
    options = [*PUBLIC, "--allowed-updates", "message,poll"]
    ended, said = webhook(bot, telegram, "info", *options)
    assert ended.code == 1
    for words in [
        f"Telegram has another address: {other}",
        "a replica that has another --public-url",
        "last error, 20",
        "Telegram has other allowed_updates",
        "why it does not send poll",
        "Wrong response from the webhook: 401 Unauthorized (",
        "fix register again with the server's own configuration",
        "3 things are wrong",
        "waiting 3",
    ]:
        assert words in " ".join(said.split())
    ended, said = webhook(bot, telegram, "info", "--json", *options)
    assert ended.code == 1
    told = json.loads(said)
    assert (told["healthy"], told["webhook"]["url"], len(told["problems"])) == (False, other, 3)
    assert server.stop() == 0


def test_info_explains_that_nobody_is_there(bot: Bot, telegram: Telegram) -> None:
    with reserved_port() as port:
        telegram.set_webhook(f"http://127.0.0.1:{port}/")
        telegram.chat().send("hello").result()
        until(lambda: "last_error_message" in telegram.webhook_info())
        ended, said = webhook(bot, telegram, "info")
    assert ended.code == 1
    assert "Connection refused (" in said
    assert "nothing listens on this port" in " ".join(said.split())


def test_info_without_a_webhook(bot: Bot, telegram: Telegram) -> None:
    ended, said = webhook(bot, telegram, "info")
    assert ended.code == 1
    assert "the bot has no webhook" in said


def test_info_watches(start: Start, bot: Bot, telegram: Telegram) -> None:
    """Also while Telegram doesn't answer."""
    server = start("--token", TOKEN)
    public = f"http://127.0.0.1:{server.address[1]}"
    webhook(bot, telegram, "set", "--public-url", public)
    options = ["--json", "--watch", "--api-url", telegram.url, "--public-url", public]
    watching = subprocess.Popen(
        [str(COMMAND), "webhook", "info", *options],
        cwd=bot.directory, env=environment(BOT_TOKEN=TOKEN), stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with watching as process, killed_in_the_end(process):
        assert process.stdout
        looks = map(json.loads, process.stdout)
        assert next(looks)["healthy"]
        httpx.post(f"{telegram.url}/bot{TOKEN}/deleteWebhook", timeout=PATIENCE)
        assert any(not look["healthy"] for look in looks)
        telegram.fail("html", "getWebhookInfo", times=3)
        assert any("no answer from the Bot API" in look.get("error", "") for look in looks)
        telegram.set_webhook(f"{public}/webhook", secret_of(TOKEN))
        assert any(look["healthy"] for look in looks)
        httpx.post(f"{telegram.url}/bot{TOKEN}/deleteWebhook", timeout=PATIENCE)
        assert any(not look["healthy"] for look in looks)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 1


USUAL = tuple(kind for kind in KINDS[1:] if kind not in ("chat_member", "message_reaction", "message_reaction_count"))
WANTED = Wanted(URL, "secret", 40, None, None, None, False)
FIXED = replace(WANTED, ip_address="192.0.2.1")


@pytest.mark.parametrize(
    ("change", "wanted", "resolve", "expected"),
    [
        ({}, WANTED, None, []),
        ({}, None, None, []),
        ({"last_error_date": 9_000, "last_error_message": "Connection refused"}, WANTED, None, []),
        ({"last_error_date": 9_800, "last_error_message": "Connection refused"}, WANTED, None, ["Connection refused"]),
        (
            {"last_error_date": 9_000, "last_error_message": "Read timeout expired", "pending_update_count": 1},
            WANTED, None, ["Read timeout expired (16 min ago)"],
        ),
        ({"last_error_date": 9_999, "last_error_message": "odd"}, WANTED, None, ["odd (1 s ago)"]),
        ({"last_synchronization_error_date": 9_990}, WANTED, None, ["Telegram's own servers"]),
        ({"max_connections": 5}, WANTED, None, ["Telegram has another max_connections"]),
        ({"has_custom_certificate": True}, WANTED, None, ["Telegram has another idea of the certificate"]),
        ({}, replace(WANTED, allowed_updates=()), None, []),
        ({}, replace(WANTED, allowed_updates=USUAL), None, []),
        ({}, replace(WANTED, allowed_updates=("message",)), None, ["Telegram has other allowed_updates"]),
        ({"allowed_updates": ["message"]}, replace(WANTED, allowed_updates=("message", "of_tomorrow")), None, []),
        ({"allowed_updates": ["message", "of_tomorrow"]}, replace(WANTED, allowed_updates=("message",)), None, []),
        ({}, replace(WANTED, allowed_updates=("of_tomorrow",)), None, []),
        ({"allowed_updates": [*USUAL, "chat_member"]}, replace(WANTED, allowed_updates=()), None,
         ["Telegram has other allowed_updates"]),
        ({"ip_address": "192.0.2.1"}, None, {"4": ["192.0.2.1"], "6": ["2001:db8::1"]}, []),
        ({"ip_address": "192.0.2.1"}, None, {"4": ["192.0.2.9"]}, ["Telegram calls 192.0.2.1, the DNS says 192.0.2.9"]),
        ({}, None, {"6": ["2001:db8::1"]}, ["the host has only an IPv6 address"]),
        ({"ip_address": "192.0.2.1"}, FIXED, {"4": ["192.0.2.9"]}, []),
        ({"ip_address": "192.0.2.1"}, FIXED, {"6": ["2001:db8::1"]}, []),
        ({"ip_address": "192.0.2.5"}, FIXED, {"4": ["192.0.2.9"]}, ["Telegram has another ip_address"]),
    ],
)  # fmt: skip
def test_what_counts_as_wrong(
    change: dict[str, Any], wanted: Wanted | None, resolve: dict[str, list[str]] | None, expected: list[str]
) -> None:
    told = {"url": URL, "has_custom_certificate": False, "pending_update_count": 0, "max_connections": 40} | change
    found: list[Problem] = problems(told, wanted, 10_000, resolve)
    assert len(found) == len(expected)
    assert all(problem.what.startswith(words) for problem, words in zip(found, expected, strict=True))
    assert all(problem.cause and problem.fix for problem in found)


def test_what_to_do_when_the_dns_says_something_else() -> None:
    """To set the same webhook again does nothing (Bot API server, "Webhook is already set")."""
    told = {"url": URL, "max_connections": 40, "ip_address": "192.0.2.1"}
    [found] = problems(told, WANTED, 10_000, {"4": ["192.0.2.9"]})
    assert "every half hour Telegram asks the DNS by itself" in found.fix
    assert "fasthook webhook delete, then fasthook webhook set" in found.fix
    assert "If it was fixed with --ip-address: fasthook webhook set without that" in found.fix


# ---------------------------------------------------------------- run registers


def run(start: Start, telegram: Telegram, *options: str) -> Server:
    return start("--token", TOKEN, "--secret", SECRET, "--api-url", telegram.url, *PUBLIC, *options)


def test_run_registers_once_and_never_deletes(start: Start, telegram: Telegram, door: str) -> None:
    server = run(start, telegram, "--http", door)
    server.until(f"INFO +fasthook: the webhook is registered: {URL}$")
    assert server.stop() == 0
    server = run(start, telegram, "--http", door)
    server.until(f"Telegram has the webhook as it is to be: {URL}")
    assert server.stop() == 0
    assert [call.method for call in telegram.calls] == ["getWebhookInfo", "setWebhook", "getWebhookInfo"]
    assert calls_of(telegram, "setWebhook")[0]["secret_token"] == SECRET


@pytest.mark.parametrize("options", [["--secret", "another"], ["--webhook-connections", "7"], ["--drop-pending"]])
def test_run_registers_again_what_differs(start: Start, telegram: Telegram, options: list[str]) -> None:
    server = run(start, telegram)
    server.until("the webhook is registered")
    assert server.stop() == 0
    server = run(start, telegram, *options)
    server.until("the webhook is registered")
    assert server.stop() == 0
    assert len(calls_of(telegram, "setWebhook")) == 2


def test_run_serves_while_telegram_cannot_be_reached(start: Start, bot: Bot, telegram: Telegram) -> None:
    for kind in ("429", "close", "html"):
        telegram.fail(kind, times=1)
    server = run(start, telegram)
    assert server.post(samples.update(1)).status == 200
    server.until("WARNING +fasthook: getWebhookInfo: Telegram says wait 1 s")
    server.until("the webhook is not registered yet, tried again in . s: getWebhookInfo: no answer", 2)
    server.until("the webhook is registered")
    assert server.stop() == 0
    assert [one.update_id for one in bot.handled] == [1]


@pytest.mark.parametrize("alien", ALIEN)
def test_run_registers_when_the_bot_api_server_is_there_again(start: Start, bot: Bot, alien: str) -> None:
    """Behind a gateway that answers for it meanwhile."""
    none = Answer.json(200, result={"url": ""})
    with BotServer(Answer(*ALIEN[alien][:2]), none, Answer.json(200, result=True)) as server:
        running = start("--token", TOKEN, "--api-url", server.url, *PUBLIC)
        running.until("the webhook is not registered yet, tried again in . s: getWebhookInfo: .* is --api-url right")
        running.until("the webhook is registered")
        assert running.stop() == 0


@pytest.mark.parametrize("kind", ["close", "hang", "slow"])
def test_a_stop_does_not_wait_for_it(start: Start, bot: Bot, telegram: Telegram, kind: str) -> None:
    telegram.fail(kind, seconds=1e9)
    server = run(start, telegram)
    if kind == "close":
        server.until("the webhook is not registered yet")
    assert server.post(samples.update(1)).status == 200
    assert server.stop() == 0
    assert len(bot.handled) == 1
    assert not server.find("Traceback")


def test_run_with_a_wrong_token(start: Start, telegram: Telegram) -> None:
    server = run(start, telegram, "--token", "42:TEST-another")
    server.until(
        "ERROR +fasthook: the webhook is not registered: getWebhookInfo: 401 Unauthorized: Telegram doesn't know "
    )
    assert server.stop() == 0
    assert len(server.find("is not registered")) == 1


def test_two_servers_that_register_different_addresses(start: Start, telegram: Telegram) -> None:
    telegram.set_webhook("https://old.example.com/webhook")
    server = run(start, telegram)
    server.until("WARNING .* it was https://old.example.com/webhook before: if another server still registers that")
    assert server.stop() == 0


def test_two_replicas_that_register_different_addresses(start: Start, bot: Bot, telegram: Telegram) -> None:
    """The second has it; it says so, and so does `info` with the configuration of the first."""
    options = ["--token", TOKEN, "--api-url", telegram.url]
    one = start(*options, "--public-url", "https://one.example.com", "--state-dir", "one")
    one.until("the webhook is registered")
    two = start(*options, "--public-url", "https://two.example.com", "--state-dir", "two")
    two.until("it was https://one.example.com/webhook before: if another server still registers that, they take it")
    ended, said = webhook(bot, telegram, "info", "--public-url", "https://one.example.com")
    assert ended.code == 1
    assert "Telegram has another address: https://two.example.com/webhook" in said
    assert "a replica that has another --public-url" in " ".join(said.split())
    assert (one.stop(), two.stop()) == (0, 0)


def test_run_registers_the_kinds_of_its_bot(start: Start, bot: Bot, telegram: Telegram) -> None:
    (bot.directory / "library_bot.py").write_text(
        f"from telebot.async_telebot import AsyncTeleBot\napp = AsyncTeleBot({TOKEN!r})\n"
        "@app.inline_handler(func=bool)\nasync def inline(query): ...\n"
        "@app.message_handler()\nasync def message(message): ...\n"
    )
    server = start("--api-url", telegram.url, *PUBLIC, target="library_bot:app")
    server.until("the webhook is registered")
    assert server.stop() == 0
    [call] = calls_of(telegram, "setWebhook")
    assert call["allowed_updates"] == ["inline_query", "message"]
    assert call["secret_token"] == secret_of(TOKEN)


@pytest.mark.parametrize("how", ["SIGHUP", "--reload"])
def test_new_code_that_handles_other_kinds_is_registered(start: Start, bot: Bot, telegram: Telegram, how: str) -> None:
    """What waits at Telegram is dropped at the start only."""
    file = bot.directory / "library_bot.py"
    messages = (
        f"from telebot.async_telebot import AsyncTeleBot\napp = AsyncTeleBot({TOKEN!r})\n"
        "@app.message_handler()\nasync def message(message): ...\n"
    )
    file.write_text(messages)
    options = ["--api-url", telegram.url, *PUBLIC, "--workers", "2", "--drop-pending"]
    server = start(*options, *(["--reload"] if how == "--reload" else []), target="library_bot:app")
    server.until("the webhook is registered")
    if how == "SIGHUP":
        server.signal(signal.SIGHUP)
        server.until("reloaded: workers")
    file.write_text(messages + "@app.callback_query_handler(func=bool)\nasync def pressed(query): ...\n")
    if how == "SIGHUP":
        server.signal(signal.SIGHUP)
    until(lambda: len(calls_of(telegram, "setWebhook")) == 2)
    assert server.stop() == 0
    first, second = calls_of(telegram, "setWebhook")
    assert (first["allowed_updates"], second["allowed_updates"]) == (["message"], ["callback_query", "message"])
    assert first["drop_pending_updates"]
    assert second.get("drop_pending_updates") is None


def test_run_without_a_token_cannot_register(bot: Bot) -> None:
    ended = fasthook(bot.directory, "run", "bot:handler", "--port", "0", *PUBLIC)
    words = "fasthook: --public-url: registering the webhook needs the bot's token; set --token"
    assert (ended.code, ended.lines) == (1, (words,))


NO_CERTIFICATES = {
    "none.pem": (None, "none.pem: No such file or directory"),
    "empty.pem": (b"", "empty.pem is no certificate: it must be one in PEM, as fasthook webhook certificate makes it"),
    "text.txt": ("root:x:0:0:Gr\u00fc\u00dfe\n".encode(), "text.txt is no certificate: "),
    "half.pem": (b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n", "half.pem is no certificate: "),
    "key.pem": (
        b"-----BEGIN PRIVATE KEY-----\nMIIB\n-----END PRIVATE KEY-----\n",
        "key.pem holds a private key, and Telegram gets the public certificate only",
    ),
}


@pytest.mark.parametrize("name", NO_CERTIFICATES)
def test_a_file_that_is_no_certificate(bot: Bot, telegram: Telegram, name: str) -> None:
    """Telegram is not asked, and gets nothing of it."""
    content, words = NO_CERTIFICATES[name]
    if content is not None:
        (bot.directory / name).write_bytes(content)
    where = [*PUBLIC, "--api-url", telegram.url, "--token", TOKEN, "--certificate", name]
    for code, command in ((2, ["webhook", "set"]), (1, ["run", "bot:handler", "--port", "0"])):
        ended = fasthook(bot.directory, *command, *where)
        assert ended.line.startswith(f"fasthook: --certificate: {words}")
        assert (ended.code, ended.lines) == (code, (ended.line,))
    assert telegram.calls == []


def test_what_run_remembers_is_no_secret(start: Start, bot: Bot, telegram: Telegram) -> None:
    server = run(start, telegram)
    server.until("the webhook is registered")
    assert server.stop() == 0
    file: Path = bot.directory / ".fasthook" / "webhook-42"
    assert os.stat(file).st_mode & 0o777 == 0o600  # noqa: PTH116
    assert len(file.read_text()) == 65
