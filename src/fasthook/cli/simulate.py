"""`fasthook simulate`."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
import signal
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fasthook.cli.options import fail

if TYPE_CHECKING:
    from fasthook.testing.calls import Fault
    from fasthook.testing.recording import Recorded
    from fasthook.testing.simulator import Simulator

_T = TypeVar("_T")


@dataclass(frozen=True)
class _Plan:
    """The options, read and checked."""

    tokens: tuple[str, ...]
    host: str
    port: int
    webhook: str | None
    secret: str | None
    rate: float
    chats: int
    mix: dict[str, float]
    seed: int | None
    speed: float
    record: Path | None
    replay: list[Recorded] | None
    duration: float | None
    faults: list[Fault]
    limits: bool
    ca_file: Path | None
    insecure: bool
    cloud: bool
    connect_to: dict[tuple[str, int], tuple[str, int]]
    quiet: bool


@click.command("simulate")
@click.option("--host", default="127.0.0.1", show_default=True, help="Loopback address to listen on.")
@click.option(
    "--port", default="8081", show_default=True, metavar="VALUE", help="Port to listen on; 0 takes a free one."
)
@click.option(
    "--token",
    "tokens",
    multiple=True,
    metavar="VALUE",
    help="A bot's token; again for each further bot.  [default: a fake one]",
)
@click.option("--webhook", metavar="URL", help="Deliver to this webhook, as if the first bot had set it.")
@click.option(
    "--secret", metavar="VALUE", help="The webhook's secret.  [default: the one `fasthook run` makes from the token]"
)
@click.option(
    "--rate",
    default="1",
    show_default=True,
    metavar="VALUE",
    help="Updates a second, for each bot; 0 for people who say nothing.",
)
@click.option("--chats", default="3", show_default=True, metavar="VALUE", help="How many people talk to each bot.")
@click.option(
    "--mix",
    metavar="KIND=WEIGHT,...",
    help="What they do: text, press, photo, edit, or a kind of update.  [default: text=80,press=10,photo=5,edit=5]",
)
@click.option("--seed", metavar="VALUE", help="The same number makes the same conversation.")
@click.option(
    "--speed", default="1", show_default=True, metavar="VALUE", help="Seconds of Telegram's clock in a real one."
)
@click.option("--record", metavar="FILE", help="Write each update, answer and call to FILE, as JSON lines.")
@click.option(
    "--replay",
    metavar="FILE",
    help="Send the updates of a recording, instead of people's: each to its bot, or to all, if that is not here.",
)
@click.option("--duration", metavar="SECONDS", help="End after so many real seconds.  [default: on Ctrl-C]")
@click.option(
    "--fail",
    "faults",
    multiple=True,
    metavar="METHOD:KIND[:PERCENT]",
    help="Answer calls with 429, 403, 500, html, slow, hang or close; METHOD may be *.",
)
@click.option(
    "--limits",
    is_flag=True,
    help="Answer 429 to more than 30 messages a second, 1 in a chat, 20 a minute in a group.",
)
@click.option("--ca-file", metavar="FILE", help="Trust these authorities too (PEM), when the webhook is https.")
@click.option("--insecure", is_flag=True, help="Don't verify the webhook's certificate.")
@click.option(
    "--cloud",
    is_flag=True,
    help="Refuse the webhooks that Telegram's cloud refuses: http, other ports, private addresses.",
)
@click.option(
    "--connect-to",
    multiple=True,
    metavar="HOST:PORT:HOST:PORT",
    help="Dial the second place for a webhook at the first.",
)
@click.option("--quiet", is_flag=True, help="Print no conversation, only what goes wrong.")
def command(**given: Any) -> None:
    """A Telegram on this machine: a Bot API server, the delivery to your webhook, and people who talk to your bot."""
    plan = _plan(given)
    from fasthook.testing.simulator import SimulatorError

    try:
        code = asyncio.run(_simulate(plan))
    except SimulatorError as error:
        fail(str(error), code=1)
    raise SystemExit(code)


# ---------------------------------------------------------------- what the options say


def _plan(given: dict[str, Any]) -> _Plan:
    from fasthook import settings
    from fasthook.testing.calls import parse_fault
    from fasthook.testing.crowd import MIX, parse_mix
    from fasthook.testing.recording import RecordingError, read
    from fasthook.testing.simulator import TOKEN

    def one(name: str, parse: Callable[[Any], _T], value: Any = None) -> _T:
        value = given[name.replace("-", "_")] if value is None else value
        try:
            return parse(value)
        except settings.Secretive as error:
            fail(f"--{name}: {error}", code=2)
        except ValueError as error:
            fail(f"--{name}: {error}", code=2)

    tokens = tuple(one("token", settings.token, token) for token in given["tokens"]) or (TOKEN,)
    if len({token.partition(":")[0] for token in tokens}) < len(tokens):
        fail("--token: two tokens are of the same bot", code=2)
    if given["replay"] and given["mix"]:
        fail("--replay and --mix: give one of them", code=2)
    if given["secret"] and not given["webhook"]:
        fail("--secret: needs --webhook beside it", code=2)
    try:
        replay = read(Path(given["replay"])) if given["replay"] else None
    except RecordingError as error:
        fail(f"--replay: {error}", code=2)
    return _Plan(
        tokens=tokens,
        host=given["host"],
        port=one("port", settings.whole(0, 65535)),
        webhook=given["webhook"],
        secret=one("secret", settings.text(r"[A-Za-z0-9_-]{1,256}", "1 to 256 of A-Z a-z 0-9 _ -"))
        if given["secret"]
        else None,
        rate=one("rate", _number(0, 1e6)),
        chats=one("chats", settings.whole(1, 1_000_000)),
        mix=one("mix", parse_mix) if given["mix"] else MIX,
        seed=one("seed", settings.whole(0, 1 << 63)) if given["seed"] else None,
        speed=one("speed", _number(0.001, 1e6)),
        record=Path(given["record"]) if given["record"] else None,
        replay=replay,
        duration=one("duration", settings.seconds(0.1, 10 * 86_400)) if given["duration"] else None,
        faults=[one("fail", parse_fault, text) for text in given["faults"]],
        limits=given["limits"],
        ca_file=one("ca-file", _readable) if given["ca_file"] else None,
        insecure=given["insecure"],
        cloud=given["cloud"],
        connect_to=dict(one("connect-to", _detour, text) for text in given["connect_to"]),
        quiet=given["quiet"],
    )


def _number(low: float, high: float) -> Callable[[Any], float]:
    def parse(value: Any) -> float:
        if not re.fullmatch(r"\d+(\.\d+)?", str(value)) or not low <= float(value) <= high:
            raise ValueError(f"must be a number from {low:g} to {high:g}, not {value!r}")
        return float(value)

    return parse


def _readable(value: str) -> Path:
    import ssl

    try:
        ssl.create_default_context(cafile=value)
    except OSError as error:
        raise ValueError(f"{value} cannot be used: {error.strerror or error}") from None
    return Path(value)


def _detour(text: str) -> tuple[tuple[str, int], tuple[str, int]]:
    match = re.fullmatch(r"([^:]+):(\d{1,5}):([^:]+):(\d{1,5})", text)
    if not match:
        raise ValueError(f"must be HOST:PORT:HOST:PORT, for instance bot.example.org:443:127.0.0.1:8000, not {text!r}")
    return (match[1], int(match[2])), (match[3], int(match[4]))


# ---------------------------------------------------------------- running


async def _simulate(plan: _Plan) -> int:
    from fasthook.testing.console import Console
    from fasthook.testing.simulator import Simulator
    from fasthook.testing.webhooks import Rules

    rules = Rules(
        local=not plan.cloud,
        verify=not plan.insecure,
        ca=str(plan.ca_file) if plan.ca_file else None,
        connect_to=plan.connect_to,
    )
    console = Console(click.echo, quiet=plan.quiet, several=len(plan.tokens) > 1)
    async with contextlib.AsyncExitStack() as stack:
        simulator = Simulator(
            plan.tokens, host=plan.host, port=plan.port, speed=plan.speed, rules=rules, seed=plan.seed
        )
        await stack.enter_async_context(simulator)
        if plan.record:
            simulator.watchers.append(stack.enter_context(contextlib.closing(_recording(plan.record, simulator))))
        for account in simulator.accounts:
            account.faults.extend(replace(fault) for fault in plan.faults)
        if plan.limits:
            simulator.limit()
        if plan.webhook:
            await simulator.set_webhook(plan.webhook, plan.secret or _secret(simulator))
        simulator.watchers.append(console)
        _announce(simulator, webhook=bool(plan.webhook))
        await _until_stopped(_people(plan, simulator), plan.duration)
    click.echo(console.summary(), err=True)
    return 0


def _recording(path: Path, simulator: Simulator) -> Any:
    from fasthook.testing.recording import Recording
    from fasthook.testing.simulator import SimulatorError

    try:
        return Recording(path, simulator.clock)
    except OSError as error:
        raise SimulatorError(f"--record: {path} cannot be written: {error.strerror}") from None


def _secret(simulator: Simulator) -> str:
    from fasthook.settings import secret_of

    return secret_of(simulator.bot.token)


def _announce(simulator: Simulator, *, webhook: bool) -> None:
    token, url = simulator.bot.token, simulator.url
    click.echo(f"fasthook simulates Telegram at {url}", err=True)
    for account in simulator.accounts:
        click.echo(f"  token   {account.token}", err=True)
    how = f"fasthook run bot:handler --token {token} --api-url {url}"
    if len(simulator.accounts) > 1:
        how = f"fasthook run --api-url {url}, with a [[bot]] for each token in fasthook.toml"
    click.echo(f"  run     {how}", err=True)
    if not webhook:
        again = f"fasthook simulate --token {token} --webhook http://127.0.0.1:8000/webhook"
        click.echo(f"  people  wait until the bot sets its webhook or polls; or start with {again}", err=True)


async def _people(plan: _Plan, simulator: Simulator) -> None:
    if plan.rate or plan.replay is not None:
        bots = range(len(simulator.accounts))
        await asyncio.gather(*(_talk(plan, simulator, number) for number in bots))


async def _talk(plan: _Plan, simulator: Simulator, number: int) -> None:
    """What one of the bots hears, as soon as it listens."""
    from fasthook.testing.crowd import Crowd
    from fasthook.testing.recording import replay

    account, clock = simulator.accounts[number], simulator.clock
    while not account.listens:
        await account.changed()
    if plan.replay is not None:
        ids = {other.id for other in simulator.accounts} - {account.id}
        mine = [one for one in plan.replay if one.bot not in ids]
        await replay(account, clock, mine, since=plan.replay[0].at)
        return
    seed = None if plan.seed is None else plan.seed + number
    crowd = Crowd(account, clock, chats=plan.chats, rate=plan.rate, mix=plan.mix, seed=seed)
    await crowd.run()


def _check(stopped: asyncio.Event, talking: asyncio.Task[None]) -> None:
    if not talking.cancelled() and talking.exception() is not None:
        stopped.set()


async def _until_stopped(people: Coroutine[Any, Any, None], duration: float | None) -> None:
    """Let people talk, until a signal comes or the time is up."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            loop.add_signal_handler(number, stopped.set)
        except NotImplementedError:  # Windows
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(stopped.set))
    talking = loop.create_task(people)
    talking.add_done_callback(functools.partial(_check, stopped))
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stopped.wait(), duration)
    talking.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await talking
