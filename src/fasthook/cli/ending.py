"""How `fasthook run` and `fasthook poll` end when they cannot begin, or not go on: in one line."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Iterator

import click

from fasthook.cli.options import fail


@contextlib.contextmanager
def in_a_line(redact: Callable[[str], str], target: str | None) -> Iterator[None]:
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
        if error.__cause__ is not None:
            click.echo(redact("".join(traceback.format_exception(bots_frames(error.__cause__)))), err=True, nl=False)
        fail(redact(str(error) if target is None else f"{target}: {error}"), code=error.code)
    except WorkersError as error:
        click.echo(redact(error.trace), err=True, nl=False)
        fail(redact(str(error)), code=error.code)
    except (ServerError, StartError, StateError, QueueError) as error:
        fail(redact(str(error)), code=1)
