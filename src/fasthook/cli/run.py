"""`fasthook run TARGET`."""

from __future__ import annotations

import os
from typing import Any

import click

from fasthook.bottables import configured
from fasthook.cli.ending import Ending, in_a_line
from fasthook.cli.options import configured_from, settings_options
from fasthook.logs import set_up
from fasthook.settings import config_file


@click.command("run")
@click.argument("target", required=False)
@settings_options
def command(target: str | None, config: str | None, **given: Any) -> None:
    """Serve the webhook and give the updates to TARGET, for instance bot:handler.

    Each option is also an environment variable and a key of fasthook.toml; the command line goes first, the file last.
    Several bots have a [[bot]] table each in fasthook.toml; TARGET is then that of the tables without one.
    """
    found = configured_from(config, given, target)
    settings, several = found.settings, bool(found.tables)
    if target is None and not several:
        raise click.UsageError("missing argument 'TARGET', or [[bot]] tables in fasthook.toml")
    redact = set_up(settings, hidden=[text for table in found.tables for text in table.hidden])

    from fasthook.asgi import Hook
    from fasthook.bots import Bots
    from fasthook.handlers import load
    from fasthook.server import run

    with in_a_line(Ending(redact, settings.log_format == "json"), None if several else target):
        if several:
            file = config_file(config, os.environ)
            reread = lambda: configured(given, os.environ, file, target)  # noqa: E731
            hook = Hook.of(None, settings, bots=Bots(found, reread=reread, redact=redact))
        elif settings.in_processes:
            hook = Hook.of(None, settings, target=target)
        else:
            loaded = load(target or "")
            hook = Hook.of(loaded.value, settings, lifespan=loaded.lifespan)
        code = run(hook)
    raise SystemExit(code)
