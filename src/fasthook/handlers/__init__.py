"""From `module:attribute` to something that handles updates."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from fasthook.update import Update


class TargetError(Exception):
    """A TARGET that cannot be served. The message is one line; `__cause__` is the bot's own error, if it was one."""


class WorkersError(Exception):
    """The bot does not start in its worker processes, or they die at once. The message is one line.

    `code`: what the program ends with. `trace`: the bot's traceback, if there is one.
    """

    def __init__(self, message: str, code: int = 1, trace: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.trace = trace


class Handler(Protocol):
    """What the dispatcher calls, and when it begins and ends."""

    call: Callable[[Update], Awaitable[Any]]

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    @property
    def running(self) -> int:
        """Calls that cannot be cancelled and still run."""
        ...


@dataclass(frozen=True, slots=True)
class Target:
    """What `module:attribute` names, and the `lifespan` that stands beside it, if there is one."""

    value: Any
    lifespan: Callable[[Any], Any] | None = None


def load(name: str) -> Target:
    """Import a target. The current directory is importable. TargetError: says which part is wrong."""
    module_name, colon, attribute = name.partition(":")
    if not colon or not module_name or not attribute:
        raise TargetError(f"{name!r} is not module:attribute, for instance bot:handler")
    module = _import(module_name)
    value: Any = module
    for part in attribute.split("."):
        try:
            value = getattr(value, part)
        except AttributeError:
            raise TargetError(f"the module {module_name!r} has no attribute {attribute!r}") from None
    return Target(value, getattr(module, "lifespan", None))


def _import(name: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise TargetError(f"there is no module {error.name!r} here or on the Python path") from None
        raise TargetError(f"the module {name!r} imports {error.name!r}, which is not installed") from error
    except Exception as error:
        raise TargetError(f"the module {name!r} fails to import: {type(error).__name__}: {error}") from error


def adapt(value: Any, *, threads: int) -> Handler:
    """The handler for a target, found by its type. TargetError: nothing here can handle updates with it."""
    from fasthook.handlers.plain import PlainHandler

    return PlainHandler(value, threads=threads)
