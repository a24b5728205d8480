"""`fasthook webhook set`, `info`, `delete` and `certificate`."""

from __future__ import annotations

import asyncio
import json
import socket
import textwrap
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fasthook.cli import Commands
from fasthook.cli.options import bot_option, each_bot, fail, settings_options, tell

if TYPE_CHECKING:
    from fasthook.bottables import BotTable
    from fasthook.settings import Settings
    from fasthook.telegram.api import BotAPI
    from fasthook.telegram.webhook import Problem, Wanted

_T = TypeVar("_T")

_PATIENCE = 20.0  # seconds for one call
_WIDTH = 110  # columns of an explanation
_PAUSE = 5.0  # seconds between two looks of --watch
_KINDS_BY_DEFAULT = "all but chat_member, message_reaction and message_reaction_count"


@click.group("webhook", cls=Commands)
def command() -> None:
    """Register, look at and remove the bot's webhook."""


@command.command("set")
@click.argument("target", required=False)
@settings_options
@bot_option
def set_webhook(target: str | None, config: str | None, bot_id: int | None, **given: Any) -> None:
    """Give Telegram the address in --public-url, with the secret and the options for it.

    With TARGET, Telegram is asked for the kinds of updates that this bot handles.
    """
    bots = _bots(target, config, given, bot_id)
    if bots[0].settings.public_url is None:
        fail("no address: set --public-url", code=2)
    _warn(bots)
    for file in {bot.settings.certificate for bot in bots}:
        _check_certificate(file)
    _for_each(bots, _set)


def _check_certificate(file: Path | None) -> None:
    from fasthook.telegram.pem import check_certificate

    if file is None:
        return
    try:
        check_certificate(file)
    except ValueError as error:
        fail(f"--certificate: {error}", code=2)


def _set(bot: _Bot) -> None:
    from fasthook.telegram.webhook import Wanted

    settings = bot.settings
    wanted = Wanted.of(settings, bot.kinds)

    async def work(api: BotAPI) -> str:
        old = await api.webhook_info()
        await wanted.register(api)
        return str(old.get("url", ""))

    old = _call(settings, work)
    click.echo(f"the webhook of bot {settings.bot_id} is {wanted.url}")
    if old and old != wanted.url:
        click.echo(f"it was {old} before")


@command.command("delete")
@settings_options
@bot_option
def delete_webhook(config: str | None, bot_id: int | None, **given: Any) -> None:
    """Remove the webhook. Updates wait with Telegram for a day, or are dropped with --drop-pending."""
    _for_each(_bots(None, config, given, bot_id, load_targets=False), _delete)


def _delete(bot: _Bot) -> None:
    settings = bot.settings

    async def work(api: BotAPI) -> str:
        old = await api.webhook_info()
        await api.call("deleteWebhook", drop_pending_updates=settings.drop_pending or None)
        return str(old.get("url", ""))

    old = _call(settings, work)
    name = f"bot {settings.bot_id}"
    click.echo(f"the webhook of {name} is removed: {old}" if old else f"{name} had no webhook")


@command.command("info")
@click.argument("target", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--watch", is_flag=True, help="Look again every 5 seconds, until Ctrl-C.")
@settings_options
@bot_option
def info(target: str | None, as_json: bool, watch: bool, config: str | None, bot_id: int | None, **given: Any) -> None:
    """Show what Telegram says about the webhook, beside what this configuration wants, and explain what is wrong.

    Exit code 0: all is well; 1: something is wrong.
    """
    bots = _bots(target, config, given, bot_id)
    _warn(bots)
    healthy = True
    try:
        while True:
            healthy, words = _looks(bots, as_json, watch)
            click.echo(words if as_json or not watch else f"{time.strftime('%H:%M:%S')}  {words}\n")
            if not watch:
                break
            time.sleep(_PAUSE)
    except KeyboardInterrupt:
        pass
    raise SystemExit(0 if healthy else 1)


@command.command("certificate")
@click.argument("host")
@click.option("--days", type=click.IntRange(1, 3650), default=825, show_default=True, help="How long it is valid.")
@click.option("--directory", type=click.Path(path_type=Path), default=Path(), help="Where to write.  [default: here]")
def certificate(host: str, days: int, directory: Path) -> None:
    """Make a self-signed certificate for HOST, a name or an IP address, and its key."""
    try:
        from fasthook.telegram.certificate import make
    except ModuleNotFoundError:
        fail("this needs the package cryptography: pip install 'fasthook[cryptography]'", code=1)
    try:
        cert, key = make(host, days, directory)
    except ValueError as error:
        fail(f"HOST: {error}", code=2)
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}", code=1)
    click.echo(f"{cert}  the certificate, valid for {days} days\n{key}  its key, for nobody else to read\n")
    click.echo(
        f"fasthook run TARGET --host 0.0.0.0 --port 8443 --ssl-certfile {cert} --ssl-keyfile {key} \\\n"
        f"  --certificate {cert} --public-url https://{f'[{host}]' if ':' in host else host}:8443"
    )


