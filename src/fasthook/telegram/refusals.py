"""Chats that refuse the bot, each told of once."""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import Any

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
