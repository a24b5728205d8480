"""From `module:attribute` to something that handles updates."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import sys
import traceback
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

from fasthook.handlers.importing import watched
from fasthook.update import Update
from fasthook.wording import one_line

if TYPE_CHECKING:
    from fasthook.settings import Settings


class TargetError(Exception):
    """A TARGET that cannot be served.

    The message is one line; `__cause__` is the bot's own error, if it was one. `code`: what the program ends with.
    """

    def __init__(self, message: str, code: int = 2) -> None:
        super().__init__(message)
        self.code = code


class WorkersError(Exception):
    """The bot does not start in its worker processes, or they die at once. The message is one line.

    `code`: what the program ends with. `trace`: the bot's traceback, if there is one.
    """

    def __init__(self, message: str, code: int = 1, trace: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.trace = trace


class StartError(Exception):
    """A bot that cannot start, for a reason that a person can mend. The message is one line."""


class Handler(Protocol):
    """What the dispatcher calls, and when it begins and ends."""

    call: Callable[[Update], Awaitable[Any]]

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    @property
    def running(self) -> int:
        """Calls that cannot be cancelled and still run."""
        ...


class Reply(dict[str, Any]):
    """A Bot API method that a library's handler returned, `{"method": …, …}` without files.

    `send`: makes the call through that library, where it cannot go into the answer to Telegram.
    """

    __slots__ = ("send",)

    def __init__(self, call: dict[str, Any], send: Callable[[], Awaitable[None]]) -> None:
        super().__init__(call)
        self.send = send


@dataclass(frozen=True, slots=True)
class WithBot:
    """A library's dispatcher and the bot that stands beside it in its module."""

    dispatcher: Any
    bot: Any


@dataclass(frozen=True, slots=True)
class _Library:
    """A bot library that has an adapter: `module` here, its package and the versions that are supported."""

    module: str
    package: str
    extra: str
    oldest: tuple[int, int]
    below: int = 1000  # the first major version that is not

    @property
    def version(self) -> str | None:
        """The version that is installed; None if nothing tells, as in a bundle of files without its metadata."""
        try:
            return importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            return None

    def check(self) -> None:
        """TargetError: this version is not supported."""
        version = self.version
        if version is None:
            return
        numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
        if not self.oldest <= numbers < (self.below,):
            least = ".".join(map(str, self.oldest))
            most = f", below {self.below}" if self.below < 1000 else ""
            raise TargetError(f"{self.package} {version} is not supported: it must be {least} or newer{most}")


_AIOGRAM = _Library("fasthook.handlers.aiogram", "aiogram", "aiogram", (3, 10), 4)
_PTB = _Library("fasthook.handlers.telegram_ext", "python-telegram-bot", "ptb", (21, 0))
_TELEBOT = _Library("fasthook.handlers.telebot", "pyTelegramBotAPI", "telebot", (4, 20))
_LIBRARIES = {"aiogram": _AIOGRAM, "telegram": _PTB, "telebot": _TELEBOT}  # by the package that a bot imports
_TARGETS = {("aiogram", "Dispatcher"), ("telegram", "Application"), ("telebot", "AsyncTeleBot")}
#: What a person may have named instead of the right object.
_BESIDE = {
    ("aiogram", "Bot"): "an aiogram Bot is not a handler: name the Dispatcher",
    ("aiogram", "Router"): "an aiogram Router is not a handler: include it in a Dispatcher and name that",
    ("telegram", "Bot"): "a Bot is not a handler: name the Application",
    (
        "telegram",
        "ApplicationBuilder",
    ): "an ApplicationBuilder is not a handler: name the Application its build() makes",
    ("telegram", "Updater"): "an Updater is not a handler: name the Application",
    ("telebot", "TeleBot"): "a TeleBot handles updates in threads of its own: make it an AsyncTeleBot",
}


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
    _check_versions(cls.__module__ for cls in type(value).__mro__)
    library = _library_of(value)
    if library is not None and hasattr(adapter := _adapter(library), "beside"):
        value = adapter.beside(value, vars(module))
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
        with watched(name):
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise TargetError(f"there is no module {error.name!r} here or on the Python path") from None
        _check_versions(_modules_of(error))
        package, inside, _ = (error.name or "").partition(".")
        library = _LIBRARIES.get(package)
        why = "which is not installed"
        if library and inside:
            why = f"which is not in {library.package} {library.version or ''}".rstrip()
        elif library:
            why += f": pip install 'fasthook[{library.extra}]'"
        raise TargetError(f"the module {name!r} imports {error.name!r}, {why}") from error
    except SystemExit as error:
        raise TargetError(f"the module {name!r} calls sys.exit({error.code!r}) when it is imported", code=1) from None
    except Exception as error:
        _check_versions(_modules_of(error))
        raise TargetError(f"the module {name!r} fails to import: {one_line(error)}") from error


def _modules_of(error: Exception) -> Iterator[str]:
    """The modules that an import went through, and what it did not find."""
    if isinstance(error, ImportError) and error.name and "." in error.name:
        yield error.name
    for frame, _ in traceback.walk_tb(error.__traceback__):
        yield str(frame.f_globals.get("__name__", ""))


def _check_versions(modules: Iterable[str]) -> None:
    """TargetError: one of these modules is a library's in a version that is not supported."""
    for package in {module.partition(".")[0] for module in modules} & _LIBRARIES.keys():
        _LIBRARIES[package].check()


def adapt(value: Any, *, threads: int, settings: Settings | None = None) -> Handler:
    """The handler for a target, found by its type. TargetError: nothing here can handle updates with it."""
    library = _library_of(value)
    if library is not None:
        made: Handler = _adapter(library).make(value, settings)
        return made
    _check_versions(cls.__module__ for cls in type(value).__mro__)
    for cls in type(value).__mro__:
        words = _BESIDE.get((cls.__module__.partition(".")[0], cls.__name__))
        if words:
            raise TargetError(words)
    from fasthook.handlers.plain import PlainHandler

    return PlainHandler(value, threads=threads)


def complete(value: Any, settings: Settings) -> Settings:
    """The settings with the token of the target's bot, if it has one and none is set.

    TargetError: another token is set than the bot's.
    """
    library = _library_of(value)
    own: str | None = _adapter(library).token_of(value, settings) if library else None
    if own is None or own == settings.token:
        return settings
    if settings.token is not None:
        theirs = own.partition(":")[0]
        if theirs == str(settings.bot_id):
            raise TargetError(f"--token and the target's own are two tokens of bot {theirs}: one of them is revoked")
        raise TargetError(f"--token is that of bot {settings.bot_id}, but the target's own is another, of bot {theirs}")
    from fasthook.settings import token

    try:
        return replace(settings, token=token(own))
    except ValueError as error:
        raise TargetError(f"the bot's token {error}") from None


def kinds_of(value: Any) -> tuple[str, ...] | None:
    """The kinds of updates that a target handles: none for all that Telegram sends by default, None if not known."""
    library = _library_of(value)
    kinds: list[str] | None = _adapter(library).kinds_of(value) if library else None
    return None if kinds is None else tuple(kinds)


def _library_of(value: Any) -> _Library | None:
    """The library whose dispatcher this is, known by the name of its type: nothing is imported to find out."""
    if isinstance(value, WithBot):
        value = value.dispatcher
    for cls in type(value).__mro__:
        package = cls.__module__.partition(".")[0]
        if (package, cls.__name__) in _TARGETS:
            return _LIBRARIES[package]
    return None


def _adapter(library: _Library) -> Any:
    library.check()
    return importlib.import_module(library.module)
