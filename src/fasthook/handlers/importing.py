"""The import of a bot's module, and a line when it comes no further."""

from __future__ import annotations

import contextlib
import linecache
import logging
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from fasthook.sources import innermost

log = logging.getLogger("fasthook")

#: Seconds without another module imported: a machine that is busy is slow, but comes further. After 10 a worker's first
#: start may be given up.
LONG = 8.0
_LOOKS = 20  # at how many there are, in this time


@contextlib.contextmanager
def watched(name: str) -> Iterator[None]:
    """Tell where the import of this module is, once, when it stands still for `LONG`: nothing is served before."""
    done = threading.Event()
    watch = threading.Thread(
        target=_watch, args=(name, threading.get_ident(), done), name="fasthook-import", daemon=True
    )
    watch.start()
    try:
        yield
    finally:
        done.set()
        watch.join()


def _watch(name: str, thread: int, done: threading.Event) -> None:
    began = time.monotonic()
    modules = looks = 0
    while looks < _LOOKS:
        if done.wait(LONG / _LOOKS):
            return
        looks = looks + 1 if len(sys.modules) == modules else 0
        modules = len(sys.modules)
    where = ""
    frame = innermost(sys._current_frames().get(thread))
    if frame:
        file, line = frame.f_code.co_filename, frame.f_lineno
        where = f": it is at {Path(file).name}:{line}, {linecache.getline(file, line).strip()!r}"
    log.warning(
        "the module %r has been importing for %.3g s, and its bot is not served before that ends%s; "
        "a call that does not return belongs under if __name__ == '__main__'",
        name,
        time.monotonic() - began,
        where,
    )
