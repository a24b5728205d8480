"""The handlers of several bots in one process."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fasthook.handlers import Handler, TargetError, adapt, complete, kinds_of, load
from fasthook.update import Update

if TYPE_CHECKING:
    from fasthook.bottables import BotTable

Lifespan = Callable[[Any], Any]

_THREADS = 32  # plain functions of a bot at once, if --concurrency allows as many


@dataclass(frozen=True)
class Loaded:
    """A bot that was imported and is not started."""

    bot_id: int
    value: Any
    handler: Handler
    lifespan: Lifespan | None

    @property
    def kinds(self) -> tuple[str, ...] | None:
        return kinds_of(self.value)


def load_bot(table: BotTable) -> Loaded:
    """Import the target of a table. TargetError: one line that names the table."""
    settings = table.settings
    try:
        target = load(table.target)
        complete(target.value, settings)  # a target with a bot of its own must be of this one
        handler = adapt(target.value, threads=min(settings.concurrency, _THREADS), settings=settings)
    except TargetError as error:
        words = str(error).replace("--token is", "token is")
        raise TargetError(f"{table.where}: {table.target}: {words}", error.code) from error.__cause__
    return Loaded(table.bot_id, target.value, handler, target.lifespan)


async def load_beside(table: BotTable) -> Loaded:
    """The same in a thread, while the loop goes on; who does not wait for its end any more leaves it behind.

    The module finds the server's loop as the one of its thread, as it would find it while the loop runs.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Loaded] = loop.create_future()

    def tell(loaded: Loaded | None, error: BaseException | None) -> None:
        if done.done():
            return
        if loaded is not None:
            done.set_result(loaded)
        elif error is not None:
            done.set_exception(error)

    def run() -> None:
        asyncio.set_event_loop(loop)
        loaded, failure = None, None
        try:
            loaded = load_bot(table)
        except BaseException as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(tell, loaded, failure)

    threading.Thread(target=run, name="fasthook-import", daemon=True).start()
    return await done


class _Shared:
    """A lifespan that is entered once for all bots of its module, in a task of its own: whoever leaves last ends it."""

    def __init__(self, made: Lifespan) -> None:
        self.users = 0
        self._made = made
        self._entered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._end = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None  # at its end

    async def enter(self, app: Any) -> Any:
        self.users += 1
        if self._task is None:
            self._task = asyncio.create_task(self._run(app))
        return await asyncio.shield(self._entered)

    async def leave(self) -> None:
        self.users -= 1
        if self.users == 0 and self._task is not None:
            self._end.set()
            if not self._entered.done():
                self._task.cancel()
            await self._task
            if self._failure is not None:
                raise self._failure

    async def _run(self, app: Any) -> None:
        try:
            async with self._made(app) as state:
                self._entered.set_result(state)
                await self._end.wait()
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and not self._entered.done():
                self._entered.cancel()
            elif not self._entered.done():
                self._entered.set_exception(error)
            elif isinstance(error, (Exception, SystemExit)):  # SystemExit out of a task would end the loop
                self._failure = error
            else:
                raise


class Running:
    """A bot whose handler has started."""

    def __init__(self, loaded: Loaded, scope: contextlib.AsyncExitStack, state: Any) -> None:
        self.loaded = loaded
        self.scope = scope
        self.state = state
        self.call = loaded.handler.call
        self.busy = 0  # calls under way
        self.idle: asyncio.Event | None = None


class Handlers:
    """Calls the handler of the update's bot. `app`: what lifespans are called with."""

    def __init__(self, app: Callable[[Loaded], Any]) -> None:
        self._app = app
        self._running: dict[int, Running] = {}
        self._lifespans: dict[Lifespan, _Shared] = {}

    async def call(self, update: Update) -> Any:
        bot = self._running[update.bot_id]
        update.state = bot.state
        bot.busy += 1
        try:
            return await bot.call(update)
        finally:
            bot.busy -= 1
            if bot.idle is not None and not bot.busy:
                bot.idle.set()

    @property
    def running(self) -> int:
        """Calls that cannot be cancelled and still run."""
        return sum(bot.loaded.handler.running for bot in self._running.values())

    async def start(self, loaded: Loaded) -> Running:
        """Start a bot, which is called when it has been put in its place."""
        async with contextlib.AsyncExitStack() as scope:
            state = None
            if loaded.lifespan is not None:
                shared = self._lifespans.get(loaded.lifespan)
                if shared is None:
                    shared = self._lifespans[loaded.lifespan] = _Shared(loaded.lifespan)
                scope.push_async_callback(self._leave, loaded.lifespan, shared)
                state = await shared.enter(self._app(loaded))
            await loaded.handler.start()
            scope.push_async_callback(loaded.handler.stop)
            return Running(loaded, scope.pop_all(), state)
        raise AssertionError  # nothing above suppresses an exception

    async def _leave(self, made: Lifespan, shared: _Shared) -> None:
        if shared.users == 1:
            self._lifespans.pop(made, None)
        await shared.leave()

    def put(self, bot: Running) -> Running | None:
        """From now on it is called; the one that was before."""
        old = self._running.get(bot.loaded.bot_id)
        self._running[bot.loaded.bot_id] = bot
        return old

    def get(self, bot_id: int) -> Running | None:
        return self._running.get(bot_id)

    def forget(self, bot: Running) -> None:
        """It is not called any more."""
        if self._running.get(bot.loaded.bot_id) is bot:
            del self._running[bot.loaded.bot_id]

    async def end(self, bot: Running, seconds: float) -> None:
        """Wait until its calls are over, for so long, and stop it."""
        if bot.busy:
            bot.idle = asyncio.Event()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(bot.idle.wait(), seconds)
        await bot.scope.aclose()

    async def start_all(self, loaded: list[Loaded]) -> None:
        """Start these; all or, with an exception, none."""
        for one in loaded:
            self.put(await self.start(one))

    async def stop(self) -> None:
        """Stop all, the last that started first."""
        async with contextlib.AsyncExitStack() as stack:
            for bot in self._running.values():
                stack.push_async_callback(bot.scope.aclose)
