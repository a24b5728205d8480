"""How `fasthook run` and `fasthook poll` end when they cannot begin, or not go on: in one line."""

from __future__ import annotations

import contextlib
import logging
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NoReturn

import click

from fasthook.cli.options import fail

log = logging.getLogger("fasthook")


@dataclass(frozen=True, slots=True)
class Ending:
    """How a line is written: as JSON, if the log is. `redact`: takes secrets out of it."""

    redact: Callable[[str], str]
    json: bool

    def fail(self, line: str, *, code: int, trace: str = "") -> NoReturn:
        """End the program with a line on standard error, behind the bot's traceback, if there is one."""
        if self.json:
            log.error("%s", line, extra={"traceback": trace})
            raise SystemExit(code)
        click.echo(self.redact(trace), err=True, nl=False)
        fail(self.redact(line), code=code)


@contextlib.contextmanager
def in_a_line(ending: Ending, target: str | None) -> Iterator[None]:
    """Let an error that a person can mend end the program with its line and its exit code; behind the bot's traceback,
    if it is the bot's own. `target`: what the line begins with if it is wrong; None if the error names it.
    """
    from fasthook.handlers import StartError, TargetError, WorkersError
    from fasthook.queues import QueueError
    from fasthook.server import ServerError
    from fasthook.state import StateError
    from fasthook.wording import bots_frames

    try:
        yield
    except TargetError as error:
        cause = error.__cause__
        trace = "".join(traceback.format_exception(bots_frames(cause))) if cause is not None else ""
        ending.fail(str(error) if target is None else f"{target}: {error}", code=error.code, trace=trace)
    except WorkersError as error:
        ending.fail(str(error), code=error.code, trace=error.trace)
    except (ServerError, StartError, StateError, QueueError) as error:
        ending.fail(str(error), code=1)
