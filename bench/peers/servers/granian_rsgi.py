"""The same by hand on Granian's own interface, RSGI. Served by: granian --interface rsgi …granian_rsgi:app"""

from __future__ import annotations

import asyncio
from hmac import compare_digest
from typing import Any

import orjson
from bench.peers import job

SECRET_HEADER = job.SECRET_HEADER.lower()

seen = job.Seen()
running: set[asyncio.Task[None]] = set()  # a task that nobody holds may be collected


async def handler(update: dict[str, Any]) -> None:
    job.handled(update["update_id"])


async def app(scope: Any, protocol: Any) -> object:
    if scope.path != job.PATH or scope.method != "POST":
        return protocol.response_empty(404, [])
    if not compare_digest(scope.headers.get(SECRET_HEADER, ""), job.SECRET):
        return protocol.response_empty(401, [])
    update = orjson.loads(await protocol())
    protocol.response_empty(200, [])
    if seen.add(update["update_id"]):
        task = asyncio.create_task(handler(update))
        running.add(task)
        task.add_done_callback(running.discard)
    return None
