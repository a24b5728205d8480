"""A Bot API server on loopback that answers what it is told to: the one thing that is not real in these tests."""

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
TOKEN = "42:TEST-token_of_these_tests"


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


class Telegram(BotServer):
    """A Bot API server that knows its bot, its webhook and some updates, and takes any message.

    `info`: what getWebhookInfo says. `waiting`: what getUpdates gives, until it is confirmed.
    """

    def __init__(self, *answers: Answer, token: str = TOKEN) -> None:
        super().__init__(*answers)
        self.token = token
        self.info: dict[str, Any] = {"url": "", "has_custom_certificate": False, "pending_update_count": 0}
        self.waiting: list[dict[str, Any]] = []
        self.dropped = 0  # times that waiting updates were dropped

    def calls_of(self, method: str) -> list[dict[str, Any]]:
        """The parameters of each call of a method."""
        return [call.params for call in list(self.calls) if call.method.lower() == method.lower()]

    def until(self, method: str, count: int = 1) -> list[dict[str, Any]]:
        """Wait for so many calls of a method: their parameters."""
        with self._changed:
            known = self._changed.wait_for(lambda: len(self.calls_of(method)) >= count, PATIENCE)
        assert known, [(call.method, call.params) for call in self.calls]
        return self.calls_of(method)

    def give(self, *updates: dict[str, Any]) -> None:
        """Let getUpdates have these."""
        with self._changed:
            self.waiting.extend(updates)
            self._changed.notify_all()

    def usual(self, call: Call) -> Answer:
        if call.token != self.token:
            return Answer.json(401, error_code=401, description="Unauthorized")
        known = {
            "getme": self._get_me,
            "setwebhook": self._set_webhook,
            "deletewebhook": self._delete_webhook,
            "getwebhookinfo": lambda _: Answer.json(200, result=self.info),
            "getupdates": self._get_updates,
        }
        if call.method.startswith("send"):
            return self._message(call.params)
        return known.get(call.method.lower(), lambda _: Answer.json(200, result=True))(call.params)

    def _get_me(self, _: dict[str, Any]) -> Answer:
        bot_id = int(self.token.partition(":")[0])
        return Answer.json(200, result={"id": bot_id, "is_bot": True, "first_name": "Test", "username": "test_bot"})

    def _set_webhook(self, params: dict[str, Any]) -> Answer:
        self.info = {
            "url": params["url"],
            "has_custom_certificate": "certificate" in params,
            "pending_update_count": 0,
            "max_connections": int(params.get("max_connections", 40)),
        }
        allowed = params.get("allowed_updates")
        if allowed:
            self.info["allowed_updates"] = json.loads(allowed) if isinstance(allowed, str) else allowed
        if "ip_address" in params:
            self.info["ip_address"] = params["ip_address"]
        self.dropped += bool(params.get("drop_pending_updates"))
        return Answer.json(200, result=True)

    def _delete_webhook(self, params: dict[str, Any]) -> Answer:
        self.info = {"url": "", "has_custom_certificate": False, "pending_update_count": len(self.waiting)}
        self.dropped += bool(params.get("drop_pending_updates"))
        return Answer.json(200, result=True)

    def _get_updates(self, params: dict[str, Any]) -> Answer:
        offset = int(params.get("offset", 0))
        self.waiting = [update for update in self.waiting if update["update_id"] >= offset]
        if not self.waiting and params.get("timeout"):
            self._changed.wait_for(lambda: bool(self.waiting), 0.2)
        return Answer.json(200, result=self.waiting[:100])

    def _message(self, params: dict[str, Any]) -> Answer:
        chat = {"id": int(params["chat_id"]), "type": "private", "first_name": "Ann"}
        message = {"message_id": len(self.calls), "date": 1_750_000_000, "chat": chat, "text": params.get("text", "")}
        return Answer.json(200, result=message)


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
