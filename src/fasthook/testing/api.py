"""The Bot API server: HTTP in, answers of the bots out."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
from typing import TYPE_CHECKING, Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from fasthook.testing import parameters
from fasthook.testing.calls import Answer, Refused
from fasthook.testing.parameters import Parameters

if TYPE_CHECKING:
    from fasthook.testing.simulator import Simulator

_NOT_FOUND = Refused(404, "Not Found")
_LARGEST = 64 << 20  # bytes of a body
_HANG_UP = "fasthook.hang_up"


class _Protocol(HttpToolsProtocol):
    """uvicorn's, with a way to end a connection without an answer."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        scope: Any = self.scope
        scope[_HANG_UP] = self.transport.abort


class ApiServer:
    """Serves `/bot<token>/<method>` and `/file/bot<token>/<path>` on a socket that listens."""

    def __init__(self, simulator: Simulator, listener: socket.socket) -> None:
        self._simulator = simulator
        self._listener = listener
        routes = [
            Route("/bot{token}/test/{method}", self._call, methods=["GET", "POST"]),
            Route("/bot{token}/{method}", self._call, methods=["GET", "POST"]),
            Route("/file/bot{token}/{path:path}", self._file, methods=["GET"]),
        ]
        app = Starlette(routes=routes, exception_handlers={404: _lost, 405: _lost})
        config = uvicorn.Config(
            app,
            http=_Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=75,
        )
        config.load()
        self._state = ServerState()
        self._make = functools.partial(_Protocol, config, self._state, {})
        self._server: asyncio.Server | None = None
        self._closing = asyncio.Event()

    async def start(self) -> None:
        self._server = await asyncio.get_running_loop().create_server(self._make, sock=self._listener)

    async def stop(self) -> None:
        """End: what waits for its answer is not kept for longer than a second."""
        self._closing.set()
        if self._server is not None:
            await hang_up(self._server, self._state)
        if self._state.tasks:
            await asyncio.wait(self._state.tasks, timeout=1)
        await ended(self._state)

    async def _call(self, request: Request) -> Response:
        account = self._simulator.find(request.path_params["token"])
        if account is None:
            return _response(Answer.refused(Refused(401, "Unauthorized")))
        try:
            given = await _parameters(request)
        except ClientDisconnect:
            return Response(status_code=400)
        except Refused as why:
            return _response(Answer.refused(why))
        answer = await account.call(request.path_params["method"], given)
        if answer.hang or answer.close:
            return _Silent(self._closing, hang=answer.hang)
        return _response(answer)

    async def _file(self, request: Request) -> Response:
        account = self._simulator.find(request.path_params["token"])
        data = account.file(request.path_params["path"].rpartition("/")[2]) if account else None
        if data is None:
            return _response(Answer.refused(_NOT_FOUND))
        return Response(data, media_type="application/octet-stream")


async def hang_up(server: asyncio.Server, state: ServerState) -> None:
    """Take no more connections, and end each of those there are: at once, or when its request is answered."""
    loop = asyncio.get_running_loop()
    for listener in server.sockets:
        with contextlib.suppress(NotImplementedError):  # Windows' loop has no readers
            loop.remove_reader(listener)
    # Three turns after its accept a connection is known; one whose server is closed before is forgotten by asyncio, and
    # its socket stays open (CPython's issue 109564).
    for _ in range(3):
        await asyncio.sleep(0)
    server.close()
    for connection in list(state.connections):
        connection.shutdown()


async def ended(state: ServerState) -> None:
    """Wait until every connection has ended, for a second at most."""
    for _ in range(1000):
        if not state.connections:
            break
        await asyncio.sleep(0.001)


class _Silent(Response):
    """No answer: the connection ends, at once or when the other side has had enough."""

    def __init__(self, closing: asyncio.Event, *, hang: bool) -> None:
        super().__init__()
        self._closing = closing
        self._hang = hang

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.ensure_future(_disconnected(receive))
        if self._hang:
            closing = asyncio.ensure_future(self._closing.wait())
            await asyncio.wait((gone, closing), return_when=asyncio.FIRST_COMPLETED)
            closing.cancel()
        scope[_HANG_UP]()
        await gone


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue


async def _parameters(request: Request) -> Parameters:
    found = Parameters(parameters.query(request.url.query))
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > _LARGEST:
            raise Refused(413, "Request Entity Too Large")
    try:
        more = parameters.read(request.headers.get("content-type", ""), bytes(body))
    except ValueError as error:
        raise Refused(400, f"Bad Request: can't parse the body: {error}") from None
    found.values.update(more.values)
    found.files.update(more.files)
    return found


async def _lost(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    return _response(Answer.refused(_NOT_FOUND if status == 404 else Refused(405, "Method Not Allowed")))


def _response(answer: Answer) -> Response:
    headers = {"Retry-After": str(answer.retry_after)} if answer.retry_after else None
    return Response(answer.body, answer.status, headers, media_type=answer.content_type)
