"""The Bot API client, against a server on loopback."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from botapi import HANG_UP, HTML, OK, PATIENCE, Answer, BotServer, flooded
from fasthook.telegram.api import (
    BadRequest,
    BotAPI,
    BotAPIError,
    BotAPIUnreachable,
    Conflict,
    Forbidden,
    NotFound,
    TooManyRequests,
    Unauthorized,
)

KINDS = {400: BadRequest, 401: Unauthorized, 403: Forbidden, 404: NotFound, 409: Conflict, 429: TooManyRequests}
TOKEN = "123456789:AAF-abc_DEF"
ALIEN = [  # JSON of others: a gateway, a service at the same address, a page for health
    Answer(404, b'{"detail":"Not Found"}'),
    Answer(403, b'{"message":"Forbidden"}'),
    Answer(400, b'{"error":{"code":400}}'),
    Answer(400, b'{"ok":false,"error":"no such route"}'),
    Answer(400, b'{"ok":false,"error_code":"E400"}'),
    Answer(429, b'{"ok":false,"parameters":{"retry_after":7}}'),
    Answer(200, b'{"hello":"world"}'),
    Answer(200, b'{"ok":true}'),
    Answer(200, b'{"ok":1,"result":{}}'),
]
BROKEN = Answer.json(500, error_code=500, description="Internal Server Error")
FAILURES = [HTML, HANG_UP, Answer(200, b"<html>"), Answer(200, b"[1]"), Answer(200, b"\xff"), BROKEN, *ALIEN]


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that were waited for; none of them passes."""
    asked: list[float] = []
    sleep = asyncio.sleep

    async def at_once(delay: float, result: object = None) -> None:
        if delay:
            asked.append(delay)
        await sleep(0)

    monkeypatch.setattr("fasthook.telegram.api.sleep", at_once)
    return asked


def use(server: str, work: Callable[[BotAPI], Awaitable[Any]]) -> Any:
    """Do something with a client."""

    async def main() -> Any:
        api = BotAPI(TOKEN, server)
        try:
            return await work(api)
        finally:
            await api.close()

    return asyncio.run(asyncio.wait_for(main(), PATIENCE))


def send(api: BotAPI) -> Awaitable[Any]:
    return api.call("sendMessage", chat_id=5, text="hi", parse_mode=None)


@pytest.mark.parametrize("suffix", ["", "/", "/api", "/api/"])
def test_a_call(suffix: str) -> None:
    with BotServer() as server:
        assert use(server.url + suffix, send) == {"message_id": 1}
    [call] = server.calls
    assert (call.token, call.method, call.params) == (TOKEN, "sendMessage", {"chat_id": 5, "text": "hi"})


def test_calls_share_a_connection() -> None:
    async def work(api: BotAPI) -> None:
        for _ in range(5):
            await send(api)

    with BotServer() as server:
        use(server.url, work)
    assert len(server.calls) == 5
    assert len({call.port for call in server.calls}) == 1


def test_retry_after_is_obeyed(waits: list[float]) -> None:
    with BotServer(flooded(7), flooded(0), flooded(3600)) as server:
        assert use(server.url, send) == {"message_id": 1}
    assert waits == [7, 3600]
    assert len(server.calls) == 4


def test_who_calls_can_be_told_of_a_wait(waits: list[float]) -> None:
    """Before it, since it may be an hour."""
    told: list[str] = []

    async def main(server: str) -> None:
        api = BotAPI(TOKEN, server, waits=lambda words: told.append(f"{words}, after {len(waits)}"))
        try:
            await send(api)
        finally:
            await api.close()

    with BotServer(flooded(7), flooded(3600)) as server:
        asyncio.run(main(server.url))
    assert told == ["sendMessage: Telegram says wait 7 s, after 0", "sendMessage: Telegram says wait 3600 s, after 1"]


@pytest.mark.parametrize("failure", FAILURES)
def test_what_is_no_answer_is_tried_again(waits: list[float], failure: Answer) -> None:
    with BotServer(failure, failure, failure, failure, OK) as server:
        assert use(server.url, send) == {"message_id": 1}
    assert len(server.calls) == 5
    assert [0.5 * 2**n <= wait <= 2**n for n, wait in enumerate(waits)] == [True] * 4


@pytest.mark.parametrize("failure", FAILURES)
def test_after_five_tries_telegram_is_unreachable(waits: list[float], failure: Answer) -> None:
    words = r"^sendMessage: no answer from the Bot API after 5 tries \((HTTP|RemoteProtocolError: the connection broke)"
    with BotServer(*[failure] * 6) as server, pytest.raises(BotAPIUnreachable, match=words):
        use(server.url, send)
    assert len(server.calls) == 5


