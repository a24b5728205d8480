"""A worker process as the door sees it: its socket, both ways, and what it has in hand."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

from fasthook._core import Shares
from fasthook.frames import FROM_WORKER, FrameError, Kind, Reader, frame
from fasthook.handlers import WorkersError
from fasthook.lanes import Lane
from fasthook.ops.blocks import Member

if TYPE_CHECKING:
    from fasthook.crew import Crew

LOST = 5.0  # seconds between the end of a worker's socket and the end of its process
_ROUND = 0.2  # seconds by which the beat of a loop that isn't blocked may be overdue
_HIGH = 1 << 20  # bytes that are written to a worker in one go


class Worker(asyncio.Protocol):
    """A worker process as the door sees it: its socket, and what it has in hand.

    `number`: its name for as long as it lives, then another's. `window`: deliveries that it may have in hand.
    """

    def __init__(self, crew: Crew, number: int, window: int, replaces: Worker | None) -> None:
        self.number = number
        self.counts: Member | None = None  # where it counts; there may have been no room
        self.window = window
        self.replaces = replaces  # retired when this one is ready
        self.pid = 0
        self.ready = self.retired = False
        self.closed = False  # gets nothing new
        self.in_hand: dict[int, Lane] = {}
        self.waiting: dict[int, deque[Lane]] = {}  # by bot, of chats that belong to it, while it has no room
        self.shares: Shares | None = None  # of its window, where there are several bots
        self.suspects = 0  # in hand, of those that were in hand when another died
        self.alone = 0  # the delivery that nothing may be begun beside now, if there is one
        self.cleared: set[int] = set()  # deliveries that were, and did no harm for a while
        self.run_on: set[int] = set()  # deliveries whose handlers could not be stopped when it was to leave
        self.given = 0
        self.finished = 0
        self.ran = 0  # of them, those that were not given back
        self.born = monotonic()
        self.writable = False
        self.silent = 0.0  # seconds without a sign of life
        self.quiet = False  # it has not answered the last ping yet: its loop may be blocked
        self.killed = ""  # why, if the door did it
        self.late = False  # it did not come to the end of its start
        self.refused: WorkersError | None = None
        self.files: list[str] = []
        self.kinds: dict[str, list[str] | None] = {}  # of updates that it handles, by bot
        self.limit: int | None = None  # deliveries before it is recycled
        self.used_up = False  # to be recycled when the reload under way has ended
        self._crew = crew
        self.socket: socket.socket | None = None
        self._transport: asyncio.Transport | None = None
        self._paused = False
        self._reader: Reader | None = Reader(self._take, FROM_WORKER)
        self._timers: list[asyncio.TimerHandle] = []
        self._out: list[bytes] = []
        self._buffered = 0
        self._code: int | None = None
        self._lost = False
        self._broken = False  # what it says is none of our frames any more

    def __repr__(self) -> str:
        return f"worker {self.number} (process {self.pid})"

    # ------------------------------------------------------------ to the worker

    def put(self, head: bytes, raw: bytes) -> None:
        """Part of a frame, to be written with the next `flush`."""
        self._out.append(head)
        self._out.append(raw)
        self._buffered += len(raw) + len(head)
        if self._buffered > _HIGH:
            self.writable = False

    def flush(self) -> None:
        """Write what was put, all at once."""
        if not self._out:
            return
        if self._transport and not self._transport.is_closing():
            self._transport.write(b"".join(self._out))
            self.writable = not self._paused
        self._out.clear()
        self._buffered = 0

    def send(self, kind: Kind, payload: bytes = b"") -> None:
        self.flush()
        if self._transport and not self._transport.is_closing():
            self._transport.write(frame(kind, payload=payload))

    def signal(self, number: int) -> None:
        """Send a signal to the process, if it still is one."""
        if self._code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self, why: str) -> None:
        if not self.killed:
            self.killed = why
        self.signal(signal.SIGKILL)

    def later(self, seconds: float, what: Callable[..., object], *arguments: Any) -> None:
        """Do something then, if it is still there."""
        self._timers.append(asyncio.get_running_loop().call_later(seconds, what, *arguments))

    def forget(self) -> None:
        """It is gone: nothing of it waits for a timer or for the garbage collector, which may be long."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        self.counts = None
        self._reader = None
        self.replaces = None

    # ------------------------------------------------------------ from the worker

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none of asyncio's
        self._transport.set_write_buffer_limits(high=_HIGH)
        if not self.lives:
            self._transport.abort()

    def pause_writing(self) -> None:
        self._paused = True
        self.writable = False

    def resume_writing(self) -> None:
        self._paused = False
        self.writable = True
        self._crew.owner.writable()

    def data_received(self, data: bytes) -> None:
        if self._broken or self._reader is None:
            return
        try:
            if self._reader.feed(data):
                self.silent = 0.0
                self.quiet = False
        except FrameError as error:
            self._broken = True
            self.kill(f"something else writes to its socket: {error}")

    def _take(self, kind: int, number: int, payload: bytes) -> None:
        if kind in (Kind.DONE, Kind.FAILED, Kind.BACK):
            self.finished += 1
            self.ran += kind != Kind.BACK
            self._crew.owner.outcome(self, kind, number, payload)
        elif kind == Kind.RUNS_ON:
            self.run_on.add(number)
        elif kind != Kind.PONG:
            self._crew.told(self, kind, payload)

    def connection_lost(self, exc: Exception | None) -> None:
        # A write that failed ends the transport before that is read which the process wrote before its end.
        self._read_all()
        self.socket = None
        self._lost = True
        self._transport = None
        self.writable = False
        self._half_gone()

    def exited(self, code: int) -> None:
        """The process has ended; what it wrote before is in the socket, which a child of it may hold open for long."""
        self._code = code
        self._read_all()
        self.closed = True
        self.writable = False
        self._half_gone()

    def _read_all(self) -> None:
        with contextlib.suppress(OSError):
            while self.socket and (data := self.socket.recv(_HIGH)):
                self.data_received(data)

    def _half_gone(self) -> None:
        # The end of the process and of its socket come in any order.
        if self._lost and self._code is not None:
            self._crew.gone(self)
        elif self._lost:
            self.later(LOST, self.kill, "it closed its socket and went on")
        elif self._transport:
            self._transport.abort()

    @property
    def lives(self) -> bool:
        """Its process has not ended, as far as is known."""
        return self._code is None

    @property
    def gave_back(self) -> bool:
        """It has nothing in hand, but for what it could not stop."""
        return self.in_hand.keys() <= self.run_on

    @property
    def said_all(self) -> bool:
        """Its socket has come to its end; what is left of it is its process."""
        return self._lost

    @property
    def name(self) -> str:
        """In the metrics, and in its own log."""
        return f"worker-{self.number}"

    @property
    def begun(self) -> int:
        """Runs of the handler that it has begun; 0 if they are not counted."""
        return self.counts.runs() if self.counts else 0

    @property
    def runs_all(self) -> bool:
        """It has begun all that it has in hand, as far as that is counted, and its event loop comes round."""
        if self.counts and self.begun - self.ran < len(self.in_hand):
            return False
        return not self.quiet and self.blocked() < _ROUND

    def blocked(self) -> float:
        """For how long its event loop has not come round, s. Any thread may ask."""
        return self.counts.blocked() if self.counts else self.silent

    @property
    def how(self) -> str:
        """How it ended, in words; empty if it left when it was told to."""
        if self.killed:
            return f"killed, because {self.killed}"
        if self._code == -signal.SIGKILL:
            return "SIGKILL (somebody's, or the kernel's when it ran out of memory)"
        if self._code is not None and self._code < 0:
            number = -self._code
            return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
        return "" if self.retired and self._code == 0 else f"exit code {self._code}"
