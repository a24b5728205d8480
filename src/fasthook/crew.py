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
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from time import monotonic
from typing import Any, Protocol

from fasthook._core import Shares
from fasthook.bottables import BotTable
from fasthook.frames import FrameError, Kind, unpack
from fasthook.handlers import WorkersError
from fasthook.link import LOST, Worker
from fasthook.ops.blocks import Blocks, Member
from fasthook.reload import Reload
from fasthook.settings import Settings
from fasthook.sources import Sources
from fasthook.wording import below
from fasthook.worker import SetUp

log = logging.getLogger("fasthook.workers")

_AT_ONCE = 5.0  # seconds: a worker that ends sooner, and has begun nothing, has died at once
_IN_A_ROW = 5  # deaths at once that stop the server
_CRASHES = 30  # deaths with an update in hand that do so: ten updates that crash their workers
_FIRST_PAUSE, _LAST_PAUSE = 0.1, 30.0  # seconds before a worker that died at once is replaced
_LONGEST_PAUSE = 5.0  # seconds between two tries to start a process
_BEATS = 10  # pings in a --worker-timeout
_LONGEST_BEAT = 2.0  # seconds between two
_FIRST_START = 10.0  # seconds, at least, that the first start may take, of which nothing is known before
_NEXT = 5.0  # seconds that new code may take to start when there is newer code by then
_TO_DUMP = 1.0  # seconds from asking for the stacks to the kill
_EACH_DUMP = 0.2  # seconds that the stacks of one have to themselves, and the line before them
_TO_TELL = 0.05  # seconds of these for that line, which a thread writes
_TO_LEAVE = 10.0  # seconds, behind the drain, for the bot's lifespan to end
_HURRIED = 1.0  # seconds, instead of that and of the drain, when a stop is hurried
_POLL = 0.5  # seconds between looks at the source files


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


