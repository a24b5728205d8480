"""A Bot API server on loopback that says what no simulator would: HTML, cut bodies, odd JSON, whatever a test wants."""

from __future__ import annotations

import email
import email.message
import json
import threading
import urllib.parse
from collections import deque
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PATIENCE = 20.0  # seconds


@dataclass(frozen=True)
class Call:
    """What came: `/bot<token>/<method>` taken apart, and from which port of the peer."""

    token: str
    method: str
    params: dict[str, Any]
    port: int


@dataclass(frozen=True)
class Answer:
    """What is answered; status 0 hangs up without a word."""

    status: int
    body: bytes

    @classmethod
    def json(cls, status: int, **body: Any) -> Answer:
        return cls(status, json.dumps({"ok": status == 200, **body}).encode())


OK = Answer.json(200, result={"message_id": 1})
HTML = Answer(502, b"<html><h1>502 Bad Gateway</h1></html>")
HANG_UP = Answer(0, b"")


def flooded(seconds: int) -> Answer:
    """429 as Telegram says it."""
    words = f"Too Many Requests: retry after {seconds}"
    return Answer.json(429, error_code=429, description=words, parameters={"retry_after": seconds})


class BotServer:
    """Answers with `answers` one after the other, then with `OK`; `calls` is what it was asked."""

    def __init__(self, *answers: Answer) -> None:
        self.calls: list[Call] = []
        self.answers = deque(answers)
        self._changed = threading.Condition(threading.RLock())
        self._server = _Server(("127.0.0.1", 0), _Request)
        self._server.bot_server = self
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> BotServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def take(self, call: Call) -> Answer:
        with self._changed:
            self.calls.append(call)
            self._changed.notify_all()
            return self.answers.popleft() if self.answers else self.usual(call)

    def usual(self, call: Call) -> Answer:
        """What is answered to a call when no answer is left."""
        return OK

    def until_called(self, count: int) -> list[Call]:
        """Wait for so many calls."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.calls) >= count, PATIENCE), f"{len(self.calls)} calls"
            return list(self.calls)


def parameters(kind: str, body: bytes) -> dict[str, Any]:
    """The parameters of a call, however they were sent; a file is its name and its bytes."""
    if not body:
        return {}
    if kind.startswith("application/json"):
        found: dict[str, Any] = json.loads(body)
        return found
    if kind.startswith("application/x-www-form-urlencoded"):
        return dict(urllib.parse.parse_qsl(body.decode(), keep_blank_values=True))
    assert kind.startswith("multipart/form-data"), kind
    params: dict[str, Any] = {}
    message = email.message_from_bytes(b"Content-Type: " + kind.encode() + b"\r\n\r\n" + body)
    for part in message.get_payload():
        assert isinstance(part, email.message.Message)
        content = part.get_payload(decode=True)
        assert isinstance(content, bytes)
        name, file = part.get_param("name", header="content-disposition"), part.get_filename()
        params[str(name)] = (file, content) if file else content.decode()
    return params


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    bot_server: BotServer


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def do_GET(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        path, _, query = self.path.removeprefix("/api").partition("?")
        _, token, method = path.split("/")
        params: dict[str, Any] = dict(urllib.parse.parse_qsl(query))
        params |= parameters(self.headers["content-type"] or "", self._body())
        call = Call(token.removeprefix("bot"), method, params, self.client_address[1])
        answer = self.server.bot_server.take(call)
        if not answer.status:
            self.close_connection = True
            return
        self.send_response(answer.status)
        if answer.body.startswith(b"{"):
            self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)

    def _body(self) -> bytes:
        if self.headers["transfer-encoding"] != "chunked":
            return self.rfile.read(int(self.headers["content-length"] or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def log_message(self, format: str, *args: Any) -> None:
        pass
