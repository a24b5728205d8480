"""From the declared settings to options of a command."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import Field
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from fasthook.bottables import BotTable, Configured, configured
from fasthook.settings import Settings, SettingsError, config_file, flag, load, options, unknown_variables, variable
from fasthook.wording import printable

_F = TypeVar("_F", bound=Callable[..., Any])
_T = TypeVar("_T")


def settings_options(function: _F) -> _F:
    """Give a command all settings as options, and `--config`."""
    function = click.option(
        "--config",
        metavar="FILE",
        help="Read settings from FILE.  [default: fasthook.toml, if there is one; env: FASTHOOK_CONFIG]",
    )(function)
    function = click.option("--no-ops", is_flag=True, help="The same as --ops off.")(function)
    for declared in reversed(options()):
        function = _option(declared)(function)
    return function


def _option(declared: Field[Any]) -> Callable[[_F], _F]:
    shown = declared.metadata["shown"]
    words = declared.metadata["help"]
    default = f"default: {str(shown).lower() if isinstance(shown, bool) else shown}; " if shown is not None else ""
    notes = f"[{default}env: {variable(declared.name)}; file: {declared.name.replace('_', '-')}]"
    kind: dict[str, Any] = {"metavar": "VALUE"}
    if isinstance(declared.default, bool):
        kind = {"is_flag": True, "flag_value": "true", "default": None}
    return click.option(flag(declared.name), declared.name, help=f"{words[0].upper()}{words[1:]}.  {notes}", **kind)


def settings_from(config: str | None, given: dict[str, Any]) -> Settings:
    """The settings of a command line; a wrong one ends the program with exit code 2 and one line."""
    return _read(config, given, lambda file: load(given, os.environ, file, command=True))


def configured_from(config: str | None, given: dict[str, Any], target: str | None) -> Configured:
    """The same, with the `[[bot]]` tables of the file. `target`: of tables without one, empty if they may lack it."""
    return _read(config, given, lambda file: configured(given, os.environ, file, target))


def _read(config: str | None, given: dict[str, Any], read: Callable[[Path | None], _T]) -> _T:
    if given.pop("no_ops", False):
        given["ops"] = "off"
    for line in unknown_variables(os.environ):
        click.echo(f"fasthook: {line}; it is ignored", err=True)
    try:
        return read(config_file(config, os.environ))
    except SettingsError as error:
        fail(str(error), code=2)


def bot_option(function: _F) -> _F:
    """`--bot`, for commands that are about each bot of the file."""
    words = "Only this one of the bots in fasthook.toml.  [default: all]"
    return click.option("--bot", "bot_id", type=int, metavar="ID", help=words)(function)


def each_bot(config: str | None, given: dict[str, Any], bot_id: int | None) -> list[BotTable]:
    """The `[[bot]]` tables that are meant; without any, one for the bot there is, with no `where` and no target."""
    found = configured_from(config, given, "")
    if not found.tables:
        if bot_id is not None and bot_id != found.settings.bot_id:
            fail(f"--bot: {bot_id} is not the bot of the token", code=2)
        return [BotTable("", "", found.settings)]
    bots = [one for one in found.tables if bot_id in (None, one.bot_id)]
    if not bots:
        fail(f"--bot: fasthook.toml has no [[bot]] of {bot_id}", code=2)
    return bots


def tell(message: str) -> None:
    """One line on standard error."""
    click.echo(f"fasthook: {printable(message)}", err=True)


def fail(message: str, *, code: int) -> NoReturn:
    """End the program with one line on standard error."""
    tell(message)
    raise SystemExit(code)
