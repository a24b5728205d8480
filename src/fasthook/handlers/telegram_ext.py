"""A python-telegram-bot `Application` as a handler."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

from telegram import Update as Event
from telegram import ext
from telegram.error import Forbidden, InvalidToken, NetworkError, RetryAfter

from fasthook.handlers import StartError
from fasthook.handlers.ending import tell_end
from fasthook.handlers.text import well_formed
from fasthook.telegram.refusals import Refusals
from fasthook.update import Update

if TYPE_CHECKING:
    from fasthook.settings import Settings

log = logging.getLogger("fasthook")

Application: TypeAlias = "ext.Application[Any, Any, Any, Any, Any, Any]"

_TRIES = 5  # of the first call to Telegram
_PATIENCE = 10.0  # seconds at the stop for jobs and tasks that are still running

_MESSAGES = ("message", "edited_message")
_POSTS = (
    *_MESSAGES, "channel_post", "edited_channel_post", "business_message", "edited_business_message",
)  # fmt: skip
_KINDS: dict[str, tuple[str, ...]] = {
    "CommandHandler": _MESSAGES,
    "PrefixHandler": _MESSAGES,
    "MessageHandler": _POSTS,
    "CallbackQueryHandler": ("callback_query",),
    "InlineQueryHandler": ("inline_query",),
    "ChosenInlineResultHandler": ("chosen_inline_result",),
    "PollHandler": ("poll",),
    "PollAnswerHandler": ("poll_answer",),
    "PreCheckoutQueryHandler": ("pre_checkout_query",),
    "ShippingQueryHandler": ("shipping_query",),
    "ChatJoinRequestHandler": ("chat_join_request",),
    "BusinessConnectionHandler": ("business_connection",),
    "BusinessMessagesDeletedHandler": ("deleted_business_messages",),
    "PaidMediaPurchasedHandler": ("purchased_paid_media",),
    "ManagedBotUpdatedHandler": ("managed_bot",),
    "StringCommandHandler": (),  # what Telegram never sends
    "StringRegexHandler": (),
}
#: Handlers that choose among kinds by a number: -1 the first, 0 the second, 1 both.
_PAIRS = {
    "ChatMemberHandler": ("chat_member_types", "my_chat_member", "chat_member"),
    "MessageReactionHandler": ("message_reaction_types", "message_reaction", "message_reaction_count"),
    "ChatBoostHandler": ("chat_boost_types", "chat_boost", "removed_chat_boost"),
}
#: What Telegram doesn't send unless it is named (Bot API, "setWebhook", `allowed_updates`).
_UNASKED = frozenset({"chat_member", "message_reaction", "message_reaction_count"})


def token_of(value: Application, settings: Settings) -> str | None:
    token: str = value.bot.token
    return token


def kinds_of(value: Application) -> list[str] | None:
    """The kinds that the handlers take; None if there are no handlers.

    If there is one that doesn't tell (`TypeHandler`, one's own), none are named, which asks Telegram for what it sends
    by default, or, where another handler takes a kind that is not among these, they are all named with it.
    """
    found = set(_kinds(handler for group in value.handlers.values() for handler in group))
    named = {kind for kind in found if kind is not None}
    if None not in found:
        return sorted(named) or None
    return sorted(set(Event.ALL_TYPES) - _UNASKED | named) if named & _UNASKED else []


def _kinds(handlers: Iterable[Any]) -> Iterator[str | None]:
    """The kinds of each handler; None for one that doesn't tell."""
    for handler in handlers:
        name = type(handler).__name__
        if isinstance(handler, ext.ConversationHandler):
            states = (one for state in handler.states.values() for one in state)
            yield from _kinds([*handler.entry_points, *states, *handler.fallbacks])
        elif not type(handler).__module__.startswith("telegram.") or name not in _KINDS.keys() | _PAIRS.keys():
            yield None
        elif name in _PAIRS:
            attribute, first, second = _PAIRS[name]
            chosen = getattr(handler, attribute)
            yield from [first] if chosen == -1 else [second] if chosen == 0 else [first, second]
        elif _KINDS[name] is _MESSAGES and handler.filters is not ext.filters.UpdateType.MESSAGES:
            yield from _POSTS  # filters of one's own stand in the place of those that keep to messages
        else:
            yield from _KINDS[name]


