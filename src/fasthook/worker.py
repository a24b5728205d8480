"""A worker process: imports the bot, handles what the front door delivers, and tells what became of each update.

Started by `crew.py` as `python -m fasthook.worker FD`, with one end of a socket pair as that descriptor.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import logging
import os
import pickle
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, cast

import orjson

from fasthook import orphans
from fasthook._core import Shares
from fasthook._scan import restore
from fasthook.bottables import BotTable
from fasthook.dispatch import Dispatcher, HandlerTimeout, Runs
from fasthook.frames import FROM_DOOR, HEAD, LARGEST_OUTCOME, UPDATE, FrameError, Kind, Reader, frame, pack
from fasthook.handlers import Reply, StartError, TargetError, adapt, complete, kinds_of, load
from fasthook.handlers.ending import tell_end
from fasthook.lanes import GaveUp
from fasthook.logs import set_up
from fasthook.ops.beat import Beat
from fasthook.ops.blocks import Counts, HandlingByBot, Layout, open_block
from fasthook.queues import Delivery
from fasthook.settings import Settings
from fasthook.sources import compile_anew, imported
from fasthook.telegram.files import has_files, packed
from fasthook.telegram.redact import redacted
from fasthook.turns import Turns
from fasthook.update import Update
from fasthook.wording import bots_frames, one_line

log = logging.getLogger("fasthook")

THREADS = 32  # plain functions at once, if --concurrency allows as many
_ORPHAN = 5.0  # seconds that an update may still take when the front door is gone
_FAREWELL = 5.0  # seconds that a worker which leaves waits for the door
_LONGEST_TRACE = 64 << 10  # characters of a traceback that are sent
_LOOK = 1.0  # seconds between looks for modules that were imported meanwhile, and for the door


@dataclass(frozen=True, slots=True)
class SetUp:
    """What a worker is told before anything else.

    `answers`: what a handler returns may go into an answer to Telegram. `bots`: where there are several, by the row in
    which each counts; then `target` is not used. `learnt`: the token is the one that the first workers found in the
    bot.
    """

    target: str
    settings: Settings
    answers: bool
    layout: Layout
    door: int  # the process that waits for this one
    bots: Mapping[int, BotTable] = field(default_factory=dict)
    learnt: bool = False
    name: str = ""  # in the log
    block: Path | None = None  # of what it counts


class Refused(Exception):
    """The bot does not start. `code`: the exit code for it, as with one process. `trace`: the bot's part of it."""

    def __init__(self, line: str, code: int, error: BaseException | None) -> None:
        super().__init__(line)
        self.code = code
        self.files = _files_of(error) if error else []
        self.trace = "".join(traceback.format_exception(bots_frames(error))) if error else ""


def main() -> int:
    """The process, from its start to its end; the exit code."""
    faulthandler.enable()
    faulthandler.register(signal.SIGQUIT, all_threads=True, chain=False)  # how the door asks for the stacks
    signal.signal(signal.SIGINT, lambda *_: None)  # of a terminal, to all its processes: the door decides
    signal.signal(signal.SIGTERM, lambda *_: None)  # until there is somebody to ask
    ours = socket.socket(fileno=int(sys.argv[1]))
    ours.set_inheritable(False)
    made = _set_up(ours)
    if made is None:
        return 0  # the door is gone already
    threading.Thread(target=_watch_door, args=(made.door,), name="fasthook-door", daemon=True).start()
    settings = made.settings
    redact = set_up(settings, made.name, [text for table in made.bots.values() for text in table.hidden])
    if settings.reload:
        compile_anew()
    try:
        return _handle(ours, made, _counts(made))
    except Refused as error:
        told = {
            "line": redact(str(error)),
            "code": error.code,
            "trace": redact(error.trace),
            "files": [*error.files, *imported()],
        }
        with contextlib.suppress(OSError):
            ours.setblocking(True)
            ours.sendall(frame(Kind.REFUSED, payload=pack(told)))
        return 1


