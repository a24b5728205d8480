"""Options: what they may be, where they come from, and what is said of wrong ones."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path
from typing import Any

import pytest

from fasthook.settings import Rate, Settings, SettingsError, config_file, load, secret_of, setting, unknown_variables

TOKEN = "123456789:AAF-abc_DEF"


def message(given: dict[str, Any], environ: dict[str, str] | None = None, config: Path | None = None) -> str:
    """The one line that is said of settings that cannot be used."""
    with pytest.raises(SettingsError) as raised:
        load(given, environ or {}, config)
    line = str(raised.value)
    assert "\n" not in line
    return line


def written(directory: Path, text: str) -> Path:
    file = directory / "fasthook.toml"
    file.write_text(text)
    return file


# ---------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("port", "0", 0),
        ("port", 65535, 65535),
        ("keep_alive", "75", 75),
        ("keep_alive", 0.5, 0.5),
        ("keep_alive", "500ms", 0.5),
        ("keep_alive", "2m", 120),
        ("drain_timeout", "1 h", 3600),
        ("drain_timeout", 0, 0),
        ("max_body", 4096, 4096),
        ("max_body", "64KiB", 65536),
        ("max_body", "64k", 64000),
        ("max_body", "1MB", 1_000_000),
        ("max_body", "1GiB", 1 << 30),
        ("auth_rate", "30/s", Rate(30, 1)),
        ("auth_rate", "60/m", Rate(60, 60)),
        ("auth_rate", "100/h", Rate(100, 3600)),
        ("auth_rate", "off", None),
        ("order", "none", "none"),
        ("access_log", "yes", True),
        ("access_log", False, False),
        ("path", "/", "/"),
        ("path", "/bot1:a/(x)", "/bot1:a/(x)"),
        ("token", TOKEN, TOKEN),
        ("secret", "new-one,old_one", ("new-one", "old_one")),
        ("uds", "run/hook.sock", Path("run/hook.sock")),
        ("api_url", "http://127.0.0.1:8081", "http://127.0.0.1:8081"),
    ],
)
def test_a_value_that_can_be_used(name: str, given: Any, value: Any) -> None:
    assert getattr(load({name: given}, {}), name) == value


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("port", "65536"),
        ("port", "-1"),
        ("port", "8000.0"),
        ("port", ""),
        ("port", True),
        ("concurrency", 0),
        ("concurrency", [1]),
        ("keep_alive", "soon"),
        ("keep_alive", "-5"),
        ("keep_alive", "1w"),
        ("keep_alive", True),
        ("keep_alive", float("nan")),
        ("max_body", "1023"),
        ("max_body", "1.5MiB"),
        ("max_body", "1TiB"),
        ("auth_rate", "0/s"),
        ("auth_rate", "10/d"),
        ("auth_rate", "10"),
        ("order", "Chat"),
        ("order", None.__class__),
        ("access_log", "maybe"),
        ("path", "webhook"),
        ("path", "/a b"),
        ("path", "/a?b"),
        ("path", "/a%20b"),
        ("path", "/a\n"),
        ("host", ""),
        ("host", "a b"),
        ("api_url", "api.telegram.org"),
        ("queue", "journal:"),
        ("state_dir", 5),
        ("state_dir", "a\0b"),
    ],
)
def test_a_value_that_cannot(name: str, given: Any) -> None:
    assert message({name: given}).startswith(f"--{name.replace('_', '-')}: must be")


@pytest.mark.parametrize("wrong", ["", "nonsense", "123456789", "0123:abc", "123:", "123:a b", "123:abc\n", 5])
def test_a_wrong_token_is_not_repeated(wrong: Any) -> None:
    line = message({"token": wrong})
    assert line.startswith("--token: must look like 123456789:ABC-def, as @BotFather gives it")


@pytest.mark.parametrize("wrong", ["", "one,two,three", "two,", "with space", "x" * 257, "ä", 5])
def test_a_wrong_secret_is_not_repeated(wrong: Any) -> None:
    line = message({"secret": wrong})
    assert line.startswith("--secret: must be 1 to 256 of A-Z a-z 0-9 _ -")
    assert str(wrong) not in line or not wrong or wrong == 5


def test_options_that_exclude_each_other() -> None:
    assert message({"uds": "a", "fd": 3}) == "--uds and --fd: give one of them"
    assert message({"ssl_keyfile": "key.pem"}).startswith("--ssl-keyfile: needs --ssl-certfile")


def test_a_rate() -> None:
    assert [str(Rate(30, seconds)) for seconds in (1, 60, 3600)] == ["30/s", "30/m", "30/h"]
    assert Rate(30, 60).interval == 2_000_000_000


# ---------------------------------------------------------------- sources


def test_the_command_line_goes_before_the_environment_before_the_file(tmp_path: Path) -> None:
    file = written(tmp_path, "port = 1\nretries = 1\nconcurrency = 1\n")
    environ = {"FASTHOOK_PORT": "2", "FASTHOOK_RETRIES": "2", "UNRELATED": "x"}
    made = load({"port": "3", "retries": None}, environ, file)
    assert (made.port, made.retries, made.concurrency, made.queue_size) == (3, 2, 1, 10_000)


def test_an_empty_variable_counts_as_not_set() -> None:
    assert load({}, {"FASTHOOK_PORT": "", "BOT_TOKEN": ""}) == Settings()


def test_the_token_may_be_in_bot_token() -> None:
    assert load({}, {"BOT_TOKEN": TOKEN}).token == TOKEN
    assert load({}, {"BOT_TOKEN": TOKEN, "FASTHOOK_TOKEN": "1:a"}).token == "1:a"
    assert message({}, {"BOT_TOKEN": "nonsense"}).startswith("BOT_TOKEN: must look like")


def test_the_file_has_types_of_its_own(tmp_path: Path) -> None:
    made = load({}, {}, written(tmp_path, 'handler-timeout = 1.5\nmax_body = "2KiB"\naccess-log = true\n'))
    assert (made.handler_timeout, made.max_body, made.access_log) == (1.5, 2048, True)


def test_an_error_names_its_place(tmp_path: Path) -> None:
    file = written(tmp_path, "port = 70000\n")
    words = "must be a whole number from 0 to 65535, not"
    assert message({"port": "x"}, {}) == f"--port: {words} 'x'"
    assert message({}, {"FASTHOOK_PORT": "x"}) == f"FASTHOOK_PORT: {words} 'x'"
    assert message({}, {}, file) == f"{file}: port: {words} 70000"


def test_a_wrong_value_counts_where_a_right_one_goes_before_it(tmp_path: Path) -> None:
    """What stands wrong in the file is an error today, not on the day its override is taken away."""
    file = written(tmp_path, "port = 70000\n")
    assert message({"port": 1}, {}, file).startswith(f"{file}: port")


@pytest.mark.parametrize(
    ("key", "nearest"),
    [("handler-timout", "; did you mean handler-timeout?"), ("Port", "; did you mean port?"), ("zzz", "")],
)
def test_an_unknown_key_in_the_file(tmp_path: Path, key: str, nearest: str) -> None:
    file = written(tmp_path, f"{key} = 1\n")
    assert message({}, {}, file) == f"{file}: {key}: no such setting{nearest}"


def test_an_unknown_keyword() -> None:
    assert message({"handler_timout": 5}) == "handler_timout: no such setting; did you mean handler_timeout?"


def test_unknown_variables() -> None:
    environ = {"FASTHOOK_POTR": "1", "FASTHOOK_CONFIG": "a", "FASTHOOK_PORT": "1", "PATH": "x"}
    assert unknown_variables(environ) == ["FASTHOOK_POTR is not known; did you mean FASTHOOK_PORT?"]


@pytest.mark.parametrize(
    ("content", "words"), [(b"port = ", "not TOML: "), (b"\xff", "not TOML: "), (b"a = 1\na = 2\n", "not TOML: ")]
)
def test_a_file_that_is_not_toml(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "fasthook.toml"
    file.write_bytes(content)
    assert message({}, {}, file).startswith(f"{file}: {words}")


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert message({}, {}, tmp_path / "none.toml") == f"{tmp_path}/none.toml: no such file"
    assert message({}, {}, tmp_path) == f"{tmp_path}: cannot be read: Is a directory"


def test_which_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert config_file(None, {}) is None
    written(tmp_path, "")
    assert config_file(None, {}) == Path("fasthook.toml")
    assert config_file(None, {"FASTHOOK_CONFIG": "b.toml"}) == Path("b.toml")
    assert config_file("a.toml", {"FASTHOOK_CONFIG": "b.toml"}) == Path("a.toml")


# ---------------------------------------------------------------- token and secret


def test_the_secret_is_made_from_the_token() -> None:
    expected = hmac.new(TOKEN.encode(), b"fasthook secret", hashlib.sha256).hexdigest()
    assert secret_of(TOKEN) == expected
    assert load({"token": TOKEN}, {}).valid_secrets == (expected.encode(),)
    assert load({"token": TOKEN, "secret": "a,b"}, {}).valid_secrets == (b"a", b"b")


def test_without_both_the_secret_is_thrown_away() -> None:
    one, other = load({}, {}), load({}, {})
    assert one.valid_secrets == one.valid_secrets
    assert one.valid_secrets != other.valid_secrets
    assert len(one.valid_secrets[0]) == 32


def test_the_bots_id_is_in_its_token() -> None:
    assert load({"token": TOKEN}, {}).bot_id == 123456789
    assert load({}, {}).bot_id == 0


def test_the_repr_tells_no_secret() -> None:
    shown = repr(load({"token": TOKEN, "secret": "hush"}, {}))
    assert TOKEN not in shown
    assert "AAF-abc_DEF" not in shown
    assert "hush" not in shown
    assert "port=8000" in shown


def test_keywords_are_named_as_keywords() -> None:
    """`Hook(...)` has no flags."""
    for given, words in [
        ({"header_timeout": 0}, "header_timeout: must be a time from 0.1 to 3600 seconds"),
        ({"ssl_keyfile": "key.pem"}, "ssl_keyfile: needs ssl_certfile beside it"),
        ({"header_timout": 5}, "header_timout: no such setting; did you mean header_timeout?"),
    ]:
        with pytest.raises(SettingsError) as raised:
            load(given, {}, keywords=True)
        assert str(raised.value).startswith(words)


def test_a_key_that_is_twice_in_the_file(tmp_path: Path) -> None:
    file = written(tmp_path, "keep_alive = 5\nkeep-alive = 6\n")
    assert message({}, config=file) == f"{file}: keep-alive: it is there twice, also as keep_alive"


def test_the_queue_of_the_command_is_a_journal_in_the_state_directory() -> None:
    assert load({}, {}).queue == "memory:"
    assert load({}, {}, command=True).queue == "journal:.fasthook/journal"
    assert load({"state_dir": "elsewhere"}, {}, command=True).queue == "journal:elsewhere/journal"
    assert load({}, {"FASTHOOK_QUEUE": "memory:"}, command=True).queue == "memory:"


def test_the_size_of_the_queue_says_which_queue_refuses_more() -> None:
    words = setting("queue_size").metadata["help"]
    assert words == "updates in memory, waiting or running; more get 503 with memory:, and wait on disk with journal:"


def test_what_may_be_kept() -> None:
    assert load({"keep_handled": "1h"}, {}, command=True).keep_handled == 3600
    assert load({"dead_max_age": "off", "dead_max_count": 0}, {}).dead_max_age is None
    with pytest.raises(SettingsError, match=r"^--keep-handled: memory: keeps nothing"):
        load({"keep_handled": "1h"}, {})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"max_age": "20s", "stale": "handle"}, "--max-age and --stale handle: give one of them, what is stale is"),
        ({"journal_max": "2GiB"}, "--journal-max: memory: has no journal; set --queue journal:DIRECTORY, or leave it"),
    ],
)
def test_what_would_do_nothing_beside_another(given: dict[str, Any], words: str) -> None:
    assert message(given).startswith(words)
