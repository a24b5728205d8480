"""`Update`, as a handler sees it."""

from __future__ import annotations

import json
from typing import Any

import orjson

from fasthook._scan import Admitted

# Methods that answer a query name the query, not a chat (Bot API, "answerCallbackQuery" and its like).
_QUERY_METHODS = {
    "answerCallbackQuery": ("callback_query", "callback_query_id"),
    "answerInlineQuery": ("inline_query", "inline_query_id"),
    "answerShippingQuery": ("shipping_query", "shipping_query_id"),
    "answerPreCheckoutQuery": ("pre_checkout_query", "pre_checkout_query_id"),
}


class Update(Admitted):
    """One update.

    `update_id`, `kind` (`"message"`, `"callback_query"`, …; Bot API, "Update"), `chat_id` and `user_id` (None where
    there is none; of a callback query the chat is its message's), `bot_id` (0 without a token), `received_at` (seconds
    since the epoch), `attempt` (1 at the first; a run that ended with its worker counts, too), `raw` (the bytes as they
    came), `state` (what `lifespan` yielded). `update["message"]` reads the parsed `data`.
    """

    __slots__ = ("_data",)

    _data: dict[str, Any]

    @property
    def data(self) -> dict[str, Any]:
        """The update as a dict, parsed at the first use.

        Telegram may send bytes that are not UTF-8 inside `invoice_payload`, and lone surrogates: the first are
        replaced by U+FFFD, the second kept as the standard library's `json` keeps them.
        """
        try:
            return self._data
        except AttributeError:
            self._data = _parse(self.raw)
            return self._data

    def __getitem__(self, key: str) -> Any:
        return self.data[key]

    def __contains__(self, key: object) -> bool:
        return key in self.data

    def get(self, key: str, default: Any = None) -> Any:
        """`data.get(key, default)`."""
        return self.data.get(key, default)

    def reply(self, method: str, **params: Any) -> dict[str, Any]:
        """A Bot API method for the handler to return, `chat_id` (or the query's id) filled in.

        ValueError: the update has neither, and none is given.
        """
        call = {"method": method, **params}
        if method in _QUERY_METHODS:
            kind, name = _QUERY_METHODS[method]
            if name not in params:
                if self.kind != kind:
                    raise ValueError(f"{method} answers a {kind}, this update is a {self.kind}: give {name}")
                call[name] = self.data[kind]["id"]
        elif not {"chat_id", "inline_message_id"} & params.keys():
            if self.chat_id is None:
                raise ValueError(f"a {self.kind} without a chat: give chat_id for {method}")
            call["chat_id"] = self.chat_id
        return call

    def __repr__(self) -> str:
        return f"<Update {self.update_id} {self.kind} chat={self.chat_id} attempt={self.attempt}>"


def fields(update: Admitted, **more: Any) -> dict[str, Any]:
    """What a line of the log about an update carries beside its words."""
    return {"update_id": update.update_id, "bot": update.bot_id, "kind": update.kind, **more}


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        data: dict[str, Any] = orjson.loads(raw)
    except orjson.JSONDecodeError:
        data = json.loads(raw.decode("utf-8", "replace"))
    return data
