"""Every option, declared once, for the command line, the environment and the file."""

from __future__ import annotations

import difflib
import hashlib
import hmac
import ipaddress
import os
import re
import secrets
import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from fasthook._scan import KINDS
from fasthook.cores import cores
from fasthook.telegram.networks import Networks

CONFIG_FILE = "fasthook.toml"


class SettingsError(ValueError):
    """A setting that cannot be used. The message is one line: where it was, what is wrong, what to do."""


# ---------------------------------------------------------------- what a value may be

Parser = Callable[[Any], Any]


def whole(low: int, high: int) -> Parser:
    def parse(value: Any) -> int:
        if isinstance(value, bool) or not re.fullmatch(r"[+-]?\d+", str(value)) or not low <= int(value) <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")
        return int(value)

    return parse


_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds(low: float, high: float) -> Parser:
    def parse(value: Any) -> float:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?", str(value))
        if isinstance(value, bool) or not match or not low <= (n := float(match[1]) * _UNITS[match[2] or "s"]) <= high:
            raise ValueError(f"must be a time from {low:g} to {high:g} seconds, for instance 30, 500ms or 2m")
        return n

    return parse


_SIZES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def size(low: int, high: int) -> Parser:
    def parse(value: Any) -> int:
        match = re.fullmatch(r"(\d+)\s*([kmg]?i?)b?", str(value).lower())
        if isinstance(value, bool) or not match or not low <= (n := int(match[1]) * _SIZES.get(match[2], 1)) <= high:
            raise ValueError(f"must be a size from {low} to {high} bytes, for instance 65536, 64KiB or 1MiB")
        return n

    return parse


