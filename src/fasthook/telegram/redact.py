"""Keeps a bot's token out of logs, whoever writes them."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

_FORMAT = logging.Formatter()


class Redact(logging.Filter):
    """Takes a token out of log records and their tracebacks."""

    def __init__(self, token: str) -> None:
        super().__init__()
        self._pattern = re.compile(re.escape(token))

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if self._pattern.search(message):
            record.msg, record.args = self.clean(message), ()
        if record.exc_info and not record.exc_text:
            record.exc_text = _FORMAT.formatException(record.exc_info)
        if record.exc_text and self._pattern.search(record.exc_text):
            record.exc_text = self.clean(record.exc_text)
            record.exc_info = None
        return True

    def clean(self, text: str) -> str:
        return self._pattern.sub("***", text)


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
