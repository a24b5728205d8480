"""`fasthook queue`: what waits, what is in hand, what was handled."""

from __future__ import annotations

import base64
from typing import Any

import click

from fasthook.cli import Commands
from fasthook.cli.asking import Tools, as_json, confirm, place_options, write_json
from fasthook.cli.selecting import filter_options, limited, most, numbers_argument, selection


@click.group("queue", cls=Commands)
def command() -> None:
    """Look at the updates that wait, and act on them.

    While the server runs it answers; while it doesn't, its files are read. Filters are joined by "and"; the same one
    given twice means either.
    """


@command.command("stats")
@place_options
@click.option("--json", "for_programs", is_flag=True, help="Print one JSON object.")
def stats(for_programs: bool, **given: Any) -> None:
    """Count what waits and what is in hand, by kind and by bot."""
    found = Tools(given).ask("queue.stats")
    if for_programs:
        click.echo(as_json(found))
        return
    from fasthook.cli.tables import show_stats

    show_stats(found)


@command.command("list")
@filter_options(reasons=False)
@click.option("--handled", is_flag=True, help="List what was handled and is kept (--keep-handled) instead.")
@click.option(
    "--limit", type=click.IntRange(0), metavar="N", help="At most so many, 0 for all.  [default: 100, with --json all]"
)
@click.option("--json", "for_programs", is_flag=True, help="Print a JSON object a line.")
@place_options
def list_(handled: bool, limit: int | None, for_programs: bool, **given: Any) -> None:
    """List the updates that wait or are in hand, oldest first.

    A NUMBER is an update's place in the queue. What a stopped server had in hand waits.
    """
    wanted = selection(given)
    rows = Tools(given).rows("queue.list", selection=wanted.packed(), handled=handled, limit=most(limit, for_programs))
    if for_programs:
        write_json(rows)
        return
    from fasthook.cli.tables import show_waiting

    show_some(rows, show_waiting, "no handled update is kept" if handled else "no update waits", wanted.names_all())


@command.command("show")
@click.argument("number", type=click.IntRange(1, (1 << 63) - 1))
@click.option("--json", "for_programs", is_flag=True, help="Print one JSON object.")
@place_options
def show(number: int, for_programs: bool, **given: Any) -> None:
    """Print one update whole."""
    print_one(Tools(given).ask("queue.show", number=number), for_programs)


@command.command("replay")
@numbers_argument
@filter_options(reasons=False)
@click.option("--all", "everything", is_flag=True, help="All that are kept.")
@click.option("--yes", is_flag=True, help="Don't ask.")
@place_options
def replay(everything: bool, yes: bool, **given: Any) -> None:
    """Give handled updates to the handler again.

    They are there if the server keeps them (--keep-handled); `list --handled` shows their numbers.
    """
    wanted, tools = limited(selection(given), everything, "replay").packed(), Tools(given)
    count = tools.ask("queue.replay", selection=wanted, count_only=True)["count"]
    if not count:
        click.echo("no handled update is kept that this means")
        return
    if count > 1:
        confirm(f"Give {count} updates to the handler again?", yes=yes, must=False)
    count = tools.ask("queue.replay", selection=wanted, count_only=False)["count"]
    click.echo(f"{counted(count, 'update')} will be handled again")


@command.command("purge")
@numbers_argument
@filter_options(reasons=False)
@click.option("--all", "everything", is_flag=True, help="All that wait.")
@click.option("--yes", is_flag=True, help="Don't ask.")
@place_options
def purge(everything: bool, yes: bool, **given: Any) -> None:
    """Throw away updates that wait; they are never handled. What is in hand is left."""
    wanted, tools = limited(selection(given), everything, "purge").packed(), Tools(given)
    found = tools.ask("queue.purge", selection=wanted, count_only=True)
    left = f"; {found['in_hand']} in hand left" if found["in_hand"] else ""
    if not found["count"]:
        click.echo(f"no update waits that this means{left}")
        return
    confirm(f"Throw away {counted(found['count'], 'update')}?", yes=yes, must=True)
    count = tools.ask("queue.purge", selection=wanted, count_only=False)["count"]
    click.echo(f"{counted(count, 'update')} thrown away{left}")


def show_some(rows: Any, show_rows: Any, nothing: str, unfiltered: bool) -> None:
    """A table of the rows, and a line where there are none, or more."""
    shown: list[Any] = []
    more = False
    while True:
        try:
            shown.append(next(rows))
        except StopIteration as end:
            more = end.value
            break
    if not shown:
        click.echo(nothing if unfiltered else f"{nothing} that this means")
        return
    show_rows(shown)
    if more:
        click.echo("there are more: --limit 0 lists all", err=True)


def print_one(found: dict[str, Any], for_programs: bool) -> None:
    from fasthook.cli.tables import as_object, show_update

    if for_programs:
        click.echo(as_json(as_object(found)))
    else:
        show_update(found, base64.b64decode(found["raw"]))


def counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
