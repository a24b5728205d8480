"""The command line, one file a command."""

from __future__ import annotations

import difflib
from typing import Any, NoReturn

import click

from fasthook.wording import printable


class Commands(click.Group):
    """A group that says in one line what is wrong with a command line."""

    def make_context(self, info_name: str | None, args: list[str], *others: Any, **extra: Any) -> click.Context:
        try:
            return super().make_context(info_name, args, *others, **extra)
        except click.UsageError as error:
            _misused(error, info_name or "fasthook")

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            _misused(error, f"{ctx.command_path} {ctx.invoked_subcommand or ''}".strip())


class _Main(Commands):
    """Imports a command when it is called for, so that each starts with no more than it needs."""

    names = ("run", "poll", "webhook", "secret", "queue", "dead", "simulate")

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.names)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.names:
            return None
        from importlib import import_module

        command: click.Command = import_module(f"fasthook.cli.{cmd_name}").command
        return command


@click.command(cls=_Main, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="fasthook")
def main() -> None:
    """The front door of a Telegram bot."""


def _misused(error: click.UsageError, command: str) -> NoReturn:
    """End the program with one line for a command line that cannot be read; without any arguments, with the help."""
    if type(error).__name__ == "NoArgsIsHelpError":
        raise error
    command = error.ctx.command_path if error.ctx else command
    click.echo(f"{command}: {_words(error)} (try '{command} --help')", err=True)
    raise SystemExit(error.exit_code)


def _words(error: click.UsageError) -> str:
    if isinstance(error, click.NoSuchOption):
        near = difflib.get_close_matches(error.option_name, error.possibilities or (), 1)
        return printable(f"no such option {error.option_name}") + (f"; did you mean {near[0]}?" if near else "")
    words = " ".join(error.format_message().split()).removesuffix(".")
    return printable(words[:1].lower() + words[1:])
