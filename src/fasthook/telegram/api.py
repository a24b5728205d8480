"""A small client of the Bot API."""

from __future__ import annotations

import json
import logging
import os
import random
from asyncio import sleep
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import orjson

from fasthook.telegram.files import apart
from fasthook.telegram.redact import Redact

_TRIES = 5  # for errors of the network and of Telegram's servers
_TIMEOUT = 60.0  # seconds for one request
_LONGEST_WAIT = 3600  # seconds of retry_after that are waited for
_NONE_OF_IT = "not what a Bot API server says; is --api-url right?"


class BotAPIError(Exception):
    """Telegram refused a call. `code` and `description` are what it said, `parameters` its "ResponseParameters"."""

    def __init__(self, method: str, code: int, description: str, parameters: dict[str, Any] | None = None) -> None:
        super().__init__(f"{method}: {code} {description}")
        self.method = method
        self.code = code
        self.description = description
        self.parameters = parameters or {}


class BadRequest(BotAPIError):
    """400: a parameter is wrong, or there is no such chat."""


class Unauthorized(BotAPIError):
    """401: the token is wrong, or was revoked. 404 on every method means the same."""


class Forbidden(BotAPIError):
    """403: the user blocked the bot, or it was removed from the chat."""


class NotFound(BotAPIError):
    """404: there is no such method, or the token is none."""


class Conflict(BotAPIError):
    """409: getUpdates beside another getUpdates, or beside a webhook."""


class TooManyRequests(BotAPIError):
    """429 without a time to wait, or with one that is too long to wait for."""


_ERRORS = {
    400: BadRequest,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    429: TooManyRequests,
}


class BotAPIUnreachable(Exception):
    """Telegram gave no usable answer, after all tries."""


class BotAPI:
    """Calls methods of the Bot API as one bot. The token is in no log line, no exception and no repr.

    `server`: its address, `https://api.telegram.org` or a local Bot API server. `timeout`: seconds for one request.
    `tries`: how often a call is tried when the network or the server fails. `waits`: told, in one line, of each time
    that Telegram wants to be waited for.
    """

    def __init__(
        self,
        token: str,
        server: str = "https://api.telegram.org",
        *,
        timeout: float = _TIMEOUT,
        tries: int = _TRIES,
        waits: Callable[[str], None] | None = None,
    ) -> None:
        self._redact = Redact(token)
        logging.getLogger("httpx").addFilter(self._redact)  # httpx logs the address of each request
        self._tries = tries
        self._waits = waits
        self._timeout = timeout
        self._client = httpx.AsyncClient(
            base_url=f"{server.rstrip('/')}/bot{token}/",
            timeout=timeout,
            limits=httpx.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=60),
        )

    async def call(self, method: str, **params: Any) -> Any:
        """Call a method: its result.

        A parameter that is None is left out. Files are bytes, a `pathlib.Path`, an open binary file, or a pair of a
        name and one of these; they may stand deep inside a parameter (`media=[{"media": Path("a.jpg"), …}]`).

        429 is waited for as long as Telegram says (`retry_after`, Bot API "ResponseParameters"); 5xx and errors of the
        network are tried again. BotAPIError: refused; its subclasses say how. BotAPIUnreachable: no answer after all
        tries. TypeError: a parameter cannot be sent. OSError: a file cannot be read.
        """
        body = _Body({name: value for name, value in params.items() if value is not None})
        tries = 0
        while True:
            failure, answer = "", None
            try:
                with body.request() as request:
                    response = await self._client.post(method, **request, timeout=self._patience(params))
                answer = _answer(response)
                failure = _no_answer(response)
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                failure = self._words(error)
            if answer is not None and answer["ok"]:
                return answer["result"]
            if answer is not None and answer["error_code"] < 500:
                wait = _retry_after(answer)
                if answer["error_code"] != 429 or wait is None:
                    raise _error(method, answer)
                if self._waits:
                    self._waits(f"{method}: Telegram says wait {wait} s")
                await sleep(wait)
                continue
            tries += 1
            if tries >= self._tries:
                raise BotAPIUnreachable(f"{method}: no answer from the Bot API after {tries} tries ({failure})")
            await sleep(random.uniform(0.5, 1.0) * 2.0 ** (tries - 1))

    async def webhook_info(self) -> dict[str, Any]:
        """getWebhookInfo. The errors of `call`; BotAPIUnreachable also: what came back is no such thing."""
        info = await self.call("getWebhookInfo")
        if not isinstance(info, dict) or not isinstance(info.get("url"), str):
            raise BotAPIUnreachable(f"getWebhookInfo: the result is {_NONE_OF_IT}")
        return info

    async def updates(self, **params: Any) -> list[dict[str, Any]]:
        """getUpdates. The errors of `call`; BotAPIUnreachable also: what came back is no such thing."""
        found = await self.call("getUpdates", **params)
        if not isinstance(found, list) or not all(map(_is_update, found)):
            raise BotAPIUnreachable(f"getUpdates: the result is {_NONE_OF_IT}")
        return found

    def _patience(self, params: dict[str, Any]) -> float:
        """Seconds to wait for an answer: a long poll's come on top."""
        polling = params.get("timeout")
        return self._timeout + polling if isinstance(polling, (int, float)) else self._timeout

    def _words(self, error: Exception) -> str:
        """What went wrong on the way. Never what the library says, which may hold the address, and so the token."""
        name = type(error).__name__
        words: dict[type[Exception], str] = {
            httpx.ConnectTimeout: f"no connection within {self._timeout:g} s",
            httpx.TimeoutException: f"no answer within {self._timeout:g} s",
            httpx.ConnectError: "cannot connect",
            httpx.UnsupportedProtocol: "the address of the Bot API is wrong",
            httpx.InvalidURL: "the address of the Bot API is wrong",
            httpx.ProxyError: "the proxy refuses",
        }
        for kind, said in words.items():
            if isinstance(error, kind):
                return f"{name}: {said}"
        return f"{name}: the connection broke"

    async def close(self) -> None:
        await self._client.aclose()
        logging.getLogger("httpx").removeFilter(self._redact)


