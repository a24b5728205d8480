"""`fasthook webhook` and `--public-url`, against a Bot API server on loopback."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import botapi
from botapi import HANG_UP, HTML, TOKEN, Answer, flooded
from e2e.bot import Bot
from e2e.process import COMMAND, PATIENCE, SECRET, Ended, Server, environment, fasthook
from fasthook._scan import KINDS
from fasthook.settings import secret_of
from fasthook.telegram.webhook import Problem, Wanted, problems

Start = Callable[..., Server]
URL = "https://bot.example.com/webhook"
PUBLIC = ["--public-url", "https://bot.example.com"]
UNAUTHORIZED = Answer.json(401, error_code=401, description="Unauthorized")


@pytest.fixture
def api() -> Iterator[botapi.Telegram]:
    with botapi.Telegram() as server:
        yield server


def webhook(bot: Bot, api: botapi.Telegram, what: str, *options: str, token: str = TOKEN) -> tuple[Ended, str]:
    """Run a subcommand: its end, and what it printed."""
    done = subprocess.run(
        [str(COMMAND), "webhook", what, *options, "--api-url", api.url],
        cwd=bot.directory, env=environment(BOT_TOKEN=token), capture_output=True, text=True, timeout=PATIENCE,
        check=False,
    )  # fmt: skip
    assert TOKEN.partition(":")[2] not in done.stdout + done.stderr
    return Ended(done.returncode, tuple(done.stderr.splitlines())), done.stdout


# ---------------------------------------------------------------- set and delete


def test_set_gives_telegram_all_it_is_told(bot: Bot, api: botapi.Telegram) -> None:
    (bot.directory / "own.pem").write_bytes(b"a certificate")
    options = [
        *PUBLIC, "--webhook-connections", "70", "--allowed-updates", "message,chat_member", "--ip-address", "192.0.2.7",
        "--certificate", "own.pem", "--drop-pending",
    ]  # fmt: skip
    ended, said = webhook(bot, api, "set", *options)
    assert (ended.code, ended.lines) == (0, ())
    assert said == f"the webhook of bot 42 is {URL}\n"
    [params] = api.calls_of("setWebhook")
    assert params == {
        "url": URL,
        "secret_token": secret_of(TOKEN),
        "max_connections": "70",
        "allowed_updates": '["message","chat_member"]',
        "ip_address": "192.0.2.7",
        "certificate": ("own.pem", b"a certificate"),
        "drop_pending_updates": "true",
    }


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
def test_the_address(bot: Bot, api: botapi.Telegram, public: str, path: str, url: str) -> None:
    assert webhook(bot, api, "set", "--public-url", public, "--path", path)[0].code == 0
    assert api.info["url"] == url
    assert "allowed_updates" not in api.calls_of("setWebhook")[0]


def test_the_kinds_that_a_bot_handles(bot: Bot, api: botapi.Telegram) -> None:
    (bot.directory / "library_bot.py").write_text(
        "from telegram.ext import ApplicationBuilder, CallbackQueryHandler, ChatMemberHandler, CommandHandler\n"
        "from telegram.ext import ConversationHandler, InlineQueryHandler\n"
        f"app = ApplicationBuilder().token({TOKEN!r}).build()\n"
        "app.add_handler(ConversationHandler([CommandHandler('a', print)], {1: [InlineQueryHandler(print)]}, []))\n"
        "app.add_handler(ChatMemberHandler(print, ChatMemberHandler.ANY_CHAT_MEMBER))\n"
    )
    assert webhook(bot, api, "set", "library_bot:app", *PUBLIC)[0].code == 0
    kinds = ["chat_member", "edited_message", "inline_query", "message", "my_chat_member"]
    assert api.calls_of("setWebhook")[0]["allowed_updates"] == kinds
    assert webhook(bot, api, "set", "library_bot:app", *PUBLIC, "--allowed-updates", "default")[0].code == 0
    assert api.calls_of("setWebhook")[1]["allowed_updates"] == []


def test_what_was_there_is_told(bot: Bot, api: botapi.Telegram) -> None:
    api.info["url"] = "https://old.example.com/"
    assert "it was https://old.example.com/ before" in webhook(bot, api, "set", *PUBLIC)[1]
    assert webhook(bot, api, "delete", "--drop-pending")[1] == f"the webhook of bot 42 is removed: {URL}\n"
    assert api.dropped == 1
    assert webhook(bot, api, "delete")[1] == "the bot had no webhook\n"
    assert "drop_pending_updates" not in api.calls_of("deleteWebhook")[1]


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        (
            [UNAUTHORIZED],
            "getWebhookInfo: 401 Unauthorized: Telegram doesn't know the token; it was mistyped or revoked",
        ),
        (
            [
                botapi.OK,
                Answer.json(400, error_code=400, description="Bad Request: bad webhook: Failed to resolve host: x"),
            ],
            "setWebhook: 400 Bad Request: bad webhook: Failed to resolve host: x: the host name has no IPv4 address",
        ),
        ([HTML] * 3, "getWebhookInfo: no answer from the Bot API after 3 tries (HTTP 502, a web page, not what a "),
        (
            [HANG_UP] * 3,
            "getWebhookInfo: no answer from the Bot API after 3 tries (RemoteProtocolError: the connection ",
        ),
    ],
)
def test_what_telegram_refuses_is_one_line(bot: Bot, api: botapi.Telegram, answers: list[Answer], words: str) -> None:
    api.answers.extend(answers)
    ended, said = webhook(bot, api, "set", *PUBLIC)
    assert ended.line.startswith(f"fasthook: {words}")
    assert (ended.code, ended.lines, said) == (1, (ended.line,), "")


def test_what_is_missing(bot: Bot, api: botapi.Telegram) -> None:
    line = webhook(bot, api, "set")[0].line
    assert line == "fasthook: no address: set --public-url"
    for what in ("set", "info", "delete"):
        ended = fasthook(bot.directory, "webhook", what, *PUBLIC)
        assert ended.line == "fasthook: no token: set --token, FASTHOOK_TOKEN or BOT_TOKEN"
    ended, _ = webhook(bot, api, "set", *PUBLIC, "--certificate", "none.pem")
    assert ended.line == "fasthook: --certificate: none.pem: No such file or directory"


# ---------------------------------------------------------------- info


def test_info_when_all_is_well(bot: Bot, api: botapi.Telegram) -> None:
    webhook(bot, api, "set", *PUBLIC, "--allowed-updates", "message")
    ended, said = webhook(bot, api, "info", *PUBLIC, "--allowed-updates", "message")
    assert ended.code == 0
    assert [line.split() for line in said.splitlines() if URL in line] == [["url", URL, URL]]
    assert said.endswith("\nall is well\n")


def test_info_explains_what_is_wrong(bot: Bot, api: botapi.Telegram) -> None:
    api.info |= {
        "url": "https://other.example.com/webhook",
        "pending_update_count": 17,
        "last_error_date": int(time.time()) - 180,
        "last_error_message": "Wrong response from the webhook: 502 Bad Gateway",
        "allowed_updates": ["message"],
    }
    options = [*PUBLIC, "--allowed-updates", "message,poll"]
    ended, said = webhook(bot, api, "info", *options)
    assert ended.code == 1
    for words in [
        "Telegram has another address: https://other.example.com/webhook",
        "a replica that has another --public-url",
        "last error, 20",
        "Telegram has other allowed_updates",
        "why it does not send poll",
        "Wrong response from the webhook: 502 Bad Gateway (3 min ago)",
        "fix is fasthook running",
        "3 things are wrong",
    ]:
        assert words in " ".join(said.split())
    ended, said = webhook(bot, api, "info", "--json", *options)
    assert ended.code == 1
    told = json.loads(said)
    assert (told["healthy"], told["webhook"], len(told["problems"])) == (False, api.info, 3)


def test_info_without_a_webhook(bot: Bot, api: botapi.Telegram) -> None:
    ended, said = webhook(bot, api, "info")
    assert ended.code == 1
    assert "the bot has no webhook" in said


def test_info_watches(bot: Bot, api: botapi.Telegram) -> None:
    webhook(bot, api, "set", *PUBLIC)
    command = [str(COMMAND), "webhook", "info", "--json", "--watch", "--api-url", api.url, *PUBLIC]
    with subprocess.Popen(
        command, cwd=bot.directory, env=environment(BOT_TOKEN=TOKEN), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert json.loads(process.stdout.readline())["healthy"]
        api.info["url"] = ""
        assert not json.loads(process.stdout.readline())["healthy"]
        api.answers.extend([HTML] * 3)  # it goes on while Telegram doesn't answer
        assert "no answer from the Bot API" in json.loads(process.stdout.readline())["error"]
        api.info["url"] = URL
        assert json.loads(process.stdout.readline())["healthy"]
        api.info["url"] = ""
        assert not json.loads(process.stdout.readline())["healthy"]
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 1


USUAL = tuple(kind for kind in KINDS[1:] if kind not in ("chat_member", "message_reaction", "message_reaction_count"))
WANTED = Wanted(URL, "secret", 40, None, None, None, False)


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
        ({"allowed_updates": [*USUAL, "chat_member"]}, replace(WANTED, allowed_updates=()), None,
         ["Telegram has other allowed_updates"]),
        ({"ip_address": "192.0.2.1"}, None, {"4": ["192.0.2.1"], "6": ["2001:db8::1"]}, []),
        ({"ip_address": "192.0.2.1"}, None, {"4": ["192.0.2.9"]}, ["Telegram calls 192.0.2.1, the DNS says 192.0.2.9"]),
        ({}, None, {"6": ["2001:db8::1"]}, ["the host has only an IPv6 address"]),
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


# ---------------------------------------------------------------- a certificate of one's own


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "bot.example.com"])
def test_a_certificate_is_made_and_can_be_served_with(start: Start, bot: Bot, host: str) -> None:
    done = fasthook(bot.directory, "webhook", "certificate", host)
    assert (done.code, done.lines) == (0, ())
    stem = host.replace(":", "_")
    assert (bot.directory / f"{stem}.key").stat().st_mode & 0o777 == 0o600
    server = start("--ssl-certfile", f"{stem}.pem", "--ssl-keyfile", f"{stem}.key")
    trust = ssl.create_default_context(cafile=str(bot.directory / f"{stem}.pem"))
    with (
        socket.create_connection(server.address, PATIENCE) as plain,
        trust.wrap_socket(plain, server_hostname=host) as wrapped,
    ):
        assert wrapped.getpeercert()
    again = fasthook(bot.directory, "webhook", "certificate", host)
    assert again.lines == (f"fasthook: {stem}.key: File exists",)


@pytest.mark.parametrize("host", ["https://bot.example.com", "bot:8443", "a b", ""])
def test_a_certificate_for_no_host(bot: Bot, host: str) -> None:
    done = fasthook(bot.directory, "webhook", "certificate", host)
    assert done.lines == ("fasthook: HOST: must be a host name or an IP address, without https:// and port",)
    assert not list(bot.directory.glob("*.key"))


# ---------------------------------------------------------------- run registers


def run(start: Start, api: botapi.Telegram, *options: str) -> Server:
    return start("--token", TOKEN, "--secret", SECRET, "--api-url", api.url, *PUBLIC, *options)


def test_run_registers_once_and_never_deletes(start: Start, api: botapi.Telegram, door: str) -> None:
    server = run(start, api, "--http", door)
    server.until(f"INFO +fasthook: the webhook is registered: {URL}$")
    assert server.stop() == 0
    server = run(start, api, "--http", door)
    server.until(f"Telegram has the webhook as it is to be: {URL}")
    assert server.stop() == 0
    assert [call.method for call in api.calls] == ["getWebhookInfo", "setWebhook", "getWebhookInfo"]
    assert api.calls_of("setWebhook")[0]["secret_token"] == SECRET


@pytest.mark.parametrize("options", [["--secret", "another"], ["--webhook-connections", "7"], ["--drop-pending"]])
def test_run_registers_again_what_differs(start: Start, api: botapi.Telegram, options: list[str]) -> None:
    server = run(start, api)
    server.until("the webhook is registered")
    assert server.stop() == 0
    server = run(start, api, *options)
    server.until("the webhook is registered")
    assert server.stop() == 0
    assert len(api.calls_of("setWebhook")) == 2


def test_run_serves_while_telegram_cannot_be_reached(start: Start, bot: Bot, api: botapi.Telegram) -> None:
    from fasthook.testing import samples

    api.answers.extend([HTML, HANG_UP, flooded(1)])
    server = run(start, api)
    assert server.post(samples.update(1)).status == 200
    server.until("the webhook is not registered yet, tried again in . s: getWebhookInfo: no answer", 2)
    server.until("the webhook is registered")
    assert server.stop() == 0
    assert [one.update_id for one in bot.handled] == [1]


def test_a_stop_does_not_wait_for_it(start: Start, api: botapi.Telegram) -> None:
    api.answers.extend([HANG_UP] * 100)
    server = run(start, api)
    server.until("the webhook is not registered yet")
    assert server.stop() == 0
    assert not server.find("Traceback")


def test_run_with_a_wrong_token(start: Start, api: botapi.Telegram) -> None:
    api.token = "42:TEST-another"
    server = run(start, api)
    server.until(
        "ERROR +fasthook: the webhook is not registered: getWebhookInfo: 401 Unauthorized: Telegram doesn't know "
    )
    assert server.stop() == 0
    assert len(api.calls) == 1


def test_two_servers_that_register_different_addresses(start: Start, api: botapi.Telegram) -> None:
    api.info["url"] = "https://old.example.com/webhook"
    server = run(start, api)
    server.until("WARNING .* it was https://old.example.com/webhook before: if another server still registers that")
    assert server.stop() == 0


def test_two_replicas_that_register_different_addresses(start: Start, bot: Bot, api: botapi.Telegram) -> None:
    """The second has it; it says so, and so does `info` with the configuration of the first."""
    options = ["--token", TOKEN, "--api-url", api.url]
    one = start(*options, "--public-url", "https://one.example.com", "--state-dir", "one")
    one.until("the webhook is registered")
    two = start(*options, "--public-url", "https://two.example.com", "--state-dir", "two")
    two.until("it was https://one.example.com/webhook before: if another server still registers that, they take it")
    ended, said = webhook(bot, api, "info", "--public-url", "https://one.example.com")
    assert ended.code == 1
    assert "Telegram has another address: https://two.example.com/webhook" in said
    assert "a replica that has another --public-url" in " ".join(said.split())
    assert (one.stop(), two.stop()) == (0, 0)


def test_run_registers_the_kinds_of_its_bot(start: Start, bot: Bot, api: botapi.Telegram) -> None:
    (bot.directory / "library_bot.py").write_text(
        f"from telebot.async_telebot import AsyncTeleBot\napp = AsyncTeleBot({TOKEN!r})\n"
        "@app.inline_handler(func=bool)\nasync def inline(query): ...\n"
        "@app.message_handler()\nasync def message(message): ...\n"
    )
    server = start("--api-url", api.url, *PUBLIC, target="library_bot:app")
    [params] = api.until("setWebhook")
    assert server.stop() == 0
    assert params["allowed_updates"] == ["inline_query", "message"]
    assert params["secret_token"] == secret_of(TOKEN)


def test_run_without_a_token_cannot_register(bot: Bot) -> None:
    ended = fasthook(bot.directory, "run", "bot:handler", "--port", "0", *PUBLIC)
    words = "fasthook: --public-url: registering the webhook needs the bot's token; set --token"
    assert (ended.code, ended.lines) == (1, (words,))


def test_run_with_a_certificate_that_is_not_there(bot: Bot) -> None:
    ended = fasthook(bot.directory, "run", "bot:handler", "--port", "0", "--certificate", "none.pem")
    assert (ended.code, ended.lines) == (1, ("fasthook: --certificate: none.pem: no such file",))


def test_what_run_remembers_is_no_secret(start: Start, bot: Bot, api: botapi.Telegram) -> None:
    server = run(start, api)
    server.until("the webhook is registered")
    assert server.stop() == 0
    file: Path = bot.directory / ".fasthook" / "webhook-42"
    assert os.stat(file).st_mode & 0o777 == 0o600  # noqa: PTH116
    assert len(file.read_text()) == 65
