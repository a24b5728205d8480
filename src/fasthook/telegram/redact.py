"""Keeps a bot's token out of logs, whoever writes them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

_FORMAT = logging.Formatter()


class Redact(logging.Filter):
    """Takes the token out of log records and their tracebacks."""

    def __init__(self, token: str) -> None:
        super().__init__()
        self._token = token

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if self._token in message:
            record.msg, record.args = self.clean(message), ()
        if record.exc_info and not record.exc_text:
            traceback = _FORMAT.formatException(record.exc_info)
            if self._token in traceback:
                record.exc_text = self.clean(traceback)
                record.exc_info = None
        return True

    def clean(self, text: str) -> str:
        return text.replace(self._token, "***")


@contextmanager
def redacted(token: str | None) -> Iterator[None]:
    """Inside, no handler of the root logger shows the token, nor does what httpx logs of its requests."""
    if token is None:
        yield
        return
    redact = Redact(token)
    places: list[logging.Filterer] = [logging.getLogger("httpx"), *logging.getLogger().handlers]
    for place in places:
        place.addFilter(redact)
    try:
        yield
    finally:
        for place in places:
            place.removeFilter(redact)
