"""A certificate of one's own: made, served with, given to Telegram, and trusted by it from then on."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
from collections.abc import Callable, Iterator

import pytest

from e2e.bot import Bot
from e2e.process import PATIENCE, Ended, Server, fasthook, reserved_port
from e2e.tools import until
from fasthook.testing import TOKEN, Rules
from fasthook.testing.running import Telegram

Start = Callable[..., Server]


@pytest.fixture
def cloud() -> Iterator[tuple[Telegram, int]]:
    """A Telegram that takes what the cloud takes, and reaches bot.example.org:8443 at a port of this machine."""
    with reserved_port() as port:
        telegram = Telegram(rules=Rules(local=False, connect_to={("bot.example.org", 8443): ("127.0.0.1", port)}))
        yield telegram, port
        telegram.stop()


@pytest.fixture
def port() -> Iterator[int]:
    with reserved_port() as one:
        yield one


def made(bot: Bot, host: str) -> None:
    done = fasthook(bot.directory, "webhook", "certificate", host)
    assert (done.code, done.lines) == (0, ())
    stem = host.replace(":", "_")
    assert (bot.directory / f"{stem}.key").stat().st_mode & 0o777 == 0o600
    assert f"--ssl-certfile {stem}.pem --ssl-keyfile {stem}.key" in done.output


def served(start: Start, telegram: Telegram, url: str, port: int, *options: str) -> Server:
    """The bot over TLS, at a public address that leads to this port."""
    stem = url.removeprefix("https://").rpartition(":")[0].strip("[]").replace(":", "_")
    tls = ["--ssl-certfile", f"{stem}.pem", "--ssl-keyfile", f"{stem}.key", "--certificate", f"{stem}.pem"]
    where = ["--public-url", url, "--port", str(port), "--token", TOKEN, "--api-url", telegram.url]
    return start(*where, *(options or tls))


def info(bot: Bot, telegram: Telegram, url: str, *options: str) -> Ended:
    where = ["--public-url", url, "--token", TOKEN, "--api-url", telegram.url]
    return fasthook(bot.directory, "webhook", "info", *where, *options)


def hears(telegram: Telegram, text: str) -> None:
    telegram.chat().send(f"say {text}").result()
    telegram.chat().expect("sendMessage", text=text, timeout=PATIENCE).result()


def test_the_whole_way(start: Start, bot: Bot, cloud: tuple[Telegram, int]) -> None:
    """Registered once; again when the certificate is another one."""
    telegram, port = cloud
    url = "https://bot.example.org:8443"
    made(bot, "bot.example.org")
    for n, words in enumerate(["the webhook is registered", "Telegram has the webhook as it is to be"]):
        server = served(start, telegram, url, port)
        server.until(f"{words}: {url}/webhook")
        hears(telegram, f"hello {n}")
        known = info(bot, telegram, url, "--certificate", "bot.example.org.pem", "--json")
        assert json.loads(known.output)["webhook"]["has_custom_certificate"] is True
        assert known.code == 0 or n, known.output  # Telegram has tried in vain between the two
        assert "Telegram has another idea of the certificate" in info(bot, telegram, url).output
        assert server.stop() == 0

    for file in ("bot.example.org.pem", "bot.example.org.key"):
        (bot.directory / file).unlink()
    made(bot, "bot.example.org")
    telegram.advance(1)
    server = served(start, telegram, url, port)
    server.until(f"the webhook is registered: {url}/webhook")
    hears(telegram, "hello again")
    assert server.stop() == 0
    assert [call.method for call in telegram.calls].count("setWebhook") == 2


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_an_address_of_a_server_of_ones_own(start: Start, bot: Bot, telegram: Telegram, host: str, port: int) -> None:
    made(bot, host)
    server = served(start, telegram, f"https://{host}:{port}", port)
    hears(telegram, "hello")
    assert server.stop() == 0


@pytest.mark.parametrize("given", ["none", "another"])
def test_a_certificate_that_telegram_was_not_given(
    start: Start, bot: Bot, telegram: Telegram, given: str, port: int
) -> None:
    """Telegram doesn't trust it, and `info` says what to do; when that is done the update comes."""
    made(bot, "localhost")
    for file in bot.directory.glob("localhost.*"):
        shutil.move(file, file.with_stem("server"))
    made(bot, "localhost")
    url = f"https://localhost:{port}"
    tls = ["--ssl-certfile", "server.pem", "--ssl-keyfile", "server.key"]
    server = served(start, telegram, url, port, *tls, *(["--certificate", "localhost.pem"] * (given == "another")))
    server.until("the webhook is registered")
    telegram.chat().send("say hello").result()
    until(lambda: "last_error_message" in telegram.webhook_info())
    told = info(bot, telegram, url)
    assert told.code == 1
    assert "certificate verify failed" in told.output
    assert "a self-signed one must be given to Telegram with --certificate" in " ".join(told.output.split())
    telegram.advance(1)
    where = ["--public-url", url, "--token", TOKEN, "--api-url", telegram.url]
    assert fasthook(bot.directory, "webhook", "set", *where, "--certificate", "server.pem").code == 0
    telegram.chat().expect("sendMessage", text="hello", timeout=PATIENCE).result()
    assert server.stop() == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "bot.example.com"])
def test_a_certificate_is_made_and_can_be_served_with(start: Start, bot: Bot, host: str) -> None:
    made(bot, host)
    stem = host.replace(":", "_")
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
