"""Updates by getUpdates instead of a webhook: the same gate, queue, dispatcher and handlers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import sys
from collections.abc import Callable
from time import monotonic_ns, time
from typing import Any

import orjson

from fasthook import logs
from fasthook._core import CODES, Route, Verdict
from fasthook.asgi import Hook
from fasthook.listeners import Listeners, name_of
from fasthook.ops.app import OpsServer
from fasthook.ops.health import Health
from fasthook.settings import Settings
from fasthook.stopping import Stop
from fasthook.systemd import Notifier
from fasthook.telegram.api import BotAPI, BotAPIError, BotAPIUnreachable, Conflict, NotFound, Unauthorized
from fasthook.telegram.webhook import sentence, unknown_kinds
from fasthook.update import Update

log = logging.getLogger("fasthook")

_POLL = 30  # seconds that Telegram holds a call while there is nothing to give
_PATIENCE = 15.0  # seconds for a call beside that
_LIMIT = 100  # updates in an answer, the most there are
_LONGEST_PAUSE = 30.0
_INVALID, _TOO_LARGE = CODES["invalid"], CODES["too_large"]


NO_TOKEN = "no token: set --token, FASTHOOK_TOKEN or BOT_TOKEN"


class PollError(Exception):
    """Polling cannot begin, or not go on. The message is one line. `code`: what the program ends with."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


class Poller:
    """Fetches a bot's updates and gives them to a hook's receiver, which runs.

    The offset goes on only past what the receiver has acknowledged, in order: what is not safe is fetched again.
    `kinds`: tells those to ask for; None leaves them as they were.
    """

    def __init__(self, hook: Hook, api: BotAPI, kinds: Callable[[], tuple[str, ...] | None]) -> None:
        self._receiver = hook.receiver
        self._settings = hook.settings
        self._api = api
        self._kinds = kinds
        self._told: tuple[str, ...] | None = None  # Telegram remembers them
        self._offset = 0
        self._stopping = self._asks = self._asks_again = False
        self._call: asyncio.Future[Any] | None = None

    def stop(self) -> None:
        """Fetch no more; what was fetched is still given to the receiver."""
        self._stopping = True
        if self._call:
            self._call.cancel()

    def ask_again(self) -> None:
        """There is new code: ask for the kinds that it handles now, and not only when this poll has ended."""
        if self._asks and self._call and self._kinds() != self._told:
            self._asks_again = True
            self._call.cancel()

    async def run(self) -> None:
        """Fetch until `stop`. PollError: it cannot go on."""
        failures = 0
        while not self._stopping:
            try:
                updates = await self._fetch()
                if failures:
                    log.info("Telegram answers again")
                failures = 0
            except asyncio.CancelledError:
                if self._stopping:
                    return
                if not self._asks_again:
                    raise
                self._asks_again = False
                continue
            except (Unauthorized, NotFound) as error:
                raise PollError(sentence(error)) from None
            except Conflict as error:
                if "webhook" in error.description.lower():
                    raise PollError(sentence(error)) from None
                failures = await self._pause(failures, sentence(error))
                continue
            except (BotAPIError, BotAPIUnreachable) as error:
                failures = await self._pause(failures, str(error))
                continue
            if updates and not await self._take(updates) and not self._stopping:
                await self._sleep(0.5)

    async def confirm(self) -> None:
        """Tell Telegram at the end what need not come again; the next poll would do it otherwise."""
        if self._offset:
            with contextlib.suppress(BotAPIError, BotAPIUnreachable):
                await self._api.call("getUpdates", offset=self._offset, limit=1, timeout=0)

    async def _fetch(self) -> list[dict[str, Any]]:
        kinds = self._kinds()
        calling = self._api.updates(
            offset=self._offset or None,
            limit=_LIMIT,
            timeout=_POLL,
            allowed_updates=list(kinds) if kinds is not None and kinds != self._told else None,
        )
        self._call = fetching = asyncio.ensure_future(calling)
        self._asks = True
        try:
            updates = await fetching
        finally:
            self._call, self._asks = None, False
        self._told = kinds
        return updates

    async def _pause(self, failures: int, words: str) -> int:
        if self._stopping:
            return failures  # it came when the call had ended: nobody would cancel this
        pause = min(_LONGEST_PAUSE, 2.0**failures)
        log.warning("no updates, tried again in %.0f s: %s", pause, words)
        await self._sleep(pause * random.uniform(0.8, 1.2))
        return failures + 1

    async def _sleep(self, seconds: float) -> None:
        self._call = asyncio.ensure_future(asyncio.sleep(seconds))
        with contextlib.suppress(asyncio.CancelledError):
            await self._call
        self._call = None

    async def _take(self, updates: list[dict[str, Any]]) -> bool:
        """Give a batch to the receiver, and move the offset past what is safe of it. Whether all is."""
        given = [(update["update_id"], self._give(update)) for update in updates]
        for update_id, waiter in given:
            verdict = await waiter.future
            if verdict.status != 200 and verdict.code != _TOO_LARGE:
                return False
            self._offset = update_id + 1
        return True

    def _give(self, update: dict[str, Any]) -> _Waiter:
        """One update through the gate, as a request with the right secret would go."""
        raw, waiter = _bytes(update), _Waiter()
        receiver, settings = self._receiver, self._settings
        path, secret = settings.path.encode(), settings.valid_secrets[0]
        route = receiver.gate.head(path, True, len(raw), secret, None, monotonic_ns())
        judged = receiver.gate.body(route, raw, time(), monotonic_ns()) if isinstance(route, Route) else route
        if isinstance(judged, Update):
            verdict = receiver.accept(judged, waiter)
            if verdict is not None:
                waiter.answer(verdict)
            return waiter
        assert isinstance(judged, Verdict)
        if isinstance(route, Route) and judged.code == _INVALID:
            receiver.reject(route, raw, waiter)
            return waiter
        if judged.code == _TOO_LARGE:
            log.error("update %d is larger than --max-body: it is dropped", update["update_id"])
        waiter.answer(judged)
        return waiter