def _set_up(ours: socket.socket) -> SetUp | None:
    head = ours.recv(HEAD.size, socket.MSG_WAITALL)
    if len(head) < HEAD.size:
        return None
    length, _, _ = HEAD.unpack(head)
    payload = ours.recv(length - HEAD.size, socket.MSG_WAITALL)
    if len(payload) < length - HEAD.size:
        return None
    made: SetUp = pickle.loads(payload)  # from the process that started this one
    return made


def _watch_door(door: int) -> None:
    """End this process a while after the door has, whatever the loop does then, and the import, and the lifespan.

    While the door lives it ends workers that are blocked: only it knows that not all were stopped for a while.
    """
    while os.getppid() == door:
        time.sleep(_LOOK)
    faulthandler.dump_traceback_later(2 * _ORPHAN, exit=True)


def _counts(made: SetUp) -> Counts:
    if made.block is None:
        return Counts.alone(made.layout)
    return Counts(open_block(made.block, made.layout), made.layout)


def _handle(ours: socket.socket, made: SetUp, counts: Counts) -> int:
    import uvloop

    name = f"{made.target}: " if not made.bots else ""
    try:
        bots: _Bot | _Bots = _Bots(made, counts) if made.bots else _Bot(made, counts)
    except TargetError as error:
        raise Refused(f"{name}{error}", error.code, error.__cause__) from None
    except BaseException as error:  # sys.exit() at import, for instance
        raise Refused(f"{name}the import ends in {one_line(error)}", 1, error) from None
    with contextlib.ExitStack() as logs, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        for token in bots.tokens:
            logs.enter_context(redacted(token))
        stuck, code = runner.run(_serve(ours, made, bots, counts))
        if stuck:  # the end of the loop and of the interpreter would wait for them
            log.error("%d handlers still run and cannot be stopped: leaving without them", stuck)
            sys.stdout.flush()
            logging.shutdown()
            os._exit(code)
    return code


class _Bot:
    """The bot of a worker. TargetError: it cannot be imported, or its token is another than the one that is set."""

    turns: Turns | None = None

    def __init__(self, made: SetUp, counts: Counts) -> None:
        self._target = load(made.target)
        self._settings = settings = _complete(self._target.value, made)
        threads = min(settings.concurrency, THREADS)
        self._handler = adapt(self._target.value, threads=threads, settings=settings)
        self.call = self._handler.call
        self.handling: Runs = counts.handling
        self.token = settings.token
        self.tokens = [settings.token]
        self.kinds = {str(settings.bot_id): kinds_of(self._target.value)}

    async def start(self, scope: contextlib.AsyncExitStack) -> Any:
        """Start it; what its lifespan yielded."""
        state, made = None, self._target.lifespan
        if made:
            from fasthook.asgi import Hook

            state = await scope.enter_async_context(made(Hook.of(self._target.value, self._settings, lifespan=made)))
        await self._handler.start()
        scope.push_async_callback(self._handler.stop)
        return state

    @property
    def running(self) -> int:
        return self._handler.running


class _Bots:
    """The bots of a worker, where there are several: each has its share of --concurrency here, too."""

    token: str | None = None

    def __init__(self, made: SetUp, counts: Counts) -> None:
        from fasthook.asgi import Hook
        from fasthook.handlers.several import Handlers, load_bot

        tables = {table.bot_id: table for table in made.bots.values()}
        rows = {table.bot_id: row for row, table in made.bots.items()}
        self._loaded = [load_bot(table) for table in tables.values()]
        self.kinds = {str(one.bot_id): one.kinds for one in self._loaded}
        self._handlers = Handlers(lambda one: Hook.of(one.value, tables[one.bot_id].settings, lifespan=one.lifespan))
        self.call = self._handlers.call
        self.handling: Runs = HandlingByBot(counts, rows.__getitem__)
        self.turns: Turns | None = Turns(tables, Shares(made.settings.concurrency, tables))
        self.tokens = [table.settings.token for table in tables.values()]

    async def start(self, scope: contextlib.AsyncExitStack) -> None:
        """Start all; each call sets the state of its update."""
        scope.push_async_callback(self._handlers.stop)
        await self._handlers.start_all(self._loaded)

    @property
    def running(self) -> int:
        return self._handlers.running


