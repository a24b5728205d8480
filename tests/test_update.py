"""`Update`, as a handler sees it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fasthook import Update
from fasthook.testing import samples
from updates import BOT, of, update


def event(kind: str, **content: Any) -> Update:
    return of(b'{"update_id":1,"%s":%s}' % (kind.encode(), json.dumps(content).encode()))


@pytest.mark.parametrize("kind", samples.KINDS)
def test_what_the_gate_found_agrees_with_the_data(kind: str) -> None:
    made = of(samples.update(17, kind, chat_id=-5, user_id=6))
    assert (made.update_id, made.kind, made.bot_id, made.received_at, made.attempt) == (17, kind, BOT, 1.5, 1)
    assert set(made.data) == {"update_id", kind}
    assert made.data["update_id"] == 17
    assert made.chat_id in (-5, None)
    assert made.user_id in (6, None)


def test_reading_the_data() -> None:
    made = update(17)
    assert made["message"]["text"] == "17"
    assert made.data is made.data
    assert "message" in made
    assert "poll" not in made
    assert made.get("message") is made["message"]
    assert made.get("poll") is None
    assert made.get("poll", 5) == 5
    with pytest.raises(KeyError, match="poll"):
        made["poll"]


def test_a_kind_that_is_not_known_yet() -> None:
    made = event("telepathy", chat={"id": 5}, user={"id": 6}, thought="hello")
    assert made.kind == "telepathy"
    assert made["telepathy"]["thought"] == "hello"


def test_an_update_without_a_kind() -> None:
    made = of(b'{"update_id":1}')
    assert (made.kind, made.chat_id, made.user_id) == ("unknown", None, None)


@pytest.mark.parametrize(
    "payload", [b"\xff\xfe", b"na\xefve", "ok \N{SNOWMAN}".encode(), b"\xed\xa0\x80", b"cut \xe2\x98"]
)
def test_bytes_that_are_not_utf_8(payload: bytes) -> None:
    made = of(samples.update(1, "pre_checkout_query", invoice_payload=payload))
    assert made["pre_checkout_query"]["invoice_payload"] == payload.decode("utf-8", "replace")
    assert made["pre_checkout_query"]["currency"] == "EUR"
    assert payload in made.raw


def test_lone_surrogates() -> None:
    assert of(rb'{"update_id":1,"message":{"text":"a\ud83d b"}}')["message"]["text"] == "a\ud83d b"


@given(st.binary(max_size=20))
def test_any_bytes_in_a_payload(payload: bytes) -> None:
    escaped = b"".join(b"\\u%04x" % byte if byte < 0x20 or byte in b'"\\' else bytes([byte]) for byte in payload)
    made = of(samples.update(1, "shipping_query", invoice_payload=escaped))
    assert made["shipping_query"]["invoice_payload"] == payload.decode("utf-8", "replace")


# ---------------------------------------------------------------- replies


def test_a_reply_goes_to_the_chat() -> None:
    assert update(1, chat=-100).reply("sendMessage", text="hi") == {
        "method": "sendMessage",
        "chat_id": -100,
        "text": "hi",
    }


def test_a_reply_to_a_callback_goes_to_its_messages_chat() -> None:
    made = of(samples.update(1, "callback_query", chat_id=7, user_id=8))
    assert made.reply("sendMessage", text="hi")["chat_id"] == 7


def test_a_chat_that_is_given_stays() -> None:
    assert update(1).reply("sendMessage", chat_id="@channel")["chat_id"] == "@channel"


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("callback_query", "answerCallbackQuery"),
        ("inline_query", "answerInlineQuery"),
        ("shipping_query", "answerShippingQuery"),
        ("pre_checkout_query", "answerPreCheckoutQuery"),
    ],
)
def test_an_answer_names_its_query(kind: str, method: str) -> None:
    made = of(samples.update(1, kind))
    assert made.reply(method, ok=True) == {"method": method, f"{kind}_id": made[kind]["id"], "ok": True}
    assert update(1).reply(method, **{f"{kind}_id": "9"}) == {"method": method, f"{kind}_id": "9"}
    with pytest.raises(ValueError, match=f"answers a {kind}, this update is a message: give {kind}_id"):
        update(1).reply(method)


def test_a_reply_where_there_is_no_chat() -> None:
    made = of(samples.update(1, "inline_query"))
    with pytest.raises(ValueError, match="a inline_query without a chat: give chat_id for sendMessage"):
        made.reply("sendMessage", text="hi")
    assert made.reply("sendMessage", chat_id=made.user_id)["chat_id"] == made.user_id


def test_an_edit_of_an_inline_message_needs_no_chat() -> None:
    made = event("callback_query", id="5", inline_message_id="AAA", **{"from": {"id": 6}})
    call = made.reply("editMessageText", inline_message_id="AAA", text="hi")
    assert call == {"method": "editMessageText", "inline_message_id": "AAA", "text": "hi"}


def test_the_repr_shows_no_content() -> None:
    assert repr(update(17, chat=5)) == "<Update 17 message chat=5 attempt=1>"