class _Waiter:
    """Waits for what becomes of one update."""

    def __init__(self) -> None:
        self.future: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()

    def answer(self, verdict: Verdict) -> None:
        if not self.future.done():
            self.future.set_result(verdict)


def _bytes(update: dict[str, Any]) -> bytes:
    """An update as a webhook would have brought it, `update_id` first."""
    ordered = {"update_id": update["update_id"], **update}
    try:
        return orjson.dumps(ordered)
    except TypeError:  # lone surrogates
        return json.dumps(ordered, separators=(",", ":")).encode()


# ---------------------------------------------------------------- a process that polls


async def webhook_of(settings: Settings) -> str:
    """The address of the bot's webhook, empty if there is none. PollError: Telegram doesn't say."""
    api = _api(settings)
    try:
        info = await api.webhook_info()
    except BotAPIError as error:
        raise PollError(sentence(error)) from None
    except BotAPIUnreachable as error:
        raise PollError(str(error)) from None
    finally:
        await api.close()
    return str(info.get("url", ""))


def has_webhook(settings: Settings, url: str) -> str:
    """The words for why a bot that has a webhook is left alone."""
    return (
        f"bot {settings.bot_id} has a webhook at {url}, and its updates go there; try things with another bot, "
        "or take this one's updates away from there with --take-over"
    )


def _api(settings: Settings) -> BotAPI:
    assert settings.token
    return BotAPI(settings.token, settings.api_url, timeout=_PATIENCE, tries=3, waits=log.warning)


