"""One keep-alive connection to a webhook: a request at a time, and what came of it."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import httptools

_LARGEST = 16 << 20  # bytes of a response

_SSL_CODES = {
    "CERTIFICATE_VERIFY_FAILED": "0A000086",
    "WRONG_VERSION_NUMBER": "0A00010B",
    "TLSV1_ALERT_PROTOCOL_VERSION": "0A00042E",
    "SSLV3_ALERT_HANDSHAKE_FAILURE": "0A000410",
    "UNSUPPORTED_PROTOCOL": "0A000102",
}


@dataclass(frozen=True, slots=True)
class Address:
    """Where a webhook is: what is dialled, and with TLS the name that its certificate must have."""

    host: str
    port: int
    tls: ssl.SSLContext | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Response:
    """A whole response. The names of headers are in lower case."""

    status: int
    reason: str
    headers: dict[str, str]
    body: bytes
    keep_alive: bool


class Connection(asyncio.Protocol):
    """Sends a request when it is told to. `on_response` gets the answer, `on_lost` the end and its cause.

    The cause is in the words of `last_error_message`; empty for an end that is none of its faults.
    """

    def __init__(
        self,
        address: Address,
        on_response: Callable[[Connection, Response], None],
        on_lost: Callable[[Connection, str], None],
    ) -> None:
        self.in_flight: int | None = None  # the update it carries
        self.deadline = 0.0
        self.local_port = 0
        self._address = address
        self._on_response = on_response
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._waiting = b""
        self._lost = False
        self._reset()
        self._task = asyncio.get_running_loop().create_task(self._connect())

    def send(self, request: bytes) -> None:
        """Send a request, as soon as there is a connection."""
        self._reset()
        if self._transport is None:
            self._waiting = request
        else:
            self._transport.write(request)

    def close(self) -> None:
        """Close it; nobody is told."""
        self._lost = True
        self._task.cancel()
        if self._transport is not None:
            self._transport.abort()

    # ------------------------------------------------------------ asyncio's side

    async def _connect(self) -> None:
        where = self._address
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: self,
                where.host,
                where.port,
                ssl=where.tls,
                server_hostname=where.name if where.tls else None,
            )
        except (OSError, ssl.CertificateError) as error:
            self._end(cause(error))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self._lost:
            transport.close()
            return
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it
        name = transport.get_extra_info("sockname")
        self.local_port = name[1] if isinstance(name, tuple) else 0
        if self._waiting:
            self._transport.write(self._waiting)
            self._waiting = b""

    def data_received(self, data: bytes) -> None:
        if self.in_flight is None:
            self.close_with("")  # nobody asked
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._complete = True
        except httptools.HttpParserError:
            self.close_with("Wrong response from the webhook")
            return
        if self._size > _LARGEST:
            self.close_with("Wrong response from the webhook: too large")
        elif self._complete:
            self._respond(keep_alive=self._keep_alive)

    def connection_lost(self, exc: Exception | None) -> None:
        unbounded = self._headed and not {"content-length", "transfer-encoding"} & self._headers.keys()
        if self.in_flight is not None and exc is None and unbounded and not self._lost:
            self._respond(keep_alive=False)
        self._end(cause(exc) if exc is not None else "Connection closed" if self.in_flight is not None else "")

    def close_with(self, why: str) -> None:
        """Close it and tell why."""
        if self._transport is not None:
            self._transport.abort()
        self._task.cancel()
        self._end(why)

    def _end(self, why: str) -> None:
        if not self._lost:
            self._lost = True
            self._on_lost(self, why)

    # ------------------------------------------------------------ httptools' side

    def _reset(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []
        self._reason = ""
        self._size = 0
        self._headed = self._complete = self._keep_alive = False

    def _respond(self, *, keep_alive: bool) -> None:
        status = self._parser.get_status_code()
        response = Response(status, self._reason, self._headers, b"".join(self._body), keep_alive)
        self._on_response(self, response)

    def on_status(self, status: bytes) -> None:
        self._reason += status.decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1").strip()

    def on_headers_complete(self) -> None:
        self._headed = True

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        self._body.append(body)

    def on_message_complete(self) -> None:
        self._complete = True
        self._keep_alive = self._parser.should_keep_alive()  # known here only


def cause(error: BaseException) -> str:
    """The words that Telegram has for an error of a connection."""
    if isinstance(error, ssl.SSLError):
        reason = error.reason or "UNKNOWN"
        words = reason.lower().replace("_", " ")
        return f"SSL error {{error:{_SSL_CODES.get(reason, '0A000000')}:SSL routines::{words}}}"
    if isinstance(error, ssl.CertificateError):
        return "SSL error {error:0A000086:SSL routines::certificate verify failed}"
    if isinstance(error, socket.gaierror):
        return "Failed to resolve host: " + (error.strerror or "Name or service not known")
    if isinstance(error, OSError) and error.errno and error.errno > 0:
        return os.strerror(error.errno)
    if isinstance(error, OSError) and "Connect call failed" in str(error):
        return os.strerror(errno.ECONNREFUSED)
    return "Connection closed"
