"""A small client of the Bot API."""

from __future__ import annotations

import json
import logging
import random
from asyncio import sleep
from typing import Any

import httpx
import orjson

_TRIES = 5  # for errors of the network and of Telegram's servers
_TIMEOUT = 60.0  # seconds for one request
_LONGEST_WAIT = 3600  # seconds of retry_after that are waited for


class BotAPIError(Exception):
    """Telegram refused a call. `code` and `description` are what it said."""

    def __init__(self, method: str, code: int, description: str) -> None:
        super().__init__(f"{method}: {code} {description}")
        self.method = method
        self.code = code
        self.description = description


class BotAPIUnreachable(Exception):
    """Telegram gave no usable answer, after all tries."""


class BotAPI:
    """Calls methods of the Bot API as one bot. The token is in no log line, no exception and no repr.

    `server`: its address, `https://api.telegram.org` or a local Bot API server.
    """

    def __init__(self, token: str, server: str = "https://api.telegram.org") -> None:
        self._redact = _Redact(token)
        logging.getLogger("httpx").addFilter(self._redact)  # httpx logs the address of each request
        self._client = httpx.AsyncClient(
            base_url=f"{server.rstrip('/')}/bot{token}/",
            timeout=_TIMEOUT,
            limits=httpx.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=60),
        )

    async def call(self, method: str, **params: Any) -> Any:
        """Call a method: its result.

        429 is waited for as long as Telegram says (`retry_after`, Bot API "ResponseParameters"); 5xx and errors of the
        network are tried again. BotAPIError: refused. BotAPIUnreachable: no answer after five tries.
        """
        body = {name: value for name, value in params.items() if value is not None}
        tries = 0
        while True:
            try:
                response = await self._client.post(
                    method, content=orjson.dumps(body), headers={"content-type": "application/json"}
                )
                answer = _answer(response)
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                answer, failure = None, type(error).__name__
            else:
                failure = f"HTTP {response.status_code}"
            if answer is not None and answer.get("ok"):
                return answer.get("result")
            if answer is not None and response.status_code < 500:
                wait = _retry_after(answer)
                if response.status_code != 429 or wait is None:
                    raise BotAPIError(method, response.status_code, str(answer.get("description", "")))
                await sleep(wait)
                continue
            tries += 1
            if tries == _TRIES:
                raise BotAPIUnreachable(f"{method}: no answer from the Bot API after {tries} tries ({failure})")
            await sleep(random.uniform(0.5, 1.0) * 2.0 ** (tries - 1))

    async def close(self) -> None:
        await self._client.aclose()
        logging.getLogger("httpx").removeFilter(self._redact)


class _Redact(logging.Filter):
    """Takes the token out of log records."""

    def __init__(self, token: str) -> None:
        super().__init__()
        self._token = token

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if self._token in message:
            record.msg, record.args = message.replace(self._token, "***"), ()
        return True


def _answer(response: httpx.Response) -> dict[str, Any] | None:
    """What a Bot API server says is a JSON object; anything else (a proxy's page) is no answer."""
    try:
        answer = response.json()
    except (json.JSONDecodeError, UnicodeDecodeError):
        return None
    return answer if isinstance(answer, dict) else None


def _retry_after(answer: dict[str, Any]) -> int | None:
    parameters = answer.get("parameters")
    wait = parameters.get("retry_after") if isinstance(parameters, dict) else None
    return wait if isinstance(wait, int) and 0 <= wait <= _LONGEST_WAIT else None
