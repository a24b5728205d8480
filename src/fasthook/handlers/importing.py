"""The import of a bot's module, and a line when it takes long."""

from __future__ import annotations

import contextlib
import linecache
import logging
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from fasthook.sources import innermost

log = logging.getLogger("fasthook")

#: Seconds after which a person wonders. With worker processes the first start is given up about then.
LONG = 10.0


@contextlib.contextmanager
def watched(name: str) -> Iterator[None]:
    """Tell where the import of this module is, once, when it takes longer than `LONG`: nothing is served before."""
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
    if done.wait(LONG):
        return
    where = ""
    frame = innermost(sys._current_frames().get(thread))
    if frame:
        file, line = frame.f_code.co_filename, frame.f_lineno
        where = f": it is at {Path(file).name}:{line}, {linecache.getline(file, line).strip()!r}"
    log.warning(
        "the module %r has been importing for %g s, and its bot is not served before that ends%s; "
        "a call that does not return belongs under if __name__ == '__main__'",
        name,
        LONG,
        where,
    )
