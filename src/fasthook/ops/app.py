"""The ops server: /healthz, /readyz and /metrics, on an address and a thread of its own.

A thread with a loop of its own answers while a handler blocks the loop of the receiver. Starlette and prometheus-client
are imported in it, so that no update waits for them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import uvicorn

from fasthook.ops.health import Health

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

log = logging.getLogger("fasthook.ops")

_PATIENCE = 2.0  # seconds for the thread to end
_FIRST = 0.3  # seconds that a start has to itself: the imports here would take its turns


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class OpsServer:
    """Serves inside of it what `health` tells. `sockets`: bound; if there are none, it does nothing."""

    def __init__(self, sockets: list[socket.socket], health: Health) -> None:
        self._sockets = sockets
        self._health = health
        self._server: _Server | None = None
        self._stopped = False
        self._soon = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fasthook-ops", daemon=True)

    async def __aenter__(self) -> OpsServer:
        if self._sockets:
            self._thread.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._sockets:
            await asyncio.to_thread(self._stop)

    def hurry(self) -> None:
        """Nothing else is to be done first."""
        self._soon.set()

    def _stop(self) -> None:
        self._stopped = True
        self._soon.set()
        if self._server is not None:
            self._server.should_exit = True
        self._thread.join(_PATIENCE)

    def _run(self) -> None:
        self._soon.wait(_FIRST)
        try:
            if self._stopped:
                return
            from fasthook.ops.connection import LARGEST_HEAD, MOST, Connection

            config = uvicorn.Config(
                application(self._health),
                http=Connection,
                h11_max_incomplete_event_size=LARGEST_HEAD,
                backlog=MOST,  # the loop takes so many in one turn
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=1,
            )
            self._server = _Server(config)
            if not self._stopped:
                asyncio.run(self._server.serve(sockets=self._sockets))
        except Exception:
            log.exception("the ops server has ended, the hook is served on")


def application(health: Health) -> Starlette:
    """The application that the ops server serves."""
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse, PlainTextResponse, Response
    from starlette.routing import Route

    from fasthook.ops.metrics import page

    async def healthz(_: Request) -> Response:
        return PlainTextResponse("alive\n")

    async def readyz(_: Request) -> Response:
        reasons = [{"code": reason.code, "words": reason.words} for reason in health.reasons()]
        return JSONResponse({"ready": not reasons, "reasons": reasons}, 503 if reasons else 200)

    async def metrics(request: Request) -> Response:
        body, content_type = page(health, ",".join(request.headers.getlist("accept")))
        return Response(body, headers={"content-type": content_type})

    routes = {"/healthz": healthz, "/readyz": readyz, "/metrics": metrics}
    return Starlette(routes=[Route(path, endpoint, methods=["GET"]) for path, endpoint in routes.items()])
