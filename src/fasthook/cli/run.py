"""`fasthook run TARGET`."""

from __future__ import annotations

import traceback
from typing import Any

import click

from fasthook.cli.options import fail, settings_from, settings_options
from fasthook.logs import set_up


@click.command("run")
@click.argument("target")
@settings_options
def command(target: str, config: str | None, **given: Any) -> None:
    """Serve the webhook and give the updates to TARGET, for instance bot:handler.

    Each option is also an environment variable and a key of fasthook.toml; the command line goes first, the file last.
    """
    settings = settings_from(config, given)
    redact = set_up(settings)

    from fasthook.asgi import Hook
    from fasthook.handlers import StartError, TargetError, WorkersError, load
    from fasthook.queues import QueueError
    from fasthook.server import ServerError, run
    from fasthook.state import StateError
    from fasthook.wording import bots_frames

    try:
        if settings.in_processes:
            hook = Hook.of(None, settings, target=target)
        else:
            found = load(target)
            hook = Hook.of(found.value, settings, lifespan=found.lifespan)
        code = run(hook)
    except TargetError as error:
        if error.__cause__ is not None:
            click.echo(redact("".join(traceback.format_exception(bots_frames(error.__cause__)))), err=True, nl=False)
        fail(redact(f"{target}: {error}"), code=error.code)
    except WorkersError as error:
        click.echo(redact(error.trace), err=True, nl=False)
        fail(redact(str(error)), code=error.code)
    except (ServerError, StartError, StateError, QueueError) as error:
        fail(redact(str(error)), code=1)
    raise SystemExit(code)
