"""From a command to what it is asked of: the server that runs, or its files."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Generator, Iterator
from typing import Any, TypeVar

import click

from fasthook.cli.options import fail, settings_from
from fasthook.control import ControlError, NoServer, Refused, ask
from fasthook.settings import Settings, SettingsError, flag, options, parsed, setting, variable
from fasthook.state import is_gone, noted_queue

_F = TypeVar("_F", bound=Callable[..., Any])
_WHERE = ("state_dir", "queue")


def place_options(function: _F) -> _F:
    """`--state-dir`, `--queue` and `--config`, as `fasthook run` has them."""
    file = "Read settings from FILE.  [default: fasthook.toml, if there is one]"
    function = click.option("--config", metavar="FILE", help=file)(function)
    words = {
        "state_dir": "Directory of the bot's state: that of its server, whether it runs or not.",
        "queue": "Queue to look at while no server runs, if not that of the last one.",
    }
    for declared in options():
        if declared.name in _WHERE:
            name, shown = declared.name, declared.metadata["shown"]
            notes = f"[default: {shown}; env: {variable(name)}]"
            flag = "--" + name.replace("_", "-")
            function = click.option(flag, name, metavar="VALUE", help=f"{words[name]}  {notes}")(function)
    return function


class Tools:
    """Where a command's questions go. Each ends the program with one line where there is no answer."""

    def __init__(self, given: dict[str, Any]) -> None:
        """Takes the place out of a command's parameters."""
        state_dir, named = (given.pop(name) for name in _WHERE)
        named = named or os.environ.get(variable("queue"))
        settings = settings_from(given.pop("config"), {"state_dir": state_dir})
        known = None if named else noted_queue(settings.state_dir)
        self._noted = False  # the queue is known from the last server
        if named:
            settings = _with_queue(settings, _queue(named))
        elif known and (not is_gone(known) or settings.queue == f"journal:{settings.state_dir / 'journal'}"):
            settings = _with_queue(settings, known)
            self._noted = True
        self._settings: Settings = settings

    def ask(self, command: str, **arguments: Any) -> Any:
        """The result."""
        answer = self._answer(command, arguments)
        while True:
            try:
                next(answer)
            except StopIteration as end:
                return end.value

    def rows(self, command: str, **arguments: Any) -> Generator[dict[str, Any], None, bool]:
        """Yields the rows; returns whether there are more."""
        result = yield from self._answer(command, arguments)
        return bool(result["more"])

    def _answer(self, command: str, arguments: dict[str, Any]) -> Generator[Any, None, Any]:
        try:
            try:
                return (yield from ask(self._settings.state_dir, command, arguments))
            except NoServer:
                from fasthook.queues.resting import RestingTools

                return (yield from RestingTools(self._settings, noted=self._noted).ask(command, arguments))
        except (Refused, ControlError) as error:
            fail(str(error), code=1)


def _queue(given: str) -> str:
    try:
        return str(parsed(setting("queue"), given, flag("queue")))
    except SettingsError as error:
        fail(str(error), code=2)


def _with_queue(settings: Settings, queue: str) -> Settings:
    """The same with another queue than that of the server, whose settings may not go with it."""
    largest = settings.journal_max if queue != "memory:" else Settings.journal_max
    return dataclasses.replace(settings, queue=queue, keep_handled=None, journal_max=largest)


def confirm(question: str, *, yes: bool, must: bool) -> None:
    """Ask a person. Where there is none, `must` says whether `--yes` has to be given instead."""
    if yes:
        return
    if sys.stdin.isatty():
        if not click.confirm(question, err=True):
            raise SystemExit(1)
    elif must:
        fail(f"{question} There is no terminal to ask on: give --yes", code=2)


def write_json(rows: Iterator[dict[str, Any]]) -> None:
    for row in rows:
        click.echo(as_json(row))


def as_json(value: Any) -> str:
    """JSON in ASCII, with no control character in it."""
    return json.dumps(value, allow_nan=False).replace("\x7f", "\\u007f")
