"""What fasthook itself does for a bot at Telegram: keeps its webhook registered, and sends what its handlers return."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fasthook.settings import Settings
from fasthook.telegram.redact import redacted
from fasthook.update import Update, fields

if TYPE_CHECKING:
    from fasthook.telegram.replies import Replies

log = logging.getLogger("fasthook")


class Account:
    """One bot's. `kinds`: those of the updates that it handles, None if that is not known."""

    def __init__(self, settings: Settings, kinds: Callable[[], tuple[str, ...] | None]) -> None:
        self.settings = settings
        self._kinds = kinds
        self._replies: Replies | None = None
        self._registration: asyncio.Task[None] | None = None
        self._registered: tuple[str, ...] | None = None  # the kinds that Telegram was asked for
        self._scope = contextlib.ExitStack()
        self._sending = 0
        self._quiet = asyncio.Event()

    def open(self) -> None:
        """From now on no log shows the token."""
        self._scope.enter_context(redacted(self.settings.token))

    def register(self) -> None:
        """Give Telegram the address, in the background, now that the server answers there."""
        if self.settings.public_url:
            self._begin_to_register(self.settings)

    def register_again(self) -> None:
        """There is new code: tell Telegram, if it handles other kinds of updates."""
        if self._registration and self._kinds() != self._registered:
            self._registration.cancel()
            self._begin_to_register(replace(self.settings, drop_pending=False), self._registration)

    def _begin_to_register(self, settings: Settings, before: asyncio.Task[None] | None = None) -> None:
        self._registered = self._kinds()
        registering = self._register(settings, self._registered, before)
        self._registration = asyncio.create_task(registering, context=contextvars.Context())

    async def _register(
        self, settings: Settings, kinds: tuple[str, ...] | None, before: asyncio.Task[None] | None
    ) -> None:
        from fasthook.telegram.webhook import keep_registered

        if before:
            await asyncio.wait([before])
        try:
            await keep_registered(settings, kinds)
        except Exception as error:
            log.error("the webhook is not registered", exc_info=error)

    def give_up_registering(self) -> None:
        """From now on Telegram is told nothing of this address; `close` waits for the end of that."""
        if self._registration:
            self._registration.cancel()

    async def stop_registering(self) -> None:
        if self._registration:
            self._registration.cancel()
            await asyncio.wait([self._registration])
            self._registration = None

    async def send(self, update: Update, call: dict[str, Any]) -> None:
        """Send a Bot API method. GaveUp: Telegram could not be reached."""
        if self.settings.token is None:
            log.error("update %d: %s cannot be sent without a token; set --token", update.update_id, call["method"],
                      extra=fields(update))  # fmt: skip
            return
        if self._replies is None:
            from fasthook.telegram.replies import Replies

            self._replies = Replies(self.settings)
        self._sending += 1
        try:
            await self._replies.send(update.update_id, call)
        finally:
            self._sending -= 1
            if not self._sending:
                self._quiet.set()

    async def close(self, seconds: float = 0.0) -> None:
        """End what `register` and `send` began; what is being sent has so many seconds."""
        await self.stop_registering()
        if self._sending and seconds > 0.0:
            self._quiet.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._quiet.wait(), seconds)
        if self._replies:
            await self._replies.close()
            self._replies = None

    def close_log(self) -> None:
        """The end, behind that of the handlers."""
        self._scope.close()
