"""The least an ASGI app can do: receive the body, send 200. Beside it, the same uvicorn serves `Hook`.

Served by: uvicorn bench.peers.servers.asgi_minimal:app
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

Message = dict[str, Any]

START: Message = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]}
BODY: Message = {"type": "http.response.body", "body": b""}


async def app(
    scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
) -> None:
    assert scope["type"] == "http"  # uvicorn takes the refusal of "lifespan" for what it is
    while (await receive()).get("more_body"):
        pass
    await send(START)
    await send(BODY)
