"""A list, beside a journal, of what was settled and cannot be taken out of it: the next start does so."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path

import orjson

from fasthook.queues.store import set_aside, sync_directory, words

log = logging.getLogger("fasthook.queue")

# of an update that was settled: its number, whether its id is forgotten, when it was handled if it is kept, the reply
Row = tuple[int, bool, float | None, bytes | None]


class SettledFile:
    """The file `settled` of a journal's directory. It is there from a `write` to a `remove`."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "settled"

    def write(self, rows: Iterable[Row]) -> None:
        """On disk at return, all or none. OSError. ValueError: a reply that is no text."""
        new = self.path.with_suffix(".new")
        with new.open("wb") as file:
            for number, forget, handled_at, reply in rows:
                text = None if reply is None else reply.decode()
                file.write(orjson.dumps([number, forget, handled_at, text], option=orjson.OPT_APPEND_NEWLINE))
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.path)
        sync_directory(self.path.parent)

    def read(self) -> list[Row]:
        """What is in it. A file that cannot be understood is set aside under a name that the log tells. OSError."""
        if not self.path.exists():
            return []
        try:
            return [_row(line) for line in self.path.read_bytes().splitlines()]
        except ValueError as error:
            log.error("what was handled before the last stop cannot be read (%s): it is kept as %s", error,
                      set_aside(self.path))  # fmt: skip
            return []

    def remove(self) -> None:
        """What it lists is taken out now. OSError: it stays."""
        self.path.unlink(missing_ok=True)
        sync_directory(self.path.parent)

    def removed(self) -> bool:
        """The same in service, where it may fail: a later commit tries again, or the next start."""
        try:
            self.remove()
        except OSError as error:
            log.error("%s, a list of what was handled and is taken out now, cannot be removed: %s", self.path,
                      words(error))  # fmt: skip
            return False
        return True


def _row(line: bytes) -> Row:
    try:
        number, forget, handled_at, reply = orjson.loads(line)
        text = None if reply is None else reply.encode()
        when = None if handled_at is None else float(handled_at)
    except (TypeError, AttributeError) as error:
        raise ValueError(str(error)) from None
    if type(number) is not int or number < 1:
        raise ValueError(f"{number!r} is no number of an update")
    return number, bool(forget), when, text
