"""Options, files and surroundings that cannot be used: one clear line each, 2 for usage and 1 for the rest."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from e2e.bot import Bot
from e2e.process import SECRET, Ended, Server, fasthook
from fasthook.settings import options
from fasthook.testing import samples

Start = Callable[..., Server]
PATHS = {"uds", "state_dir", "certificate", "ssl_certfile", "ssl_keyfile"}  # any text is a path, but for none at all

FLAGS = {"access_log", "drop_pending", "reload"}

#: A value for each option that it cannot have.
WRONG = {
    "host": "a b",
    "port": "65536",
    "fd": "stdin",
    "http": "both",
    "path": "webhook",
    "token": "nonsense",
    "secret": "non sense",
    "queue": "disk:",
    "journal_max": "1k",
    "ack": "later",
    "ack_deadline": "60",
    "stale": "keep",
    "max_age": "0",
    "keep_handled": "31d",
    "dead_max_age": "0",
    "dead_max_count": "all",
    "concurrency": "0",
    "queue_size": "-1",
    "handler_timeout": "soon",
    "retries": "many",
    "order": "user",
    "dedup_size": "0",
    "max_body": "1",
    "max_target": "1",
    "max_head": "1",
    "max_headers": "0",
    "max_connections": "0",
    "header_timeout": "0",
    "body_timeout": "0",
    "keep_alive": "0",
    "drain_timeout": "2h",
    "allow_ip": "300.0.0.1",
    "trusted_proxy": "everyone",
    "auth_rate": "60",
    "chat_rate": "1/d",
    "api_url": "api.telegram.org",
    "workers": "0",
    "worker_timeout": "0",
    "max_requests": "0",
    "reload": "maybe",
    "ops": "9090",
    "drain_delay": "2h",
    "reply_rate": "30",
    "reply_chat_rate": "1/d",
    "reply_group_rate": "20/min",
    "public_url": "bot.example.com",
    "allowed_updates": "chat-member",
    "webhook_connections": "0",
    "ip_address": "localhost",
    "drop_pending": "perhaps",
    "log_level": "loud",
    "log_format": "xml",
    "access_log": "maybe",
} | dict.fromkeys(PATHS, "")


def run(bot: Bot, *arguments: str, env: dict[str, str] | None = None) -> Ended:
    return fasthook(bot.directory, "run", "bot:handler", *arguments, env=env)


def check(ended: Ended, code: int, begins: str) -> None:
    assert ended.line.startswith(f"fasthook: {begins}"), ended.lines
    assert ended.lines == (ended.line,)
    assert ended.code == code


def test_each_option_has_its_row() -> None:
    assert {option.name for option in options()} == WRONG.keys()


@pytest.mark.parametrize("name", sorted(WRONG))
def test_a_wrong_value(bot: Bot, name: str) -> None:
    """On the command line, in the environment and in the file."""
    wrong = WRONG[name]
    dashed, variable = name.replace("_", "-"), f"FASTHOOK_{name.upper()}"
    (bot.directory / "wrong.toml").write_text(f"{dashed} = {5 if name in PATHS else repr(wrong)}\n")
    calls: list[tuple[str, list[str], dict[str, str]]] = [(f"wrong.toml: {dashed}", ["--config", "wrong.toml"], {})]
    if name not in FLAGS:
        calls.append((f"--{dashed}", [f"--{dashed}", wrong], {}))
    if name not in PATHS:
        calls.append((variable, [], {variable: wrong}))
    with ThreadPoolExecutor() as pool:
        ends = list(pool.map(lambda call: run(bot, *call[1], env=call[2]), calls))
    for (where, _, _), ended in zip(calls, ends, strict=True):
        check(ended, 2, f"{where}: must ")
        if name in ("token", "secret"):
            assert wrong not in ended.line
        elif name not in PATHS:
            assert ended.line.endswith(f", not {wrong!r}")


@pytest.mark.parametrize(
    ("source", "path"),
    [
        ({}, "/webhook"),
        ({"file"}, "/file"),
        ({"file", "environment"}, "/environment"),
        ({"file", "environment", "command line"}, "/command-line"),
    ],
)
def test_the_command_line_goes_before_the_environment_before_the_file(
    start: Start, bot: Bot, source: set[str], path: str
) -> None:
    if "file" in source:
        (bot.directory / "fasthook.toml").write_text('path = "/file"\n')
    server = start(
        *(["--path", "/command-line"] if "command line" in source else []),
        env={"FASTHOOK_PATH": "/environment"} if "environment" in source else {},
    )
    assert server.path == path


def test_memory_keeps_nothing_that_was_handled(bot: Bot) -> None:
    words = "--keep-handled: memory: keeps nothing that was handled; set --queue journal:DIRECTORY"
    check(run(bot, "--queue", "memory:", "--keep-handled", "1h"), 2, words)


@pytest.mark.parametrize(
    "options", [("--max-age", "20s", "--stale", "handle"), ("--queue", "memory:", "--journal-max", "2GiB")]
)
def test_an_option_that_would_do_nothing(bot: Bot, options: tuple[str, ...]) -> None:
    names = {
        "--max-age": "--max-age and --stale handle: give one of them, what is stale is either dropped or handled",
        "--queue": "--journal-max: memory: has no journal; set --queue journal:DIRECTORY, or leave it out",
    }
    check(run(bot, *options), 2, names[options[0]])


def test_an_unknown_key_in_the_file(bot: Bot) -> None:
    (bot.directory / "fasthook.toml").write_text("handler-timout = 5\n")
    check(run(bot), 2, "fasthook.toml: handler-timout: no such setting; did you mean handler-timeout?")


def test_a_key_that_is_twice_in_the_file(bot: Bot) -> None:
    (bot.directory / "fasthook.toml").write_text("handler-timeout = 5\nhandler_timeout = 6\n")
    check(run(bot), 2, "fasthook.toml: handler_timeout: it is there twice, also as handler-timeout")


def test_a_file_that_is_not_there(bot: Bot) -> None:
    check(run(bot, "--config", "none.toml"), 2, "none.toml: no such file")
    check(run(bot, env={"FASTHOOK_CONFIG": "none.toml"}), 2, "none.toml: no such file")


def test_a_file_that_is_not_toml(bot: Bot) -> None:
    (bot.directory / "fasthook.toml").write_text("port = = 5\n")
    check(run(bot), 2, "fasthook.toml: not TOML: ")


def test_an_unknown_variable_is_told_and_ignored(start: Start) -> None:
    server = start("--secret", SECRET, env={"FASTHOOK_PROT": "1"})
    server.until("^fasthook: FASTHOOK_PROT is not known; did you mean FASTHOOK_PORT.; it is ignored$")


def test_an_unknown_option(bot: Bot) -> None:
    ended = run(bot, "--prot", "1")
    assert ended.code == 2
    assert ended.lines == ("fasthook run: no such option --prot; did you mean --port? (try 'fasthook run --help')",)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["run"],
            "fasthook run: missing argument 'TARGET', or [[bot]] tables in fasthook.toml (try 'fasthook run --help')",
        ),
        (["run", "a:b", "c"], "fasthook run: got unexpected extra argument (c) (try 'fasthook run --help')"),
        (["run", "a:b", "--port"], "fasthook run: option '--port' requires an argument (try 'fasthook run --help')"),
        (["dance"], "fasthook: no such command 'dance' (try 'fasthook --help')"),
        (["--dance"], "fasthook: no such option --dance (try 'fasthook --help')"),
        (
            ["run", "a:b", "x\x1b[31m\ny"],
            "fasthook run: got unexpected extra argument (x\\u001b[31m y) (try 'fasthook run --help')",
        ),
    ],
)
def test_a_command_line_that_means_nothing(bot: Bot, arguments: list[str], line: str) -> None:
    ended = fasthook(bot.directory, *arguments)
    assert ended.lines == (line,)
    assert (ended.code, ended.output) == (2, "")


def test_without_a_command_it_helps(bot: Bot) -> None:
    ended = fasthook(bot.directory)
    assert {"run", "queue", "dead", "secret"} <= {line.split()[0] for line in ended.lines if line.startswith("  ")}


@pytest.mark.parametrize(
    ("shape", "why"),
    [
        ("123456789", "; the part behind the number is missing"),
        ("123456789:", "; the part behind the number is missing"),
        ("123456789:AA BB", ""),
        ("'123456789:AABB'", "; there are spaces or quotes around it"),
        (" 123456789:AABB", "; there are spaces or quotes around it"),
        ("bot123:abc", "; leave out the bot in front of the number"),
        ("TEST" * 9, "; the number in front is missing"),
    ],
)
def test_a_token_of_the_wrong_shape_is_never_repeated(bot: Bot, shape: str, why: str) -> None:
    words = ": must look like 123456789:ABC-def, as @BotFather gives it" + why
    for ended, where in [
        (run(bot, "--token", shape), "--token"),
        (run(bot, env={"BOT_TOKEN": shape}), "BOT_TOKEN"),
    ]:
        check(ended, 2, where + words)
        assert ended.line == f"fasthook: {where}{words}"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://bot.example.com", "--public-url: must begin with https://, Telegram calls nothing else; "),
        ("https://bot.example.com:5000", "--public-url: Telegram calls the ports 443, 80, 88 and 8443, not 5000"),
        ("https://[2001:db8::1]:8000/bot", "--public-url: Telegram calls the ports 443, 80, 88 and 8443, not 8000"),
    ],
)
def test_a_public_url_that_telegram_does_not_call(bot: Bot, url: str, words: str) -> None:
    check(run(bot, "--token", "42:TEST", "--public-url", url), 2, words)


def test_more_connections_than_telegram_opens(bot: Bot) -> None:
    check(run(bot, "--webhook-connections", "101"), 2, "--webhook-connections: Telegram opens at most 100")


# ---------------------------------------------------------------- surroundings


def test_a_port_in_use(bot: Bot) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        words = f"cannot listen on http://127.0.0.1:{port}: Address already in use; stop what listens there, or choose"
        check(run(bot, "--port", str(port)), 1, f"{words} another --port")


def test_a_port_in_use_on_one_address_of_several(bot: Bot) -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken:
        port = taken.getsockname()[1]
        words = f"cannot listen on http://[::]:{port}: Address already in use; "
        check(run(bot, "--host", "::", "--port", str(port)), 1, words)


def test_a_unix_socket_in_use(start: Start, bot: Bot) -> None:
    start("--uds", "hook.sock")
    check(run(bot, "--uds", "hook.sock", "--state-dir", "b"), 1, "cannot listen on hook.sock: Address already in use; ")


def test_a_file_where_the_unix_socket_should_be(bot: Bot) -> None:
    (bot.directory / "notes.txt").write_text("precious")
    check(run(bot, "--uds", "notes.txt"), 1, "cannot listen on notes.txt: ")
    assert (bot.directory / "notes.txt").read_text() == "precious"


@pytest.mark.parametrize("host", ["a" * 70, "192.0.2.1"], ids=["no name", "not ours"])
def test_an_address_that_is_no_address_of_ours(bot: Bot, host: str) -> None:
    check(run(bot, "--host", host), 1, "cannot listen on http://")


@pytest.mark.parametrize("fd", ["2", "77"])
def test_a_descriptor_that_is_no_socket(bot: Bot, fd: str) -> None:
    check(run(bot, "--fd", fd), 1, f"cannot listen on descriptor {fd}: ")


def test_a_state_directory_that_cannot_be_written(bot: Bot) -> None:
    words = "the state directory bot.py/state cannot be written: Not a directory; set --state-dir"
    check(run(bot, "--port", "0", "--state-dir", "bot.py/state"), 1, words)


def test_a_state_directory_in_use(start: Start, bot: Bot) -> None:
    server = start()
    words = (
        f"the state directory .fasthook is in use by process {server.process.pid}; stop it, or set another --state-dir"
    )
    check(run(bot, "--port", "0"), 1, words)
    assert server.process.poll() is None


@pytest.mark.parametrize(
    "content",
    [None, "", "-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n"],
    ids=["missing", "empty", "nonsense"],
)
def test_a_certificate_that_cannot_be_read(bot: Bot, content: str | None) -> None:
    if content is not None:
        (bot.directory / "chain.pem").write_text(content)
    check(run(bot, "--port", "0", "--ssl-certfile", "chain.pem"), 1, "--ssl-certfile: ")


def test_a_key_without_a_certificate(bot: Bot) -> None:
    check(run(bot, "--ssl-keyfile", "key.pem"), 2, "--ssl-keyfile: needs --ssl-certfile beside it")


# ---------------------------------------------------------------- damage


def spilled(start: Start) -> None:
    """A run that ends with two updates handled and two left."""
    server = start("--secret", SECRET, "--queue", "memory:", "--drain-timeout", "0", env={"HELD": "1"})
    for update_id in (1, 2, 3, 4):
        assert server.post(samples.update(update_id, chat_id=update_id % 2)).status == 200
    assert server.stop() == 0


def broken(file: Path) -> None:
    file.write_bytes(os.urandom(file.stat().st_size))


def cut_off(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


@pytest.mark.parametrize("damage", [broken, cut_off])
def test_a_damaged_ring(start: Start, bot: Bot, damage: Callable[[Path], None]) -> None:
    spilled(start)
    damage(bot.directory / ".fasthook" / "ring")
    server = start("--secret", SECRET, "--queue", "memory:")
    server.until(r"ERROR +fasthook.state: .fasthook/ring is damaged .*; kept as .fasthook/ring.damaged-\w+$")
    assert server.post(samples.update(2, chat_id=0)).status == 200
    assert server.stop() == 0
    assert not server.find("Traceback")
    assert bot.by_chat == {0: [2, 4, 2], 1: [1, 3]}


def without_data(file: Path) -> None:
    os.truncate(file, 2 * 4096)  # LMDB's two meta pages; behind the data there may be room that nobody misses


@pytest.mark.parametrize("damage", [broken, without_data])
def test_a_damaged_spill(start: Start, bot: Bot, damage: Callable[[Path], None]) -> None:
    spilled(start)
    damage(bot.directory / ".fasthook" / "spill" / "data.mdb")
    server = start("--secret", SECRET, "--queue", "memory:")
    server.until(
        r"ERROR +fasthook.queue: the spill is damaged .*: 0 updates could be read; "
        r"it is kept as .fasthook/spill.damaged-\w+$"
    )
    assert server.post(samples.update(5, chat_id=5)).status == 200
    assert server.stop() == 0
    assert not server.find("Traceback")
    assert bot.by_chat == {0: [2, 4], 5: [5]}
