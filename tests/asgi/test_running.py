"""`hook.running()`: a mounted hook that the application's own lifespan starts and drains."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
from starlette.applications import Starlette

from fasthook import Hook, Update
from fasthook.testing import samples


def test_it_is_drained_with_the_application(tmp_path: Path) -> None:
    handled: list[int] = []

    async def handler(update: Update) -> None:
        await asyncio.sleep(0)
        handled.append(update.update_id)

    hook = Hook(handler, secret="mounted", state_dir=tmp_path)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with hook.running():
            yield

    app = Starlette(lifespan=lifespan)
    app.mount("/telegram", hook)

    async def main() -> None:
        async with app.router.lifespan_context(app):
            assert hook.receiver.running
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://bot") as client:
                for n in range(5):
                    answer = await client.post(
                        "/telegram/webhook",
                        content=samples.update(n + 1),
                        headers={"X-Telegram-Bot-Api-Secret-Token": "mounted"},
                    )
                    assert answer.status_code == 200
        assert not hook.receiver.running

    asyncio.run(main())
    assert handled == [1, 2, 3, 4, 5]
