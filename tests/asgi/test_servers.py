"""The gate's answers through `Hook`, served by real ASGI servers over real sockets."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable

import pytest

from asgi.conftest import Run
from asgi.serving import SECRET, Serve, by_hypercorn, by_uvicorn, client, post
from fasthook import Hook
from fasthook.queues.deadletter import DeadLetters
from fasthook.testing import samples

MIB = 1 << 20


def head(*headers: str) -> bytes:
    secret = f"X-Telegram-Bot-Api-Secret-Token: {SECRET['X-Telegram-Bot-Api-Secret-Token']}"
    return "\r\n".join(["POST /webhook HTTP/1.1", "Host: localhost", secret, *headers, "", ""]).encode()


def test_the_rows_of_the_gate(run: Run, serve: Serve, hook: Hook, handled: list[int]) -> None:
    async def main() -> None:
        async with serve(hook) as address, client(address) as api:
            response = await api.post("/webhook", content=samples.update(1))
            assert (response.status_code, response.content) == (200, b"")
            assert response.headers["content-length"] == "0"
            assert await post(api, 1) == 200
            response = await api.post("/other", content=samples.update(2))
            assert (response.status_code, response.text) == (404, "no hook is at this path\n")
            for method in ("GET", "HEAD", "PUT"):
                response = await api.request(method, "/webhook")
                assert (response.status_code, response.headers["allow"]) == (405, "POST")
                assert response.headers["content-length"] == "21"
                assert response.text == ("" if method == "HEAD" else "updates come by POST\n")
            response = await api.post(
                "/webhook", content=samples.update(2), headers={"X-Telegram-Bot-Api-Secret-Token": "x"}
            )
            assert response.status_code == 401
            assert (await api.post("/webhook", content=b"not an update")).status_code == 200
            assert await post(api, 3) == 200

    run(main())
    assert handled == [1, 3]
    dead = DeadLetters(hook.settings.state_dir / "dead")
    assert [letter.raw for _, letter in dead.items()] == [b"not an update"]
    dead.close()


def test_a_body_in_pieces(run: Run, serve: Serve, hook: Hook, handled: list[int]) -> None:
    async def pieces(raw: bytes) -> AsyncIterator[bytes]:
        for at in range(0, len(raw), 1000):
            yield raw[at : at + 1000]

    async def main() -> None:
        async with serve(hook) as address, client(address) as api:
            for update_id, size in enumerate([500, 5_000, 200_000, MIB]):
                raw = samples.update(update_id, size=size)
                assert (await api.post("/webhook", content=pieces(raw))).status_code == 200
                raw = samples.update(10 + update_id, size=size)
                assert (await api.post("/webhook", content=raw)).status_code == 200

    run(main())
    assert handled == [0, 10, 1, 11, 2, 12, 3, 13]


@pytest.mark.parametrize(
    "sent",
    [
        head(f"Content-Length: {MIB + 1}"),
        head("Transfer-Encoding: chunked") + b"%x\r\n%b\r\n1\r\n" % (MIB, bytes(MIB)),
    ],
    ids=["declared", "counted"],
)
def test_a_body_that_is_too_large(run: Run, serve: Serve, hook: Hook, sent: bytes) -> None:
    """The answer doesn't wait for the end of it."""

    async def main() -> None:
        async with serve(hook) as address:
            reader, writer = await asyncio.open_connection(*address)
            writer.write(sent + b"x")
            assert b" 413 " in await reader.readline()
            assert b"connection: close" in (await reader.readuntil(b"\r\n\r\n")).lower()
            writer.close()

    run(main())


def test_too_many_wrong_secrets(run: Run, serve: Serve, make: Callable[..., Hook]) -> None:
    async def main() -> None:
        async with serve(make(auth_rate="1/h")) as address, client(address) as api:
            wrong = {"X-Telegram-Bot-Api-Secret-Token": "wrong"}
            statuses = [(await api.post("/webhook", content=b"{}", headers=wrong)).status_code for _ in range(2)]
            assert statuses == [401, 429]
            assert await post(api, 1) == 200

    run(main())


def test_a_client_that_goes_away_in_the_middle(
    run: Run, serve: Serve, hook: Hook, handled: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with serve(hook) as address, client(address) as api:
            with socket.create_connection(address) as leaving:
                leaving.sendall(head("Content-Length: 1000") + b'{"update_id":1,')
                assert await post(api, 2) == 200  # by now the half of it has been read
            assert await post(api, 3) == 200

    run(main())
    assert handled == [2, 3]
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_under_a_root_path(run: Run, serve: Serve, hook: Hook, handled: list[int]) -> None:
    """Which the proxy in front takes away."""

    async def main() -> None:
        async with serve(hook, root_path="/api/v1") as address, client(address) as api:
            assert await post(api, 1, path="/webhook") == 200
            assert await post(api, 2, path="/other") == 404

    run(main())
    assert handled == [1]


def test_what_was_accepted_is_handled_before_the_server_ends(run: Run, serve: Serve, make: Callable[..., Hook]) -> None:
    handled: list[int] = []

    async def handler(update: object) -> None:
        await asyncio.sleep(0.01)
        handled.append(update.update_id)  # type: ignore[attr-defined]

    async def main() -> None:
        async with serve(make(handler)) as address, client(address) as api:
            for update_id in range(20):
                assert await post(api, update_id, chat=update_id % 2) == 200

    run(main())
    assert sorted(handled) == list(range(20))


@pytest.mark.parametrize("kind", ["uvicorn", "hypercorn"])
def test_a_websocket_is_refused(run: Run, hook: Hook, kind: str) -> None:
    async def main() -> None:
        serving = by_uvicorn(hook, http="h11", ws="wsproto") if kind == "uvicorn" else by_hypercorn(hook)
        async with serving as address, client(address) as api:
            reader, writer = await asyncio.open_connection(*address)
            writer.write(
                b"GET /webhook HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
            )
            assert b" 403 " in await reader.readline()
            writer.close()
            assert await post(api, 1) == 200

    run(main())
