"""The thread in which a journal's commits are synced, so that the loop goes on while the disk works."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from queue import SimpleQueue

Ended = Callable[[float, BaseException | None], None]


class Writer:
    """Does one job after another. `loop`: where it tells what came of each."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._jobs: SimpleQueue[tuple[Callable[[], float], Ended] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="fasthook-journal", daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], float], ended: Ended) -> None:
        """Do this in the thread; `ended` is called in the loop with what it returned, or 0 and what it raised."""
        self._jobs.put((job, ended))

    def close(self) -> None:
        """Return when all that was submitted is done."""
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (one := self._jobs.get()) is not None:
            job, ended = one
            result, error = 0.0, None
            try:
                result = job()
            except BaseException as failure:  # it is told, whatever it is: somebody waits for it
                error = failure
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(ended, result, error)
            del one, job, ended, error
