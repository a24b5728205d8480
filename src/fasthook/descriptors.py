"""Open files: as many as the system allows, and some of them kept for files of our own."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
from dataclasses import dataclass
from time import monotonic

log = logging.getLogger("fasthook")

_RESERVE = 64  # for what is open at the start, the journal, dead letters, workers and the bot's own files
_AGAIN = 60.0  # seconds between two lines about the same trouble


@dataclass(frozen=True)
class Room:
    """How many connections there are descriptors for. `served`: at most; `answered`: with those that are refused."""

    served: int
    answered: int


def raise_limit() -> None:
    """Raise the soft limit of open files to the hard one, which is what an administrator means."""
    if sys.platform == "win32":
        return
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS has another limit below a hard one that is infinite
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def limit() -> int | None:
    """Files that this process may have open; None: no limit that we know of."""
    if sys.platform == "win32":
        return None
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


def room(max_connections: int) -> Room:
    """`max_connections`, or less of them if the limit of open files is too low for these and a reserve."""
    files = limit()
    if files is None:
        return Room(max_connections, sys.maxsize)
    reserve = min(_RESERVE, files // 2)
    return Room(min(max_connections, files - reserve), files - reserve // 2)


def warn_if_few(max_connections: int) -> None:
    """Say in one line at the start that there are not enough for `--max-connections`."""
    served = room(max_connections).served
    if served < max_connections:
        log.warning(
            "the limit of open files is %d: at most %d connections are taken, not the %d of --max-connections; "
            "raise it (ulimit -n, LimitNOFILE= of systemd) or lower --max-connections",
            limit(), served, max_connections,
        )  # fmt: skip


class Watch:
    """Says once a minute that there is no descriptor left, which event loops keep to themselves."""

    def __init__(self) -> None:
        self._told = -_AGAIN

    def look(self) -> None:
        """Try to open a file."""
        try:
            os.close(os.open(os.devnull, os.O_RDONLY))
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE) or monotonic() < self._told + _AGAIN:
                return
            self._told = monotonic()
            log.error(
                "no file can be opened and no connection taken (%s): raise the limit of open files (ulimit -n, "
                "LimitNOFILE= of systemd) or lower --max-connections",
                error.strerror,
            )
