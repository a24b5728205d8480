"""The source files of a bot, and whether one has changed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


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


def _version(file: str) -> tuple[int, int] | None:
    try:
        stat = Path(file).stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size
