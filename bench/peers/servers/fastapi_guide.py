"""FastAPI as its guides build a webhook: a model, a header, a background task, a dict cache, a rate limit.

Served by: uvicorn bench.peers.servers.fastapi_guide:app
"""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from bench.peers import job
from fastapi import BackgroundTasks, FastAPI, Header, HTTPException, Request, Response
from pydantic import BaseModel

RATE_LIMIT = 1_000_000  # requests in a window: there, and never reached
WINDOW = 60  # seconds
REMEMBER = 300  # seconds that an id is remembered
CACHE_SIZE = 10_000

app = FastAPI()
windows: dict[str, tuple[float, int]] = {}
cache: OrderedDict[int, float] = OrderedDict()


class Update(BaseModel):
    update_id: int
    message: dict[str, Any] | None = None
    callback_query: dict[str, Any] | None = None


@app.middleware("http")
async def limit_rate(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    client = request.client.host if request.client else ""
    now = time.monotonic()
    begun, count = windows.get(client, (now, 0))
    if now - begun > WINDOW:
        begun, count = now, 0
    if count >= RATE_LIMIT:
        return Response(status_code=429)
    windows[client] = (begun, count + 1)
    return await call_next(request)


def is_new(update_id: int) -> bool:
    now = time.monotonic()
    while cache and (len(cache) > CACHE_SIZE or next(iter(cache.values())) < now - REMEMBER):
        cache.popitem(last=False)
    if update_id in cache:
        return False
    cache[update_id] = now
    return True


async def handler(update: Update) -> None:
    job.handled(update.update_id)


@app.post(job.PATH)
async def webhook(
    update: Update,
    background: BackgroundTasks,
    x_telegram_bot_api_secret_token: Annotated[str, Header()] = "",
) -> dict[str, bool]:
    if not secrets.compare_digest(x_telegram_bot_api_secret_token, job.SECRET):
        raise HTTPException(status_code=401)
    if is_new(update.update_id):
        background.add_task(handler, update)
    return {"ok": True}
