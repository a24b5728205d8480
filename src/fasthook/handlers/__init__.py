"""From `module:attribute` to something that handles updates."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path, PurePath
from types import ModuleType
from typing import Any, Protocol

from fasthook.update import Update
from fasthook.wording import one_line


class TargetError(Exception):
    """A TARGET that cannot be served.

    The message is one line; `__cause__` is the bot's own error, if it was one. `code`: what the program ends with.
    """

    def __init__(self, message: str, code: int = 2) -> None:
        super().__init__(message)
        self.code = code


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
        raise TargetError(f"{name!r} is not module:attribute, for instance {_suggested(module_name, attribute)}")
    if re.search(r"[/\\]|\.py$", module_name):
        raise TargetError(f"{module_name!r} is a file, not a module: {_instead(module_name, attribute)}")
    module = _import(module_name)
    value: Any = module
    for part in attribute.split("."):
        try:
            value = getattr(value, part)
        except AttributeError:
            raise TargetError(f"the module {module_name!r} has no attribute {attribute!r}") from None
    return Target(value, getattr(module, "lifespan", None))


def _suggested(module: str, attribute: str) -> str:
    """What somebody may have meant who wrote something else."""
    names = [name for name in re.split(r"[/\\]", module.removesuffix(".py")) if name not in ("", ".", "..")]
    if len(names) > 1 and not attribute and not module.endswith(".py"):
        attribute = names.pop()
    name = ".".join(names)
    if not all(part.isidentifier() for part in name.split(".")):
        name = "bot"
    return f"{name}:{attribute or 'handler'}"


def _instead(module: str, attribute: str) -> str:
    """How to name a module that was named by its file."""
    file = PurePath(module.replace("\\", "/"))
    if file.is_absolute() or ".." in file.parts:
        return f"go to {file.parent} and give {_suggested(file.name, attribute)}"
    return f"give {_suggested(module, attribute)}"


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
    except SystemExit as error:
        raise TargetError(f"the module {name!r} calls sys.exit({error.code!r}) when it is imported", code=1) from None
    except Exception as error:
        raise TargetError(f"the module {name!r} fails to import: {one_line(error)}") from error


def adapt(value: Any, *, threads: int) -> Handler:
    """The handler for a target, found by its type. TargetError: nothing here can handle updates with it."""
    from fasthook.handlers.plain import PlainHandler

    return PlainHandler(value, threads=threads)
