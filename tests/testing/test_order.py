"""What waits behind what."""

from __future__ import annotations

from typing import Any

import pytest

from fasthook.testing.updates import queue_of
from testing.stage import Stage, played

USER, OTHER = {"id": 7, "first_name": "Ann"}, {"id": 8, "first_name": "Bo"}
CHAT, GROUP = {"id": 7, "type": "private"}, {"id": -8, "type": "supergroup"}


@played
async def test_one_update_of_a_queue_is_in_flight_until_it_is_acknowledged(s: Stage) -> None:
    await s.set()
    await s.warm(5)
    before = len(s.hook.requests)
    held = s.hook.hold()
    ids = [s.message(chat=7) for _ in range(5)]
    other = s.message(chat=8)
    await s.hook.until_asked(before + 2)
    s.clock.advance(20)
    assert {request.update_id for request in s.hook.requests[before:]} == {ids[0], other}
    held.set()
    await s.until_settled()
    assert [id for request in s.hook.requests[before:] if (id := request.update_id) != other] == ids


@played
async def test_a_failing_head_holds_its_queue_only(s: Stage) -> None:
    await s.set()
    bad, behind, other = s.message(chat=1, text="bad"), s.message(chat=1), s.message(chat=2)
    s.hook.answer = lambda request: (
        b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n" if request.update_id == bad and s.clock.now() < 20 else OK
    )
    await s.until_settled()
    assert s.attempts[-1].update_id == behind
    taken = [attempt.update_id for attempt in s.attempts if attempt.status == 200]
    assert taken == [other, bad, behind]


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


@pytest.mark.parametrize(
    ("kinds", "differs"),
    [
        (["message", "edited_message", "channel_post", "edited_channel_post"], "chat"),
        (["callback_query"], "from"),
        (["inline_query"], "from"),
        (["chosen_inline_result"], "from"),
        (["shipping_query"], "from"),
        (["pre_checkout_query"], "from"),
        (["message_reaction"], "chat"),
        (["my_chat_member"], "chat"),
        (["chat_member"], "from"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_whose_queue_it_is(kinds: list[str], differs: str) -> None:
    """Updates of these kinds with the same chat or user share a queue, and with another they don't."""
    event: dict[str, Any] = {"chat": CHAT, "from": USER}
    same = {"chat": GROUP, "from": OTHER} | {differs: event[differs]}
    assert len({queue_of(kind, one) for kind in kinds for one in (event, same)}) == 1
    other = event | {differs: GROUP if differs == "chat" else OTHER}
    assert queue_of(kinds[0], other) != queue_of(kinds[0], event)


def test_polls_and_their_answers_queue_by_poll() -> None:
    poll, answer = {"id": "5"}, {"poll_id": "5", "user": USER}
    assert queue_of("poll", poll) == queue_of("poll_answer", answer)
    assert queue_of("poll", {"id": "6"}) != queue_of("poll", poll)


def test_messages_reactions_and_members_of_a_chat_have_queues_of_their_own() -> None:
    kinds = ("message", "message_reaction", "message_reaction_count", "my_chat_member", "chat_join_request")
    assert len({queue_of(kind, {"chat": CHAT}) for kind in kinds}) == len(kinds)


@played
async def test_messages_and_callbacks_of_a_chat_are_not_ordered_against_each_other(s: Stage) -> None:
    await s.set()
    await s.warm(2)
    before = len(s.hook.requests)
    held = s.hook.hold()
    s.message(chat=7)
    s.add("callback_query", {"id": "1", "from": USER, "data": "x"})
    await s.hook.until_asked(before + 2)  # both in flight
    held.set()
    await s.until_settled()
