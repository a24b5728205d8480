"""`Hook` as an ASGI callable: what it says to a server, message by message."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from asgi.conftest import Run
from fasthook import Hook, Update
from fasthook.handlers import TargetError
from fasthook.queues import QueueError
from fasthook.settings import SettingsError
from fasthook.state import StateDir, StateError
from fasthook.testing import samples

GENUINE = (b"x-telegram-bot-api-secret-token", b"asgi-secret")
STARTED, STOPPED = "lifespan.startup.complete", "lifespan.shutdown.complete"


async def call(
    hook: Hook,
    *messages: dict[str, Any],
    type: str = "http",
    headers: list[tuple[bytes, bytes]] | None = None,
    **scope: Any,
) -> list[dict[str, Any]]:
    """Call the hook with what a server would give it: what it sends."""
    waiting = list(messages)
    sent: list[dict[str, Any]] = []
    asked: dict[str, Any] = {"method": "POST", "path": "/webhook", "http_version": "1.1", "client": ("::1", 5)}
    if isinstance(headers, Counted):
        asked["headers"] = headers
    else:
        asked["headers"] = [(b"host", b"a"), *([GENUINE] if headers is None else headers)]

    async def receive() -> dict[str, Any]:
        return waiting.pop(0)

    async def send(message: Any) -> None:
        sent.append({**message})

    await hook({"type": type, **asked, **scope}, receive, send)
    return sent


def body(raw: bytes, more: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": raw, "more_body": more}


@contextlib.asynccontextmanager
async def started(hook: Hook) -> AsyncIterator[None]:
    await hook.receiver.start()
    try:
        yield
    finally:
        await hook.receiver.stop()


# ---------------------------------------------------------------- requests


@pytest.mark.parametrize(("version", "status"), [("0.9", 400), ("1.2", 505), ("2.0", 505), ("3.0", 505)])
def test_a_version_that_a_server_lets_through(run: Run, hook: Hook, version: str, status: int) -> None:
    async def main() -> None:
        async with started(hook):
            [start, _] = await call(hook, http_version=version)
            assert start["status"] == status
            assert (b"connection", b"close") in start["headers"]

    run(main())


@pytest.mark.parametrize("version", ["1.0", "1.1", "2", "3"])
def test_only_http_1_has_a_connection_header(run: Run, hook: Hook, version: str) -> None:
    """RFC 9113, section 8.2.2."""

    async def main() -> None:
        async with started(hook):
            headers = [GENUINE, (b"content-length", b"2000000")]
            [start, _] = await call(hook, headers=headers, http_version=version)
            assert start["status"] == 413
            assert ((b"connection", b"close") in start["headers"]) == version.startswith("1.")

    run(main())


@pytest.mark.parametrize(
    ("length", "status"),
    [(b"5", 200), (b"1048577", 413), (b"9" * 30, 413), (b"9" * 5000, 413), (b"-1", 400), (b"abc", 400), (b"", 400)],
)
def test_a_declared_length_that_servers_would_not_let_through(run: Run, hook: Hook, length: bytes, status: int) -> None:
    async def main() -> None:
        async with started(hook):
            headers = [GENUINE, (b"content-length", length)]
            [start, _] = await call(hook, body(samples.update(1)), headers=headers)
            assert start["status"] == status

    run(main())


class Counted(list[tuple[bytes, bytes]]):
    """Headers that count how many of them are looked at."""

    looked_at = 0

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        for header in super().__iter__():
            self.looked_at += 1
            yield header


@pytest.mark.parametrize(
    ("header", "looks"),
    [
        ((b"connection", b"a" * 40), 65),
        ((b"x-forwarded-for", b"192.0.2.1"), 65),
        ((b"x", b""), 65),
        ((b"x", b"y" * 4096), 5),
        ((b"x", b"y" * 20_000), 2),
    ],
    ids=["Connection", "X-Forwarded-For", "small", "large", "one"],
)
@pytest.mark.parametrize("settings", [{}, {"trusted_proxy": "::1"}], ids=["direct", "behind a proxy"])
def test_a_head_without_a_limit_is_refused_at_the_limit(
    run: Run, make: Callable[..., Hook], header: tuple[bytes, bytes], looks: int, settings: dict[str, str]
) -> None:
    """Servers let heads of megabytes through; what is behind our limit costs nothing."""

    async def main() -> None:
        hook = make(**settings)
        async with started(hook):
            headers = Counted([(b"host", b"a"), GENUINE, *[header] * 80_000])
            [start, _] = await call(hook, headers=headers)
            assert start["status"] == 431
            assert headers.looked_at <= looks + 2

    run(main())


@pytest.mark.parametrize(("allowed", "status"), [("::1", 431), ("192.0.2.1", 403)])
def test_a_large_head_of_a_forbidden_client(run: Run, make: Callable[..., Hook], allowed: str, status: int) -> None:
    async def main() -> None:
        hook = make(allow_ip=allowed)
        async with started(hook):
            [start, _] = await call(hook, headers=[GENUINE, *[(b"x", b"y")] * 100])
            assert start["status"] == status

    run(main())


def test_a_client_that_went_away_gets_no_answer(run: Run, hook: Hook, handled: list[int]) -> None:
    gone = {"type": "http.disconnect"}

    async def main() -> None:
        async with started(hook):
            assert await call(hook, gone) == []
            assert await call(hook, body(b'{"update_id":1', more=True), gone) == []
            assert len(await call(hook, body(b'{"update', more=True), body(b'_id":1}'))) == 2

    run(main())
    assert handled == [1]


@pytest.mark.parametrize("first", [[], [b""], [b'{"update', b"_id"]], ids=["nothing", "empty", "parts"])
def test_a_body_has_its_time(run: Run, make: Callable[..., Hook], first: list[bytes]) -> None:
    async def main() -> None:
        hook = make(body_timeout=0.1)
        async with started(hook):
            assert await stalled(hook, first) == (408, True)

    run(main())


async def stalled(hook: Hook, parts: list[bytes]) -> tuple[int, bool]:
    """The status for a body of which no more than these parts comes, and whether the connection ends."""
    sent: list[Any] = []
    waiting = [body(part, more=True) for part in parts]

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0)
        return waiting.pop(0) if waiting else await asyncio.get_running_loop().create_future()

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/webhook", "http_version": "1.1", "client": None}
    await hook({**scope, "headers": [(b"host", b"a"), GENUINE]}, receive, send)
    return sent[0]["status"], (b"connection", b"close") in sent[0]["headers"]


def test_a_request_that_is_cancelled_while_its_body_is_awaited(run: Run, hook: Hook) -> None:
    async def main() -> None:
        async with started(hook):
            request = asyncio.create_task(stalled(hook, []))
            for _ in range(5):
                await asyncio.sleep(0)
            request.cancel()
            with pytest.raises(asyncio.CancelledError):
                await request

    run(main())


def test_the_body_of_a_refused_request_is_not_read(run: Run, hook: Hook) -> None:
    async def main() -> None:
        async with started(hook):
            assert len(await call(hook, path="/other")) == 2
            assert len(await call(hook, method="GET")) == 2
            assert len(await call(hook, headers=[])) == 2

    run(main())


def test_a_client_without_an_address(run: Run, hook: Hook) -> None:
    async def main() -> None:
        async with started(hook):
            for client in (None, ["unix", None]):
                [start, _] = await call(hook, headers=[], client=client)
                assert start["status"] == 401

    run(main())


def test_a_path_that_is_not_ascii(run: Run, hook: Hook) -> None:
    async def main() -> None:
        async with started(hook):
            for path in ("/webhook\N{SNOWMAN}", "/\N{REPLACEMENT CHARACTER}", ""):
                [start, _] = await call(hook, path=path)
                assert start["status"] == 404

    run(main())


@pytest.mark.parametrize(
    ("root", "path", "status"),
    [
        ("", "/webhook", 200),
        ("/api", "/webhook", 200),
        ("/api", "/api/webhook", 200),
        ("/webhook", "/webhook/webhook", 200),
        ("/api", "/apix/webhook", 404),
        ("/api", "/api", 404),
        ("/api", "/other/webhook", 404),
        ("", "/webhook/", 404),
    ],
)
def test_a_root_path(run: Run, hook: Hook, root: str, path: str, status: int) -> None:
    async def main() -> None:
        async with started(hook):
            [start, _] = await call(hook, body(samples.update(1)), path=path, root_path=root)
            assert start["status"] == status

    run(main())


def test_other_kinds_of_connection(run: Run, hook: Hook) -> None:
    async def main() -> None:
        [close] = await call(hook, {"type": "websocket.connect"}, type="websocket")
        assert close == {"type": "websocket.close", "code": 1003, "reason": "updates come by POST"}
        with pytest.raises(ValueError, match="fasthook serves http and lifespan, not 'telnet'"):
            await call(hook, type="telnet")

    run(main())


# ---------------------------------------------------------------- start and stop


def lifespan(*messages: str) -> tuple[dict[str, str], ...]:
    return tuple({"type": f"lifespan.{message}"} for message in messages)


def test_start_and_stop(run: Run, hook: Hook) -> None:
    async def main() -> None:
        for _ in range(2):
            sent = await call(hook, *lifespan("startup", "shutdown"), type="lifespan")
            assert [message["type"] for message in sent] == [STARTED, STOPPED]

    run(main())


def test_a_start_that_fails(run: Run, hook: Hook, tmp_path: Path) -> None:
    async def main() -> None:
        other = StateDir(tmp_path / "state")
        sent: list[dict[str, Any]] = []

        async def send(message: Any) -> None:
            sent.append(message)

        async def receive() -> dict[str, str]:
            return {"type": "lifespan.startup"}

        with pytest.raises(StateError):
            await hook({"type": "lifespan"}, receive, send)
        [failed] = sent
        assert failed["type"] == "lifespan.startup.failed"
        assert failed["message"].startswith(f"the state directory {tmp_path}/state is in use by process ")
        other.close()
        sent = await call(hook, *lifespan("startup", "shutdown"), type="lifespan")
        assert [message["type"] for message in sent] == [STARTED, STOPPED]

    run(main())


def test_a_stop_that_fails(run: Run, make: Callable[..., Hook], tmp_path: Path) -> None:
    async def handler(update: Update) -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        hook = make(handler, drain_timeout=0)
        sent: list[dict[str, Any]] = []
        messages = list(lifespan("startup", "shutdown"))

        async def send(message: Any) -> None:
            sent.append(message)

        async def receive() -> dict[str, str]:
            if len(messages) == 1:
                await call(hook, body(samples.update(1)))
                (tmp_path / "state" / "spill").write_text("in the way")
            return messages.pop(0)

        with pytest.raises(QueueError):
            await hook({"type": "lifespan"}, receive, send)
        assert [message["type"] for message in sent] == [STARTED, "lifespan.shutdown.failed"]
        assert sent[1]["message"].startswith("1 updates are lost: ")
        assert not hook.receiver.running
        StateDir(tmp_path / "state").close()  # nobody holds it any more

    run(main())


def test_what_is_around_the_handler(run: Run, make: Callable[..., Hook]) -> None:
    told: list[Any] = []

    @contextlib.asynccontextmanager
    async def around(app: Any) -> AsyncIterator[dict[str, str]]:
        told.append(app)
        yield {"db": "the database"}
        told.append("left")

    async def handler(update: Update) -> None:
        told.append(update.state["db"])

    hook = make(handler, lifespan=around)

    async def main() -> None:
        async with started(hook):
            for update_id in range(2):
                await call(hook, body(samples.update(update_id)))

    run(main())
    assert told == [hook, "the database", "the database", "left"]


def test_what_comes_from_the_spill_has_the_state_too(run: Run, make: Callable[..., Hook]) -> None:
    @contextlib.asynccontextmanager
    async def around(app: Any) -> AsyncIterator[int]:
        yield 17

    found: list[Any] = []

    async def never(update: Update) -> None:
        await asyncio.Event().wait()

    async def handler(update: Update) -> None:
        found.append((update.update_id, update.state))

    async def main() -> None:
        hook = make(never, drain_timeout=0)
        async with started(hook):
            await call(hook, body(samples.update(1)))
        async with started(make(handler, lifespan=around)):
            pass

    run(main())
    assert found == [(1, 17)]


def test_what_is_around_the_handler_fails(run: Run, make: Callable[..., Hook], tmp_path: Path) -> None:
    @contextlib.asynccontextmanager
    async def around(app: Any) -> AsyncIterator[None]:
        raise ConnectionError("no database")
        yield

    async def main() -> None:
        with pytest.raises(ConnectionError, match="no database"):
            await make(lifespan=around).receiver.start()
        StateDir(tmp_path / "state").close()  # nobody holds it any more

    run(main())


def test_a_hook_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    async def handler(update: Update) -> None: ...

    with pytest.raises(SettingsError, match="conncurrency: no such setting; did you mean concurrency"):
        Hook(handler, conncurrency=5)
    with pytest.raises(TargetError, match="an int is not a handler"):
        Hook(5)
    monkeypatch.setenv("FASTHOOK_PORT", "x")
    with pytest.raises(SettingsError, match="FASTHOOK_PORT: must be"):
        Hook(handler)
