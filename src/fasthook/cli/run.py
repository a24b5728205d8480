"""`fasthook run TARGET`."""

from __future__ import annotations

import logging
import traceback
from typing import Any

import click

from fasthook.cli.options import fail, settings_from, settings_options


@click.command("run")
@click.argument("target")
@settings_options
def command(target: str, config: str | None, **given: Any) -> None:
    """Serve the webhook and give the updates to TARGET, for instance bot:handler.

    Each option is also an environment variable and a key of fasthook.toml; the command line goes first, the file last.
    """
    settings = settings_from(config, given)
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)-7s %(name)s: %(message)s", force=True
    )
    logging.getLogger("uvicorn").setLevel("WARNING")

    from fasthook.asgi import Hook
    from fasthook.handlers import TargetError, WorkersError, load
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
            traceback.print_exception(bots_frames(error.__cause__))
        fail(f"{target}: {error}", code=error.code)
    except WorkersError as error:
        click.echo(error.trace, err=True, nl=False)
        fail(str(error), code=error.code)
    except (ServerError, StateError, QueueError) as error:
        fail(str(error), code=1)
    raise SystemExit(code)