@dataclass(frozen=True, slots=True)
class Rate:
    """`count` in each `seconds`, and so many at once."""

    count: int
    seconds: int

    def __str__(self) -> str:
        return f"{self.count}/{ {1: 's', 60: 'm', 3600: 'h'}[self.seconds] }"

    @property
    def interval(self) -> int:
        """Nanoseconds between two tokens."""
        return max(1, self.seconds * 1_000_000_000 // self.count)


def rate(value: Any) -> Rate | None:
    if str(value) in ("off", "none", "0"):
        return None
    match = re.fullmatch(r"(\d{1,7})/(s|m|h)", str(value))
    if not match or int(match[1]) == 0:
        raise ValueError("must be a rate such as 30/s, 60/m or 100/h, or off")
    return Rate(int(match[1]), int(_UNITS[match[2]]))


def age(value: Any) -> float | None:
    return None if value == "off" else float(seconds(1, 10 * 86_400)(value))


def retention(value: Any) -> float | None:
    return None if value == "off" else float(seconds(1, 365 * 86_400)(value))


def month(value: Any) -> float | None:
    return None if value == "off" else float(seconds(1, 30 * 86_400)(value))


def workers(value: Any) -> int:
    """`auto`: the cores that this process may use, less one for the front door, at least 2."""
    try:
        return max(2, cores() - 1) if value == "auto" else int(whole(1, 256)(value))
    except ValueError:
        raise ValueError("must be auto or a whole number from 1 to 256") from None


def requests(value: Any) -> int | None:
    try:
        return None if value == "off" else int(whole(1, 1_000_000_000)(value))
    except ValueError:
        raise ValueError("must be off or a whole number from 1 to 1000000000") from None


def choice(*names: str) -> Parser:
    def parse(value: Any) -> str:
        if value not in names:
            raise ValueError(f"must be {' or '.join(names)}")
        return str(value)

    return parse


def switch(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    known = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if str(value).lower() not in known:
        raise ValueError("must be true or false")
    return known[str(value).lower()]


def text(pattern: str, words: str) -> Parser:
    def parse(value: Any) -> str:
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise ValueError(f"must be {words}")
        return value

    return parse


def hook_path(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"/[A-Za-z0-9._~!$&'()*+,;=:@/-]{0,1023}", value):
        raise ValueError("must begin with / and hold only letters, digits and -._~!$&'()*+,;=:@/")
    return value


def token(value: Any) -> str:
    if isinstance(value, str) and re.fullmatch(r"[1-9]\d{0,15}:[A-Za-z0-9_-]{1,256}", value):
        return value
    why = ""
    if isinstance(value, str) and (value != value.strip() or value.strip("'\"") != value):
        why = "; there are spaces or quotes around it"
    elif isinstance(value, str) and re.fullmatch(r"bot[1-9]\d*:.*", value):
        why = "; leave out the bot in front of the number"
    elif isinstance(value, str) and re.fullmatch(r"[1-9]\d*:?", value):
        why = "; the part behind the number is missing"
    elif isinstance(value, str) and re.fullmatch(r":?[A-Za-z0-9_-]{30,}", value):
        why = "; the number in front is missing"
    raise Secretive(f"must look like 123456789:ABC-def, as @BotFather gives it{why}")


def secret(value: Any) -> tuple[str, ...]:
    parts = tuple(value.split(",")) if isinstance(value, str) else ()
    if not 1 <= len(parts) <= 2 or not all(re.fullmatch(r"[A-Za-z0-9_-]{1,256}", part) for part in parts):
        raise Secretive("must be 1 to 256 of A-Z a-z 0-9 _ -, or two such with a comma between, the new one first")
    return parts


def networks(value: Any) -> Networks | None:
    names = value if isinstance(value, list) else str(value).split(",")
    try:
        return Networks(str(name).strip() for name in names) if value else None
    except ValueError:
        raise ValueError("must be CIDRs or addresses with commas between, telegram, or unix") from None


def queue_url(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"memory:|journal:.+", value):
        raise ValueError("must be memory: or journal:DIRECTORY")
    return value


def file_path(value: Any) -> Path:
    if not isinstance(value, (str, os.PathLike)) or not str(value) or "\0" in str(value):
        raise ValueError("must be a path")
    return Path(value)


def ops_address(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"off|unix:.+|(\[[0-9a-fA-F:.]+\]|[^\s/:\[\]]+):\d{1,5}", value):
        raise ValueError("must be HOST:PORT, unix:PATH or off")
    if not value.startswith("unix:") and value != "off" and int(value.rpartition(":")[2]) > 65535:
        raise ValueError("must have a port from 0 to 65535")
    return value


def public_url(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"https?://[^\s/?#@\\]+(?::\d+)?(?:/[^\s?#]*)?", value):
        raise ValueError("must be an address such as https://bot.example.com")
    return value.rstrip("/")


def update_kinds(value: Any) -> tuple[str, ...]:
    """Names of updates; `all`, or `default` for those that Telegram sends unless told otherwise."""
    names = value if isinstance(value, list) else str(value).split(",")
    kinds = tuple(str(name).strip() for name in names)
    if kinds == ("all",):
        return KINDS[1:]
    if kinds == ("default",):
        return ()
    for kind in kinds:
        if kind not in KINDS and (not re.fullmatch(r"[a-z]+(_[a-z]+)*", kind) or nearest(kind, list(KINDS))):
            hint = nearest(kind, list(KINDS))
            raise ValueError(f"must be kinds of updates with commas between, all or default{hint}")
    return kinds


def ip_address(value: Any) -> str:
    try:
        return str(ipaddress.ip_address(value))
    except ValueError:
        raise ValueError("must be an IP address") from None


class Secretive(ValueError):
    """A wrong value that must not be repeated in the message."""


# ---------------------------------------------------------------- the settings

_NAME, _HELP, _PARSE, _SHOWN = "name", "help", "parse", "shown"


def option(default: Any, parse: Parser, words: str, shown: str | None = None) -> Any:
    """A setting: its default as a user would write it, what it may be, and the words for it in --help."""
    value = None if default is None else parse(default)
    return field(default=value, metadata={_PARSE: parse, _HELP: words, _SHOWN: shown if shown is not None else default})


@dataclass(frozen=True)
class Settings:
    """What `fasthook run` and `Hook` can be told. Times are in seconds, sizes in bytes."""

    host: str = option(
        "127.0.0.1",
        text(r"[^\s/]+", "an address or a host name"),
        "address to listen on, or a name, and then each address it has",
    )
    port: int = option(8000, whole(0, 65535), "port to listen on; 0 takes a free one")
    uds: Path | None = option(None, file_path, "listen on this Unix socket instead; any local user may connect")
    fd: int | None = option(None, whole(0, 1 << 20), "listen on this inherited file descriptor instead")
    http: str = option(
        "compiled",
        choice("compiled", "asgi"),
        "the compiled edge, or ASGI through uvicorn's own, which keeps no header-timeout and reads heads without limit",
    )
    path: str = option("/webhook", hook_path, "path that Telegram posts to")
    token: str | None = option(None, token, "the bot's token; also BOT_TOKEN")
    secret: tuple[str, ...] | None = option(
        None,
        secret,
        "what X-Telegram-Bot-Api-Secret-Token must say; two with a comma between are both valid",
        "made from the token",
    )
    queue: str = option("memory:", queue_url, "where accepted updates wait", "journal:STATE-DIR/journal")
    journal_max: int = option(
        "1GiB", size(1 << 20, 1 << 44), "size that a journal may grow to before new updates get 503"
    )
    ack: str = option(
        "queued", choice("queued", "handled"), "acknowledge when an update is safe, or when it is handled"
    )
    ack_deadline: float = option(25, seconds(0.05, 55), "with --ack handled: acknowledge after this time, and go on")
    stale: str = option(
        "drop", choice("drop", "handle"), "what to do with queries that outlived their use in a downtime"
    )
    max_age: float | None = option("off", age, "drop other updates that are older than this after a downtime")
    keep_handled: float | None = option("off", month, "keep handled updates this long in the journal, to replay them")
    dead_max_age: float | None = option("30d", retention, "drop dead letters that are older; off for never")
    dead_max_count: int = option(10_000, whole(0, 10_000_000), "most dead letters that are kept; 0 for no limit")
    concurrency: int = option(256, whole(1, 100_000), "updates handled at the same time, in each worker")
    queue_size: int = option(
        10_000,
        whole(1, 10_000_000),
        "updates in memory, waiting or running; more get 503 with memory:, and wait on disk with journal:",
    )
    handler_timeout: float = option(
        60, seconds(0.001, 86_400), "a handler that runs longer is cancelled, and has failed"
    )
    retries: int = option(3, whole(0, 100), "how often a failed update is tried again before it is a dead letter")
    order: str = option("chat", choice("chat", "none"), "chat: one update of a chat at a time; none: all at once")
    dedup_size: int = option(65_536, whole(1, 100_000_000), "ids remembered to know duplicates by")
    max_body: int = option("1MiB", size(1024, 1 << 30), "largest body")
    max_target: int = option("8KiB", size(256, 64 << 10), "longest request target")
    max_head: int = option("16KiB", size(1024, 1 << 20), "largest head of a request")
    max_headers: int = option(64, whole(1, 1000), "most headers of a request")
    max_connections: int = option(10_000, whole(1, 1_000_000), "connections at once; more get 503")
    header_timeout: float = option(10, seconds(0.1, 3600), "time for a whole head, from its first byte or the accept")
    body_timeout: float = option(30, seconds(0.1, 3600), "time for a whole body")
    keep_alive: float = option(75, seconds(0.1, 86_400), "how long an idle connection is kept; Telegram closes at 60 s")
    drain_timeout: float = option(30, seconds(0, 3600), "how long running handlers may go on at a stop")
    drain_delay: float = option(
        0, seconds(0, 3600), "how long to serve on after a signal to stop, with /readyz red already"
    )
    allow_ip: Networks | None = option(
        None, networks, "refuse other addresses: CIDRs with commas between, telegram for Telegram's"
    )
    trusted_proxy: Networks | None = option(
        None, networks, "believe X-Forwarded-For from these addresses; unix for the peer of --uds"
    )
    auth_rate: Rate | None = option("60/m", rate, "wrong secrets from one address before 429; off for no limit")
    chat_rate: Rate | None = option("off", rate, "updates from one chat before more are dropped; off for no limit")
    state_dir: Path = option(".fasthook", file_path, "where what must outlive the process is kept")
    ops: str | None = option(
        None,
        ops_address,
        "where /healthz, /readyz and /metrics are served: HOST:PORT, unix:PATH, or off",
        "127.0.0.1:9090, if it is free",
    )
    api_url: str = option(
        "https://api.telegram.org", text(r"https?://[^\s?#]+", "an http:// or https:// address"), "the Bot API server"
    )
    workers: int = option(1, workers, "processes that run the bot; 1: the bot runs in the server itself")
    worker_timeout: float = option(
        60, seconds(0.1, 86_400), "a worker process that answers nothing for so long is killed and replaced"
    )
    max_requests: int | None = option(
        "off", requests, "replace a worker process after about so many updates, by a tenth fewer at most"
    )
    reload: bool = option(False, switch, "start the bot anew in new processes when its source changes")
    reply_rate: Rate | None = option("30/s", rate, "messages a handler returns that are sent at most; off for no limit")
    reply_chat_rate: Rate | None = option("1/s", rate, "the same for one private chat")
    reply_group_rate: Rate | None = option("20/m", rate, "the same for one group or channel")
    public_url: str | None = option(
        None, public_url, "register the webhook at this address, with --path behind it, when the server is ready"
    )
    allowed_updates: tuple[str, ...] | None = option(
        None, update_kinds, "kinds of updates to ask Telegram for, all or default", "those the bot handles, if known"
    )
    webhook_connections: int = option(40, whole(1, 100_000), "connections that Telegram may open to the webhook")
    ip_address: str | None = option(None, ip_address, "address that Telegram calls instead of asking the DNS")
    certificate: Path | None = option(None, file_path, "self-signed certificate (PEM) that Telegram shall accept")
    drop_pending: bool = option(False, switch, "drop what Telegram has waiting, when the webhook is set or removed")
    ssl_certfile: Path | None = option(None, file_path, "serve TLS with this certificate chain (PEM)")
    ssl_keyfile: Path | None = option(None, file_path, "its private key, if not in the same file")
    log_level: str = option("info", choice("debug", "info", "warning", "error"), "least level that is logged")
    log_format: str = option("text", choice("text", "json"), "lines for people, or a JSON object a line")
    access_log: bool = option(False, switch, "log a line for each request")

    def __post_init__(self) -> None:
        if self.ssl_keyfile and not self.ssl_certfile:
            raise SettingsError("--ssl-keyfile: needs --ssl-certfile beside it")
        if self.uds and self.fd is not None:
            raise SettingsError("--uds and --fd: give one of them")
        if self.keep_handled is not None and self.queue == "memory:":
            raise SettingsError("--keep-handled: memory: keeps nothing that was handled; set --queue journal:DIRECTORY")
        if self.journal_max != Settings.journal_max and self.queue == "memory:":
            raise SettingsError("--journal-max: memory: has no journal; set --queue journal:DIRECTORY, or leave it out")
        if self.max_age is not None and self.stale == "handle":
            raise SettingsError(
                "--max-age and --stale handle: give one of them, what is stale is either dropped or handled"
            )
        if self.in_processes and sys.platform == "win32":
            raise SettingsError("--workers, --max-requests and --reload: worker processes need Linux or macOS")
        if sys.platform == "win32" and (self.uds or (self.ops or "").startswith("unix:")):
            raise SettingsError(f"{'--uds' if self.uds else '--ops'}: this system has no Unix sockets")
        if self.uds and self.allow_ip and not (self.trusted_proxy and self.trusted_proxy.unix):
            raise SettingsError("--allow-ip: a Unix socket's peer has no address; set --trusted-proxy unix beside it")

        if not self.local_api:
            self._check_public()

    def _check_public(self) -> None:
        """What Telegram's own servers call: https, on four ports (Bot API, "setWebhook")."""
        if self.webhook_connections > 100:
            raise SettingsError("--webhook-connections: Telegram opens at most 100")
        if self.public_url is None:
            return
        if not self.public_url.startswith("https://"):
            raise SettingsError(
                "--public-url: must begin with https://, Telegram calls nothing else; "
                "put a proxy with TLS in front, or serve TLS with --ssl-certfile"
            )
        port = re.match(r"https://[^/]*?:(\d+)(?:/|$)", self.public_url)
        if port and int(port[1]) not in (443, 80, 88, 8443):
            raise SettingsError(f"--public-url: Telegram calls the ports 443, 80, 88 and 8443, not {port[1]}")

    @property
    def local_api(self) -> bool:
        """The Bot API server is one's own: it may call any address and port."""
        return self.api_url.rstrip("/") != "https://api.telegram.org"

    @property
    def webhook_url(self) -> str | None:
        """Where Telegram posts to: `public_url` with `path` behind it, unless it ends with it already."""
        if self.public_url is None or self.public_url.endswith(self.path):
            return self.public_url
        return self.public_url + self.path

    @property
    def in_processes(self) -> bool:
        """The bot runs in processes of its own."""
        return self.workers > 1 or self.reload or self.max_requests is not None

    @property
    def bot_id(self) -> int:
        """The number before the colon of the token, 0 without one."""
        return int(self.token.partition(":")[0]) if self.token else 0

    @cached_property
    def valid_secrets(self) -> tuple[bytes, ...]:
        """What a caller may show; made from the token, or thrown away at the end, where none is set."""
        if self.secret:
            return tuple(part.encode() for part in self.secret)
        if self.token:
            return (secret_of(self.token).encode(),)
        return (secrets.token_urlsafe(24).encode(),)

    def __repr__(self) -> str:
        hidden = {"token", "secret"}
        shown = (f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if f.name not in hidden)
        return f"Settings({', '.join(shown)})"


def secret_of(token: str) -> str:
    """The secret that this token gets on every machine: hex of HMAC-SHA256(token, "fasthook secret")."""
    return hmac.new(token.encode(), b"fasthook secret", hashlib.sha256).hexdigest()


# ---------------------------------------------------------------- where they come from


def options() -> tuple[Field[Any], ...]:
    """The declared options, in the order of --help."""
    return fields(Settings)


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def variable(name: str) -> str:
    return "FASTHOOK_" + name.upper()


def load(
    given: Mapping[str, Any],
    environ: Mapping[str, str],
    config: Path | None = None,
    *,
    command: bool = False,
    keywords: bool = False,
) -> Settings:
    """Settings from what was given (command line or keywords), the environment and the file, in that order.

    `config`: None for no file. `command`: for the command line, whose queue is a journal in the state directory if
    none is named; an embedded `Hook`, of which there may be several processes, has `memory:`. `keywords`: what was
    given came from Python, and is named so. SettingsError: one line.
    """
    try:
        return _load(given, environ, config, command)
    except SettingsError as error:
        if not keywords:
            raise
        raise SettingsError(re.sub(r"--([a-z][a-z-]*)", lambda m: m[1].replace("-", "_"), str(error))) from None


def _load(given: Mapping[str, Any], environ: Mapping[str, str], config: Path | None, command: bool) -> Settings:
    known = {f.name: f for f in options()}
    values: dict[str, Any] = {}
    from_file = _from_file(config, known) if config else []
    for name, value, where in [*from_file, *_from_environment(environ, known), *_given(given, known)]:
        values[name] = parsed(known[name], value, where)
    if command:
        values.setdefault("queue", f"journal:{values.get('state_dir', Settings.state_dir) / 'journal'}")
    return Settings(**values)


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """`FASTHOOK_…` variables that mean nothing, each with the nearest that does."""
    known = [variable(f.name) for f in options()] + ["FASTHOOK_CONFIG"]
    wrong = sorted(name for name in environ if name.startswith("FASTHOOK_") and name not in known)
    return [f"{name} is not known{nearest(name, known)}" for name in wrong]


_Found = list[tuple[str, Any, str]]


def parsed(known: Field[Any], value: Any, where: str) -> Any:
    try:
        return known.metadata[_PARSE](value)
    except Secretive as error:
        raise SettingsError(f"{where}: {error}") from None
    except ValueError as error:
        raise SettingsError(f"{where}: {error}, not {value!r}") from None


def _given(given: Mapping[str, Any], known: Mapping[str, Field[Any]]) -> _Found:
    for name in given:
        if name not in known:
            raise SettingsError(f"{name}: no such setting{nearest(name, list(known))}")
    return [(name, value, flag(name)) for name, value in given.items() if value is not None]


def _from_environment(environ: Mapping[str, str], known: Mapping[str, Field[Any]]) -> _Found:
    found = [(name, environ[variable(name)], variable(name)) for name in known if environ.get(variable(name))]
    if environ.get("BOT_TOKEN") and not environ.get("FASTHOOK_TOKEN"):
        found.append(("token", environ["BOT_TOKEN"], "BOT_TOKEN"))
    return found


def config_file(given: str | None, environ: Mapping[str, str]) -> Path | None:
    """The file to read: the one that is named, else `fasthook.toml` in the current directory if there is one."""
    name = given or environ.get("FASTHOOK_CONFIG")
    if name:
        return Path(name)
    return Path(CONFIG_FILE) if Path(CONFIG_FILE).exists() else None


def setting(name: str) -> Field[Any]:
    """The declared option of a name. StopIteration: there is none."""
    return next(one for one in options() if one.name == name)


def read_file(path: Path) -> dict[str, Any]:
    """What is in a file of settings. SettingsError: one line."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"{path}: no such file") from None
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: not TOML: {error}") from None


def _from_file(path: Path, known: Mapping[str, Field[Any]]) -> _Found:
    found: _Found = []
    table = read_file(path)
    for key, value in table.items():
        if key == "bot":
            continue  # tables, which `bottables.py` reads
        name = key.replace("-", "_")
        if name not in known:
            raise SettingsError(f"{path}: {key}: no such setting{nearest(key, [f.replace('_', '-') for f in known])}")
        if any(name == other for other, _, _ in found):
            twice = next(other for other in table if other.replace("-", "_") == name)
            raise SettingsError(f"{path}: {key}: it is there twice, also as {twice}")
        found.append((name, value, f"{path}: {key}"))
    return found


def nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {close[0]}?" if close else ""