def _complete(value: Any, made: SetUp) -> Settings:
    """The settings with the bot's own token. TargetError: it is another than the one that is set or that was found."""
    try:
        return complete(value, made.settings)
    except TargetError as error:
        if made.learnt:
            raise TargetError("the bot's token is another than at the start: the server must be restarted") from None
        raise error from None


async def _serve(ours: socket.socket, made: SetUp, bots: _Bot | _Bots, counts: Counts) -> tuple[int, int]:
    """Handle until it is time to leave; how many handlers still run, and the exit code."""
    scope = contextlib.AsyncExitStack()
    try:
        state = await bots.start(scope)
    except (Exception, SystemExit) as error:
        await _close(scope)
        raise _refusal(error) from None
    with orphans.belongs(made.settings.state_dir):
        work = _Work(made, bots, state, counts)
        await asyncio.get_running_loop().create_unix_connection(lambda: work, sock=ours)
        work.start()
        seconds = await work.leaves
        await work.end(seconds)
        code = await _close(scope)
        await work.close()
    return bots.running + work.dispatcher.stuck, code


async def _close(scope: contextlib.AsyncExitStack) -> int:
    """Let the bot end; the exit code."""
    try:
        await scope.aclose()
    except (Exception, SystemExit) as error:
        tell_end(error)
        return 1
    return 0


def _refusal(error: BaseException) -> Refused:
    if isinstance(error, StartError):
        return Refused(str(error), 1, None)
    if isinstance(error, SystemExit):
        return Refused(f"the bot does not start: its lifespan calls sys.exit({error.code!r})", 1, None)
    return Refused(f"the bot does not start: {one_line(error)}", 1, error)


