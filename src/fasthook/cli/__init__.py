"""The command line, one file a command."""

from __future__ import annotations

import click


class _Commands(click.Group):
    """Imports a command when it is called for, so that each starts with no more than it needs."""

    names = ("run", "poll", "webhook", "secret")

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.names)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.names:
            return None
        from importlib import import_module

        command: click.Command = import_module(f"fasthook.cli.{cmd_name}").command
        return command


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="fasthook")
def main() -> None:
    """The front door of a Telegram bot."""