class SpawnError(WorkersError):
    """The system starts no process now: of files, of processes or of memory there are too few."""


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
        self.kinds: dict[str, list[str] | None] = {}  # of updates that are handled, by bot, from then on
        self._settings = settings
        self._told = SetUp(target, settings, answers, blocks.layout, os.getpid(), dict(enumerate(bots, 1)))
        self._unready = 0  # deaths in a row of workers that were not ready
        self.at_once = 0  # deaths of workers that were, and began nothing, since anything was handled
        self.crashes = 0  # deaths of those that had begun something, since then
        self.is_stopping = self._hurried = self._draining = False
        self.ends_badly = False  # a worker could not leave in order at the stop
        self._started: asyncio.Future[None] | None = None
        self.new_code: Callable[[], None] = lambda: None  # told when workers with newer code have taken over
        self.reload = Reload(self)
        self.sources = Sources()
        self._empty: asyncio.Event = asyncio.Event()
        self._longest_start = 0.0  # seconds
        self._dumped = 0.0  # until when stacks are written, by the loop's clock
        self._told_failure = False
        self.trouble = ""  # why no process can be started now
        self._timers: set[asyncio.TimerHandle] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Start all; they are ready at return. WorkersError: the bot does not start."""
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.create_future()
        try:
            for _ in range(self.size):
                self.spawn()
            self._beat()
            await self._started
        except BaseException:
            await self.stop(0.0)
            raise
        if self._settings.reload:
            self._poll()

    @property
    def size(self) -> int:
        """How many workers there should be."""
        return self._settings.workers

    def patience(self, seconds: float) -> float:
        """For how long a worker may be starting: so many seconds, or longer if this bot has needed long before."""
        return max(seconds, 3 * self._longest_start)

    @property
    def serves(self) -> bool:
        """All have started, and it does not stop."""
        return self._started is not None and self._started.done() and not self.is_stopping

    # ------------------------------------------------------------ start

    def spawn(self, replaces: Worker | None = None, bots: Mapping[int, BotTable] | None = None) -> Worker:
        """Start a process. `replaces`: retired when this one is ready. `bots`: others than the crew has.

        SpawnError: the system has no room for it.
        """
        told = self._told if bots is None else replace(self._told, bots=bots)
        concurrency, most = self._settings.concurrency, self._settings.max_requests
        taken = {one.number for one in self.members}
        number = next(number for number in itertools.count(1) if number not in taken)
        worker = Worker(self, number, concurrency + max(1, min(16, concurrency // 8)), replaces)
        if told.bots:
            worker.shares = Shares(worker.window, (table.bot_id for table in told.bots.values()))
        if most is not None:
            worker.limit = most - random.randrange(most // 10 + 1)
        ours, process = _start_process()
        worker.pid = process.pid
        try:
            threading.Thread(target=self._reap, args=(worker, process), name="fasthook-reap", daemon=True).start()
        except RuntimeError as error:
            ours.close()
            process.kill()
            process.wait()
            raise SpawnError(f"a worker process cannot be started: {error}") from None
        worker.counts = self._add_block(worker)
        self.members.append(worker)
        self._begin(self._connect(worker, ours, told))
        return worker

    def _add_block(self, worker: Worker) -> Member | None:
        try:
            return self._blocks.add(worker.name, worker.pid)
        except OSError as error:
            log.warning("%r is not counted in the metrics: %s", worker, error)
            return None

    def _reap(self, worker: Worker, process: subprocess.Popen[bytes]) -> None:
        _await_end(process)
        with contextlib.suppress(RuntimeError):  # the loop has ended
            # Reaped where it is signalled: until then no other process can have its number.
            self._loop.call_soon_threadsafe(lambda: worker.exited(process.wait()))

    async def _connect(self, worker: Worker, ours: socket.socket, told: SetUp) -> None:
        ours.setblocking(False)
        worker.socket = ours
        try:
            await self._loop.create_unix_connection(lambda: worker, sock=ours)
        except OSError as error:
            worker.kill(f"its socket cannot be used: {error.strerror}")
            worker.connection_lost(error)
            return
        counts = worker.counts
        made = replace(told, name=worker.name, block=counts.file if counts else None)
        worker.send(Kind.SET_UP, pickle.dumps(made))

    def told(self, worker: Worker, kind: int, payload: bytes) -> None:
        """A worker says something about itself."""
        if kind == Kind.READY:
            if worker.ready:
                raise FrameError("it is ready twice")
            said = unpack(Kind.READY, payload)
            worker.kinds = said["kinds"]
            self._learn(worker, said["token"])
            if not worker.refused:
                self._ready(worker, said["files"])
        elif kind == Kind.REFUSED:
            said = unpack(Kind.REFUSED, payload)
            worker.files = said["files"]
            worker.refused = WorkersError(said["line"], said["code"], said["trace"])
        elif kind == Kind.ASKS:
            self.recycle(worker)
        elif kind == Kind.SOURCES:
            self.watch(unpack(Kind.SOURCES, payload)["files"])

    def kinds_of(self, bot_id: int) -> tuple[str, ...] | None:
        """The kinds of updates that a bot handles, as `fasthook.handlers.kinds_of` tells them."""
        kinds = self.kinds.get(str(bot_id))
        return None if kinds is None else tuple(kinds)

    def _learn(self, worker: Worker, token: str | None) -> None:
        """What the first worker knows of its bot; the others have to have the same token."""
        if self._started and not self._started.done() and not any(one.ready for one in self.members):
            self.kinds = worker.kinds
            if token != self.token:
                self.token = token
                self._told = replace(self._told, settings=replace(self._settings, token=token), learnt=True)
        elif token != self.token:
            worker.refused = WorkersError("the bot has another token in each worker process")
            worker.kill("its bot has another token")

    def _ready(self, worker: Worker, files: list[str]) -> None:
        worker.ready = worker.writable = True
        worker.silent = 0.0
        self._longest_start = max(self._longest_start, monotonic() - worker.born)
        self._unready = 0
        self._told_failure = False
        self.watch(files)
        if self.is_stopping:
            self.retire(worker, 0.0)
            return
        if self.reload.brings(worker):
            self.reload.ready()
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
        if self._hurried:
            seconds = 0.0
        worker.send(Kind.LEAVE, repr(seconds).encode())
        worker.later(_HURRIED if self._hurried else seconds + _TO_LEAVE, worker.kill, "it did not leave")

    def gone(self, worker: Worker) -> None:
        """The process and its socket have come to their end."""
        self.members.remove(worker)
        how = worker.how
        gave_back = worker.gave_back
        blames = worker.begun > worker.ran or (worker.counts is None and bool(worker.in_hand))
        if not worker.retired or worker.in_hand:
            self.owner.ended(worker, how or "it left early")
        if worker.retired and worker.ready and how and gave_back:
            self.ends_badly = self.ends_badly or (self.is_stopping and not worker.killed)
            log.warning("%r left: %s", worker, how)
        if worker.counts:
            self._blocks.retire(worker.counts.name)
        replaces = worker.replaces
        worker.forget()
        successor = next((one for one in self.members if one.replaces is worker), None)
        if successor:
            successor.replaces = None
        if not self.members:
            self._empty.set()
        if self.is_stopping or worker.retired:
            return
        if successor:
            self._blocks.restarts += 1
        elif self._started and not self._started.done() and (worker.refused or worker.late):
            self.is_stopping = True
            late = f"the bot {worker.killed.removeprefix('it ')}: --worker-timeout gives it longer"
            self._started.set_exception(worker.refused or WorkersError(late))
        elif self.reload.brings(worker):
            self.reload.give_up(worker)
        elif replaces and not worker.ready:
            self._told_refusal(worker)
            self._goes_on(replaces, "its successor does not start")
        else:
            self._replace(worker, blames)

    def _goes_on(self, worker: Worker, why: str) -> None:
        log.error("%r goes on: %s", worker, why)
        worker.limit = worker.given + (self._settings.max_requests or 1000)

    def _replace(self, worker: Worker, blames: bool) -> None:
        """Start a successor, later the more have died at once; after five of these in a row stop the server.

        `blames`: an update that it had begun may have been its end. Such deaths end with a dead letter, so that more
        of them are borne; but not without end, where the bot crashes whatever it is given.
        """
        pause = 0.0
        others = any(one.ready for one in self.members)
        if (worker.refused or worker.late) and others:
            # What is on disk does not start any more, but others serve.
            self._unready += 1
            pause = _LAST_PAUSE if self._unready >= _IN_A_ROW else _FIRST_PAUSE * 2**self._unready
            self._told_refusal(worker)
            self.owner.not_replaced()
        elif not worker.ready:
            self._unready += 1
            pause = _FIRST_PAUSE * 2 ** (self._unready - 1)
            self.owner.not_replaced()
        elif not (worker.finished or worker.killed or blames) and monotonic() - worker.born < _AT_ONCE:
            self.at_once += 1
            pause = _FIRST_PAUSE * 2 ** (self.at_once - 1)
        elif blames:
            self.crashes += 1
        starts = (worker.refused and self.members) or (worker.late and others)
        died = max(self.at_once, 0 if starts else self._unready)
        if died >= _IN_A_ROW or self.crashes >= _CRASHES:
            why = str(worker.refused) if worker.refused else f"the last: {worker.how}"
            what = "died at once" if died >= _IN_A_ROW else "died of what they were given"
            if worker.refused:
                to_do = "mend the bot"
            elif died >= _IN_A_ROW:
                to_do = "mend what the bot does at its start or in threads of its own; the log above has more"
            else:
                to_do = "mend the handler; `fasthook dead list` shows the updates, and the log above has more"
            error = WorkersError(
                f"{max(died, self.crashes)} workers in a row {what} ({why}): {to_do}", 1,
                worker.refused.trace if worker.refused else "",
            )  # fmt: skip
            self.is_stopping = True
            if self._started and not self._started.done():
                self._started.set_exception(error)
            else:
                self.owner.failed(error)
            return
        if worker.ready:
            self._blocks.restarts += 1
        if pause:
            self._later(min(pause, _LAST_PAUSE), self._fill)
        else:
            self._fill()

    def _fill(self, pause: float = _FIRST_PAUSE) -> None:
        """Start a worker in the place of one that died, if there are too few; again later, if there is no room."""
        there = [one for one in self.members if not (one.retired or one.replaces or self.reload.brings(one))]
        if self.is_stopping or len(there) >= self.size:
            return
        try:
            self.spawn()
        except SpawnError as error:
            if not self.trouble:
                log.error("%s: tried again until one can", error)
            self.trouble = str(error)
            self._blocks.refused += 1
            self.owner.not_replaced()
            self._later(pause, self._fill, min(2 * pause, _LONGEST_PAUSE))
        else:
            self.trouble = ""

    def _told_refusal(self, worker: Worker) -> None:
        """Say once why a bot that has started before does not now."""
        if worker.refused and not self._told_failure:
            self._told_failure = True
            log.error("the bot does not start any more: %s%s", worker.refused, below(worker.refused.trace))
        elif not worker.refused:
            log.error("%r died before it was ready: %s", worker, worker.how)

    def drain(self) -> None:
        """From now on those that die are replaced, and no others: all leave soon."""
        self._draining = True
        for one in list(self.members):
            if one.replaces and not one.ready:
                one.replaces = None
                self.retire(one, 0.0)

    async def stop(self, seconds: float) -> None:
        """Tell all to leave, with so many seconds for what they have in hand; kill who does not."""
        self.is_stopping = True
        self.reload.stop()
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        for worker in list(self.members):
            self.retire(worker, seconds)
        if self.members:
            self._empty.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._empty.wait(), seconds + _TO_LEAVE + LOST + 1)
        for task in self._tasks:
            task.cancel()
        for timer in self._timers:
            timer.cancel()

    def hurry(self) -> None:
        """Kill, in a moment, who has not left by then, in the stop under way or to come."""
        self._hurried = True
        if self.is_stopping:
            for worker in list(self.members):
                self.retire(worker, 0.0)

    # ------------------------------------------------------------ heartbeat

    def _beat(self) -> None:
        timeout = self._settings.worker_timeout
        beat = min(_LONGEST_BEAT, timeout / _BEATS)
        if self.serves:
            to_start = self.patience(min(timeout, _NEXT) if self.reload.is_wanted_again else timeout)
        else:
            to_start = self.patience(max(timeout, _FIRST_START))
        for worker in self.members:
            if worker.killed or worker.said_all:
                continue
            # Counted in beats, not by the clock: when the door itself was stopped for a while, all were silent.
            worker.quiet = worker.silent > 0.0
            worker.silent += beat
            if not worker.ready:
                if worker.silent > to_start:
                    worker.late = True
                    self._end_hung(worker, f"has not come to the end of its start in {to_start:.0f} s")
            elif worker.silent > timeout + beat:
                self._end_hung(worker, f"has not answered for {timeout:g} s")
            else:
                worker.send(Kind.PING)
        self._later(beat, self._beat)

    def _end_hung(self, worker: Worker, why: str) -> None:
        worker.killed = f"it {why}"
        now = self._loop.time()
        begins = max(now, self._dumped)  # several at once would be mixed letter by letter
        self._dumped = begins + _EACH_DUMP
        if begins > now:
            worker.later(begins - now, self._dump, worker, why)
        else:
            self._dump(worker, why)

    def _dump(self, worker: Worker, why: str) -> None:
        log.error("%r %s: it tells where it is, then it is killed", worker, why)
        # faulthandler prints the stacks, whatever the interpreter does
        worker.later(_TO_TELL, worker.signal, signal.SIGQUIT)
        worker.later(_TO_DUMP, worker.kill, "")

    # ------------------------------------------------------------ new code

    def set_bots(self, bots: Mapping[int, BotTable]) -> None:
        """From now on workers have these, by their rows."""
        self._told = replace(self._told, bots=bots)

    def watch(self, files: Iterable[str]) -> None:
        """Reload when one of these changes, if that is wanted."""
        if self._settings.reload:
            self.sources.add(files)

    def recycle(self, worker: Worker) -> None:
        """Replace one worker: its successor starts first. While a reload is under way it is seen to at its end."""
        if self.is_stopping or self._draining or worker.retired:
            return
        worker.used_up = self.reload.is_under_way
        if worker.used_up:
            return
        if any(one.replaces is worker for one in self.members):
            return
        try:
            self.spawn(replaces=worker)
        except SpawnError as error:
            self._blocks.refused += 1
            self._goes_on(worker, str(error))

    def _poll(self) -> None:
        """Reload when a source file of the bot has changed."""
        if names := self.sources.changed():
            log.info("%s changed", ", ".join(names) if len(names) <= 3 else f"{', '.join(names[:3])} and others")
            self.reload.begin()
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


def _start_process() -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """A worker process, and the door's end of its socket pair. SpawnError: the system has no room for it."""
    ours: socket.socket | None = None
    try:
        ours, theirs = socket.socketpair()
        with theirs:
            # A fresh interpreter; its own process group, so that a terminal's Ctrl-C reaches the door alone.
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "fasthook.worker", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                # Where the door was started without one, its descriptor is something else's by now.
                stdout=None if sys.stdout else subprocess.DEVNULL,
                stderr=None if sys.stderr else subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                process_group=0,
            )
    except OSError as error:
        if ours:
            ours.close()
        raise SpawnError(f"a worker process cannot be started: {error.strerror}") from None
    return ours, process


def _await_end(process: subprocess.Popen[bytes]) -> None:
    """Wait for the end of a worker; unless it left by itself, so do the processes that its bot has started.

    They are killed before the worker is reaped: until then no other process can have its number.
    """
    if not hasattr(os, "waitid"):  # macOS before Python 3.13
        process.wait()
        return
    try:
        ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    except ChildProcessError:  # SIGCHLD is ignored: the system reaps at once
        return
    if ended and (ended.si_code != os.CLD_EXITED or ended.si_status):
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: none of it is alive
            os.killpg(process.pid, signal.SIGKILL)
