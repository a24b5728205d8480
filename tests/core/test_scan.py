"""What is found in the bytes of a body, and what is not an update at all."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import reference
from core.cases import NOT_UPDATES, UPDATES, Found
from fasthook import Update
from fasthook._scan import KINDS, Admitted, restore, scan
from fasthook.testing import samples

CHAT, USER = -1001234567890, 987654321


def found(update: Any) -> Found | None:
    return update and Found(update.update_id, update.kind, update.chat_id, update.user_id)


def facts(update: Any) -> tuple[object, ...] | None:
    """All there is to compare; runs of what no UTF-8 can say count as one U+FFFD."""
    if update is None:
        return None
    kind = re.sub("[\ud800-\udfff\ufffd]+", "\ufffd", update.kind)
    return update.update_id, kind, update.kind_index, update.chat_id, update.user_id, update.lane, update.raw


def assert_agree(raw: bytes) -> None:
    assert facts(scan(raw)) == facts(reference.scan(raw))


# ---------------------------------------------------------------- Telegram's own bytes

HAS_NO_CHAT = {
    "inline_query",
    "chosen_inline_result",
    "business_connection",
    "shipping_query",
    "pre_checkout_query",
    "purchased_paid_media",
    "poll",
    "poll_answer",
}
HAS_NO_USER = {
    "channel_post",
    "edited_channel_post",
    "deleted_business_messages",
    "message_reaction_count",
    "poll",
    "chat_boost",
    "removed_chat_boost",
}


def of_telegram(kind: str, **facts: Any) -> bytes:
    return samples.update(123456789, kind, chat_id=CHAT, user_id=USER, **facts)


def test_the_twin_knows_the_same_kinds() -> None:
    assert KINDS == reference.KINDS
    assert set(samples.KINDS) == set(KINDS[1:])


@pytest.mark.parametrize("kind", KINDS[1:])
def test_telegrams_own_order(core: Any, kind: str) -> None:
    update = core.scan(of_telegram(kind))
    chat = None if kind in HAS_NO_CHAT else CHAT
    user = None if kind in HAS_NO_USER else USER
    assert found(update) == Found(123456789, kind, chat, user)
    assert update.kind_index == KINDS.index(kind)
    assert update.lane == (0, chat or user or 0)
    assert update.raw == of_telegram(kind)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_the_same_without_the_line_break(core: Any, kind: str) -> None:
    raw = of_telegram(kind)
    assert found(core.scan(raw.replace(b",\n", b",", 1))) == found(core.scan(raw))


@pytest.mark.parametrize("kind", KINDS[1:])
def test_telegrams_bytes_cut_anywhere(kind: str) -> None:
    raw = of_telegram(kind, text='"update_id":5, \N{GRINNING FACE} \\ \n')
    for end in range(len(raw) + 1):
        assert (scan(raw[:end]) is None) == (end < len(raw))
        assert_agree(raw[:end])


@pytest.mark.parametrize("size", [500, 4096, 524_315])
def test_telegrams_largest(core: Any, size: int) -> None:
    raw = samples.update(1, chat_id=CHAT, user_id=USER, size=size)
    assert found(core.scan(raw)) == Found(1, "message", CHAT, USER)


def test_an_invoice_payload_of_any_bytes(core: Any) -> None:
    raw = of_telegram("pre_checkout_query", invoice_payload=bytes(range(0x80, 0x100)))
    assert found(core.scan(raw)) == Found(123456789, "pre_checkout_query", None, USER)


# ---------------------------------------------------------------- other people's bytes


def as_bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode()


@pytest.mark.parametrize("case", UPDATES)
def test_an_update(core: Any, case: str) -> None:
    text, expected = UPDATES[case]
    assert found(core.scan(as_bytes(text))) == expected


@pytest.mark.parametrize("case", NOT_UPDATES)
def test_not_an_update(core: Any, case: str) -> None:
    assert core.scan(as_bytes(NOT_UPDATES[case])) is None


@pytest.mark.parametrize("case", [case for case in [*UPDATES, *NOT_UPDATES] if "100,000" not in case])
def test_cut_at_every_byte(case: str) -> None:
    raw = as_bytes(UPDATES[case][0] if case in UPDATES else NOT_UPDATES[case])
    for end in range(len(raw)):
        assert_agree(raw[:end])


@pytest.mark.parametrize("char", range(0x80))
def test_every_character_in_a_string_at_every_place(char: int) -> None:
    """Strings are searched sixteen bytes at a time: the odd one may stand anywhere in them."""
    for before in range(34):
        text = b"a" * before + bytes([char]) + b"a" * (33 - before)
        raw = b'{"update_id":5,"a":"%s"}' % text
        assert (scan(raw) is None) == (char < 0x20 or char in b'"\\')


@pytest.mark.parametrize("wrong", [None, "{}", bytearray(b"{}"), memoryview(b"{}"), 5])
def test_only_bytes_are_read(wrong: Any) -> None:
    with pytest.raises(TypeError):
        scan(wrong)


# ---------------------------------------------------------------- any bytes

NAMES = [*KINDS[1:8], "update_id", "chat", "from", "user", "message", "id", "text", "reply_to_message", "", "unknown"]
ESCAPES = {'"': '\\"', "\\": "\\\\", "/": "\\/", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
NUMBERS = ["0", "-0", "7", "-1001234567890", "9007199254740992", "999999999999999999", "1000000000000000000",
           "1.0", "1e2", "-1.5E-3", "01", "-", "1.", "+1"]  # fmt: skip

space = st.sampled_from(["", "", "", "", " ", "\n", "\t\r\n "])


def quoted(text: str, escaped: int) -> str:
    """A JSON string; the bits of `escaped` say which characters are written as escapes though they need not be."""
    chars = []
    for at, char in enumerate(text):
        if escaped >> (at % 32) & 1 and ord(char) < 0x10000:
            chars.append(f"\\u{ord(char):04{'xX'[at % 2]}}")
        elif char in ESCAPES and (char != "/" or at % 2):
            chars.append(ESCAPES[char])
        else:
            chars.append(f"\\u{ord(char):04x}" if ord(char) < 0x20 else char)
    return '"' + "".join(chars) + '"'


escaped = st.one_of(st.just(0), st.just(0), st.integers(0, 2**32 - 1))
names = st.builds(quoted, st.sampled_from(NAMES) | st.text(max_size=20), escaped)
strings = st.builds(quoted, st.text(max_size=40), escaped)
scalars = st.one_of(
    st.integers(-(10**19), 10**19).map(str),
    st.sampled_from(NUMBERS),
    st.sampled_from(["true", "false", "null"]),
    strings,
)


def spaced(part: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.tuples(space, part, space).map("".join)


def members(value: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.tuples(spaced(names), st.just(":"), spaced(value)).map("".join)


def arrays(value: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.lists(spaced(value), max_size=4).map(lambda items: f"[{','.join(items)}]")


def objects(value: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.lists(members(value), max_size=5).map(lambda items: "{%s}" % ",".join(items))  # noqa: UP031


values = st.recursive(scalars, lambda inner: arrays(inner) | objects(inner) | objects(inner), max_leaves=15)
events = objects(objects(scalars) | values)
ids = st.tuples(space, st.just('"update_id":'), st.integers(0, 2**53).map(str) | scalars).map("".join)


@st.composite
def documents(draw: st.DrawFn) -> bytes:
    """Something like an update: often as Telegram writes it, else with its names in any order, any number of times."""
    if draw(st.booleans()):
        update_id, kind, event = draw(st.integers(0, 2**31)), draw(st.sampled_from(KINDS[1:])), draw(events)
        text = '{"update_id":%d,\n"%s":%s}' % (update_id, kind, event)  # noqa: UP031
    else:
        parts = draw(st.lists(members(events | values), max_size=3))
        parts.insert(draw(st.integers(0, len(parts))), draw(ids))
        text = draw(space) + "{" + ",".join(parts) + "}" + draw(space)
    return text.encode("utf-8", "surrogatepass")


edits = st.tuples(
    st.floats(0, 1, exclude_max=True), st.sampled_from(["cut", "drop", "put", "set"]), st.integers(0, 255)
)


def edited(raw: bytes, where: float, how: str, byte: int) -> bytes:
    at = int(where * len(raw))
    if how == "cut":
        return raw[:at]
    return raw[:at] + (b"" if how == "drop" else bytes([byte])) + raw[at + (how != "put") :]


@given(documents())
@example(b'{"update_id":1,"\xed\xa0\x80":1}')
def test_documents_like_updates(raw: bytes) -> None:
    assert_agree(raw)


@given(documents(), st.lists(edits, min_size=1, max_size=3))
def test_documents_with_bytes_changed(raw: bytes, changes: list[tuple[float, str, int]]) -> None:
    for change in changes:
        raw = edited(raw, *change)
        assert_agree(raw)


@given(st.sampled_from(samples.KINDS), st.text(), st.lists(edits, min_size=1, max_size=5))
def test_telegrams_bytes_changed(kind: str, text: str, changes: list[tuple[float, str, int]]) -> None:
    raw = of_telegram(kind, text=text)
    assert_agree(raw)
    for change in changes:
        raw = edited(raw, *change)
        assert_agree(raw)


@given(st.binary(max_size=200))
def test_any_bytes(raw: bytes) -> None:
    assert_agree(raw)
    assert_agree(b'{"update_id":5,"message":{' + raw)


# ---------------------------------------------------------------- what an update carries


def test_an_update_of_the_scan_is_a_first_attempt() -> None:
    update = scan(of_telegram("message"))
    assert update is not None
    assert (update.bot_id, update.received_at, update.attempt, update.state) == (0, 0.0, 1, None)


def test_an_update_begins_afresh_in_memory_that_another_left() -> None:
    for _ in range(600):  # more than are kept for reuse
        update = scan(of_telegram("message"))
        assert update is not None
        assert (update.attempt, update.state) == (1, None)
        update.attempt, update.state = 9, object()


def test_an_update_that_was_kept_comes_back() -> None:
    raw = of_telegram("callback_query")
    update = restore(Update, raw, 42, 1.5, 3)
    assert isinstance(update, Update)
    assert found(update) == Found(123456789, "callback_query", CHAT, USER)
    assert (update.bot_id, update.received_at, update.attempt, update.lane) == (42, 1.5, 3, (42, CHAT))
    assert update.raw is raw


def test_what_was_kept_and_is_no_update_is_refused() -> None:
    with pytest.raises(ValueError, match="not an update"):
        restore(Update, b"{}", 42, 1.5, 3)


def test_an_update_that_was_never_filled_is_of_no_kind() -> None:
    assert Admitted().kind == "unknown"
