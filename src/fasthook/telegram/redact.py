"""Keeps a bot's token out of logs, whoever writes them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from fasthook.logs import Redaction

_FORMAT = logging.Formatter()


class Redact(logging.Filter):
    """Takes a token out of log records and their tracebacks, whatever handler writes them."""

    def __init__(self, token: str) -> None:
        super().__init__()
        self._clean = Redaction([token])

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        cleaned = self._clean(message)
        if cleaned != message:
            record.msg, record.args = cleaned, ()
        if record.exc_info and not record.exc_text:
            record.exc_text = _FORMAT.formatException(record.exc_info)
        if record.exc_text and (cleaned := self._clean(record.exc_text)) != record.exc_text:
            record.exc_text, record.exc_info = cleaned, None
        return True


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
