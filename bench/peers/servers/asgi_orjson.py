"""Raw ASGI and orjson by hand: the fastest that one writes without a framework, on uvicorn.

Served by: uvicorn bench.peers.servers.asgi_orjson:app
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from hmac import compare_digest
from typing import Any

import orjson
from bench.peers import job

Message = dict[str, Any]
Send = Callable[[Message], Awaitable[None]]

SECRET = job.SECRET.encode()
SECRET_HEADER = job.SECRET_HEADER.lower().encode()
BODY: Message = {"type": "http.response.body", "body": b""}

seen = job.Seen()
running: set[asyncio.Task[None]] = set()  # a task that nobody holds may be collected


async def handler(update: dict[str, Any]) -> None:
    job.handled(update["update_id"])


async def answer(send: Send, status: int) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
    await send(BODY)


def secret_in(scope: Message) -> bytes:
    for name, value in scope["headers"]:
        if name == SECRET_HEADER:
            return bytes(value)
    return b""


async def app(scope: Message, receive: Callable[[], Awaitable[Message]], send: Send) -> None:
    assert scope["type"] == "http"  # uvicorn takes the refusal of "lifespan" for what it is
    if scope["path"] != job.PATH or scope["method"] != "POST":
        return await answer(send, 404)
    if not compare_digest(secret_in(scope), SECRET):
        return await answer(send, 401)
    message = await receive()
    body = message["body"]
    while message.get("more_body"):
        message = await receive()
        body += message["body"]
    update = orjson.loads(body)
    await answer(send, 200)
    if seen.add(update["update_id"]):
        task = asyncio.create_task(handler(update))
        running.add(task)
        task.add_done_callback(running.discard)
    return None
