"""Sample updates, byte for byte as Telegram's server writes them.

The order of the names and the line break behind `update_id` are those of the Bot API server's source (`Client.cpp`,
`WebhookActor.cpp`): `{"update_id":N,\\n"message":{...}}`, no other white space, non-ASCII text as `\\uXXXX`. The one
exception is `invoice_payload`, whose bytes are raw and need not be UTF-8.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Event = dict[str, Any]

DATE = 1_750_000_000
BUSINESS = "bc7Jw2kQAQ"
POLL = "5422416718934509342"
EMOJI = "5368324170671202286"
BOOST = "9f2b1c7ad04e"
_RAW = "(invoice_payload)"  # stands for raw bytes until the JSON is written
_PROSE = "The parcel left the depot this morning, and the courier will ring once before noon. "


@dataclass(frozen=True)
class _Facts:
    chat_id: int
    user_id: int
    text: str  # for the kinds that carry free text
    pad: str  # for the others: what lengthens an identifier that means nothing to us

    def user(self) -> Event:
        return {
            "id": self.user_id,
            "is_bot": False,
            "first_name": "Ann",
            "last_name": "Lee",
            "username": "annlee",
            "language_code": "en",
        }

    def chat(self) -> Event:
        if self.chat_id < 0:
            return {"id": self.chat_id, "title": "Parcels", "type": "supergroup"}
        return {"id": self.chat_id, "first_name": "Ann", "last_name": "Lee", "username": "annlee", "type": "private"}

    def message(self) -> Event:
        return {"message_id": 1042, "from": self.user(), "chat": self.chat(), "date": DATE, "text": self.text}

    def post(self) -> Event:
        chat = {"id": self.chat_id, "title": "Parcels", "type": "channel"}
        return {"message_id": 1042, "sender_chat": chat, "chat": chat, "date": DATE, "text": self.text}

    def query(self) -> Event:
        return {"id": "5577006791947779410", "from": self.user()}


def _edited(message: Event) -> Event:
    text = message.pop("text")
    return {**message, "edit_date": DATE + 60, "text": text}


def _callback_query(f: _Facts) -> Event:
    message = f.message()
    message["from"] = {"id": 8_000_000_001, "is_bot": True, "first_name": "Parcels", "username": "parcelsbot"}
    message["reply_markup"] = {"inline_keyboard": [[{"text": "Track", "callback_data": "track:17"}]]}
    return {**f.query(), "message": message, "chat_instance": "-3916589616287113937", "data": "track:17"}


def _business_connection(f: _Facts) -> Event:
    rights = {"can_reply": True, "can_read_messages": True}
    return {
        "id": BUSINESS + f.pad,
        "user": f.user(),
        "user_chat_id": f.user_id,
        "date": DATE,
        "can_reply": True,
        "rights": rights,
        "is_enabled": True,
    }


def _deleted(f: _Facts) -> Event:
    return {"business_connection_id": BUSINESS + f.pad, "chat": f.chat(), "message_ids": [1042, 1043]}


def _reaction(f: _Facts) -> Event:
    old = [{"type": "custom_emoji", "custom_emoji_id": EMOJI + f.pad}]
    new = [{"type": "emoji", "emoji": "\N{THUMBS UP SIGN}"}]
    return {
        "chat": f.chat(),
        "message_id": 1042,
        "user": f.user(),
        "date": DATE,
        "old_reaction": old,
        "new_reaction": new,
    }


def _reaction_count(f: _Facts) -> Event:
    emoji = {"type": "custom_emoji", "custom_emoji_id": EMOJI + f.pad}
    return {"chat": f.chat(), "message_id": 1042, "date": DATE, "reactions": [{"type": emoji, "total_count": 3}]}


def _shipping_query(f: _Facts) -> Event:
    address = {
        "country_code": "NL",
        "state": "",
        "city": "Delft",
        "street_line1": f.text,
        "street_line2": "",
        "post_code": "2611",
    }
    return {**f.query(), "invoice_payload": _RAW, "shipping_address": address}


def _pre_checkout_query(f: _Facts) -> Event:
    order = {"name": f.text, "email": "ann@example.org"}
    return {**f.query(), "currency": "EUR", "total_amount": 1499, "invoice_payload": _RAW, "order_info": order}


def _poll(f: _Facts) -> Event:
    return {
        "id": POLL,
        "question": f.text,
        "options": [{"text": "Yes", "voter_count": 2}, {"text": "No", "voter_count": 0}],
        "total_voter_count": 2,
        "is_closed": False,
        "is_anonymous": True,
        "type": "regular",
        "allows_multiple_answers": False,
    }


def _member(f: _Facts) -> Event:
    old = {"user": f.user(), "status": "member"}
    new = {"user": f.user(), "status": "kicked", "until_date": 0}
    sender = f.user() | {"last_name": "Lee" + f.pad}
    return {"chat": f.chat(), "from": sender, "date": DATE, "old_chat_member": old, "new_chat_member": new}


def _join(f: _Facts) -> Event:
    return {"chat": f.chat(), "from": f.user(), "user_chat_id": f.user_id, "date": DATE, "bio": f.text}


def _boost(f: _Facts) -> Event:
    source = {"source": "premium", "user": f.user()}
    boost = {"boost_id": BOOST + f.pad, "add_date": DATE, "expiration_date": DATE + 2_592_000, "source": source}
    return {"chat": f.chat(), "boost": boost}


def _removed_boost(f: _Facts) -> Event:
    source = {"source": "premium", "user": f.user()}
    return {"chat": f.chat(), "boost_id": BOOST + f.pad, "remove_date": DATE, "source": source}


def _business(message: Event) -> Event:
    return {"business_connection_id": BUSINESS, **message}


_EVENTS: dict[str, Callable[[_Facts], Event]] = {
    "message": _Facts.message,
    "edited_message": lambda f: _edited(f.message()),
    "channel_post": _Facts.post,
    "edited_channel_post": lambda f: _edited(f.post()),
    "callback_query": _callback_query,
    "inline_query": lambda f: {**f.query(), "chat_type": "sender", "query": f.text, "offset": ""},
    "chosen_inline_result": lambda f: {"from": f.user(), "query": f.text, "result_id": "17"},
    "business_connection": _business_connection,
    "business_message": lambda f: _business(f.message()),
    "edited_business_message": lambda f: _business(_edited(f.message())),
    "deleted_business_messages": _deleted,
    "message_reaction": _reaction,
    "message_reaction_count": _reaction_count,
    "shipping_query": _shipping_query,
    "pre_checkout_query": _pre_checkout_query,
    "purchased_paid_media": lambda f: {"from": f.user(), "paid_media_payload": "album-17" + f.pad},
    "poll": _poll,
    "poll_answer": lambda f: {"poll_id": POLL + f.pad, "user": f.user(), "option_ids": [0]},
    "my_chat_member": _member,
    "chat_member": _member,
    "chat_join_request": _join,
    "chat_boost": _boost,
    "removed_chat_boost": _removed_boost,
}

#: The kinds that `update` makes.
KINDS = tuple(_EVENTS)


def update(
    update_id: int,
    kind: str = "message",
    *,
    chat_id: int = 1_234_567_890,
    user_id: int = 1_234_567_890,
    text: str = "Where is my parcel?",
    size: int | None = None,
    invoice_payload: bytes = b"order-17",
) -> bytes:
    """One update of this kind as the bytes of a webhook's body.

    `text` goes where this kind carries free text; a negative `chat_id` makes the chat a group. `size`: the length of
    the whole in bytes, reached by more text, or by a longer identifier where there is none. `invoice_payload`: raw, as
    it is sent, so the caller escapes what JSON wants escaped. ValueError: the kind is not in `KINDS`, or the update is
    longer than `size` as it is.
    """
    if kind not in _EVENTS:
        raise ValueError(f"no sample of the kind {kind!r}")
    raw = _write(update_id, kind, _EVENTS[kind](_Facts(chat_id, user_id, text, "")), invoice_payload)
    if size is None or len(raw) == size:
        return raw
    missing = size - len(raw)
    if missing < 0:
        raise ValueError(f"this {kind} has {len(raw)} bytes, more than {size}")
    pad = (" " + _PROSE * (missing // len(_PROSE) + 1))[:missing]
    return _write(update_id, kind, _EVENTS[kind](_Facts(chat_id, user_id, text + pad, pad)), invoice_payload)


def small(update_id: int) -> bytes:
    """An update of about 100 bytes, one of the shortest there are: an anonymous answer to a poll."""
    answer = {"poll_id": "1", "voter_chat": {"id": -1001, "title": "P", "type": "channel"}, "option_ids": [0]}
    return _write(update_id, "poll_answer", answer, b"")


def _write(update_id: int, kind: str, event: Event, invoice_payload: bytes) -> bytes:
    body = json.dumps(event, separators=(",", ":")).encode()
    if "invoice_payload" in event:
        body = body.replace(_RAW.encode(), invoice_payload, 1)
    return b'{"update_id":%d,\n"%s":%s}' % (update_id, kind.encode(), body)