class _Work(asyncio.Protocol):
    """The worker's end of the socket pair, and the dispatcher behind it."""

    def __init__(self, made: SetUp, bots: _Bot | _Bots, state: Any, counts: Counts) -> None:
        self._state = state
        self._counts = counts
        self._settings = settings = made.settings
        self._in_answers = made.answers and settings.ack == "handled"
        self._ready = {"token": bots.token, "kinds": bots.kinds}
        self._loop = asyncio.get_running_loop()
        self._reader = Reader(self._take, FROM_DOOR)
        self._out: list[bytes] = []
        self._has_said_all = False
        self._replies: dict[Update, bytes] = {}
        self._files: set[str] = set()
        self._modules = 0
        self._closed = self._loop.create_future()
        self._timers: dict[Callable[[], None], asyncio.TimerHandle] = {}
        self.leaves: asyncio.Future[float] = self._loop.create_future()  # seconds for what is in hand
        # Retries and order are the door's.
        self.dispatcher = Dispatcher(
            bots.call,
            turns=bots.turns,
            reply=self._reply,
            bury=self._failed,
            settled=self._settled,
            concurrency=settings.concurrency,
            timeout=settings.handler_timeout,
            retries=0,
            ordered=False,
            handling=bots.handling,
        )

    def start(self) -> None:
        """Say that deliveries may come."""
        self.dispatcher.start()
        self._beat = Beat(self._counts)
        signal.signal(signal.SIGTERM, self._asked)
        self._files = set(imported())
        self._modules = len(sys.modules)
        self._send(Kind.READY, payload=pack(self._ready | {"files": sorted(self._files)}))
        if self._settings.reload:
            self._look()

    async def end(self, seconds: float) -> None:
        """Finish what is in hand, for so many seconds, and give back the rest, but for what cannot be stopped."""
        left = await self.dispatcher.drain(seconds)
        run_on = self.dispatcher.run_on
        for delivery in left:
            self._send(Kind.RUNS_ON if delivery in run_on else Kind.BACK, delivery.place)

    async def close(self) -> None:
        """Let what was sent reach the door."""
        for timer in self._timers.values():
            timer.cancel()
        self._beat.stop()
        self._flush()
        self._has_said_all = True
        if not self._transport.is_closing():
            # The door closes the socket when it has read that this is the end; a door that writes meanwhile finds it
            # open.
            self._transport.write_eof()
            await asyncio.wait([self._closed], timeout=_FAREWELL)
        self._transport.close()
        await self._closed

    # ------------------------------------------------------------ from the door

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none of asyncio's

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
        except FrameError as error:
            log.error("something else reads from this worker's socket: %s", error)
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed.set_result(None)
        if not self.leaves.done():
            log.warning("the front door is gone: leaving")
            self.leaves.set_result(_ORPHAN)
        for timer in self._timers.values():
            timer.cancel()
        faulthandler.dump_traceback_later(2 * _ORPHAN, exit=True)  # nobody is left to end this process

    def _take(self, kind: int, number: int, payload: bytes) -> None:
        if kind == Kind.DELIVER:
            attempt, bot_id, received_at, since = UPDATE.unpack_from(payload)
            update = restore(Update, payload[UPDATE.size :], bot_id, received_at, attempt)
            update.state = self._state
            delivery = Delivery(update, number)
            delivery.since = since
            self.dispatcher.submit(delivery)
        elif kind == Kind.PING:
            self._send(Kind.PONG)
        elif kind == Kind.LEAVE:
            if not self.leaves.done():
                self.leaves.set_result(float(payload))
            elif float(payload) == 0.0:
                self.dispatcher.hurry()

    def _asked(self, number: int, _: FrameType | None) -> None:
        self._loop.call_soon_threadsafe(self._send, Kind.ASKS)

    # ------------------------------------------------------------ to the door

    def _send(self, kind: Kind, number: int = 0, payload: bytes = b"") -> None:
        if self._has_said_all:
            return
        if not self._out:
            self._loop.call_soon(self._flush)  # all outcomes of this turn of the loop in one write
        self._out.append(frame(kind, number, payload))

    def _flush(self) -> None:
        out, self._out = self._out, []
        if out and not self._transport.is_closing():
            self._transport.write(b"".join(out))

    def _reply(self, update: Update, result: Any) -> Awaitable[None] | None:
        """Keep what the handler returned for the frame that tells of its end: the door sends it, at its rates.

        A method of a library's own, if it cannot go into an answer, is called through that library, as in one process.
        """
        if isinstance(result, Reply) and not self._in_answers:
            return result.send()
        try:
            reply = packed(result) if isinstance(result, dict) and has_files(result) else orjson.dumps(result)
        except (TypeError, OSError) as error:
            why = error if isinstance(result, dict) else f"{type(result).__name__} is no Bot API method"
            log.error("update %d: what the handler returned cannot be sent: %s", update.update_id, why)
            return None
        if len(reply) > LARGEST_OUTCOME - HEAD.size:
            raise GaveUp(f"the handler returned {len(reply)} bytes", "reply failed")
        self._replies[update] = reply
        return None

    def _settled(self, delivery: Delivery) -> None:
        if delivery.failure is None:
            self._send(Kind.DONE, delivery.place, self._replies.pop(delivery.update, b""))

    async def _failed(self, delivery: Delivery) -> None:
        error = delivery.failure
        assert error is not None
        told = {
            "line": one_line(error),
            "reason": error.reason if isinstance(error, (GaveUp, HandlerTimeout)) else "failed",
            "final": isinstance(error, GaveUp),
            "trace": _trace(error),
        }
        self._send(Kind.FAILED, delivery.place, pack(told))

    # ------------------------------------------------------------ timers

    def _later(self, seconds: float, what: Callable[[], None]) -> None:
        self._timers[what] = self._loop.call_later(seconds, what)

    def _look(self) -> None:
        """Tell of source files that were imported after the start."""
        if len(sys.modules) != self._modules:
            self._modules = len(sys.modules)
            more = set(imported()) - self._files
            self._files |= more
            if more:
                self._send(Kind.SOURCES, payload=pack({"files": sorted(more)}))
        self._later(_LOOK, self._look)


def _files_of(error: BaseException) -> list[str]:
    """The files that a failed import was in: who mends it will change one of them."""
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename:
        files.append(error.filename)
    return [file for file in files if Path(file).is_file()]


def _trace(error: BaseException) -> str:
    text = "".join(traceback.format_exception(error))
    return text if len(text) <= _LONGEST_TRACE else "…" + text[-_LONGEST_TRACE:]


if __name__ == "__main__":
    # What is pickled names the module by its own name, not `__main__`.
    from fasthook.worker import main as own_main

    sys.exit(own_main())
