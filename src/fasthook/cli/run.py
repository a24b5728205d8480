"""`fasthook run TARGET`."""

from __future__ import annotations

import logging
import traceback
from typing import Any

import click

from fasthook.cli.options import fail, settings_from, settings_options
from fasthook.settings import Settings
from fasthook.telegram.redact import Redact


@click.command("run")
@click.argument("target")
@settings_options
def command(target: str, config: str | None, **given: Any) -> None:
    """Serve the webhook and give the updates to TARGET, for instance bot:handler.

    Each option is also an environment variable and a key of fasthook.toml; the command line goes first, the file last.
    """
    settings = settings_from(config, given)
    log_to_stderr(settings)

    from fasthook.asgi import Hook
    from fasthook.handlers import StartError, TargetError, load
    from fasthook.queues import QueueError
    from fasthook.server import ServerError, run
    from fasthook.state import StateError
    from fasthook.wording import bots_frames

    try:
        found = load(target)
        code = run(Hook.of(found.value, settings, lifespan=found.lifespan))
    except TargetError as error:
        if error.__cause__ is not None:
            traceback.print_exception(bots_frames(error.__cause__))
        fail(f"{target}: {error}", code=error.code)
    except (ServerError, StartError, StateError, QueueError) as error:
        fail(str(error), code=1)
    raise SystemExit(code)


def log_to_stderr(settings: Settings) -> None:
    """Log as the settings say."""
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)-7s %(name)s: %(message)s", force=True
    )
    for handler in logging.getLogger().handlers:  # a bot's own token is known only when its module was imported
        handler.addFilter(Redact())
    logging.getLogger("uvicorn").setLevel("WARNING")
    logging.getLogger("uvicorn.access").setLevel("INFO")
    if settings.log_level != "debug":
        logging.getLogger("httpx").setLevel("WARNING")  # else a line for each call of the Bot API