async def serve(hook: Hook, ops_listeners: Listeners, notifier: Notifier, *, take_over: bool) -> int:
    """Poll until a signal says stop; the exit code. `take_over`: remove the bot's webhook, if it has one.

    PollError, StartError, StateError, QueueError, WorkersError: one line.
    """
    receiver = hook.receiver
    receiver.answers = False  # there is no request whose answer could hold a reply
    ends = _Ends()
    health = Health(receiver, lambda: 0)
    stop = Stop(hook, ends, health, notifier)
    known = hook.settings.token is not None
    if known:
        await _clear(hook.settings, take_over)
    async with OpsServer(ops_listeners.sockets, health) as ops:
        if (code := await stop.begin()) is not None:
            return code
        try:
            if not known:
                await _check(hook.settings, take_over)
        except PollError:
            await receiver.stop(0.0)
            raise
        health.starting = False
        ops.hurry()
        _announce(hook.settings, ops_listeners)
        notifier.ready()
        stop.serves()
        code = await _poll(hook, ends, stop, notifier)
    if stop.failure:
        raise stop.failure
    return 130 if stop.signals > 1 else code


def _announce(settings: Settings, ops: Listeners) -> None:
    line = f"fasthook polls {settings.api_url} for bot {settings.bot_id}"
    where = name_of("http", ops.sockets[0]) if ops.sockets else None
    if settings.log_format == "json":
        told = {"api": settings.api_url, "queue": settings.queue} | ({"ops": where} if where else {})
        log.info("%s", line, extra={"server": told, "bot": settings.bot_id})
    else:
        logs.flush()
        print("\n".join([line, *([f"  ops     {where}"] if where else [])]), file=sys.stderr, flush=True)
    if ops.trouble:
        log.warning("%s", ops.trouble)


async def _poll(hook: Hook, ends: _Ends, stop: Stop, notifier: Notifier) -> int:
    """Poll until it is asked to end, and stop the receiver; the exit code."""
    settings = hook.settings
    assert settings.token
    polling = BotAPI(settings.token, settings.api_url, timeout=_PATIENCE, tries=1, waits=log.warning)
    if words := unknown_kinds(settings):
        log.warning("%s", words)
    wanted = settings.allowed_updates
    poller = Poller(hook, polling, lambda: hook.receiver.kinds if wanted is None else wanted)
    if hook.receiver.workers:
        hook.receiver.workers.crew.new_code = poller.ask_again
    task = asyncio.create_task(poller.run())
    code = 0
    try:
        await asyncio.wait([task, asyncio.ensure_future(ends.asked.wait())], return_when=asyncio.FIRST_COMPLETED)
        poller.stop()
    finally:
        notifier.stopping()
        code = await stop.end()
        notifier.close()
    try:
        await task
        await poller.confirm()
    finally:
        await polling.close()
    return code


async def _check(settings: Settings, take_over: bool) -> None:
    """See to the webhook of a bot whose token the workers have just told. PollError: it has one, which stays."""
    if not settings.token:
        raise PollError(NO_TOKEN, 2)
    url = await webhook_of(settings)
    if url and not take_over:
        raise PollError(has_webhook(settings, url))
    await _clear(settings, bool(url))


async def _clear(settings: Settings, take_over: bool) -> None:
    """Remove the webhook, if it is to be removed or what waits is to be dropped."""
    if not take_over and not settings.drop_pending:
        return
    api = _api(settings)
    try:
        await _remove_webhook(api, settings)
    finally:
        await api.close()


async def _remove_webhook(api: BotAPI, settings: Settings) -> None:
    try:
        await api.call("deleteWebhook", drop_pending_updates=settings.drop_pending or None)
    except BotAPIError as error:
        raise PollError(sentence(error)) from None
    except BotAPIUnreachable as error:
        raise PollError(str(error)) from None


class _Ends:
    """What a signal ends: the place of the server that there is not."""

    force_exit = False

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    @property
    def should_exit(self) -> bool:
        return self.asked.is_set()

    @should_exit.setter
    def should_exit(self, value: bool) -> None:
        self.asked.set()
