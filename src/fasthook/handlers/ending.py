"""The end of a bot: what goes wrong there is told in the log, where no token is shown."""

from __future__ import annotations

import logging

from fasthook.wording import bots_frames

log = logging.getLogger("fasthook")


def tell_end(error: BaseException) -> None:
    """Tell what a bot's lifespan, or what its library does at the end, has raised."""
    if isinstance(error, SystemExit):
        log.error("the bot does not end in order: it calls sys.exit(%r)", error.code)
    else:
        log.error("the bot does not end in order", exc_info=bots_frames(error))
