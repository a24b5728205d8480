"""What `fasthook run` tells a person at its start."""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import stat
import subprocess
from collections.abc import Callable

import pytest
import trustme

from e2e.bot import Bot
from e2e.process import COMMAND, PATIENCE, SECRET, Polling, Server, environment, fasthook
from fasthook.settings import secret_of
from fasthook.testing.running import Telegram

TOKEN = "123456789:AAF-abc_DEF"


def try_it(server: Server) -> str:
    """Run the printed curl line in a shell: what it prints."""
    if not shutil.which("curl"):
        if os.environ.get("CI") == "true":
            pytest.fail("curl is not installed")
        pytest.skip("curl is not installed")
    line = server.until(r"^  try it  (curl .*)$")[1]
    done = subprocess.run(
        ["sh", "-c", line], cwd=server.directory, env=environment(), capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_a_token(start: Callable[..., Server], bot: Bot, door: str) -> None:
    server = start("--http", door, "--path", "/hook/it's", "--host", "localhost")
    assert server.path == "/hook/it's"
    server.until(r"^  secret  thrown away at the end, because there is neither a token nor a secret$")
    server.until(r"^  queue   journal:.fasthook/journal$")
    assert try_it(server).startswith("HTTP/1.1 200 OK")
    assert server.stop() == 0
    assert [one.chat for one in bot.handled] == [1]


def test_on_a_unix_socket(start: Callable[..., Server], bot: Bot) -> None:
    server = start("--uds", "hook.sock")
    assert server.uds == "hook.sock"
    assert try_it(server).startswith("HTTP/1.1 200 OK")
    assert server.stop() == 0
    assert len(bot.handled) == 1


def test_a_unix_socket_that_a_dead_process_left(start: Callable[..., Server], bot: Bot) -> None:
    start("--uds", "hook.sock").kill()
    assert (bot.directory / "hook.sock").exists()
    assert try_it(start("--uds", "hook.sock")).startswith("HTTP/1.1 200 OK")


def test_a_unix_socket_is_open_to_a_proxy_and_removed_at_the_stop(start: Callable[..., Server], bot: Bot) -> None:
    server, file = start("--uds", "hook.sock"), bot.directory / "hook.sock"
    assert stat.S_IMODE(file.stat().st_mode) == 0o666
    assert server.stop() == 0
    assert not file.exists()


def test_the_socket_of_a_successor_is_left_alone(start: Callable[..., Server], bot: Bot) -> None:
    server, file = start("--uds", "hook.sock"), bot.directory / "hook.sock"
    file.unlink()
    other = start("--uds", "hook.sock", "--state-dir", "other")
    assert server.stop() == 0
    assert file.is_socket()
    assert try_it(other).startswith("HTTP/1.1 200 OK")


@pytest.mark.parametrize("host", ["::", "localhost"])
def test_each_address_of_a_name(start: Callable[..., Server], host: str) -> None:
    if host == "::" and not has_ipv6():
        if os.environ.get("CI") == "true":
            pytest.fail("no IPv6 on this machine")
        pytest.skip("no IPv6 on this machine")
    server = start("--host", host)
    found = {"::1", "127.0.0.1"} if host == "::" else {str(one[4][0]) for one in socket.getaddrinfo(host, 0)}
    for place in sorted(found):
        connection = http.client.HTTPConnection(place, server.address[1], timeout=PATIENCE)
        connection.request("GET", "/")
        assert connection.getresponse().status == 404
        connection.close()


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


def test_over_tls(start: Callable[..., Server], bot: Bot) -> None:
    trustme.CA().issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(bot.directory / "chain.pem"))
    server = start("--ssl-certfile", "chain.pem")
    server.until("^fasthook serves https://127.0.0.1:")
    assert try_it(server).startswith("HTTP/1.1 200 OK")
    assert server.stop() == 0
    assert len(bot.handled) == 1


def test_with_a_token(start: Callable[..., Server], bot: Bot) -> None:
    server = start("--log-level", "debug", env={"BOT_TOKEN": TOKEN})
    server.until(r"^  secret  made from the token: the same on every machine and after every restart$")
    assert server.stop() == 0
    said = "\n".join(server.lines)
    assert TOKEN not in said
    assert secret_of(TOKEN) not in said
    assert "try it" not in said


def test_with_a_secret(start: Callable[..., Server]) -> None:
    server = start("--secret", SECRET)
    server.until(r"^  secret  as it was set$")
    assert server.stop() == 0
    assert not server.find(SECRET)


LOGS = """
import logging
import time

[lines] = logging.getLogger().handlers
write = lines._stream.write
lines._stream.write = lambda text: (time.sleep(0.3), write(text))
logging.getLogger("bot").warning("the bot is imported")
"""


@pytest.mark.parametrize("command", ["run", "poll"])
def test_what_was_logged_before_stands_before(bot: Bot, telegram: Telegram, command: str) -> None:
    """However long it takes to be written: what is told last is that it serves."""
    with (bot.directory / "bot.py").open("a") as file:
        file.write(LOGS)
    if command == "run":
        server = Server(bot.directory, "bot:handler", "--port", "0")
    else:
        server = Polling(bot.directory, "bot:handler", "--token", telegram.token, "--api-url", telegram.url)
    try:
        assert server.find("the bot is imported$")
    finally:
        server.kill()


def test_a_free_port_is_told(start: Callable[..., Server]) -> None:
    assert start().address[1] > 0


def test_the_secret_command_agrees(bot: Bot) -> None:
    env = {"FASTHOOK_TOKEN": TOKEN, "FASTHOOK_PATH": "/env"}
    done = subprocess.run(
        [str(COMMAND), "secret"], cwd=bot.directory, env=environment(**env), capture_output=True, text=True,
        check=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.stdout.split() == ["secret_token", secret_of(TOKEN), "path", "/env"]
    assert fasthook(bot.directory, "secret").line == "fasthook: no token: set --token, FASTHOOK_TOKEN or BOT_TOKEN"
