"""`fasthook dead`: the updates that were given up on."""

from __future__ import annotations

from typing import Any

import click

from fasthook.cli import Commands
from fasthook.cli.asking import Tools, confirm, place_options, write_json
from fasthook.cli.queue import counted, print_one, show_some
from fasthook.cli.selecting import filter_options, limited, most, numbers_argument, selection


@click.group("dead", cls=Commands)
def command() -> None:
    """Look at dead letters, the updates that were given up on, and act on them.

    While the server runs it answers; while it doesn't, its files are read. Filters are joined by "and"; the same one
    given twice means either.
    """


@command.command("list")
@filter_options(reasons=True)
@click.option(
    "--limit", type=click.IntRange(0), metavar="N", help="At most so many, 0 for all.  [default: 100, with --json all]"
)
@click.option("--json", "for_programs", is_flag=True, help="Print a JSON object a line.")
@place_options
def list_(limit: int | None, for_programs: bool, **given: Any) -> None:
    """List the dead letters, oldest first."""
    wanted = selection(given)
    rows = Tools(given).rows("dead.list", selection=wanted.packed(), limit=most(limit, for_programs))
    if for_programs:
        write_json(rows)
        return
    from fasthook.cli.tables import show_dead

    show_some(rows, show_dead, "there is no dead letter", wanted.names_all())


@command.command("show")
@click.argument("number", type=click.IntRange(1, (1 << 63) - 1))
@click.option("--json", "for_programs", is_flag=True, help="Print one JSON object.")
@place_options
def show(number: int, for_programs: bool, **given: Any) -> None:
    """Print one dead letter whole: the update, why and when it died, the traceback."""
    print_one(Tools(given).ask("dead.show", number=number), for_programs)


@command.command("retry")
@numbers_argument
@filter_options(reasons=True)
@click.option("--all", "everything", is_flag=True, help="All dead letters.")
@click.option("--yes", is_flag=True, help="Don't ask.")
@place_options
def retry(everything: bool, yes: bool, **given: Any) -> None:
    """Give dead letters to the handler again, as if they had just come.

    A letter is deleted when its update is safe in the queue. While no server runs, they are handled at its next start.
    """
    wanted, tools = limited(selection(given), everything, "retry").packed(), Tools(given)
    found = tools.ask("dead.retry", selection=wanted, count_only=True)
    invalid = f"; {counted(found['invalid'], 'letter')} left, because they are not updates" if found["invalid"] else ""
    if not found["count"]:
        click.echo(f"there is no dead letter to retry that this means{invalid}")
        return
    if found["count"] > 1:
        confirm(f"Give {found['count']} dead letters to the handler again?", yes=yes, must=False)
    done = tools.ask("dead.retry", selection=wanted, count_only=False)
    when = "at the next start" if done.get("later") else "again"
    click.echo(f"{counted(done['count'], 'update')} will be handled {when}{invalid}")


@command.command("drop")
@numbers_argument
@filter_options(reasons=True)
@click.option("--all", "everything", is_flag=True, help="All dead letters.")
@click.option("--yes", is_flag=True, help="Don't ask.")
@place_options
def drop(everything: bool, yes: bool, **given: Any) -> None:
    """Delete dead letters for ever."""
    wanted, tools = limited(selection(given), everything, "drop").packed(), Tools(given)
    count = tools.ask("dead.drop", selection=wanted, count_only=True)["count"]
    if not count:
        click.echo("there is no dead letter that this means")
        return
    confirm(f"Delete {counted(count, 'dead letter')} for ever?", yes=yes, must=True)
    count = tools.ask("dead.drop", selection=wanted, count_only=False)["count"]
    click.echo(f"{counted(count, 'dead letter')} deleted")
