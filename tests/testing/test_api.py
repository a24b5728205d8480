"""The Bot API server over HTTP: addresses, parameters, answers, and what is answered on demand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import httpx
import pytest

from fasthook.telegram.api import BotAPI, BotAPIError
from fasthook.testing import TOKEN, Limits, Simulator, SimulatorError
from fasthook.testing.calls import parse_fault

Served = Callable[[Simulator, httpx.AsyncClient], Coroutine[Any, Any, None]]


def served(test: Served) -> Callable[[], None]:
    """A test with a running simulator and a client of it."""

    async def main() -> None:
        async with Simulator(seed=1) as simulator, httpx.AsyncClient(base_url=simulator.url, timeout=20) as client:
            await test(simulator, client)

    def run() -> None:
        asyncio.run(main())

    run.__name__, run.__module__ = test.__name__, test.__module__
    return run


BOT = f"/bot{TOKEN}/"


@served
async def test_methods_are_found_whatever_their_case(simulator: Simulator, client: httpx.AsyncClient) -> None:
    for name in ("getMe", "GETME", "getme"):
        answer = (await client.get(BOT + name)).json()
        assert answer["ok"]
        assert answer["result"]["id"] == 42
        assert answer["result"]["is_bot"]
    assert [call.method for call in simulator.bot.calls] == ["getMe"] * 3


@pytest.mark.parametrize("path", ["/bot41:TEST-other/getMe", "/bot42:TEST/getMe", "/botnonsense/getMe"])
def test_an_unknown_token(path: str) -> None:
    @served
    async def test(simulator: Simulator, client: httpx.AsyncClient) -> None:
        response = await client.post(path)
        assert response.status_code == 401
        assert response.json() == {"ok": False, "error_code": 401, "description": "Unauthorized"}

    test()


@served
async def test_a_revoked_token(simulator: Simulator, client: httpx.AsyncClient) -> None:
    simulator.bot.revoked = True
    assert (await client.post(BOT + "getMe")).status_code == 401


@served
async def test_an_unknown_path(simulator: Simulator, client: httpx.AsyncClient) -> None:
    for path in ("/", "/bot", f"/bot{TOKEN}", f"/bot{TOKEN}/", "/getMe"):
        response = await client.get(path)
        assert response.status_code == 404
        assert response.json() == {"ok": False, "error_code": 404, "description": "Not Found"}


@served
async def test_parameters_in_each_form(simulator: Simulator, client: httpx.AsyncClient) -> None:
    url = BOT + "sendMessage"
    given = {"chat_id": "7", "text": "hä?"}
    for response in (
        await client.get(url, params=given),
        await client.post(url, params=given),
        await client.post(url, data=given),
        await client.post(url, json={"chat_id": 7, "text": "hä?"}),
        await client.post(url, data=given, files={"thing": b"\x00\r\n"}),
    ):
        result = response.json()["result"]
        assert (result["chat"]["id"], result["text"]) == (7, "hä?")
        assert result["from"]["is_bot"]
    assert [call.result["message_id"] for call in simulator.bot.calls] == [1, 2, 3, 4, 5]
    assert simulator.bot.calls[-1].files == {"thing": b"\x00\r\n"}


@pytest.mark.parametrize(
    ("content_type", "body"),
    [("application/json", b"{"), ("application/json", b"[]"), ("multipart/form-data; boundary=b", b"--b\r\n")],
)
def test_a_broken_body(content_type: str, body: bytes) -> None:
    @served
    async def test(simulator: Simulator, client: httpx.AsyncClient) -> None:
        response = await client.post(BOT + "sendMessage", content=body, headers={"Content-Type": content_type})
        assert response.status_code == 400

    test()


@served
async def test_what_is_not_known_is_answered_and_recorded(simulator: Simulator, client: httpx.AsyncClient) -> None:
    response = await client.post(BOT + "makeCoffee", json={"cups": 2})
    assert response.json() == {"ok": True, "result": True}
    [call] = simulator.bot.calls
    assert (call.method, call.params) == ("makeCoffee", {"cups": 2})


REFUSED = [
    ("sendMessage", {"text": "hi"}, "chat_id is empty"),
    ("sendMessage", {"chat_id": 7, "text": " "}, "message text is empty"),
    ("sendMessage", {"chat_id": 7, "text": "x" * 4097}, "message is too long"),
    ("sendMessage", {"chat_id": "@nobody", "text": "hi"}, "chat not found"),
    ("sendPhoto", {"chat_id": 7}, "there is no photo in the request"),
    ("editMessageText", {"chat_id": 7, "message_id": 99, "text": "hi"}, "message to edit not found"),
    ("deleteMessage", {"chat_id": 7, "message_id": 99}, "message to delete not found"),
    ("getFile", {"file_id": "none"}, "invalid file_id"),
    ("sendMediaGroup", {"chat_id": 7, "media": []}, "there are no messages to send"),
    ("sendMediaGroup", {"chat_id": 7, "media": [{"media": "x"}]}, "can't parse InputMedia"),
    *(
        (
            "sendMessage",
            {"chat_id": 7, "text": "hi", "reply_markup": markup},
            "can't parse reply keyboard markup JSON object",
        )
        for markup in ("nonsense", {"inline_keyboard": {}}, {"keyboard": [["a", 1]]}, {"inline_keyboard": [[{}]]})
    ),
    (
        "answerCallbackQuery",
        {"callback_query_id": "1"},
        "query is too old and response timeout expired or query ID is invalid",
    ),
]


@pytest.mark.parametrize(("method", "params", "words"), REFUSED, ids=[f"{row[0]}: {row[2][:20]}" for row in REFUSED])
def test_what_is_refused(method: str, params: dict[str, Any], words: str) -> None:
    @served
    async def test(simulator: Simulator, client: httpx.AsyncClient) -> None:
        response = await client.post(BOT + method, json=params)
        assert response.status_code == 400
        assert response.json()["description"] == f"Bad Request: {words}"

    test()


@served
async def test_a_message_is_sent_edited_and_deleted(simulator: Simulator, client: httpx.AsyncClient) -> None:
    async def call(method: str, **params: Any) -> Any:
        return (await client.post(BOT + method, json={"chat_id": 7, **params})).json()

    sent = (await call("sendMessage", text="one"))["result"]
    edited = (await call("editMessageText", message_id=sent["message_id"], text="two"))["result"]
    assert (edited["text"], edited["message_id"]) == ("two", sent["message_id"])
    again = await call("editMessageText", message_id=sent["message_id"], text="two")
    assert again["description"].startswith("Bad Request: message is not modified")
    copied = (await call("copyMessage", from_chat_id=7, message_id=sent["message_id"]))["result"]
    assert copied == {"message_id": 2}
    assert (await call("deleteMessage", message_id=sent["message_id"]))["result"] is True
    assert simulator.chat(7).messages.keys() == {2}


@served
async def test_a_file_goes_both_ways(simulator: Simulator, client: httpx.AsyncClient) -> None:
    message = await simulator.chat(7).send_photo("look", data=b"\xff\xd8photo")
    file_id = message["photo"][-1]["file_id"]
    found = (await client.get(BOT + "getFile", params={"file_id": file_id})).json()["result"]
    data = await client.get(f"/file/bot{TOKEN}/{found['file_path']}")
    assert data.content == b"\xff\xd8photo"
    sent = await client.post(BOT + "sendDocument", data={"chat_id": "7"}, files={"document": ("a.bin", b"\x00")})
    document = sent.json()["result"]["document"]
    assert (document["file_name"], document["file_size"]) == ("a.bin", 1)
    assert (await client.get(f"/file/bot{TOKEN}/files/none")).status_code == 404


@served
async def test_what_was_set_can_be_got(simulator: Simulator, client: httpx.AsyncClient) -> None:
    assert (await client.get(BOT + "getMyCommands")).json()["result"] == []
    commands = [{"command": "start", "description": "Begin"}]
    await client.post(BOT + "setMyCommands", json={"commands": commands})
    assert (await client.get(BOT + "getMyCommands")).json()["result"] == commands


# ---------------------------------------------------------------- on demand


@served
async def test_429_on_demand(simulator: Simulator, client: httpx.AsyncClient) -> None:
    simulator.fail("429", "sendMessage", retry_after=3, times=1)
    response = await client.post(BOT + "sendMessage", json={"chat_id": 7, "text": "hi"})
    assert (response.status_code, response.headers["retry-after"]) == (429, "3")
    assert response.json()["parameters"] == {"retry_after": 3}
    assert (await client.post(BOT + "sendMessage", json={"chat_id": 7, "text": "hi"})).status_code == 200


async def said(client: httpx.AsyncClient, chat_id: int, method: str = "sendMessage") -> int:
    """Send a message: 0, or the seconds that Telegram wants to wait."""
    response = await client.post(BOT + method, json={"chat_id": chat_id, "text": "hi", "message_id": 1})
    if response.status_code != 429:
        return 0
    wait = int(response.json()["parameters"]["retry_after"])
    assert response.json()["description"] == f"Too Many Requests: retry after {wait}"
    assert response.headers["retry-after"] == str(wait)
    return wait


def test_limits_on_demand() -> None:
    """30 messages a second in all, one a second in a chat, 20 a minute in a group."""

    async def main() -> None:
        async with Simulator(speed=0) as simulator, httpx.AsyncClient(base_url=simulator.url, timeout=20) as client:
            assert [await said(client, 7) for _ in range(3)] == [0] * 3
            simulator.limit()
            assert [await said(client, 7) for _ in range(2)] == [0, 1]
            assert await said(client, 7, "editMessageText") == 1
            assert await said(client, 7, "sendChatAction") == 0
            simulator.clock.advance(0.5)
            assert await said(client, 7) == 1
            simulator.clock.advance(0.5)
            assert await said(client, 7) == 0
            simulator.clock.advance(1)
            assert [await said(client, chat) for chat in range(1, 32)] == [0] * 30 + [1]
            simulator.clock.advance(1)
            assert [await said(client, -7) for _ in range(21)] == [0] * 20 + [60]
            simulator.clock.advance(59)
            assert await said(client, -7) == 1
            simulator.clock.advance(1)
            assert await said(client, -7) == 0
            simulator.limit(Limits(group=(1, 3600)))
            assert [await said(client, -7) for _ in range(2)] == [0, 3600]
            simulator.limit(None)
            assert await said(client, -7) == 0

    asyncio.run(main())


@served
async def test_a_blocked_bot(simulator: Simulator, client: httpx.AsyncClient) -> None:
    chat = simulator.chat(7)
    await chat.block()
    response = await client.post(BOT + "sendMessage", json={"chat_id": 7, "text": "hi"})
    assert response.status_code == 403
    assert response.json()["description"] == "Forbidden: bot was blocked by the user"
    await chat.unblock()
    assert (await client.post(BOT + "sendMessage", json={"chat_id": 7, "text": "hi"})).status_code == 200
    [blocked, unblocked] = (await client.get(BOT + "getUpdates")).json()["result"]
    assert blocked["my_chat_member"]["new_chat_member"]["status"] == "kicked"
    assert unblocked["my_chat_member"]["new_chat_member"]["status"] == "member"


@served
async def test_html_on_demand(simulator: Simulator, client: httpx.AsyncClient) -> None:
    simulator.fail("html", times=1)
    response = await client.post(BOT + "getMe")
    assert (response.status_code, response.headers["content-type"]) == (502, "text/html; charset=utf-8")
    assert b"<h1>" in response.content


@served
async def test_a_hang_up_on_demand(simulator: Simulator, client: httpx.AsyncClient) -> None:
    simulator.fail("close", "getMe", times=1)
    with pytest.raises(httpx.TransportError):
        await client.post(BOT + "getMe")
    assert (await client.post(BOT + "getMe")).status_code == 200


@served
async def test_no_answer_on_demand(simulator: Simulator, client: httpx.AsyncClient) -> None:
    simulator.fail("hang", chat_id=7)
    impatient = httpx.Timeout(20, read=0.2)
    with pytest.raises(httpx.ReadTimeout):
        await client.post(BOT + "sendMessage", json={"chat_id": 7, "text": "hi"}, timeout=impatient)
    assert (await client.post(BOT + "sendMessage", json={"chat_id": 8, "text": "hi"})).status_code == 200
    simulator.heal()
    assert (await client.post(BOT + "sendMessage", json={"chat_id": 7, "text": "hi"})).status_code == 200


@served
async def test_a_slow_answer_on_demand(simulator: Simulator, client: httpx.AsyncClient) -> None:
    simulator.fail("slow", seconds=3600, times=1)
    call = asyncio.ensure_future(client.post(BOT + "getMe"))
    while simulator.bot.faults[0].times != 0:
        await asyncio.sleep(0)
    assert not call.done()
    simulator.clock.advance(3600)
    assert (await call).json()["ok"]


@served
async def test_the_end_waits_for_nobody(simulator: Simulator, client: httpx.AsyncClient) -> None:
    """Neither for who hangs, nor for who sleeps, nor for who polls."""
    simulator.fail("hang", "getMe")
    simulator.fail("slow", "getChat", seconds=3600)
    calls = [
        asyncio.ensure_future(client.post(BOT + method, json={"chat_id": 7, "timeout": 50}))
        for method in ("getMe", "getChat", "getUpdates")
    ]
    await asyncio.wait(calls, timeout=0.1)
    await simulator.__aexit__(None, None, None)
    await asyncio.wait_for(asyncio.wait(calls), 10)
    assert [call.exception() for call in calls if call.exception()]


def test_fasthooks_own_client() -> None:
    async def main() -> None:
        async with Simulator() as simulator:
            api = BotAPI(TOKEN, simulator.url)
            simulator.fail("429", "sendMessage", times=1, retry_after=1)
            sent = await api.call("sendMessage", chat_id=7, text="hi")
            assert sent["text"] == "hi"
            simulator.fail("403")
            with pytest.raises(BotAPIError, match="403 Forbidden: bot was blocked by the user"):
                await api.call("sendMessage", chat_id=7, text="hi")
            await api.close()

    asyncio.run(main())


@pytest.mark.parametrize("text", ["sendMessage", "sendMessage:what", "a:429:101", "a b:429", ":429", "a:429:-1"])
def test_a_fault_that_is_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"^must be "):
        parse_fault(text)


# ---------------------------------------------------------------- where it is


def test_a_port_in_use() -> None:
    async def main() -> None:
        async with Simulator() as first:
            port = int(first.url.rpartition(":")[2])
            with pytest.raises(SimulatorError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use$"):
                async with Simulator(port=port):
                    pass

    asyncio.run(main())


def test_it_is_for_this_machine_only() -> None:
    async def main() -> None:
        with pytest.raises(SimulatorError, match="for this machine only"):
            async with Simulator(host="0.0.0.0"):
                pass

    asyncio.run(main())


def test_several_bots() -> None:
    async def main() -> None:
        async with Simulator(["42:TEST-a", "43:TEST-b"]) as simulator, httpx.AsyncClient() as client:
            for account in simulator.accounts:
                me = (await client.get(f"{simulator.url}/bot{account.token}/getMe")).json()["result"]
                assert me["id"] == account.id
            assert (await client.get(f"{simulator.url}/bot42:TEST-b/getMe")).status_code == 401

    asyncio.run(main())


@pytest.mark.parametrize("tokens", [["nonsense"], ["42:a", "42:b"], ["0:a"]])
def test_tokens_that_cannot_be(tokens: list[str]) -> None:
    with pytest.raises(ValueError, match="token"):
        Simulator(tokens)