# ---------------------------------------------------------------- what is sent


class _Body:
    """The parameters of a call as JSON, or as multipart if there are files among them (Bot API, "Sending files")."""

    def __init__(self, params: dict[str, Any]) -> None:
        rest, self._files = apart(params)
        if self._files:
            self._fields = {name: _text(value) for name, value in rest.items()}
        else:
            self._json = orjson.dumps(rest)

    @contextmanager
    def request(self) -> Iterator[dict[str, Any]]:
        """What httpx posts; the files are open while it does."""
        if not self._files:
            yield {"content": self._json, "headers": {"content-type": "application/json"}}
            return
        with ExitStack() as stack:
            files = {}
            for field, (name, content) in self._files.items():
                if isinstance(content, os.PathLike):
                    content = stack.enter_context(Path(content).open("rb"))
                files[field] = (name, content)  # an open file is read from its beginning at each try
            yield {"data": self._fields, "files": files}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()


# ---------------------------------------------------------------- what comes back


def _answer(response: httpx.Response) -> dict[str, Any] | None:
    """What a Bot API server says: an object with `ok`, and `result` or `error_code` (Bot API, "Making requests").

    Anything else, a proxy's page or another service's JSON, is no answer.
    """
    try:
        answer = response.json()
    except (json.JSONDecodeError, UnicodeDecodeError):
        return None
    if not isinstance(answer, dict):
        return None
    told = answer.get("ok") is True and "result" in answer
    refused = answer.get("ok") is False and type(answer.get("error_code")) is int
    return answer if told or refused else None


def _no_answer(response: httpx.Response) -> str:
    if _answer(response) is not None:
        return f"HTTP {response.status_code}"
    page = "a web page, " if response.content[:100].lstrip()[:1] == b"<" else ""
    return f"HTTP {response.status_code}, {page}{_NONE_OF_IT}"


def _is_update(value: Any) -> bool:
    return isinstance(value, dict) and type(value.get("update_id")) is int


def _error(method: str, answer: dict[str, Any]) -> BotAPIError:
    code, parameters = answer["error_code"], answer.get("parameters")
    kind = _ERRORS.get(code, BotAPIError)
    return kind(method, code, str(answer.get("description", "")), parameters if isinstance(parameters, dict) else None)


def _retry_after(answer: dict[str, Any]) -> int | None:
    parameters = answer.get("parameters")
    wait = parameters.get("retry_after") if isinstance(parameters, dict) else None
    return wait if isinstance(wait, int) and 0 <= wait <= _LONGEST_WAIT else None
