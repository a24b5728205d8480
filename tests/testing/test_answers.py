"""What an answer does to an update: taken, tried again, dropped; and the method that may be in it."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib

import pytest

from fasthook.testing.updates import MOST_BYTES, MOST_UPDATES
from testing.hook import CLOSE, HANG, response
from testing.stage import Stage, played, stage

ANN = {"id": 7, "first_name": "Ann"}


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_any_2xx_takes_the_update_whatever_the_body_says(status: int) -> None:
    async def main() -> None:
        async with stage() as s:
            body = b'{"ok":false,"error_code":500}' if status != 204 else b""
            s.hook.always = response(status, body, Content_Type="application/json")
            await s.set()
            s.message()
            await s.until_settled()
            assert len(s.hook.requests) == 1
            assert "last_error_message" not in await s.info()

    asyncio.run(main())


@pytest.mark.parametrize("status", [100, 300, 301, 302, 307, 400, 401, 403, 404, 410, 429, 500, 502, 503])
def test_every_other_status_is_a_failure(status: int) -> None:
    """And a redirect is not followed."""

    async def main() -> None:
        async with stage() as s:
            s.hook.answers.append(
                f"HTTP/1.1 {status} Some Reason\r\nLocation: {s.hook.url}2\r\nContent-Length: 0\r\n\r\n".encode()
            )
            await s.set()
            s.message()
            await s.until_settled()
            assert [attempt.status for attempt in s.attempts] == [status, 200]
            assert {request.line for request in s.hook.requests} == {"POST /hook HTTP/1.1"}
            info = await s.info()
            assert info["last_error_message"] == f"Wrong response from the webhook: {status} Some Reason"
            assert info["last_error_date"] == s.clock.unix()

    asyncio.run(main())


@played
async def test_a_closed_connection_is_a_failure(s: Stage) -> None:
    s.hook.answers.append(CLOSE)
    await s.set()
    s.message()
    await s.until_settled()
    assert [attempt.status for attempt in s.attempts] == [0, 200]


@played
async def test_60_seconds_without_a_whole_answer_are_a_failure(s: Stage) -> None:
    """Then it is sent again at once, while the first may still be running."""
    s.hook.answers.append(HANG)
    await s.set()
    s.message()
    await s.hook.until_asked(1)
    s.clock.advance(59.9)
    assert s.attempts == []
    s.clock.advance(0.1)
    assert s.attempts[0].error == "Read timeout expired"
    await s.until_settled()
    assert [request.body for request in s.hook.requests] == [s.attempts[0].body] * 2
    assert s.times == [0, 60]


@played
async def test_half_an_answer_is_a_failure(s: Stage) -> None:
    s.hook.answers.append(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nok")
    s.hook.idle_close = True
    await s.set()
    s.message()
    await s.until_settled()
    assert [attempt.status for attempt in s.attempts] == [0, 200]


@played
async def test_an_answer_that_is_no_http_is_a_failure(s: Stage) -> None:
    s.hook.answers.append(b"+OK\r\n\r\n")
    await s.set()
    s.message()
    await s.until_settled()
    assert s.attempts[0].error == "Wrong response from the webhook"
    assert s.attempts[1].status == 200


# ---------------------------------------------------------------- when it is tried again


@played
async def test_the_pauses_between_tries(s: Stage) -> None:
    """At once, 2, 4, 8, 16, 32, about 60, then 60 to 120 s at random, until the update expires."""
    s.hook.always = response(500)
    await s.set()
    s.message()
    await s.until_settled()
    pauses = [round(later - earlier, 3) for earlier, later in zip(s.times, s.times[1:], strict=False)]
    assert pauses[:6] == [0, 2, 4, 8, 16, 32]
    assert 60 <= pauses[6] <= 64
    assert all(60 <= pause <= 120 for pause in pauses[7:])
    assert len(set(pauses[7:])) > 30
    assert 86_400 - 120 < s.times[-1] <= 86_400
    assert 900 < len(s.attempts) < 1100
    assert s.bot.updates.expired == 1


@played
async def test_retry_after_is_obeyed(s: Stage) -> None:
    s.hook.answers.extend([response(503, Retry_After="30"), response(429, Retry_After="7"), response(500)])
    await s.set()
    s.message()
    await s.until_settled()
    assert s.times == [0, 30, 37, 39]


@played
async def test_retry_after_is_at_most_3600(s: Stage) -> None:
    s.hook.answers.append(response(503, Retry_After="86000"))
    await s.set()
    s.message()
    await s.until_settled()
    assert s.times == [0, 3600]


@played
async def test_retry_after_in_other_words_is_ignored(s: Stage) -> None:
    """A date and a fraction, and one on a 2xx."""
    date = "Wed, 21 Oct 2065 07:28:00 GMT"
    s.hook.answers.extend([response(503, Retry_After=date), response(503, Retry_After="1.5")])
    s.hook.always = response(200, Retry_After="50")
    await s.set()
    s.message()
    s.message()
    await s.until_settled()
    assert s.times == [0, 0, 2, 2]


# ---------------------------------------------------------------- how long it lives

LIVES = {
    "inline_query": 30,
    "callback_query": 150,
    "shipping_query": 150,
    "pre_checkout_query": 150,
    "chosen_inline_result": 600,
    "message": 86_400,
    "my_chat_member": 86_400,
    "poll": 86_400,
}


@pytest.mark.parametrize(("kind", "life"), LIVES.items(), ids=LIVES.keys())
def test_how_long_an_update_lives(kind: str, life: int) -> None:
    async def main() -> None:
        async with stage() as s:
            s.add(kind)
            s.clock.advance(life - 1)
            assert (await s.info())["pending_update_count"] == 1
            s.clock.advance(2)
            assert (await s.info())["pending_update_count"] == 0

    asyncio.run(main())


@played
async def test_a_message_lives_from_its_date(s: Stage) -> None:
    s.message(date=s.clock.unix() - 86_000)
    s.clock.advance(399)
    assert (await s.info())["pending_update_count"] == 1
    s.clock.advance(3)
    assert (await s.info())["pending_update_count"] == 0


@played
async def test_an_update_is_dropped_if_its_next_try_would_come_too_late(s: Stage) -> None:
    """A Retry-After of 60 deletes an inline query."""
    s.hook.always = response(503, Retry_After="60")
    await s.set()
    s.add("inline_query", {"id": "1", "from": ANN})
    await s.until_settled()
    assert len(s.attempts) == 1
    assert s.bot.updates.expired == 1


@played
async def test_the_bot_stalls_when_the_heads_of_2_max_connections_queues_fail(s: Stage) -> None:
    s.hook.answer = lambda request: response(500) if b'"bad"' in request.body else response()
    await s.set(max_connections=2)
    s.message(chat=1)
    await s.until_settled()
    for chat in range(2, 6):
        s.message(chat=chat, text="bad")
    good = s.message(chat=9)
    before = len(s.attempts)
    await s.until_attempted(before + 40)
    assert good not in {attempt.update_id for attempt in s.attempts}
    s.hook.answer = None
    await s.until_settled()
    assert s.attempts[-1].status == 200
    assert good in {attempt.update_id for attempt in s.attempts}


@played
async def test_one_less_and_it_does_not_stall(s: Stage) -> None:
    s.hook.answer = lambda request: response(500) if b'"bad"' in request.body else response()
    await s.set(max_connections=2)
    for chat in range(2, 5):
        s.message(chat=chat, text="bad")
    good = s.message(chat=9)
    await s.until(lambda: any(attempt.update_id == good for attempt in s.attempts))


@played
async def test_at_most_100000_updates_wait(s: Stage) -> None:
    for _ in range(MOST_UPDATES):
        s.add("poll", raw=b"{}")
    assert s.bot.add("poll", {}, raw=b"{}") is None
    assert (await s.info())["pending_update_count"] == 100_000
    assert s.bot.updates.lost == 1


@played
async def test_at_most_128_mib_wait(s: Stage) -> None:
    event = b'"%s"' % (b"x" * (524_288 - 2 - len('"poll":')))
    for _ in range(MOST_BYTES // 524_288):
        s.add("poll", raw=event)
    assert s.bot.add("poll", {}, raw=b"{}") is None
    assert MOST_BYTES == 134_217_728


# ---------------------------------------------------------------- 410


@played
async def test_410_for_23_hours_removes_the_webhook(s: Stage) -> None:
    s.hook.always = response(410)
    await s.set()
    s.message()
    await s.until(lambda: s.bot.webhook is None)
    assert 23 * 3600 < s.times[-1] < 23 * 3600 + 121
    assert await s.info() == {"url": "", "has_custom_certificate": False, "pending_update_count": 1}


@played
async def test_410_with_a_break_does_not(s: Stage) -> None:
    s.hook.answer = lambda request: response(500 if 40_000 < s.clock.now() < 40_200 else 410)
    await s.set()
    s.message()
    await s.until_settled()
    assert s.bot.webhook is not None


# ---------------------------------------------------------------- a method in the answer


def reply_of(answer: bytes) -> Stage:
    """The stage after an update was answered with this."""

    async def main() -> Stage:
        async with stage() as s:
            s.hook.answers.append(answer)
            await s.set()
            s.message()
            await s.until_settled()
            return s

    return asyncio.run(main())


def replied(body: bytes, content_type: str, **headers: str) -> list[tuple[str, dict[str, object]]]:
    s = reply_of(response(200, body, Content_Type=content_type, **headers))
    assert [attempt.status for attempt in s.attempts] == [200]
    return [(call.method, call.params) for call in s.bot.calls if call.via == "webhook"]


SAY = {"method": "sendMessage", "chat_id": 7, "text": "hi"}
MULTIPART = (
    b'--b\r\nContent-Disposition: form-data; name="method"\r\n\r\nsendDocument\r\n'
    b'--b\r\nContent-Disposition: form-data; name="chat_id"\r\n\r\n7\r\n'
    b'--b\r\nContent-Disposition: form-data; name="document"; filename="a.bin"\r\n'
    b"Content-Type: application/octet-stream\r\n\r\n\x00\r\n\xff\r\n--b--\r\n"
)


def test_a_method_as_json_is_run() -> None:
    assert replied(json.dumps(SAY).encode(), "application/json") == [("sendMessage", {"chat_id": 7, "text": "hi"})]


def test_a_method_as_a_form_is_run() -> None:
    body = b"method=sendMessage&chat_id=7&text=h%C3%AF"
    found = replied(body, "application/x-www-form-urlencoded")
    assert found == [("sendMessage", {"chat_id": "7", "text": "h\xef"})]


def test_a_method_as_multipart_is_run() -> None:
    s = reply_of(response(200, MULTIPART, Content_Type="multipart/form-data; boundary=b"))
    [call] = [call for call in s.bot.calls if call.via == "webhook"]
    assert (call.method, call.params, call.files) == ("sendDocument", {"chat_id": "7"}, {"document": b"\x00\r\n\xff"})


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_compressed_method_is_run(encoding: str) -> None:
    body = json.dumps(SAY).encode()
    packed = gzip.compress(body) if encoding == "gzip" else zlib.compress(body)
    assert len(replied(packed, "application/json", Content_Encoding=encoding)) == 1


@pytest.mark.parametrize("content_type", ["text/plain", ""])
def test_without_the_matching_type_nothing_is_run(content_type: str) -> None:
    assert replied(json.dumps(SAY).encode(), content_type) == []


@pytest.mark.parametrize("method", ["setWebhook", "deleteWebhook", "close", "logOut", "getMe", "GETUPDATES"])
def test_a_method_that_is_not_run(method: str) -> None:
    assert replied(json.dumps({"method": method}).encode(), "application/json") == []


@pytest.mark.parametrize("body", [b"ok", b"[]", b'"sendMessage"', b"{"])
def test_json_that_is_no_method_is_no_failure(body: bytes) -> None:
    assert replied(body, "application/json") == []


def test_its_result_is_never_seen() -> None:
    """A refusal is no failure of the update."""
    body = json.dumps(SAY | {"text": ""}).encode()
    s = reply_of(response(200, body, Content_Type="application/json"))
    assert len(s.hook.requests) == 1
    assert [call.status for call in s.bot.calls if call.via == "webhook"] == [400]


@pytest.mark.parametrize(
    "answer",
    [
        response(200, json.dumps(SAY | {"text": "x" * (1 << 20)}).encode(), Content_Type="application/json"),
        response(200, b"x", Content_Encoding="br"),
        response(200, b"not gzip", Content_Encoding="gzip"),
        response(200, MULTIPART[:-6], Content_Type="multipart/form-data; boundary=b"),
    ],
    ids=["large JSON", "unknown encoding", "broken encoding", "broken multipart"],
)
def test_what_counts_as_a_failure_all_the_same(answer: bytes) -> None:
    s = reply_of(answer)
    assert len(s.hook.requests) == 2
    assert not [call for call in s.bot.calls if call.via == "webhook"]
