"""The rows of the HTTP rules through `Hook`, under uvicorn's own protocol: the same answers, where ASGI lets it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge.client import connected, new_id, numbered, post
from edge.conftest import Serve
from edge.rows import ROWS, Row
from edge.serving import Served
from edge.test_rows import check

# What an application cannot see, each with the status that the peer gets instead.
READ_OTHERWISE = {  # uvicorn makes an ordinary request of it
    "refused by llhttp: two spaces before the target": 200,
    "refused by llhttp: two spaces behind the target": 200,
    "version: RTSP/1.0": 200,
    "version: ICE/1.0": 405,
    "target: absolute, another authority": 200,
    "target: absolute, another port": 200,
    "target: absolute, user info": 200,
    "target: fragment": 200,
    "head limits: one chunk extension of 17 KiB": 200,
    "head limits: 17 KiB of chunk extensions": 200,
    "head limits: 17 KiB of the last chunk's extension": 200,
    "chunked: 17 digits": 200,
    "chunked: 17 zeros at the end": 200,
    "secret: in a trailer": 200,
}
ANSWERED_BY_UVICORN = {
    "version: HTTP/1.2": 400,
    "version: HTTP/3.0": 400,
    "version: HTTP/9.9": 400,
    "CONNECT: alone": 400,
    "CONNECT: with bytes behind it": 400,
    "unknown path: absolute without a path": 400,
    "connection: HTTP/1.0, keep-alive": 200,  # closed
    "connection: HTTP/1.0, Keep-Alive": 200,
    "Expect: HTTP/1.0, to be ignored": 200,  # after a 100
}
BODY_DROPPED = {  # behind a request to upgrade: refused, so that it comes again
    "Upgrade: websocket": 400,
    "Upgrade: h2c": 400,
    "Upgrade: chunked": 400,
    "connection: close and Upgrade": 400,
}
WAITED_FOR = {  # uvicorn has no limit for what has no end
    "version: half the preface of HTTP/2",
    "target over 8 KiB: without an end",
    "head limits: a value without an end",
    "head limits: headers without an end",
    "head limits: an extension without an end",
    "head limits: a trailer without an end",
}
UNSEEN = READ_OTHERWISE | ANSWERED_BY_UVICORN | BODY_DROPPED
SEEN = [row for row in ROWS if row.name not in UNSEEN and row.name not in WAITED_FOR]


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def by_asgi(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    state = tmp_path_factory.mktemp("asgi-rows") / "state"
    served = Served(state, loop=request.param, options={"http": "httptools"})
    yield served
    served.stop()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start servers with settings of their own; all are stopped at the end."""
    with contextlib.ExitStack() as stack:

        def start(**settings: Any) -> Served:
            served = Served(tmp_path / "state", **settings)
            stack.callback(served.stop)
            return served

        yield start


@pytest.mark.parametrize("row", SEEN, ids=lambda row: row.name)
def test_row(row: Row, by_asgi: Served) -> None:
    check(row, by_asgi, [], may_reset=True)


@pytest.mark.parametrize("row", [row for row in ROWS if row.name in UNSEEN], ids=lambda row: row.name)
def test_row_that_asgi_does_not_show(row: Row, by_asgi: Served) -> None:
    with connected(by_asgi) as peer:
        peer.send(numbered(row.sent, new_id()))
        assert peer.read(row.method).status == UNSEEN[row.name]


def test_the_names_are_those_of_rows() -> None:
    assert {*UNSEEN, *WAITED_FOR} <= {row.name for row in ROWS}


LIMITED = {
    "max_target": (b"POST /webhook?%b HTTP/1.1" % bytes(300).replace(b"\0", b"x"), b"", 414),
    "max_head": (b"POST /webhook HTTP/1.1", b"X: " + b"x" * 1100, 431),
    "max_headers": (b"POST /webhook HTTP/1.1", b"\r\n".join([b"X: x"] * 5), 431),
}


@pytest.mark.parametrize("http", ["compiled", "httptools", "h11"])
@pytest.mark.parametrize("name", LIMITED)
def test_the_limits_are_settings_of_both_doors(serve: Serve, http: str, name: str) -> None:
    line, more, status = LIMITED[name]
    options = {} if http == "compiled" else {"http": http}
    served = serve(options=options, max_target=256, max_head=1024, max_headers=6)
    with connected(served) as peer:
        peer.send(numbered(post(), new_id()))
        assert peer.read().status == 200
        peer.send(numbered(post(more, line=line) if more else post(line=line), new_id()))
        answer = peer.read()
        assert (answer.status, answer.closes) == (status, True)
