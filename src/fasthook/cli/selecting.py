"""The options by which updates and dead letters are chosen, and the settings that say where they are."""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable
from typing import Any, TypeVar

import click

from fasthook._scan import KINDS
from fasthook.queues.deadletter import REASONS
from fasthook.queues.selection import Selection
from fasthook.settings import seconds

_F = TypeVar("_F", bound=Callable[..., Any])

_LARGEST = (1 << 63) - 1
_FEW = 100  # rows that a person reads


def numbers_argument(function: _F) -> _F:
    return click.argument("numbers", nargs=-1, type=click.IntRange(1, _LARGEST), metavar="[NUMBER]...")(function)


def limit_option(function: _F) -> _F:
    words = f"At most so many, 0 for all.  [default: {_FEW}, with --json all]"
    return click.option("--limit", type=click.IntRange(0), metavar="N", help=words)(function)


def most(limit: int | None, for_programs: bool) -> int:
    """How many rows are listed, 0 for all."""
    return limit if limit is not None else 0 if for_programs else _FEW


def filter_options(*, reasons: bool) -> Callable[[_F], _F]:
    """`--bot`, `--kind`, `--chat`, `--older-than`, `--newer-than`, and `--reason` where there are reasons."""
    when = "died" if reasons else "came"
    declared = [
        click.option("--bot", "bots", multiple=True, type=int, metavar="ID", help="Those of this bot."),
        click.option("--kind", "kinds", multiple=True, callback=_kinds, metavar="KIND", help="Those of this kind."),
        click.option("--chat", "chats", multiple=True, type=int, metavar="ID", help="Those of this chat."),
        click.option("--older-than", callback=_ago, metavar="TIME", help=f"Those that {when} longer ago: 90s, 2h."),
        click.option("--newer-than", callback=_ago, metavar="TIME", help=f"Those that {when} less long ago: 10m, 1d."),
    ]
    if reasons:
        words = f"Those that died of this: {', '.join(REASONS)}."
        declared.append(
            click.option("--reason", "reasons", multiple=True, callback=_reasons, metavar="WORDS", help=words)
        )

    def give(function: _F) -> _F:
        for option in reversed(declared):
            function = option(function)
        return function

    return give


def selection(given: dict[str, Any]) -> Selection:
    """Takes the filters and numbers out of a command's parameters. UsageError: both were given."""
    made = Selection(
        numbers=tuple(given.pop("numbers", ())),
        bots=given.pop("bots"),
        kinds=given.pop("kinds"),
        chats=given.pop("chats"),
        reasons=given.pop("reasons", ()),
        before=given.pop("older_than"),
        after=given.pop("newer_than"),
    )
    if made.numbers and made != Selection(numbers=made.numbers):
        raise click.UsageError("give numbers or filters, not both", click.get_current_context())
    return made


def limited(made: Selection, everything: bool, verb: str) -> Selection:
    """A selection that a command may act on: not all there is, unless that was said."""
    if made.names_all() and not everything:
        raise click.UsageError(f"say what to {verb}: NUMBERs, filters or --all", click.get_current_context())
    if everything and not made.names_all():
        raise click.UsageError("give --all, or numbers or filters", click.get_current_context())
    return made


def _kinds(context: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> tuple[str, ...]:
    for kind in given:
        if kind not in KINDS:
            near = difflib.get_close_matches(kind, KINDS, 1)
            raise click.BadParameter(f"{kind!r} is no kind of update" + (f"; did you mean {near[0]}?" if near else ""))
    return given


def _reasons(context: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> tuple[str, ...]:
    for reason in given:
        if reason not in REASONS:
            near = difflib.get_close_matches(reason, REASONS, 1)
            wrong = f"no reason; did you mean {near[0]}?" if near else f"none of {', '.join(REASONS)}"
            raise click.BadParameter(f"{reason!r} is {wrong}")
    return given


def _ago(context: click.Context, parameter: click.Parameter, given: str | None) -> float | None:
    if given is None:
        return None
    try:
        return time.time() - float(seconds(0, 10 * 365 * 86_400)(given))
    except ValueError as error:
        raise click.BadParameter(f"{error}, not {given!r}") from None
