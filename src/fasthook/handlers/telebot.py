"""A pyTelegramBotAPI `AsyncTeleBot` as a handler."""

from __future__ import annotations

import contextvars
import copy
from typing import TYPE_CHECKING, Any

import telebot
from telebot import asyncio_helper
from telebot.async_telebot import AsyncTeleBot
from telebot.asyncio_helper import ApiTelegramException
from telebot.types import Update as Event

from fasthook.handlers.text import well_formed
from fasthook.logs import is_set_up
from fasthook.telegram.refusals import Refusals
from fasthook.update import Update

if TYPE_CHECKING:
    from fasthook.settings import Settings

_FORBIDDEN = 403
_SPECIAL = {
    "inline_handlers": "inline_query",
    "chosen_inline_handlers": "chosen_inline_result",
    "state_handlers": "",
}


def token_of(value: AsyncTeleBot, settings: Settings) -> str | None:
    token: str = value.token
    return token


def kinds_of(value: AsyncTeleBot) -> list[str] | None:
    """The kinds that handlers are registered for: `message_handlers` is for `message`, and so on."""
    names = [
        name for name, found in vars(value).items() if name.endswith("_handlers") and isinstance(found, list) and found
    ]
    kinds = {_SPECIAL.get(name, name.removesuffix("_handlers")) for name in names} - {""}
    if value.update_listener:
        kinds.add("message")
    return sorted(kinds) or None


def make(value: AsyncTeleBot, settings: Settings | None) -> TeleBotHandler:
    if settings is not None and settings.local_api:
        server = settings.api_url.rstrip("/")
        asyncio_helper.API_URL = server + "/bot{0}/{1}"
        asyncio_helper.FILE_URL = server + "/file/bot{0}/{1}"  # type: ignore[assignment]
    if is_set_up():  # else each of its lines is written twice, once past the format and the redaction
        telebot.logger.removeHandler(telebot.console_output_handler)
    return TeleBotHandler(value)


class TeleBotHandler:
    """Gives updates to a bot's `process_new_updates`, which waits for the handler.

    An exception that the bot's `exception_handler` doesn't take is a failure, and the update is tried again; but a 403
    is told, and that is all. Listeners (`set_update_listener`) run beside, and are not waited for.
    """

    def __init__(self, bot: AsyncTeleBot) -> None:
        self.running = 0
        self._bot = bot
        self._errors: contextvars.ContextVar[list[Exception]] = contextvars.ContextVar("fasthook_telebot_errors")
        self._own = bot.exception_handler
        self._refusals = Refusals()

    async def start(self) -> None:
        self._bot.exception_handler = self  # type: ignore[assignment]  # it is asked for each exception of a handler

    async def stop(self) -> None:
        self._bot.exception_handler = self._own
        session = asyncio_helper.session_manager.session
        if session is not None and not session.closed:
            await session.close()

    async def call(self, update: Update) -> None:
        event: Any = Event.de_json(copy.deepcopy(well_formed(update)))  # type: ignore[no-untyped-call]  # it changes it
        errors: list[Exception] = []
        token = self._errors.set(errors)
        try:
            await self._bot.process_new_updates([event])
        except ApiTelegramException as error:  # of a middleware
            errors.append(error)
        finally:
            self._errors.reset(token)
        for failure in errors:
            if not isinstance(failure, ApiTelegramException) or failure.error_code != _FORBIDDEN:
                raise failure
            self._refusals.tell_handler(update, failure.description, method=failure.function_name)

    async def handle(self, exception: Exception) -> bool:
        """What the library calls with an exception of a handler: True if it is taken care of."""
        if self._own is not None:
            handled: Any = self._own.handle(exception)  # type: ignore[no-untyped-call]
            if hasattr(handled, "__await__"):
                handled = await handled
            if handled:
                return True
        errors = self._errors.get(None)
        if errors is None:
            return False
        errors.append(exception)
        return True
