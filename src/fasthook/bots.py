"""The bots of a server that has several: whose path is whose, and how they come and go while it runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from fasthook._core import Gate, Shares
from fasthook.bottables import BotTable, Configured
from fasthook.handlers import TargetError
from fasthook.handlers.several import Handlers, Loaded, Running, load_beside, load_bot
from fasthook.logs import Redaction
from fasthook.settings import Settings, SettingsError, flag
from fasthook.telegram.account import Account
from fasthook.wording import one_line

if TYPE_CHECKING:
    from fasthook.lanes import Lanes
    from fasthook.queues import Queue
    from fasthook.workers import Workers

log = logging.getLogger("fasthook")

_MORE = 16  # bots that may come while the server runs, beside those that were there
_LOOK = 0.05  # seconds between looks whether a bot that left has an update in hand


class ChangeError(Exception):
    """The file says something that cannot be while the server runs. The message is one line."""


@dataclass(frozen=True)
class _Change:
    """What is different in a file."""

    tables: dict[int, BotTable]
    added: list[BotTable]
    changed: list[BotTable]
    removed: list[BotTable]

    def __str__(self) -> str:
        kinds = {"added": self.added, "changed": self.changed, "removed": self.removed}
        parts = [f"{word} {', '.join(str(one.bot_id) for one in some)}" for word, some in kinds.items() if some]
        return "; ".join(parts) or "no bot has changed"


class Bots:
    """`configured`: what the file said at the start. `reread`: reads it again, SettingsError. `redact`: told of what no
    log may show.

    TargetError: one line that names the table; its `__cause__` is the bot's own error.
    """

    def __init__(
        self,
        configured: Configured,
        *,
        reread: Callable[[], Configured] | None = None,
        redact: Redaction | None = None,
    ) -> None:
        self.settings = configured.settings
        self.tables: dict[int, BotTable] = {table.bot_id: table for table in configured.tables}
        self.room = len(self.tables) + _MORE
        self._reread: Callable[[], Configured] | None = reread
        self.redact = redact or Redaction([])  # every bot's secrets, of those that are gone, too
        self.redact.hide(self.hidden)
        self._in_workers = configured.settings.in_processes
        self._loaded: dict[int, Loaded] = {}
        if not self._in_workers:
            self._loaded = {table.bot_id: load_bot(table) for table in configured.tables}
        self.app: Any = None
        self.handlers = Handlers(lambda loaded: self.app)
        self._accounts = {bot_id: self._account(table) for bot_id, table in self.tables.items()}
        self._shares: list[Shares] = []
        self._gate: Gate
        self._lanes: Lanes
        self._queue: Queue
        self._workers: Workers | None = None
        self._leaving: set[asyncio.Task[None]] = set()
        self._preparing: asyncio.Task[list[Running]] | None = None
        self._again = self._ended = False

    def _account(self, table: BotTable, loaded: Loaded | None = None) -> Account:
        loaded = loaded or self._loaded.get(table.bot_id)
        return Account(table.settings, lambda: loaded.kinds if loaded else self._kinds_in_workers(table.bot_id))

    def _kinds_in_workers(self, bot_id: int) -> tuple[str, ...] | None:
        return self._workers.crew.kinds_of(bot_id) if self._workers else None

    @property
    def hidden(self) -> list[str]:
        """What no log may show, of any bot."""
        return [text for table in self.tables.values() for text in table.hidden if text]

    def shares(self, size: int) -> Shares:
        """Places that the bots share, those that will come, too."""
        made = Shares(size, self.tables)
        self._shares.append(made)
        return made

    # ------------------------------------------------------------ start and stop

    def open_logs(self) -> None:
        for account in self._accounts.values():
            account.open()

    def open_routes(self, gate: Gate) -> None:
        self._gate = gate
        for table in self.tables.values():
            _open(gate, table)

    async def start_handlers(self) -> None:
        """Start what runs in this process; what `stop_handlers` ends, if this raises, too."""
        await self.handlers.start_all(list(self._loaded.values()))

    async def stop_handlers(self) -> None:
        await self.handlers.stop()
        for account in self._accounts.values():
            account.close_log()

    def serve(self, lanes: Lanes, queue: Queue, workers: Workers | None) -> None:
        """What takes and handles their updates is there; webhooks may be registered."""
        self._lanes, self._queue, self._workers = lanes, queue, workers
        for account in self._accounts.values():
            account.register()
        if workers is not None:
            workers.crew.new_code = self._register_again

    def _register_again(self) -> None:
        for account in self._accounts.values():
            account.register_again()

    async def stop_registering(self) -> None:
        """At the beginning of the end, when nobody is added or removed any more."""
        self._ended = True
        self._stop_preparing()
        for account in list(self._accounts.values()):  # one may leave meanwhile
            await account.stop_registering()

    async def close(self) -> None:
        """At the end of a drain."""
        if self._leaving:
            await asyncio.wait(self._leaving)
        for account in list(self._accounts.values()):  # one may leave meanwhile
            await account.close()

    def account(self, bot_id: int) -> Account | None:
        return self._accounts.get(bot_id)

    # ------------------------------------------------------------ while it runs

    async def reload(self) -> None:
        """Read the file again and serve what it says; if that cannot be, all stays as it is and the log says why."""
        self._again = True
        while self._again:
            self._again = False
            await self._reload_once()

    def reload_again(self) -> None:
        """While `reload` is under way: once more, and what has not started by now is given up."""
        self._again = True
        self._stop_preparing()

    def _stop_preparing(self) -> None:
        if self._preparing is not None:
            self._preparing.cancel()

    async def _reload_once(self) -> None:
        if self._reread is None or self._ended:
            return
        try:
            change = self._difference(self._reread())
            started = await self._prepared(change)
        except (SettingsError, TargetError, ChangeError) as error:
            log.error("nothing has changed: %s", error)
            return
        if started is None:
            log.info("what was about to start is given up")
            return
        if self._ended:  # a signal to stop came meanwhile
            for one in started:
                await one.scope.aclose()
            return
        self._apply(change, started)
        self._register_again()
        log.info("the bots are read again: %s", change)

    def _difference(self, now: Configured) -> _Change:
        if not now.tables:
            raise ChangeError("there is no [[bot]] in the file any more; to serve one bot without, start again")
        others = [
            one.name for one in fields(Settings) if getattr(now.settings, one.name) != getattr(self.settings, one.name)
        ]
        if others:
            log.warning("a restart is needed for what else has changed: %s", ", ".join(map(flag, others)))
        tables = {table.bot_id: self._own(table) for table in now.tables}
        for name in ("concurrency", "queue_size"):  # a larger one in the file is not that of this server
            if (has := getattr(self.settings, name)) < len(tables):
                raise ChangeError(f"{flag(name)} is {has} since the start, too few for {len(tables)} bots; start again")
        if len(tables.keys() | self._gate.rows.keys()) > self.room:
            raise ChangeError(f"there is no room for more than {self.room} bots since the start; start again")
        old = self.tables
        return _Change(
            tables,
            [table for bot_id, table in tables.items() if bot_id not in old],
            [table for bot_id, table in tables.items() if bot_id in old and not table.same(old[bot_id])],
            [table for bot_id, table in old.items() if bot_id not in tables],
        )

    def _own(self, table: BotTable) -> BotTable:
        """A table with the settings that this server runs with."""
        own = table.settings
        settings = replace(
            self.settings, token=own.token, secret=own.secret, path=own.path, allowed_updates=own.allowed_updates
        )
        return replace(table, settings=settings)

    async def _prepared(self, change: _Change) -> list[Running] | None:
        """What `_prepare` says; None if the file is to be read again, or the server stops, before it has."""
        self._preparing = asyncio.create_task(self._prepare(change))
        try:
            return await self._preparing
        except asyncio.CancelledError:
            if not (self._again or self._ended):
                raise
            return None
        finally:
            self._preparing = None

    async def _prepare(self, change: _Change) -> list[Running]:
        """Start what is new. TargetError, ChangeError: it does not start, and nothing of it is left."""
        for table in (*change.added, *change.changed):
            self.redact.hide(table.hidden)
        if self._workers is not None:
            if not await self._workers.crew.reload.renew(self._by_row(change)):
                raise ChangeError("the new workers do not start")
            return []
        started: list[Running] = []
        try:
            for table in (*change.added, *(one for one in change.changed if self._starts_anew(one))):
                started.append(await self._start(table))
        except BaseException:
            for one in started:
                await one.scope.aclose()
            raise
        return started

    async def _start(self, table: BotTable) -> Running:
        seconds = self.settings.worker_timeout  # a worker has as long
        try:
            async with asyncio.timeout(seconds):
                loaded = await load_beside(table)
                try:
                    return await self.handlers.start(loaded)
                except Exception as error:
                    raise TargetError(f"{table.where}: {table.target}: it does not start: {one_line(error)}") from error
        except TimeoutError:
            raise ChangeError(f"{table.where}: {table.target}: it has not started in {seconds:g} s") from None

    def _by_row(self, change: _Change) -> dict[int, BotTable]:
        """The tables by the rows in which they count: those that come get the next ones, in their order."""
        rows = dict(self._gate.rows)
        for table in change.added:
            rows.setdefault(table.bot_id, len(rows) + 1)
        return {rows[table.bot_id]: table for table in change.tables.values()}

    def _starts_anew(self, table: BotTable) -> bool:
        """Whether a bot that has changed needs another handler; for another path it doesn't."""
        old = self.tables[table.bot_id]
        return (table.target, table.settings.token) != (old.target, old.settings.token)

    def _apply(self, change: _Change, started: list[Running]) -> None:
        """In one turn of the loop, so that no request finds half of it."""
        old, self.tables = self.tables, change.tables
        self._move_routes(old, change)
        for table in (*change.changed, *change.removed):
            self._accounts[table.bot_id].give_up_registering()  # an old address must not come behind the new one
        fresh = {one.loaded.bot_id: one for one in started}
        for table in (*change.added, *change.changed):
            running = fresh.get(table.bot_id)
            before = self.handlers.put(running) if running else None
            kept = self.handlers.get(table.bot_id)
            account = self._accounts.get(table.bot_id)
            self._accounts[table.bot_id] = new = self._account(table, kept.loaded if kept else None)
            new.open()
            new.register()
            if account is not None:
                self._let_go(table.bot_id, before, account)
        for shares in self._shares:
            shares.set_bots(change.tables)
        self._lanes.set_bots(change.tables)
        self._queue.bots_changed()
        for table in change.removed:
            self._let_go(table.bot_id, self.handlers.get(table.bot_id), self._accounts[table.bot_id])

    def _move_routes(self, old: dict[int, BotTable], change: _Change) -> None:
        moved = [table for table in change.changed if table.settings.path != old[table.bot_id].settings.path]
        for table in (*change.removed, *(old[table.bot_id] for table in moved)):
            self._gate.remove(table.settings.path.encode())
        for table in (*change.added, *moved):
            _open(self._gate, table)
        for table in change.changed:
            if table not in moved:
                self._gate.rotate(table.settings.path.encode(), table.settings.valid_secrets)

    def _let_go(self, bot_id: int, running: Running | None, account: Account) -> None:
        task = asyncio.create_task(self._end(bot_id, running, account))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _end(self, bot_id: int, running: Running | None, account: Account) -> None:
        """What ran for a bot ends when its updates in hand are done with, or after --drain-timeout."""
        loop, seconds = asyncio.get_running_loop(), self.settings.drain_timeout
        end = loop.time() + seconds
        if bot_id not in self.tables:
            while loop.time() < end and self._lanes.has_in_hand(bot_id):  # noqa: ASYNC110  # rare, and nobody tells
                await asyncio.sleep(_LOOK)
        try:
            if running is not None:
                await self.handlers.end(running, max(0.0, end - loop.time()))
        except Exception as error:
            log.error("bot %d does not stop in order: %s", bot_id, one_line(error))
        finally:
            if running is not None:
                self.handlers.forget(running)
            if bot_id not in self.tables and self._accounts.get(bot_id) is account:
                del self._accounts[bot_id]
            await account.close(max(0.0, end - loop.time()))
            account.close_log()


def _open(gate: Gate, table: BotTable) -> None:
    gate.add(table.settings.path.encode(), table.bot_id, table.settings.valid_secrets)