def make(value: Application, settings: Settings | None) -> ApplicationHandler:
    if settings is not None and settings.local_api:
        server, token = settings.api_url.rstrip("/"), value.bot.token
        value.bot._base_url = f"{server}/bot{token}"  # the builder's .base_url() comes too early for this
        value.bot._base_file_url = f"{server}/file/bot{token}"
    return ApplicationHandler(value)


class ApplicationHandler:
    """Gives updates to an application's `process_update`; its updater is not used.

    Handlers with `block=False` and tasks made by `create_task` are not waited for, but at the stop. An error that no
    error handler of the application takes is a failure, and the update is tried again; but a 403 is told, and that is
    all.
    """

    def __init__(self, application: Application) -> None:
        self.running = 0
        self._application = application
        self._errors: dict[int, Exception] = {}
        self._refusals = Refusals()
        self._plain = type(application.update_processor) is ext.SimpleUpdateProcessor

    async def start(self) -> None:
        if self._application.running:
            raise StartError("the Application already runs: it can be served once at a time")
        try:
            await self._start()
        except BaseException:  # then the application's own `run_polling` does the same
            try:
                await self.stop()
            except Exception as error:
                tell_end(error)
            raise

    async def _start(self) -> None:
        application = self._application
        await self._initialize()
        if application.post_init:
            await application.post_init(application)
        if not application.error_handlers:
            application.add_error_handler(self._failed)
        await application.start()

    async def _initialize(self) -> None:
        """What the application does first, which asks Telegram who the bot is."""
        for n in range(_TRIES):
            try:
                return await self._application.initialize()
            except InvalidToken:
                raise StartError("Telegram doesn't know the token of the Application's bot") from None
            except RetryAfter as error:
                wait = error.retry_after
                await asyncio.sleep(wait.total_seconds() if not isinstance(wait, (int, float)) else wait)
            except NetworkError as error:
                if n + 1 == _TRIES:
                    words = (
                        f"the Application cannot reach the Bot API ({type(error).__name__}), which it asks at its start"
                    )
                    raise StartError(words) from None
                log.warning("the Application cannot reach the Bot API, it is tried again in %d s", 2**n)
                await asyncio.sleep(2**n)
        raise StartError("the Application cannot reach the Bot API, which limits its calls")

    async def stop(self) -> None:
        try:
            await self._stop()
        finally:
            self._application.remove_error_handler(self._failed)  # the next one to adapt it has its own

    async def _stop(self) -> None:
        application = self._application
        if application.running:
            try:
                async with asyncio.timeout(_PATIENCE):
                    await application.stop()
            except TimeoutError:
                log.error("jobs or tasks of the Application still run after %g s: leaving without them", _PATIENCE)
            if application.post_stop:
                await application.post_stop(application)
        await application.shutdown()
        await application.bot.shutdown()  # its connections, where the application was refused at its start
        if application.post_shutdown:
            await application.post_shutdown(application)

    async def call(self, update: Update) -> None:
        event = Event.de_json(well_formed(update), self._application.bot)
        work = self._application.process_update(event)
        try:
            if self._plain:
                await work
            else:
                await self._application.update_processor.process_update(event, work)
        finally:
            error = self._errors.pop(id(event), None)
        if isinstance(error, Forbidden):
            self._refusals.tell_handler(update, error.message)
        elif error is not None:
            raise error

    async def _failed(self, event: object, context: Any) -> None:
        """The application's error handler, if it has no other: remember it for `call`."""
        if len(self._application.error_handlers) > 1:
            return  # the bot added its own in the meantime
        if isinstance(event, Event) and context.job is None and context.coroutine is None:
            self._errors[id(event)] = context.error
        else:
            log.error("a job or a task of the Application failed", exc_info=context.error)