def test_nobody_listens(waits: list[float]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(BotAPIUnreachable, match="ConnectError: cannot connect") as raised:
        use(f"http://127.0.0.1:{port}", send)
    assert TOKEN not in str(raised.value)


@pytest.mark.parametrize(
    "answer",
    [
        Answer.json(401, error_code=401, description="Unauthorized"),
        Answer.json(409, error_code=409, description="Conflict: terminated by other getUpdates request"),
        Answer.json(403, error_code=403, description="Forbidden: bot was blocked by the user"),
        Answer.json(400, error_code=400, description="Bad Request: chat not found"),
        Answer.json(429, error_code=429, description="no word of how long"),
        flooded(3601),
        Answer.json(404, error_code=404, description="Not Found"),
        Answer.json(413, error_code=413, description="Request Entity Too Large"),
    ],
)
def test_a_refusal_is_not_tried_again(waits: list[float], answer: Answer) -> None:
    with BotServer(answer) as server, pytest.raises(BotAPIError) as raised:
        use(server.url, send)
    assert len(server.calls) == 1
    assert waits == []
    assert (raised.value.method, raised.value.code) == ("sendMessage", answer.status)
    assert raised.value.description in answer.body.decode()
    assert type(raised.value) is KINDS.get(answer.status, BotAPIError)


@pytest.mark.parametrize("value", [object(), "\ud800", {1, 2}])
def test_what_cannot_be_sent(value: object) -> None:
    with BotServer() as server, pytest.raises(TypeError):
        use(server.url, lambda api: api.call("sendMessage", text=value))
    assert server.calls == []


def test_what_it_has_migrated_to_can_be_read() -> None:
    gone = Answer.json(
        400, error_code=400, description="group chat was upgraded", parameters={"migrate_to_chat_id": -1005}
    )
    with BotServer(gone) as server, pytest.raises(BadRequest) as raised:
        use(server.url, send)
    assert raised.value.parameters == {"migrate_to_chat_id": -1005}


def test_a_page_instead_of_an_answer_is_told(waits: list[float]) -> None:
    words = r"\(HTTP 502, a web page, not what a Bot API server says; is --api-url right\?\)$"
    with BotServer(*[HTML] * 5) as server, pytest.raises(BotAPIUnreachable, match=words):
        use(server.url, send)


@pytest.mark.parametrize("failure", ALIEN)
def test_json_that_is_none_of_a_bot_api_server_is_told(waits: list[float], failure: Answer) -> None:
    words = rf"\(HTTP {failure.status}, not what a Bot API server says; is --api-url right\?\)$"
    with BotServer(*[failure] * 5) as server, pytest.raises(BotAPIUnreachable, match=words):
        use(server.url, send)


@pytest.mark.parametrize("result", [True, None, [], "https://bot.example.com", {}, {"url": 5}])
def test_a_webhook_that_is_none(result: object) -> None:
    words = r"^getWebhookInfo: the result is not what a Bot API server says; is --api-url right\?$"
    with BotServer(Answer.json(200, result=result)) as server, pytest.raises(BotAPIUnreachable, match=words):
        use(server.url, lambda api: api.webhook_info())


@pytest.mark.parametrize("result", [True, {}, ["update"], [{}], [{"update_id": "5"}], [{"update_id": True}]])
def test_updates_that_are_none(result: object) -> None:
    words = r"^getUpdates: the result is not what a Bot API server says; is --api-url right\?$"
    with BotServer(Answer.json(200, result=result)) as server, pytest.raises(BotAPIUnreachable, match=words):
        use(server.url, lambda api: api.updates())


def test_a_server_that_says_nothing(waits: list[float]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:

        async def main() -> None:
            api = BotAPI(TOKEN, f"http://127.0.0.1:{mute.getsockname()[1]}", timeout=1.0, tries=2)
            try:
                await send(api)
            finally:
                await api.close()

        with pytest.raises(BotAPIUnreachable, match=r"2 tries \(ReadTimeout: no answer within 1 s\)$"):
            asyncio.run(main())


def test_files_of_each_kind(tmp_path: Path, waits: list[float]) -> None:
    """And what was read for a try that failed is read again for the next one."""
    (tmp_path / "a.txt").write_bytes(b"path")
    opened = io.BytesIO(b"open")
    media = [{"type": "photo", "media": tmp_path / "a.txt"}, {"type": "photo", "media": ("b.jpg", b"bytes")}]

    async def work(api: BotAPI) -> None:
        await api.call("sendDocument", chat_id=5, document=tmp_path / "a.txt", caption="hi", entities=[{"offset": 0}])
        await api.call("sendPhoto", chat_id=5, photo=opened)
        await api.call("sendMediaGroup", chat_id=5, media=media)

    with BotServer(BROKEN, OK, BROKEN) as server:
        use(server.url, work)
    document = {"chat_id": "5", "caption": "hi", "entities": '[{"offset":0}]', "document": ("a.txt", b"path")}
    group = server.calls[4].params
    assert [call.params for call in server.calls[:2]] == [document] * 2
    assert [call.params["photo"] for call in server.calls[2:4]] == [("file", b"open")] * 2
    assert json.loads(group["media"]) == [
        {"type": "photo", "media": "attach://file0"},
        {"type": "photo", "media": "attach://file1"},
    ]
    assert (group["file0"], group["file1"]) == (("a.txt", b"path"), ("b.jpg", b"bytes"))


def test_a_file_that_is_not_there() -> None:
    with BotServer() as server, pytest.raises(OSError, match="none"):
        use(server.url, lambda api: api.call("sendPhoto", photo=Path("/none")))
    assert server.calls == []


def test_the_token_is_nowhere_to_be_read(waits: list[float], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    async def work(api: BotAPI) -> None:
        assert "AAF" not in repr(api)
        await send(api)
        for _ in range(2):
            with pytest.raises((BotAPIError, BotAPIUnreachable)) as raised:
                await send(api)
            assert "AAF" not in repr(raised.value)

    with BotServer(OK, Answer.json(400, error_code=400), *[HANG_UP] * 5) as server:
        use(server.url, work)
    assert "AAF" not in caplog.text
    assert "HTTP Request: POST" in caplog.text
    assert "bot***/sendMessage" in caplog.text
    assert logging.getLogger("httpx").filters == []
