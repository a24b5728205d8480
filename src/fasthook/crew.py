"""The worker processes: started, watched, replaced, told to leave. What they have in hand is `workers.py`'s to know."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import pickle
import random
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Any, Protocol, cast

from fasthook._core import Shares
from fasthook.bottables import BotTable
from fasthook.frames import FROM_WORKER, FrameError, Kind, Reader, frame, unpack
from fasthook.handlers import WorkersError
from fasthook.lanes import Lane
from fasthook.ops.blocks import Blocks, Member
from fasthook.settings import Settings
from fasthook.worker import SetUp

log = logging.getLogger("fasthook.workers")

_AT_ONCE = 5.0  # seconds: a worker that ends sooner, and has handled nothing, has died at once
_IN_A_ROW = 5  # deaths at once that stop the server
_FIRST_PAUSE, _LAST_PAUSE = 0.1, 30.0  # seconds before a worker that died at once is replaced
_BEATS = 10  # pings in a --worker-timeout
_LONGEST_BEAT = 2.0  # seconds between two
_TO_DUMP = 1.0  # seconds from asking for the stacks to the kill
_TO_LEAVE = 10.0  # seconds, behind the drain, for the bot's lifespan to end
_HURRIED = 3.0
_LOST = 5.0  # seconds between the end of a worker and the end of its socket, whichever comes first
_POLL = 0.5  # seconds between looks at the source files
_HIGH = 1 << 20  # bytes that are written to a worker in one go


class Owner(Protocol):
    """Who feeds the workers, and is told what becomes of them."""

    def joined(self, worker: Worker) -> None:
        """It takes deliveries from now on."""
        ...

    def outcome(self, worker: Worker, kind: int, number: int, payload: bytes) -> None:
        """What became of a delivery."""
        ...

    def writable(self) -> None:
        """A worker takes more than it did."""
        ...

    def retiring(self, worker: Worker) -> None:
        """It takes no new deliveries, and finishes what it has."""
        ...

    def ended(self, worker: Worker, how: str) -> None:
        """Its process is gone. `how`: in words, empty if it left when it was told to."""
        ...

    def not_replaced(self) -> None:
        """A worker that died has no successor yet, and may not get one soon."""
        ...

    def failed(self, error: WorkersError) -> None:
        """There is no use in going on."""
        ...


@dataclass(frozen=True)
class _Renewal:
    """A reload with other bots. `took_over`: whether the new workers did, when it is known."""

    bots: Mapping[int, BotTable]
    took_over: asyncio.Future[bool]


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
        self.alone = False  # what it has in hand may have nothing beside it
        self.given = 0
        self.finished = 0
        self.ran = 0  # of them, those that were not given back
        self.born = monotonic()
        self.writable = False
        self.silent = 0.0  # seconds without a sign of life
        self.quiet = False  # it has not answered the last ping yet: its loop may be blocked
        self.killed = ""  # why, if the door did it
        self.refused: WorkersError | None = None
        self.files: list[str] = []
        self.limit: int | None = None  # deliveries before it is recycled
        self._crew = crew
        self._transport: asyncio.Transport | None = None
        self._paused = False
        self._reader = Reader(self._take, FROM_WORKER)
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

    # ------------------------------------------------------------ from the worker

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none of asyncio's
        self._transport.set_write_buffer_limits(high=_HIGH)

    def pause_writing(self) -> None:
        self._paused = True
        self.writable = False

    def resume_writing(self) -> None:
        self._paused = False
        self.writable = True
        self._crew.owner.writable()

    def data_received(self, data: bytes) -> None:
        if self._broken:
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
        elif kind != Kind.PONG:
            self._crew.told(self, kind, payload)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._transport = None
        self.writable = False
        self._half_gone()

    def exited(self, code: int) -> None:
        """The process has ended."""
        self._code = code
        self._half_gone()

    def _half_gone(self) -> None:
        # The end of the process and of what it wrote come in any order; a process that the bot started may hold the
        # socket open for long.
        if self._lost and self._code is not None:
            self._crew.gone(self)
        elif self._lost:
            asyncio.get_running_loop().call_later(_LOST, self.kill, "it closed its socket and went on")
        elif self._transport:
            asyncio.get_running_loop().call_later(_LOST, self._transport.abort)

    @property
    def name(self) -> str:
        """In the metrics, and in its own log."""
        return f"worker-{self.number}"

    @property
    def begun(self) -> int:
        """Runs of the handler that it has begun; 0 if they are not counted."""
        return self.counts.runs() if self.counts else 0

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


class Crew:
    """`--workers` processes, each with the bot of `target`.

    A worker that dies is replaced; one that is retired finishes and leaves when its successor is ready.
    """

    def __init__(
        self,
        owner: Owner,
        target: str,
        settings: Settings,
        blocks: Blocks,
        *,
        answers: bool,
        bots: tuple[BotTable, ...] = (),
    ) -> None:
        self.owner = owner
        self._blocks = blocks
        self.members: list[Worker] = []
        self.token: str | None = settings.token  # the bot's own, if none is set, when the first worker is ready
        self.kinds: tuple[str, ...] | None = None  # of updates that the bot handles, if known by then
        self._settings = settings
        self._told = SetUp(target, settings, answers, blocks.layout, os.getpid(), dict(enumerate(bots, 1)))
        self._wanted: _Renewal | None = None  # for the next reload
        self._renewal: _Renewal | None = None  # of the one under way
        self._unready = 0  # deaths in a row of workers that were not ready
        self._at_once = 0  # deaths in a row of workers that were, and handled nothing
        self._stopping = False
        self._started: asyncio.Future[None] | None = None
        self._reloading: list[Worker] | None = None  # the new ones
        self._reload_again = False
        self._on_reload: list[Callable[[], None]] = []
        self._empty: asyncio.Event = asyncio.Event()
        self._sources: dict[str, tuple[int, int] | None] = {}
        self._told_failure = False
        self._timers: set[asyncio.TimerHandle] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Start all; they are ready at return. WorkersError: the bot does not start."""
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.create_future()
        for _ in range(self._settings.workers):
            self._spawn()
        try:
            await self._started
        except BaseException:
            await self.stop(0.0)
            raise
        self._beat()
        if self._settings.reload:
            self._poll()

    # ------------------------------------------------------------ start

    def _spawn(self, replaces: Worker | None = None, renewal: _Renewal | None = None) -> Worker:
        told = replace(self._told, bots=renewal.bots) if renewal else self._told
        concurrency, most = self._settings.concurrency, self._settings.max_requests
        taken = {one.number for one in self.members}
        number = next(number for number in itertools.count(1) if number not in taken)
        worker = Worker(self, number, concurrency + max(1, min(16, concurrency // 8)), replaces)
        if told.bots:
            worker.shares = Shares(worker.window, (table.bot_id for table in told.bots.values()))
        if most is not None:
            worker.limit = most - random.randrange(most // 10 + 1)
        ours, theirs = socket.socketpair()
        with theirs:
            # A fresh interpreter; its own process group, so that a terminal's Ctrl-C reaches the door alone.
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "fasthook.worker", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=2,
                pass_fds=(theirs.fileno(),),
                process_group=0,
            )
        worker.pid = process.pid
        worker.counts = self._add_block(worker)
        self.members.append(worker)
        threading.Thread(target=self._reap, args=(worker, process), name="fasthook-reap", daemon=True).start()
        self._begin(self._connect(worker, ours, told))
        return worker

    def _add_block(self, worker: Worker) -> Member | None:
        try:
            return self._blocks.add(worker.name, worker.pid)
        except OSError as error:
            log.warning("%r is not counted in the metrics: %s", worker, error)
            return None

    def _reap(self, worker: Worker, process: subprocess.Popen[bytes]) -> None:
        code = process.wait()
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(worker.exited, code)

    async def _connect(self, worker: Worker, ours: socket.socket, told: SetUp) -> None:
        ours.setblocking(False)
        await self._loop.create_unix_connection(lambda: worker, sock=ours)
        counts = worker.counts
        made = replace(told, name=worker.name, block=counts.file if counts else None)
        worker.send(Kind.SET_UP, pickle.dumps(made))

    def told(self, worker: Worker, kind: int, payload: bytes) -> None:
        """A worker says something about itself."""
        if kind == Kind.READY:
            if worker.ready:
                raise FrameError("it is ready twice")
            said = unpack(Kind.READY, payload)
            self._learn(worker, said["token"], said["kinds"])
            if not worker.refused:
                self._ready(worker, said["files"])
        elif kind == Kind.REFUSED:
            said = unpack(Kind.REFUSED, payload)
            worker.files = said["files"]
            worker.refused = WorkersError(said["line"], said["code"], said["trace"])
        elif kind == Kind.ASKS:
            self.recycle(worker)
        elif kind == Kind.SOURCES:
            self._watch(unpack(Kind.SOURCES, payload)["files"])

    def _learn(self, worker: Worker, token: str | None, kinds: list[str] | None) -> None:
        """What the first worker knows of its bot; the others have to have the same token."""
        if self._started and not self._started.done() and not any(one.ready for one in self.members):
            self.kinds = tuple(kinds) if kinds else None
            if token != self.token:
                self.token = token
                self._told = replace(self._told, settings=replace(self._settings, token=token), learnt=True)
        elif token != self.token:
            worker.refused = WorkersError("the bot has another token in each worker process")
            worker.kill("its bot has another token")

    def _ready(self, worker: Worker, files: list[str]) -> None:
        worker.ready = worker.writable = True
        worker.silent = 0.0
        self._unready = 0
        self._told_failure = False
        self._watch(files)
        if self._stopping:
            self.retire(worker, 0.0)
            return
        if self._reloading is not None and worker in self._reloading:
            self._swap()
            return
        log.info("%r is ready", worker)
        self.owner.joined(worker)
        if worker.replaces:
            self.retire(worker.replaces)
        if self._started and not self._started.done() and all(one.ready for one in self.members):
            self._started.set_result(None)

    # ------------------------------------------------------------ end

    def retire(self, worker: Worker, seconds: float | None = None) -> None:
        """Let a worker finish what it has, for so many seconds (default: --drain-timeout), and leave."""
        seconds = self._settings.drain_timeout if seconds is None else seconds
        if worker not in self.members:
            return
        if not worker.ready:
            worker.retired = True
            worker.kill("it was not needed any more")
            return
        if not worker.retired:
            worker.retired = True
            self.owner.retiring(worker)
        worker.send(Kind.LEAVE, repr(seconds).encode())
        self._later(seconds + _TO_LEAVE, worker.kill, "it did not leave")

    def gone(self, worker: Worker) -> None:
        """The process and its socket have come to their end."""
        self.members.remove(worker)
        how = worker.how
        if not worker.retired or worker.in_hand:
            self.owner.ended(worker, how or "it left early")
        elif how and worker.ready:
            log.warning("%r left: %s", worker, how)
        if worker.counts:
            self._blocks.retire(worker.counts.name)
        if not self.members:
            self._empty.set()
        if self._stopping or worker.retired:
            return
        successor = next((one for one in self.members if one.replaces is worker), None)
        if successor:
            successor.replaces = None
            self._blocks.restarts += 1
        elif self._started and not self._started.done() and worker.refused:
            self._stopping = True
            self._started.set_exception(worker.refused)
        elif self._reloading is not None and worker in self._reloading:
            self._give_up_reload(worker)
        elif worker.replaces and not worker.ready:
            self._told_refusal(worker)
            log.error("%r: its successor does not start, it goes on", worker.replaces)
            worker.replaces.limit = worker.replaces.given + (self._settings.max_requests or 1000)
        else:
            self._replace(worker)

    def _replace(self, worker: Worker) -> None:
        """Start a successor, later the more have died at once; after five of these in a row stop the server."""
        pause = 0.0
        if worker.refused and any(one.ready for one in self.members):
            # What is on disk does not start any more, but others serve.
            self._unready += 1
            pause = _LAST_PAUSE if self._unready >= _IN_A_ROW else _FIRST_PAUSE * 2**self._unready
            self._told_refusal(worker)
            self.owner.not_replaced()
        elif not worker.ready:
            self._unready += 1
            pause = _FIRST_PAUSE * 2 ** (self._unready - 1)
            self.owner.not_replaced()
        elif not worker.finished and not worker.killed and monotonic() - worker.born < _AT_ONCE:
            self._at_once += 1
            pause = _FIRST_PAUSE * 2 ** (self._at_once - 1)
        died = max(self._at_once, 0 if worker.refused and self.members else self._unready)
        if died >= _IN_A_ROW:
            why = str(worker.refused) if worker.refused else f"the last: {worker.how}"
            error = WorkersError(
                f"{_IN_A_ROW} workers in a row died at once ({why})", 1, worker.refused.trace if worker.refused else ""
            )
            self._stopping = True
            if self._started and not self._started.done():
                self._started.set_exception(error)
            else:
                self.owner.failed(error)
            return
        if worker.ready:
            self._blocks.restarts += 1
        if pause:
            self._later(min(pause, _LAST_PAUSE), self._spawn)
        else:
            self._spawn()

    def progress(self) -> None:
        """A worker has handled something."""
        self._at_once = 0

    def _told_refusal(self, worker: Worker) -> None:
        """Say once why a bot that has started before does not now."""
        if worker.refused and not self._told_failure:
            self._told_failure = True
            log.error("the bot does not start any more: %s%s", worker.refused, _below(worker.refused.trace))
        elif not worker.refused:
            log.error("%r died before it was ready: %s", worker, worker.how)

    async def stop(self, seconds: float) -> None:
        """Tell all to leave, with so many seconds for what they have in hand; kill who does not."""
        self._stopping = True
        self._end_renewal(False)
        self._renewal, self._wanted = self._wanted, None
        self._end_renewal(False)
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        for worker in list(self.members):
            self.retire(worker, seconds)
        if self.members:
            self._empty.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._empty.wait(), seconds + _TO_LEAVE + _LOST + 1)
        for task in self._tasks:
            task.cancel()
        for timer in self._timers:
            timer.cancel()

    def hurry(self) -> None:
        """Kill, in a moment, who has not left by then. Before `stop`, too."""
        if self._stopping:
            for worker in self.members:
                worker.send(Kind.LEAVE, b"0")
                self._later(_HURRIED, worker.kill, "it did not leave")

    # ------------------------------------------------------------ heartbeat

    def _beat(self) -> None:
        beat = min(_LONGEST_BEAT, self._settings.worker_timeout / _BEATS)
        for worker in self.members:
            if not worker.ready or worker.killed:
                continue
            # Counted in beats, not by the clock: when the door itself was stopped for a while, all were silent.
            worker.quiet = worker.silent > 0.0
            worker.silent += beat
            if worker.silent > self._settings.worker_timeout + beat:
                self._end_hung(worker)
            else:
                worker.send(Kind.PING)
        self._later(beat, self._beat)

    def _end_hung(self, worker: Worker) -> None:
        timeout = self._settings.worker_timeout
        log.error("%r has not answered for %g s: it tells where it is, then it is killed", worker, timeout)
        worker.killed = f"it did not answer for {timeout:g} s"
        worker.signal(signal.SIGQUIT)  # faulthandler prints the stacks, whatever the interpreter does
        self._later(_TO_DUMP, worker.kill, "")

    # ------------------------------------------------------------ reload

    def reload(self, done: Callable[[], None] | None = None) -> None:
        """Start as many new workers, and retire the old ones when all are ready. `done`: told when that has ended."""
        if done:
            self._on_reload.append(done)
        if self._stopping or self._started is None or not self._started.done():
            return
        if self._reloading is not None:
            self._reload_again = True
            return
        log.info("reloading: %d new workers start", self._settings.workers)
        self._reloading = []
        self._renewal, self._wanted = self._wanted, None
        for _ in range(self._settings.workers):
            self._reloading.append(self._spawn(renewal=self._renewal))

    async def renew(self, bots: Mapping[int, BotTable]) -> bool:
        """Reload with these bots, by their rows. False: the new workers don't start, and the old ones go on."""
        if self._stopping:
            return False
        self._wanted = wanted = _Renewal(bots, self._loop.create_future())
        self.reload()
        return await wanted.took_over

    def _end_renewal(self, took_over: bool) -> None:
        renewal, self._renewal = self._renewal, None
        if renewal and took_over:
            self._told = replace(self._told, bots=renewal.bots)
        if renewal and not renewal.took_over.done():  # nobody waits any more
            renewal.took_over.set_result(took_over)

    def recycle(self, worker: Worker) -> None:
        """Replace one worker: its successor starts first."""
        if self._stopping or worker.retired or self._reloading is not None:
            return
        if not any(one.replaces is worker for one in self.members):
            self._spawn(replaces=worker)

    def _swap(self) -> None:
        """When all new ones are ready, they take over."""
        new = self._reloading or []
        if not all(worker.ready for worker in new):
            return
        old = [worker for worker in self.members if worker not in new and not worker.retired]
        for worker in new:
            self.owner.joined(worker)
        for worker in old:
            self.retire(worker)
        self._end_renewal(True)
        log.info("reloaded: workers %s take over", ", ".join(str(worker.number) for worker in new))
        self._end_reload()

    def _give_up_reload(self, worker: Worker) -> None:
        why = worker.refused or WorkersError(f"a new worker died before it was ready ({worker.how})")
        log.error("the new code does not start, the old workers go on: %s%s", why, _below(why.trace))
        for one in self._reloading or []:
            if one in self.members:
                self.retire(one, 0.0)
        self._watch(worker.files)
        self._end_renewal(False)
        self._end_reload()

    def _end_reload(self) -> None:
        self._reloading = None
        if self._reload_again:
            self._reload_again = False
            self.reload()
            return
        told, self._on_reload = self._on_reload, []
        for done in told:
            done()

    def _watch(self, files: Iterable[str]) -> None:
        if self._settings.reload:
            for file in files:
                if file not in self._sources:
                    self._sources[file] = _version(file)

    def _poll(self) -> None:
        """Reload when a source file of the bot has changed."""
        changed = [file for file, known in self._sources.items() if _version(file) != known]
        for file in changed:
            self._sources[file] = _version(file)
        if changed:
            names = ", ".join(Path(file).name for file in changed[:3])
            log.info("%s changed", names if len(changed) <= 3 else f"{names} and others")
            self.reload()
        self._later(_POLL, self._poll)

    # ------------------------------------------------------------ timers and tasks

    def _later(self, seconds: float, what: Callable[..., object], *arguments: Any) -> None:
        def run() -> None:
            self._timers.discard(timer)
            what(*arguments)

        timer = self._loop.call_later(seconds, run)
        self._timers.add(timer)

    def _begin(self, coroutine: Any) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _version(file: str) -> tuple[int, int] | None:
    try:
        stat = Path(file).stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size


def _below(trace: str) -> str:
    return f"\n{trace.rstrip()}" if trace else ""
