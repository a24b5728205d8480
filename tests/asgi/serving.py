"""ASGI servers in the running loop, and a client."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import httpx
import uvicorn

from fasthook import Update
from fasthook.testing import samples

SECRET = {"X-Telegram-Bot-Api-Secret-Token": "asgi-secret"}
PATIENCE = 20.0  # seconds that a test waits for something before it fails


class Serve(Protocol):
    def __call__(self, app: Any, **options: Any) -> AbstractAsyncContextManager[tuple[str, int]]: ...


def handler_of(handled: list[int]) -> Callable[[Update], Awaitable[None]]:
    """A handler that keeps the ids it is given."""

    async def handler(update: Update) -> None:
        handled.append(update.update_id)

    return handler


class _Uvicorn(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield


@contextlib.asynccontextmanager
async def by_uvicorn(app: Any, *, http: str, root_path: str = "", **options: Any) -> AsyncIterator[tuple[str, int]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(app, http=http, root_path=root_path, log_config=None, **{"ws": "none", **options})
        server = _Uvicorn(config)
        serving = asyncio.ensure_future(server.serve(sockets=[listener]))
        try:
            yield listener.getsockname()
        finally:
            server.should_exit = True
            await asyncio.wait_for(serving, PATIENCE)  # it would wait for a connection that stays, without an end


@contextlib.asynccontextmanager
async def by_hypercorn(app: Any, *, root_path: str = "", **_: Any) -> AsyncIterator[tuple[str, int]]:
    from hypercorn.asyncio import serve
    from hypercorn.config import Config

    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    config = Config()
    config.root_path = root_path
    config.bind = [f"fd://{listener.detach()}"]
    config.accesslog = config.errorlog = None
    stop = asyncio.Event()
    serving = asyncio.ensure_future(serve(app, config, shutdown_trigger=stop.wait))
    try:
        yield address
    finally:
        stop.set()
        await asyncio.wait_for(serving, PATIENCE)


SERVERS: dict[str, Serve] = {
    "uvicorn-httptools": functools.partial(by_uvicorn, http="httptools"),
    "uvicorn-h11": functools.partial(by_uvicorn, http="h11"),
    "hypercorn": by_hypercorn,
}


@contextlib.asynccontextmanager
async def client(address: tuple[str, int]) -> AsyncIterator[httpx.AsyncClient]:
    """A client of this address that knows the secret."""
    url = f"http://{address[0]}:{address[1]}"
    async with httpx.AsyncClient(base_url=url, headers=SECRET, timeout=PATIENCE, trust_env=False) as made:
        yield made


async def post(api: httpx.AsyncClient, update_id: int, *, path: str = "/webhook", chat: int = 1) -> int:
    """Post a message: the status."""
    response = await api.post(path, content=samples.update(update_id, chat_id=chat))
    return response.status_code
