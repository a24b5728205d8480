"""`Hook` mounted in a framework, where no lifespan reaches it."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from asgi.conftest import Run
from asgi.serving import Serve, by_uvicorn, client, post
from fasthook import Hook, Update
from fasthook.state import StateDir


async def hello(request: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


def in_starlette(hook: Hook) -> Any:
    return Starlette(routes=[Route("/hello", hello), Mount("/bot", hook)])


def in_fastapi(hook: Hook) -> Any:
    app = FastAPI()
    app.add_route("/hello", hello)
    app.mount("/bot", hook)
    return app


def in_a_mount_of_a_mount(hook: Hook) -> Any:
    app = FastAPI()
    app.add_route("/hello", hello)
    app.mount("/", Starlette(routes=[Mount("/bot", hook)]))
    return app


@pytest.mark.parametrize("mounted", [in_starlette, in_fastapi, in_a_mount_of_a_mount])
def test_it_starts_on_its_first_request_and_stops_with_its_loop(
    run: Run, serve: Serve, hook: Hook, handled: list[int], mounted: Callable[[Hook], Any]
) -> None:
    async def main(update_id: int) -> None:
        async with serve(mounted(hook)) as address, client(address) as api:
            assert (await api.get("/hello")).text == "hello"
            assert not hook.receiver.running
            assert await post(api, update_id, path="/bot/webhook") == 200
            assert hook.receiver.running
            assert await post(api, update_id, path="/bot/other") == 404
            assert await post(api, 1, path="/bot/webhook") == 200

    run(main(1))
    assert not hook.receiver.running
    run(main(2))  # it starts again in a new loop, and knows what it has handled
    assert not hook.receiver.running
    assert handled == [1, 2]


def test_first_requests_at_the_same_instant(run: Run, make: Callable[..., Hook]) -> None:
    entered: list[Any] = []
    handled: list[int] = []

    @contextlib.asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        await asyncio.sleep(0.01)
        entered.append(app)
        yield
        entered.append("left")

    async def handler(update: Update) -> None:
        handled.append(update.update_id)

    hook = make(handler, lifespan=lifespan)

    async def main() -> None:
        async with by_uvicorn(in_starlette(hook), http="httptools") as address, client(address) as api:
            statuses = await asyncio.gather(*(post(api, n, path="/bot/webhook") for n in range(10)))
            assert statuses == [200] * 10

    for _ in range(2):
        run(main())
    assert entered == [hook, "left"] * 2
    assert sorted(handled) == list(range(10))


def test_what_runs_when_the_loop_ends_is_handled(run: Run, make: Callable[..., Hook]) -> None:
    """The loop cancels it, which counts as a failure; the drain waits for the next try."""
    handled: list[tuple[int, int]] = []

    async def handler(update: Update) -> None:
        await asyncio.sleep(0.05)
        handled.append((update.update_id, update.attempt))

    hook = make(handler)

    async def main() -> None:
        async with by_uvicorn(in_starlette(hook), http="httptools") as address, client(address) as api:
            for update_id in range(6):
                assert await post(api, update_id, path="/bot/webhook", chat=update_id % 2) == 200

    run(main())
    assert [one[0] for one in handled if one[0] % 2 == 0] == [0, 2, 4]
    assert [one[0] for one in handled if one[0] % 2] == [1, 3, 5]


def test_what_is_left_when_the_loop_ends_is_handled_in_the_next(run: Run, make: Callable[..., Hook]) -> None:
    handled: list[int] = []
    hang = True

    async def handler(update: Update) -> None:
        if hang:
            await asyncio.Event().wait()
        handled.append(update.update_id)

    hook = make(handler, drain_timeout=0)

    async def main(update_id: int) -> None:
        async with by_uvicorn(in_starlette(hook), http="httptools") as address, client(address) as api:
            assert await post(api, update_id, path="/bot/webhook") == 200

    run(main(1))
    run(main(2))
    hang = False
    hook = make(handler)
    run(main(3))
    assert handled == [1, 2, 3]


def test_a_start_that_fails_is_tried_again(run: Run, hook: Hook, handled: list[int], tmp_path: Path) -> None:
    async def main() -> None:
        async with by_uvicorn(in_starlette(hook), http="httptools") as address, client(address) as api:
            other = StateDir(tmp_path / "state")
            statuses = await asyncio.gather(*(post(api, n, path="/bot/webhook") for n in range(3)))
            assert statuses == [500] * 3
            other.close()
            assert await post(api, 1, path="/bot/webhook") == 200

    run(main())
    assert handled == [1]


def test_handlers_do_not_see_the_context_of_the_first_request(run: Run, make: Callable[..., Hook]) -> None:
    user: contextvars.ContextVar[str] = contextvars.ContextVar("user")
    found: list[str | None] = []

    async def handler(update: Update) -> None:
        found.append(user.get(None))

    hook = make(handler)

    async def signed_in(scope: Any, receive: Any, send: Any) -> None:
        user.set("the first to come")
        await in_starlette(hook)(scope, receive, send)

    async def main() -> None:
        async with by_uvicorn(signed_in, http="httptools", lifespan="off") as address, client(address) as api:
            assert await post(api, 1, path="/bot/webhook") == 200

    run(main())
    assert found == [None]


def test_its_lifespan_is_left_after_the_last_handler(run: Run, make: Callable[..., Hook]) -> None:
    """And by the task that entered it, which task groups insist on."""
    told: list[str] = []

    @contextlib.asynccontextmanager
    async def inner() -> AsyncIterator[None]:
        yield
        told.append("closed")

    @contextlib.asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        task = asyncio.current_task()
        async with inner():
            yield
        assert asyncio.current_task() is task
        told.append("left")

    async def handler(update: Update) -> None:
        await asyncio.sleep(0.05)
        told.append(f"handled {update.update_id}")

    hook = make(handler, lifespan=lifespan)

    async def main() -> None:
        async with by_uvicorn(in_starlette(hook), http="httptools") as address, client(address) as api:
            for update_id in range(2):
                assert await post(api, update_id, path="/bot/webhook") == 200

    run(main())
    assert told == ["handled 0", "handled 1", "closed", "left"]


class Counting:
    """A middleware that changes each answer, in the ways that are usual."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.count = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def adding(message: Any) -> None:
            if message["type"] == "http.response.start":
                self.count += 1
                if self.count % 2:
                    MutableHeaders(scope=message).append("x-count", str(self.count))
                else:
                    message["headers"].append((b"x-count", b"%d" % self.count))
            else:
                message["body"] = message["body"].swapcase()
            await send(message)

        await self.app(scope, receive, adding)


def test_what_a_middleware_does_to_an_answer_is_seen_in_no_other(run: Run, hook: Hook) -> None:
    app = Starlette(routes=[Mount("/bot", hook)], middleware=[Middleware(Counting)])

    async def main() -> None:
        async with by_uvicorn(app, http="httptools") as address, client(address) as api:
            for n in range(1, 6):
                response = await api.post("/bot/other")
                assert response.headers.get_list("x-count") == [str(n)]
                assert response.text == "NO HOOK IS AT THIS PATH\n"

    run(main())
