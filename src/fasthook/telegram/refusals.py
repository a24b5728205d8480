"""Chats that refuse the bot, each told of once."""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import Any

from fasthook.update import Update

log = logging.getLogger("fasthook")

_REMEMBERED = 10_000  # chats that are known to refuse the bot


class Refusals:
    """Logs a 403 ("bot was blocked by the user", "bot was kicked from the group") once for each chat."""

    def __init__(self) -> None:
        self._chats: OrderedDict[Any, None] = OrderedDict()

    def tell(self, chat_id: Any, words: str) -> None:
        if chat_id in self._chats:
            return
        self._chats[chat_id] = None
        if len(self._chats) > _REMEMBERED:
            self._chats.popitem(last=False)
        log.warning("%s (told once for each chat)", words)

    def tell_handler(
        self, update: Update, words: str, *, method: str = "a call of the handler", chat_id: Any = None
    ) -> None:
        """A 403 that a library's call raised, and the handler left to it: its update is handled.

        `chat_id`: where the call went, if that is known; else the update's own counts.
        """
        chat = update.lane[1] if chat_id is None else chat_id
        self.tell(chat, f"update {update.update_id}: Telegram refused {method}: {words}")
