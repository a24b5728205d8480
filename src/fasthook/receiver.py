"""The parts put together: gate, queue, dispatcher, handler. Both doors use it, ASGI and the compiled protocol."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from time import time
from typing import TYPE_CHECKING, Any

from fasthook import orphans
from fasthook._core import CODES, DedupRing, Gate, Route, Shares, Stats, TokenBuckets, Verdict
from fasthook.acknowledge import Acknowledge, Waiter, WhenHandled, WhenQueued
from fasthook.control import Command, Control, ControlError
from fasthook.dispatch import Dispatcher, HandlerTimeout
from fasthook.handlers import Handler, Reply, StartError, adapt, kinds_of
from fasthook.lanes import GaveUp, Lanes, Reported
from fasthook.ops.beat import Beat
from fasthook.ops.blocks import Blocks, Counts, HandlingByBot, Layout
from fasthook.queues import Delivery, Queue, QueueError, open_queue
from fasthook.queues.deadletter import DeadLetter, DeadLetters
from fasthook.queues.resting import refuse_to_leave
from fasthook.queues.running import RunningTools
from fasthook.settings import Settings
from fasthook.state import InUseError, StateDir
from fasthook.telegram.account import Account
from fasthook.telegram.files import has_files
from fasthook.turns import Turns
from fasthook.update import Update, fields
from fasthook.wording import with_article

if TYPE_CHECKING:
    from fasthook.bots import Bots
    from fasthook.workers import Workers

log = logging.getLogger("fasthook")

_AUTH_BUCKETS = 4096  # addresses with a wrong secret that are told apart
_CHAT_BUCKETS = 65536
_THREADS = 32  # plain functions at once, if --concurrency allows as many
# Seconds after which nobody waits for the answer to a query any more: Telegram drops it (TQueue's expiry).
_LIFE = {
    "callback_query": 150.0,
    "shipping_query": 150.0,
    "pre_checkout_query": 150.0,
    "inline_query": 30.0,
    "chosen_inline_result": 600.0,
}
_NEW, _FULL = 0, 3  # answers of DedupRing.claim; full: --queue-size is smaller than it was when these were accepted
_INVALID, _BUSY = Verdict(CODES["invalid"]), Verdict(CODES["busy"], 3)


class Receiver:
    """A hook that runs: what an admitted update goes through, from `accept` until it is settled.

    `value`: the handler. `lifespan`: an async context manager around it, called with `app`. `shared`: another process
    may have the state directory; then this one keeps its ring in memory. `target`: of a handler that runs in worker
    processes; then value, lifespan and app are not used. `bots`: where there are several; they have their own
    handlers. TargetError: the value is no handler.
    """

    def __init__(
        self,
        value: Any,
        settings: Settings,
        *,
        lifespan: Callable[[Any], Any] | None = None,
        app: Any = None,
        shared: bool = False,
        target: str | None = None,
        bots: Bots | None = None,
    ) -> None:
        self.settings = settings
        self.bots = bots
        self.remember_heads = True  # the compiled edge's memory; off, each head goes through llhttp
        self.edge: Any = None  # what the compiled edge's connections share, made by the first of them
        self.answers = True  # a reply may go back in the answer to its request
        self.running = False  # from the end of `start` to the end of `stop`
        self.stuck = 0  # handlers that still run after the stop: threads, and coroutines that refuse to end
        self._stopping = False
        self._shared = shared
        self._lifespan = lifespan
        self._app = app
        self._target = target
        self._in_workers = bool(target) or (bots is not None and settings.in_processes)
        self._handler: Handler | None = None
        if not target and not bots:
            self._handler = adapt(value, threads=min(settings.concurrency, _THREADS), settings=settings)
        self.workers: Workers | None = None  # while it runs, if it has any
        self.failed: Callable[[Exception], None] = lambda error: None  # told when the workers can't go on
        self.leave: Callable[[], Awaitable[None]] = _nobody  # awaited in the stop, when who waited is answered
        self._scope = contextlib.AsyncExitStack()
        self._value = value
        self._account: Account | None = None  # while it runs, of one bot
        self._hidden = _hidden(settings)
        self._lifespan_state: Any = None
        self._tasks: set[asyncio.Future[None]] = set()
        self.blocks = Blocks(None, Layout(paths=1))  # of nobody, until `start` opens the server's
        self.commands: dict[str, Command] = {}  # of the control socket; more may be added
        self._control: Control | None = None

    async def start(self) -> None:
        """Open everything, outside in, and take up what the last stop left. StateError, QueueError: one line."""
        settings = self.settings
        if not self._in_workers and not self.bots:
            _check_token(settings)
        if settings.certificate:
            _check_certificate(settings.certificate)
        state = self._own_state()
        opened = False
        try:
            if state and (last := state.other_queue(settings.queue)):
                await asyncio.to_thread(refuse_to_leave, last, settings)
            layout = Layout(paths=self.bots.room if self.bots else 1)
            self.blocks = state.blocks(layout) if state else Blocks(None, layout)
            stats = self.blocks.add("door", os.getpid()).stats
            self.counts = Counts(stats, layout)
            self._open_logs()
            sizes = settings.dedup_size, settings.queue_size
            ring = state.ring(*sizes) if state else DedupRing(*sizes)
            self._dead = DeadLetters(
                settings.state_dir / "dead", max_age=settings.dead_max_age, max_count=settings.dead_max_count
            )
            self._queue = open_queue(
                settings, owner=state is not None, committed=self.counts.committed, shares=self._shares()
            )
            if state:
                await orphans.end(state.path)
            self._dispatcher = await (self._start_workers() if self._in_workers else self._start_handler())
            self.gate = self._make_gate(ring, stats)
            self._acks = self._acknowledge()
            self.accept: Callable[[Any, Waiter], Verdict | None] = self._acks.accept
            opened = True
            deliver = self._deliver if self._queue.durable else self._dispatcher.submit
            waited = await self._queue.open(deliver, self._redeliver, self._acks.answered)
            self._acks.recall(self._queue.replies())
            if state:
                state.note_queue(settings.queue)
                await self._listen_to_tools()
        except BaseException:
            if opened:
                await self._queue.abandon()
            if self.workers:
                await self.workers.crew.stop(0.0)
                self.workers = None
            await self._scope.aclose()
            if state:
                state.close()
            raise
        self._state = state
        self._dead.start()
        if waited:
            log.info("%d updates from before the last stop are handled first", waited)
        self._dispatcher.start()
        self._beat = Beat(self.counts)
        self.running = True
        if self.bots:
            self.bots.serve(self._dispatcher, self._queue, self.workers)
        elif self._account:
            self._account.register()
            if self.workers:
                self.workers.crew.new_code = self._account.register_again

    def _open_logs(self) -> None:
        """From now on no log shows a token."""
        if self.bots:
            self.bots.open_logs()
            self._scope.push_async_callback(self.bots.stop_handlers)
        else:
            self._open_account()

    def _open_account(self) -> None:
        self._hidden = _hidden(self.settings)
        self._account = account = Account(self.settings, lambda: self.kinds)
        account.open()
        self._scope.callback(account.close_log)

    def _shares(self, size: int | None = None) -> Shares | None:
        """Places that several bots share; by default so many as the queue has."""
        return self.bots.shares(size or self.settings.queue_size) if self.bots else None

    def _own_state(self) -> StateDir | None:
        """The state directory; None if another process of the same server has it."""
        settings = self.settings
        try:
            return StateDir(settings.state_dir)
        except InUseError as error:
            if not self._shared or error.owner in (0, os.getpid()):
                raise
            if settings.queue != "memory:":
                raise QueueError(
                    f"the queue {settings.queue} is in use by process {error.owner}: a journal is for one process; "
                    "serve with fasthook run, or with one process, or set queue to memory:"
                ) from None
            log.warning(
                "process %d has the state directory %s: this one knows only the duplicates that it sees itself, and "
                "forgets them when it ends; for all processes to share them use fasthook run, or one process",
                error.owner, settings.state_dir,
            )  # fmt: skip
            return None

    async def _listen_to_tools(self) -> None:
        tools = RunningTools(
            self.settings.queue, self._queue, self._dispatcher, self._dead,
            capacity=self.settings.queue_size, settled=self._settled,
        )  # fmt: skip
        self.commands.update(tools.commands())
        self._control = Control(self.settings.state_dir, self.commands)
        try:
            await self._control.start()
        except ControlError as error:
            log.warning("there is no control socket, so that fasthook queue and dead work only after a stop: %s", error)

    def _acknowledge(self) -> Acknowledge:
        settings = self.settings
        if settings.ack == "queued":
            return WhenQueued(self.gate, self._queue, self._lifespan_state)
        return WhenHandled(
            self.gate, self._queue, self._lifespan_state, deadline=settings.ack_deadline, remember=settings.dedup_size
        )

    async def _start_handler(self) -> Lanes:
        settings = self.settings
        if self.bots:
            await self.bots.start_handlers()
            return Dispatcher(
                self.bots.handlers.call,
                concurrency=settings.concurrency,
                timeout=settings.handler_timeout,
                handling=HandlingByBot(self.counts, lambda bot_id: self.gate.rows[bot_id]),
                turns=Turns(self.bots.tables, self._shares(settings.concurrency)),
                **self._policy(),
            )
        assert self._handler
        if self._lifespan:
            self._lifespan_state = await self._scope.enter_async_context(self._lifespan(self._app))
        await self._handler.start()
        self._scope.push_async_callback(self._handler.stop)
        return Dispatcher(
            self._handler.call,
            concurrency=settings.concurrency,
            timeout=settings.handler_timeout,
            handling=self.counts.handling,
            **self._policy(),
        )

    async def _start_workers(self) -> Lanes:
        """Start the workers, and take the bot's own token from them if none is set."""
        from fasthook.workers import Workers

        self.workers = workers = Workers(
            self._target or "",
            self.settings,
            blocks=self.blocks,
            failed=lambda error: self.failed(error),
            answers=self.answers,
            bots=tuple(self.bots.tables.values()) if self.bots else (),
            turns=Turns(self.bots.tables) if self.bots else None,  # each worker has its own places
            **self._policy(),
        )
        await workers.crew.start()
        if workers.crew.token != self.settings.token:
            self.settings = replace(self.settings, token=workers.crew.token)
            self._open_account()
        if not self.bots:
            _check_token(self.settings)
        return workers

    def _policy(self) -> dict[str, Any]:
        """What the lanes are told of; none of it is called before the end of `start`."""
        settings = self.settings
        return {
            "reply": self._reply,
            "bury": self._bury,
            "settled": self._settled,
            "hand_back": lambda delivery: self._acks.hand_back(delivery),
            "retries": settings.retries,
            "ordered": settings.order == "chat",
            "retried": self.counts.retry,
            "tried": self._queue.tried,
        }

    def _make_gate(self, ring: DedupRing, stats: Stats) -> Gate:
        settings = self.settings
        auth, chat = settings.auth_rate, settings.chat_rate
        gate = Gate(
            ring,
            stats,
            auth=TokenBuckets(_AUTH_BUCKETS, auth.interval, auth.count) if auth else None,
            chats=TokenBuckets(_CHAT_BUCKETS, chat.interval, chat.count) if chat else None,
            max_body=settings.max_body,
            update=Update,
            shares=self._shares(),
        )
        if self.bots:
            self.bots.open_routes(gate)
        else:
            gate.add(settings.path.encode(), settings.bot_id, settings.valid_secrets)
        return gate

    @property
    def hidden(self) -> list[str]:
        """What the access log may not show."""
        return self.bots.hidden if self.bots else self._hidden

    # ------------------------------------------------------------ from a door

    def reject(self, route: Route, raw: bytes, waiter: Waiter) -> None:
        """Keep a body that is not an update as a dead letter; the waiter is answered when it is on disk."""
        task = asyncio.ensure_future(self._keep_invalid(route.bot_id, raw, waiter))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _keep_invalid(self, bot_id: int, raw: bytes, waiter: Waiter) -> None:
        letter = DeadLetter.of("invalid", bot_id, raw, attempts=0, received_at=time(), error=None)
        try:
            await self._dead.add(letter)
        except Exception as error:
            log.error("a body that is not an update could not be kept, it is answered with 503: %s", error)
            waiter.answer(_BUSY)
        else:
            self.counts.dead("invalid")
            log.warning(
                "a body of %d bytes is not an update: it is answered with 200 and kept as a dead letter", len(raw),
                extra={"bot": bot_id, "verdict": "invalid"},
            )  # fmt: skip
            waiter.answer(_INVALID)

    # ------------------------------------------------------------ between queue and dispatcher

    def _redeliver(self, delivery: Delivery) -> bool:
        """Take up an update from before, unless it was settled; one that has outlived its use is given up on."""
        update = delivery.update
        known = self.gate.claim(update) not in (_NEW, _FULL)
        if known and not self._queue.durable and not delivery.again:
            return False
        self._acks.redelivered(update)
        life = _LIFE.get(update.kind, self.settings.max_age)
        age = time() - update.received_at
        if delivery.before and life is not None and age > life and self.settings.stale == "drop":
            delivery.failure = GaveUp(
                f"it came {age:.0f} s ago, and {with_article(update.kind)} is of use for {life:g} s", "expired"
            )
        self._dispatcher.submit(delivery)
        return True

    def _deliver(self, delivery: Delivery) -> None:
        delivery.since = time()  # the queue says now that it is safe
        self._dispatcher.submit(delivery)

    def _settled(self, delivery: Delivery) -> None:
        if (reply := self._acks.returned(delivery.update)) is not None:
            delivery.reply = reply
        self._queue.settle(delivery)
        self._acks.settled(delivery.update)

    async def _bury(self, delivery: Delivery) -> None:
        update, error = delivery.update, delivery.failure
        reason = error.reason if isinstance(error, (GaveUp, HandlerTimeout, Reported)) else "failed"
        attempts = delivery.attempt - (reason == "expired")  # that one has the attempt before it
        letter = DeadLetter.of(
            reason,
            update.bot_id,
            update.raw,
            attempts=attempts,
            received_at=update.received_at,
            error=error,
        )
        letter = replace(letter, traceback=self._without_tokens(letter.traceback))
        await self._dead.add(letter)
        self.counts.dead(reason)
        trace = error.trace.rstrip() if isinstance(error, Reported) else ""
        there = f"\n{trace}" if trace else ""
        log.error(
            "update %d (%s) is a dead letter after %d attempts: %s%s",
            update.update_id, update.kind, attempts, reason, there,
            exc_info=None if there or reason == "expired" else error, extra=fields(update, traceback=trace or None),
        )  # fmt: skip

    def _without_tokens(self, text: str) -> str:
        """Libraries show the addresses they call, and a handler those of another bot, too."""
        if self.bots:
            return self.bots.redact(text)
        token = self.settings.token
        return text.replace(token, "***") if token else text

    def _reply(self, update: Update, result: Any) -> Awaitable[None] | None:
        """See to the Bot API method that a handler returned: None if it is done, else to be awaited."""
        if not isinstance(result, dict) or not isinstance(result.get("method"), str):
            log.error(
                "update %d: the handler returned %s, not None or a Bot API method (update.reply(...))",
                update.update_id, type(result).__name__, extra=fields(update),
            )  # fmt: skip
            return None
        try:
            if self.answers and not has_files(result) and self._acks.reply(update, result):
                return None
        except TypeError as error:
            log.error("update %d: what the handler returned cannot be sent: %s", update.update_id, error,
                      extra=fields(update))  # fmt: skip
            return None
        if isinstance(result, Reply):
            return result.send()  # through the bot's own library
        account = self._account_of(update)
        if account is None:
            log.error("update %d: the reply of bot %d cannot be sent, it is served no more", update.update_id,
                      update.bot_id, extra=fields(update))  # fmt: skip
            return None
        return account.send(update, result)

    def _account_of(self, update: Update) -> Account | None:
        return self.bots.account(update.bot_id) if self.bots else self._account

    # ------------------------------------------------------------ the end

    def end_soon(self) -> None:
        """The listener closes, then `stop` follows: what still comes is taken, and no worker is recycled any more."""
        if self.running and self.workers:
            self.workers.crew.drain()

    def refuse_new(self) -> None:
        """From now on new updates get 503, and stay with Telegram."""
        if self.running:
            self.gate.draining = True
            self.end_soon()

    def hurry(self) -> None:
        """Don't wait for what runs any longer."""
        if self.running:
            self._dispatcher.hurry()

    async def stop(self, seconds: float | None = None) -> None:
        """Drain for so many seconds (default: `drain_timeout`), and keep what is left for the next start.

        QueueError: it could not be kept.
        """
        if not self.running or self._stopping:
            return
        self._stopping = True
        self.refuse_new()
        if self.bots:
            await self.bots.stop_registering()
        elif self._account:
            await self._account.stop_registering()
        if self._control:
            await self._control.stop()
            self._control = None
        drain = self.settings.drain_timeout if seconds is None else seconds
        left = self._acks.stop(await self._dispatcher.drain(drain))
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._beat.stop()
        try:
            await self.leave()
        except Exception as error:
            log.error("the last answers could not be waited for", exc_info=error)
        try:
            kept = await self._queue.close(left, self._acks.replies())
            if kept:
                log.warning("%d updates are not handled yet: they are kept, and handled first at the next start", kept)
        finally:
            self._dead.close()
            if self.bots:
                await self.bots.close()
            elif self._account:
                await self._account.close()
            try:
                await self._scope.aclose()
            finally:
                if self._state:
                    self._state.close()
                runs = self.bots.handlers if self.bots else self._handler
                self.stuck = (runs.running if runs else 0) + self._dispatcher.stuck
                self.workers = None
                self.running = self._stopping = False
                self.edge = None

    @property
    def oldest(self) -> float | None:
        """When the oldest update that is not settled was received, s since the epoch. Any thread may ask."""
        return self._dispatcher.oldest

    @property
    def kinds(self) -> tuple[str, ...] | None:
        """The kinds of updates that the bot handles, if they can be known."""
        return self.workers.crew.kinds_of(self.settings.bot_id) if self.workers else kinds_of(self._value)

    @property
    def queue(self) -> Queue:
        """Where accepted updates wait; there is one once `start` has begun."""
        return self._queue

    @property
    def gate_is_open(self) -> bool:
        """There is a gate to ask."""
        return self.running


async def _nobody() -> None:
    """Nobody has to leave."""


def _check_token(settings: Settings) -> None:
    if settings.public_url and not settings.token:
        raise StartError("--public-url: registering the webhook needs the bot's token; set --token")


def _check_certificate(file: Path) -> None:
    from fasthook.telegram.pem import check_certificate

    try:
        check_certificate(file)
    except ValueError as error:
        raise StartError(f"--certificate: {error}") from None


def _hidden(settings: Settings) -> list[str]:
    token = (settings.token or "").partition(":")[2]
    return [part for part in (token, *(secret.decode() for secret in settings.valid_secrets)) if part]
