"""The source files of a bot, and whether one has changed."""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Collection, Iterable
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, FrameType


class Sources:
    """Files as they were when they were last looked at."""

    def __init__(self) -> None:
        self._versions: dict[str, tuple[int, int] | None] = {}

    def add(self, files: Iterable[str]) -> None:
        for file in files:
            if file not in self._versions:
                self._versions[file] = _version(file)

    def changed(self) -> list[str]:
        """The names of those that have changed since they were last looked at."""
        changed = [file for file, known in self._versions.items() if _version(file) != known]
        for file in changed:
            self._versions[file] = _version(file)
        return [Path(file).name for file in changed]


def imported() -> list[str]:
    """The source files of what is imported here: the bot's, not those of the interpreter and of installed packages."""
    foreign = _foreign()
    found = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    return [file for file in found if file and _is_bots(file, foreign)]


def innermost(frame: FrameType | None) -> FrameType | None:
    """The innermost frame of the bot's own code, from this one outwards; None where there is none."""
    foreign = _foreign()
    while frame and (_version(frame.f_code.co_filename) is None or not _is_bots(frame.f_code.co_filename, foreign)):
        frame = frame.f_back
    return frame


def compile_anew() -> None:
    """From now on the bot's modules are compiled when they are imported here, and no bytecode of theirs is kept.

    Python knows bytecode by the second and the size of its source: of two versions saved in one second it may be that
    of the older (PEP 3147, PEP 552).
    """
    foreign = _foreign()
    cached = SourceFileLoader.get_code

    def get_code(self: SourceFileLoader, fullname: str) -> CodeType | None:
        path = self.get_filename(fullname)
        if not _is_bots(path, foreign):
            return cached(self, fullname)
        return self.source_to_code(self.get_data(path), path)

    # That of all finders, those of editable installs too.
    SourceFileLoader.get_code = get_code  # type: ignore[assignment, method-assign]


def _foreign() -> Collection[str]:
    """Where source files lie that aren't the bot's."""
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    return {sysconfig.get_path(name) for name in names} | {str(Path(__file__).parent)}


def _is_bots(file: str, foreign: Iterable[str]) -> bool:
    path = Path(file)
    if {"site-packages", "dist-packages"} & set(path.parts):
        return False
    return not any(path.is_relative_to(place) for place in foreign)


def _version(file: str) -> tuple[int, int] | None:
    try:
        stat = Path(file).stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size