# ---------------------------------------------------------------- parts


class Unanswered(Exception):
    """Telegram refuses, or gives no answer. The message is one line."""


@dataclass(frozen=True)
class _Bot:
    """A bot that a command is about. `kinds`: of updates that it handles, if known. `one_of_several`: it has a table.
    `unknown`: its target does not import, so that nobody knows the kinds.
    """

    settings: Settings
    kinds: tuple[str, ...] | None = None
    one_of_several: bool = False
    unknown: bool = False


def _bots(
    target: str | None, config: str | None, given: dict[str, Any], bot_id: int | None, *, load_targets: bool = True
) -> list[_Bot]:
    """Each bot that is meant. `target`: of a bot that has none of its own. `load_targets`: ask the bots' own for the
    kinds.
    """
    bots = each_bot(config, given, bot_id)
    return [_bot((one.target if load_targets else "") or target, one) for one in bots]


def _bot(target: str | None, table: BotTable) -> _Bot:
    """The settings, with the token of TARGET's bot. A table's target that does not import is told of."""
    settings, kinds, several, unknown = table.settings, None, bool(table.where), False
    if target:
        from fasthook.handlers import TargetError, complete, kinds_of, load

        try:
            value = load(target).value
            settings, kinds = complete(value, settings), kinds_of(value)
        except TargetError as error:
            if not several:
                fail(f"{target}: {error}", code=2)
            tell(f"bot {table.bot_id}: {target}: {error}; so the kinds of updates that it handles are not known")
            unknown = True
    if not settings.token:
        fail("no token: set --token, FASTHOOK_TOKEN or BOT_TOKEN", code=2)
    return _Bot(settings, kinds, several, unknown)


def _warn(bots: list[_Bot]) -> None:
    from fasthook.telegram.webhook import unknown_kinds

    for words in dict.fromkeys(unknown_kinds(bot.settings) for bot in bots):
        if words:
            tell(words)


def _for_each(bots: list[_Bot], work: Callable[[_Bot], None]) -> None:
    """Do it for all bots; one that Telegram refuses, or that is unknown, ends the program with 1 behind the last."""
    failed = any(bot.unknown for bot in bots)
    for bot in bots:
        try:
            work(bot)
        except Unanswered as error:
            failed = True
            tell(f"bot {bot.settings.bot_id}: {error}" if bot.one_of_several else str(error))
    if failed:
        raise SystemExit(1)


def _call(settings: Settings, work: Callable[[BotAPI], Awaitable[_T]]) -> _T:
    """Call Telegram. Unanswered: in one line, what it refuses."""
    from fasthook.telegram.api import BotAPI, BotAPIError, BotAPIUnreachable
    from fasthook.telegram.webhook import sentence

    async def main() -> _T:
        assert settings.token
        api = BotAPI(settings.token, settings.api_url, timeout=_PATIENCE, tries=3, waits=tell)
        try:
            return await work(api)
        finally:
            await api.close()

    try:
        return asyncio.run(main())
    except BotAPIError as error:
        raise Unanswered(sentence(error)) from None
    except BotAPIUnreachable as error:
        raise Unanswered(str(error)) from None
    except OSError as error:
        raise Unanswered(f"--certificate: {error.filename}: {error.strerror}") from None


