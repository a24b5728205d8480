"""Worker processes whose server died: the next server waits for their end, or it would run a chat beside them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import IO

from fasthook.state import StateError

if sys.platform != "win32":
    import fcntl

log = logging.getLogger("fasthook.workers")

_FILE = "workers"
_PATIENCE = 16.0  # seconds: more than the 5 of a drain and the 10 until `worker.py` ends one that is blocked
_LOOK = 0.05  # seconds between two looks


@contextlib.contextmanager
def belongs(directory: Path) -> Iterator[None]:
    """This process handles updates of the server that has this state directory, until it leaves here or ends.

    The lock is the process's own (fcntl(2)): what its bot forks does not have it.
    """
    if sys.platform == "win32":
        raise NotImplementedError("worker processes need Linux or macOS")
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context((directory / _FILE).open("a+b"))
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            log.warning("%s: %s; a server that is started after a crash will not wait for this worker",
                        directory / _FILE, error.strerror)  # fmt: skip
        yield


async def end(directory: Path, patience: float = _PATIENCE) -> None:
    """Return when no worker of the server before is left, or after so many seconds. StateError: it cannot be known."""
    try:
        with (directory / _FILE).open("r+b") as file:
            await _wait(file, patience)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StateError(f"{directory / _FILE}: cannot be used: {error.strerror}; set --state-dir") from None


async def _wait(file: IO[bytes], patience: float) -> None:
    if _are_gone(file):
        return
    log.warning(
        "workers of a server that died still have updates in hand: the start waits for their end, %g s at most",
        patience,
    )
    until = monotonic() + patience
    while not _are_gone(file):
        if monotonic() >= until:
            log.error("workers of a server that died do not end: what they had in hand is handled beside them")
            return
        await asyncio.sleep(_LOOK)


def _are_gone(file: IO[bytes]) -> bool:
    if sys.platform == "win32":
        return True
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # either, as the system likes
        return False
    return True
