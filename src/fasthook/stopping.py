"""How a process begins and ends: signals, the drain, and the second signal that doesn't wait for it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
import time
from time import monotonic
from types import FrameType
from typing import Protocol

from fasthook.asgi import Hook
from fasthook.handlers import StartError, WorkersError
from fasthook.handlers.ending import tell_end
from fasthook.ops.health import Health
from fasthook.queues import QueueError
from fasthook.state import StateError
from fasthook.systemd import Notifier
from fasthook.telegram.redact import redacted
from fasthook.wording import bots_frames

log = logging.getLogger("fasthook")

_PATIENCE = 3.0  # seconds after the second signal for a loop that is blocked
_LAST = 20.0  # seconds after the second signal for all the rest: dead letters, the queue, the bot's own end
_PAUSE = 0.1  # seconds between looks at the loop


class Stoppable(Protocol):
    """What a signal stops: uvicorn's server, or what polls."""

    should_exit: bool
    force_exit: bool


class Stop:
    """SIGINT and SIGTERM: the first drains, after `drain_delay`; the second stops at once.

    SIGHUP: several bots are read again from their file; else new workers, or a stop if none are.
    """

    def __init__(self, hook: Hook, server: Stoppable, health: Health, notifier: Notifier) -> None:
        self.signals = 0
        self.failure: Exception | None = None  # why the server stops by itself
        self._starting: asyncio.Task[object] | None = None  # while it does
        self._reading: asyncio.Task[None] | None = None  # while the bots are read again
        self._reload_wanted = False  # since before it served
        self._hook = hook
        self._server = server
        self._health = health
        self._notifier = notifier
        self._received = 0
        self._since = 0.0

    async def begin(self) -> int | None:
        """Start the receiver and watch for signals. An exit code, if nothing is to be served.

        StartError, StateError, QueueError, WorkersError: one line.
        """
        self._watch()
        self._starting = asyncio.current_task()
        try:
            await self._hook.receiver.start()
        except asyncio.CancelledError:
            if not self.signals:
                raise
            return 0
        except (StartError, StateError, QueueError, WorkersError):
            raise
        except SystemExit as error:
            log.error("the bot does not start: its lifespan calls sys.exit(%r)", error.code)
            return 1
        except Exception as error:
            log.error("the bot does not start", exc_info=bots_frames(error))
            return 1
        finally:
            self._starting = None
        return None

    def serves(self) -> None:
        """The start has come to its end: what was to be reloaded meanwhile is reloaded now."""
        if self._reload_wanted:
            self._reload_wanted = False
            self._reload()

    async def end(self) -> int:
        """Drain, and stop the receiver; the exit code."""
        workers = self._hook.receiver.workers
        try:
            await self._hook.receiver.stop(self.left())
        except QueueError as error:
            log.error("%s", error)
            return 1
        except (Exception, SystemExit) as error:
            with redacted(self._hook.settings.token):
                tell_end(error)
            return 1
        return 1 if workers is not None and workers.crew.ends_badly else 0

    def left(self) -> float:
        """Seconds of the drain that are left."""
        if self.failure:
            return 0.0
        drain = self._hook.settings.drain_timeout
        return max(0.0, drain - (monotonic() - self._since)) if self._since else drain

    def failed(self, error: Exception) -> None:
        """The workers cannot go on: stop, and keep what is not handled for the next start."""
        self.failure = error
        self._hook.receiver.refuse_new()
        self._hook.receiver.hurry()
        self._server.should_exit = True

    def _watch(self) -> None:
        # The interpreter calls these even while a handler blocks the loop; what they ask for is done in the loop.
        self._loop = asyncio.get_running_loop()
        self._hook.receiver.failed = self.failed
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._signalled)
        if sys.platform == "win32":
            return
        if self._hook.settings.in_processes or self._hook.receiver.bots:
            signal.signal(signal.SIGHUP, lambda *_: self._loop.call_soon_threadsafe(self._reload))
        elif signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
            signal.signal(signal.SIGHUP, self._signalled)

    def _reload(self) -> None:
        if self._health.starting:
            self._reload_wanted = True
            return
        workers, bots = self._hook.receiver.workers, self._hook.receiver.bots
        if bots is not None:
            if self._hook.receiver.running and not self._server.should_exit and self._reading is None:
                self._notifier.reloading()
                self._reading = self._loop.create_task(bots.reload())
                self._reading.add_done_callback(self._read)
            elif self._reading is not None:
                bots.reload_again()
        elif workers is not None and not self._server.should_exit:
            self._notifier.reloading()
            workers.crew.reload.begin(self._notifier.ready)

    def _read(self, task: asyncio.Task[None]) -> None:
        self._reading = None
        self._notifier.ready()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("the bots could not be read again", exc_info=error)

    def _signalled(self, number: int, _: FrameType | None) -> None:
        self._health.stopping = True
        self._received += 1
        self._loop.call_soon_threadsafe(self._stop, signal.Signals(number))
        if self._received == 2:
            threading.Thread(target=self._watch_loop, name="fasthook-stop", daemon=True).start()

    def _watch_loop(self) -> None:
        """Leave if the loop does not come round, or if the stop or the end of the process takes too long without it."""
        end, why = monotonic() + _LAST, "the stop takes too long"
        while monotonic() < end:
            answered = threading.Event()
            try:
                self._loop.call_soon_threadsafe(answered.set)
            except RuntimeError:  # it has come to its end
                time.sleep(_PATIENCE)
                os._exit(130)
            if not answered.wait(_PATIENCE):
                why = "a handler blocks the loop"
                break
            time.sleep(_PAUSE)
        log.error("%s: leaving without it, and without what only memory has", why)
        logging.shutdown()
        os._exit(130)

    def _stop(self, number: signal.Signals) -> None:
        self.signals += 1
        settings = self._hook.settings
        if self.signals == 1 and settings.drain_delay:
            log.info("%s: not ready any more; stopping in %g s", number.name, settings.drain_delay)
            self._loop.call_later(settings.drain_delay, self._drain)
            return
        if self.signals == 1:
            log.info("%s: stopping; running handlers have %g s", number.name, settings.drain_timeout)
        else:
            self._server.force_exit = True
            self._hook.receiver.hurry()
        self._drain()

    def _drain(self) -> None:
        self._since = self._since or monotonic()
        self._hook.receiver.end_soon()
        self._server.should_exit = True
        if self._starting:
            self._starting.cancel()