def _looks(bots: list[_Bot], as_json: bool, watch: bool) -> tuple[bool, str]:
    """A look at each webhook: whether all is well, and the words for it.

    Who gets no answer ends it only where there is one bot, and one look.
    """
    looks = []
    for bot in bots:
        try:
            looks.append(_look(bot, as_json))
        except Unanswered as error:
            if not watch and not bot.one_of_several:
                fail(str(error), code=1)
            looks.append((False, _unanswered(bot, error, as_json)))
    healthy = all(well for well, _ in looks) and not any(bot.unknown for bot in bots)
    return healthy, ("\n" if as_json else "\n\n").join(words for _, words in looks)


def _unanswered(bot: _Bot, error: Unanswered, as_json: bool) -> str:
    bot_id = bot.settings.bot_id
    if as_json:
        return json.dumps({"bot": bot_id, "healthy": False, "error": str(error)})
    return f"bot {bot_id}: {error}" if bot.one_of_several else str(error)


def _look(bot: _Bot, as_json: bool) -> tuple[bool, str]:
    """One look at the webhook: whether all is well, and the words for it. Unanswered: Telegram doesn't say."""
    from fasthook.telegram.webhook import Wanted, host_of, problems

    async def work(api: BotAPI) -> dict[str, Any]:
        return await api.webhook_info()

    settings = bot.settings
    told = _call(settings, work)
    wanted = Wanted.of(settings, bot.kinds) if settings.webhook_url else None
    resolve = None if settings.local_api else _resolve(host_of(told.get("url", "")))
    found = problems(told, wanted, time.time(), resolve)
    if as_json:
        words = json.dumps(
            {"bot": settings.bot_id, "healthy": not found, "webhook": told, "problems": [asdict(one) for one in found]}
        )
    else:
        words = _table(settings, told, wanted, found)
    return not found, words


def _resolve(host: str) -> dict[str, list[str]] | None:
    """A host's addresses, as this machine sees them; None if it sees none."""
    families = {"4": socket.AF_INET, "6": socket.AF_INET6}
    found: dict[str, list[str]] = {}
    for name, family in families.items():
        try:
            answers = socket.getaddrinfo(host, None, family, socket.SOCK_STREAM) if host else []
        except (OSError, UnicodeError):
            continue
        found[name] = sorted({str(answer[4][0]) for answer in answers})
    return found or None


def _table(settings: Settings, told: dict[str, Any], wanted: Wanted | None, found: list[Problem]) -> str:
    rows = [("", "Telegram", "this configuration"), *_rows(told, wanted)]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [f"the webhook of bot {settings.bot_id}, at {settings.api_url}"]
    lines += [f"  {name:<{widths[0]}}  {here:<{widths[1]}}  {there}".rstrip() for name, here, there in rows]
    if date := told.get("last_error_date"):
        when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(date))
        lines.append(f"  last error, {when}: {told.get('last_error_message', '')}")
    for problem in found:
        lines += ["", f"  {problem.what}", _wrapped("why", problem.cause), _wrapped("fix", problem.fix)]
    many = f"{len(found)} things are" if len(found) > 1 else "1 thing is"
    return "\n".join([*lines, f"\n{many} wrong" if found else "\nall is well"])


def _wrapped(name: str, words: str) -> str:
    return textwrap.fill(
        words, _WIDTH, initial_indent=f"    {name}  ", subsequent_indent=" " * 9, break_on_hyphens=False
    )


def _rows(told: dict[str, Any], wanted: Wanted | None) -> list[tuple[str, str, str]]:
    def kinds(names: Any) -> str:
        return ", ".join(names) or _KINDS_BY_DEFAULT

    own = wanted.allowed_updates if wanted else None
    return [
        ("url", told.get("url") or "none", wanted.url if wanted else "no --public-url"),
        ("allowed updates", kinds(told.get("allowed_updates") or ()), "as they are" if own is None else kinds(own)),
        ("connections", str(told.get("max_connections", "")), str(wanted.max_connections) if wanted else ""),
        ("ip address", told.get("ip_address", ""), (wanted and wanted.ip_address) or ""),
        (
            "certificate",
            ("self-signed" if told.get("has_custom_certificate") else "from an authority") if told.get("url") else "",
            ("self-signed" if wanted.certificate else "from an authority") if wanted else "",
        ),
        ("waiting", str(told.get("pending_update_count", 0)), ""),
    ]
