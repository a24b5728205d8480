"""An aiogram 3 `Dispatcher` as a handler."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from aiogram import Bot, Dispatcher
from aiogram.client.session.aiohttp import AiohttpSession
from aiogram.client.telegram import TelegramAPIServer
from aiogram.exceptions import (
    ClientDecodeError,
    TelegramAPIError,
    TelegramForbiddenError,
    TelegramNetworkError,
    TelegramRetryAfter,
    TelegramServerError,
    TelegramUnauthorizedError,
)
from aiogram.methods import TelegramMethod
from aiogram.types import Update as Event
from pydantic import ValidationError

from fasthook.handlers import Reply, TargetError, WithBot
from fasthook.handlers.text import well_formed
from fasthook.lanes import GaveUp
from fasthook.telegram.refusals import Refusals
from fasthook.update import Update

if TYPE_CHECKING:
    from fasthook.settings import Settings

log = logging.getLogger("fasthook")

_TRIES = 5  # of a method that a handler returned, while Telegram cannot be reached
_LONGEST_WAIT = 3600  # seconds of retry_after that are waited for


def beside(dispatcher: Dispatcher, names: Mapping[str, Any]) -> Dispatcher | WithBot:
    """The dispatcher, with the Bot of its module unless it has one in its workflow data.

    The Bot is the one that is named `bot`, or the only one.
    """
    bots = {id(value): value for value in names.values() if isinstance(value, Bot)}
    bot = names.get("bot") if isinstance(names.get("bot"), Bot) else None
    if bot is None and len(bots) == 1:
        [bot] = bots.values()
    return dispatcher if bot is None or isinstance(dispatcher.get("bot"), Bot) else WithBot(dispatcher, bot)


def _parts(value: Dispatcher | WithBot) -> tuple[Dispatcher, Bot | None]:
    if isinstance(value, WithBot):
        return value.dispatcher, value.bot
    bot = value.get("bot")
    return value, bot if isinstance(bot, Bot) else None


def token_of(value: Dispatcher | WithBot, settings: Settings) -> str | None:
    _, bot = _parts(value)
    return bot.token if bot else None


def kinds_of(value: Dispatcher | WithBot) -> list[str] | None:
    """The kinds that handlers are registered for; None if there are no handlers."""
    dispatcher, _ = _parts(value)
    return sorted(dispatcher.resolve_used_update_types()) or None


def make(value: Dispatcher | WithBot, settings: Settings | None) -> AiogramHandler:
    """TargetError: there is no Bot, and no token to make one from."""
    dispatcher, bot = _parts(value)
    if bot is None:
        if settings is None or settings.token is None:
            raise TargetError(
                "the Dispatcher has no Bot: name it bot in the same module, "
                'or put it into the Dispatcher (dp["bot"] = bot), or set --token'
            )
        bot = Bot(settings.token, session=AiohttpSession())
        log.info(
            "a Bot was made from the token, without what a Bot of the module's own may set (parse_mode and other "
            "defaults); to use that one, name it bot at the top level of the module"
        )
    if settings is not None and settings.local_api:
        bot.session.api = TelegramAPIServer.from_base(settings.api_url)
    return AiogramHandler(dispatcher, bot)


class AiogramHandler:
    """Gives updates to a dispatcher as its own webhook handler does: filters, middlewares, FSM, error handlers.

    An exception that no error handler takes is a failure, and the update is tried again; but a 403 is told, and that is
    all. What `lifespan` yields, if it is a mapping, is workflow data.
    """

    def __init__(self, dispatcher: Dispatcher, bot: Bot) -> None:
        self.running = 0
        self._dispatcher = dispatcher
        self._bot = bot
        self._refusals = Refusals()

    def _data(self) -> dict[str, Any]:
        data = {"dispatcher": self._dispatcher, "bots": (self._bot,), **self._dispatcher.workflow_data}
        return data | {"bot": self._bot}

    async def start(self) -> None:
        await self._dispatcher.emit_startup(**self._data())

    async def stop(self) -> None:
        try:
            await self._dispatcher.emit_shutdown(**self._data())
        finally:
            await self._bot.session.close()

    async def call(self, update: Update) -> Any:
        event = Event.model_validate(well_formed(update), context={"bot": self._bot})
        state = update.state if isinstance(update.state, Mapping) else {}
        try:
            result = await self._dispatcher.feed_update(self._bot, event, bots=(self._bot,), **state)
        except TelegramForbiddenError as error:
            method, chat_id = error.method.__api_method__, getattr(error.method, "chat_id", None)
            self._refusals.tell_handler(update, error.message, method=method, chat_id=chat_id)
            return None
        if not isinstance(result, TelegramMethod):
            return None
        files: dict[str, Any] = {}
        call = {"method": result.__api_method__}
        for name, value in result.model_dump(warnings=False).items():
            if prepared := self._bot.session.prepare_value(value, bot=self._bot, files=files):
                call[name] = prepared
        if files:
            await self._send(update, result)
            return None
        return Reply(call, lambda: self._send(update, result))

    async def _send(self, update: Update, method: TelegramMethod[Any]) -> None:
        """Make a call that a handler returned. GaveUp: Telegram cannot be reached."""
        what = f"update {update.update_id}: Telegram refused {method.__api_method__}"
        for n in range(_TRIES):
            try:
                await self._bot(method)
            except TelegramRetryAfter as error:
                if error.retry_after > _LONGEST_WAIT:
                    log.error("%s: %s", what, error.message)
                    return
                await asyncio.sleep(error.retry_after)
            except TelegramForbiddenError as error:
                self._refusals.tell(getattr(method, "chat_id", None), f"{what}: {error.message}")
                return
            except TelegramUnauthorizedError as error:
                raise GaveUp(f"Telegram doesn't know the token ({error.message})", "reply failed") from None
            except (TelegramNetworkError, TelegramServerError, ClientDecodeError) as error:
                if isinstance(error, ClientDecodeError) and _done(error):
                    what = f"update {update.update_id}: the answer to {method.__api_method__}"
                    log.warning("%s: %s", what, error.message)
                    return
                if n + 1 == _TRIES:
                    raise GaveUp(f"{method.__api_method__}: {type(error).__name__}", "reply failed") from None
                await asyncio.sleep(2.0**n)
            except TelegramAPIError as error:
                log.error("%s: %s", what, error.message)
                return
            else:
                return
        raise GaveUp(f"{method.__api_method__}: Telegram's limit was reached {_TRIES} times", "reply failed")


def _done(error: ClientDecodeError) -> bool:
    """Whether the Bot API did it, and only what came back is newer than this aiogram; HTML is a proxy's word."""
    return isinstance(error.original, ValidationError) and isinstance(error.data, dict) and bool(error.data.get("ok"))
