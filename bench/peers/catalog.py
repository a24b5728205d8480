"""The rows of the table: each server, how it is started, and what it can be held to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.peers import job
from bench.peers.install import (
    BENCH_BIN,
    NODE,
    OWN_BIN,
    ROOT,
    Built,
    Fasthook,
    Need,
    NodeModule,
    Packages,
    Program,
    build,
)

LIMIT = "limit.c"
NOOP = "fasthook memory: (no-op)"
DATA = "fasthook memory: (update.data)"
JOURNAL = "fasthook journal: (no-op)"
HANDLED = "fasthook --ack handled (no-op)"
MINIMAL = "minimal raw ASGI app"
HOOK = "Hook under uvicorn"
RAW_ASGI = "raw ASGI + orjson on uvicorn"
FASTAPI = "FastAPI"
AIOGRAM = "aiogram SimpleRequestHandler"
PTB = "python-telegram-bot"

Command = Callable[[int, Path], list[str]]  # of a port and an empty directory


@dataclass(frozen=True)
class Peer:
    """One server."""

    name: str
    needs: Need
    command: Command
    path: str = job.PATH
    refuses: int | None = 401  # what a wrong secret gets; None: it looks at nothing
    handles: bool = True  # it has a handler, which gets each update once


def _python(module: str) -> Command:
    return lambda port, state: [str(BENCH_BIN / "python"), "-m", f"bench.peers.servers.{module}", str(port)]


def _uvicorn(module: str, bin_: Path = BENCH_BIN) -> Command:
    app = [str(bin_ / "python"), "-m", "uvicorn", f"bench.peers.servers.{module}:app"]
    quiet = ["--no-access-log", "--log-level", "warning"]
    fast = ["--loop", "uvloop", "--http", "httptools"]
    return lambda port, state: [*app, *fast, *quiet, "--port", str(port)]


def _granian(port: int, state: Path) -> list[str]:
    options = ["--interface", "rsgi", "--workers", "1", "--loop", "uvloop", "--no-access-log", "--log-level", "error"]
    return [str(BENCH_BIN / "granian"), *options, "--port", str(port), "bench.peers.servers.granian_rsgi:app"]


def _nginx(port: int, state: Path) -> list[str]:
    config = state / "nginx.conf"
    config.write_text((ROOT / "bench/peers/servers/nginx.conf").read_text().replace("PORT", str(port)))
    return ["nginx", "-e", "stderr", "-p", str(state), "-c", str(config)]


def _fasthook(bot: str, *options: str, queue: str = "memory:") -> Command:
    def command(port: int, state: Path) -> list[str]:
        settings = {
            "--port": str(port),
            "--queue": queue.format(state=state),
            "--token": job.TOKEN,
            "--secret": job.SECRET,
            "--path": job.PATH,
            "--state-dir": str(state),
        }
        pairs = [part for pair in settings.items() for part in pair]
        return [str(OWN_BIN / "fasthook"), "run", f"bench.peers.bots:{bot}", *pairs, *options]

    return command


_ASGI_PAIR = Packages(("uvicorn", "uvloop", "httptools"), OWN_BIN)

# limit.c is first: the others are divided by it. Pairs that are compared stand together, for the same weather.
PEERS = (
    Peer(LIMIT, Built("limit"), lambda port, state: [str(build("limit")), str(port)], refuses=None, handles=False),
    Peer(NOOP, Fasthook(), _fasthook("noop")),
    Peer(DATA, Fasthook(), _fasthook("data")),
    Peer(JOURNAL, Fasthook(), _fasthook("noop", queue="journal:{state}/journal")),
    Peer(HANDLED, Fasthook(), _fasthook("noop", "--ack", "handled")),
    Peer("fasthook --http asgi (no-op)", Fasthook(), _fasthook("noop", "--http", "asgi")),
    Peer(MINIMAL, _ASGI_PAIR, _uvicorn("asgi_minimal", OWN_BIN), refuses=None, handles=False),
    Peer(HOOK, Fasthook("Hook"), _uvicorn("asgi_hook", OWN_BIN)),
    Peer("nginx return 200", Program("nginx", "-v"), _nginx, refuses=None, handles=False),
    Peer(
        "constant bytes, uvloop + httptools",
        Packages(("uvloop", "httptools")),
        _python("constant"),
        refuses=None,
        handles=False,
    ),
    Peer("Granian RSGI", Packages(("granian", "orjson", "uvloop")), _granian),
    Peer("grammY on Node", NodeModule("grammy"), lambda port, state: ["node", str(NODE / "server.mjs"), str(port)]),
    Peer(RAW_ASGI, Packages(("uvicorn", "uvloop", "httptools", "orjson")), _uvicorn("asgi_orjson")),
    Peer(FASTAPI, Packages(("fastapi", "starlette", "pydantic", "uvicorn")), _uvicorn("fastapi_guide")),
    Peer(AIOGRAM, Packages(("aiogram", "aiohttp")), _python("aiogram_simple")),
    Peer(
        "pyTelegramBotAPI",
        Packages(("pyTelegramBotAPI", "fastapi", "uvicorn")),
        _python("telebot_webhook"),
        path=f"{job.PATH}/",
        refuses=403,
    ),
    Peer(PTB, Packages(("python-telegram-bot", "tornado")), _python("ptb_webhook"), refuses=403),
)


def chosen(only: str | None) -> tuple[Peer, ...]:
    """The peers whose names contain one of the comma-separated words, and limit.c; all, if there are no words.

    Raises:
        LookupError: a word is in no name.
    """
    if not only:
        return PEERS
    words = [word.strip().lower() for word in only.split(",")]
    for word in words:
        if not any(word in peer.name.lower() for peer in PEERS):
            raise LookupError(f"no peer is called {word!r}: see --list")
    return tuple(p for p in PEERS if p.name == LIMIT or any(word in p.name.lower() for word in words))
