"""A Bot API server on loopback that answers what it is told to: the one thing that is not real in these tests."""

from __future__ import annotations

import json
import threading
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
        self._changed = threading.Condition()
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
            return self.answers.popleft() if self.answers else OK

    def until_called(self, count: int) -> list[Call]:
        """Wait for so many calls."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.calls) >= count, PATIENCE), f"{len(self.calls)} calls"
            return list(self.calls)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    bot_server: BotServer


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def do_POST(self) -> None:
        _, token, method = self.path.removeprefix("/api").split("/")
        body = self.rfile.read(int(self.headers["content-length"]))
        assert self.headers["content-type"] == "application/json"
        call = Call(token.removeprefix("bot"), method, json.loads(body), self.client_address[1])
        answer = self.server.bot_server.take(call)
        if not answer.status:
            self.close_connection = True
            return
        self.send_response(answer.status)
        self.send_header("content-length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)

    def log_message(self, format: str, *args: Any) -> None:
        pass
