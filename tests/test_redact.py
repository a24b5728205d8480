"""The token in what libraries log."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest

from fasthook.telegram.redact import redacted

TOKEN = "42:TEST-token"


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """What the root logger writes."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    logging.getLogger().addHandler(handler)
    yield text
    logging.getLogger().removeHandler(handler)


def say() -> None:
    log = logging.getLogger("some.library")
    log.error("token %s, %d", TOKEN, 1)
    try:
        raise ValueError(f"https://api.telegram.org/bot{TOKEN}/getMe is gone")
    except ValueError:
        log.exception("failed")


def test_a_known_token_is_in_no_record_and_no_traceback(written: io.StringIO) -> None:
    with redacted(TOKEN):
        say()
    assert "TEST-token" not in written.getvalue()
    assert "token ***, 1" in written.getvalue()
    assert "Traceback (most recent call last)" in written.getvalue()
    assert "bot***/getMe is gone" in written.getvalue()
    say()
    assert "TEST-token" in written.getvalue()


def test_nobodys_token(written: io.StringIO) -> None:
    with redacted(None):
        say()
    assert "TEST-token" in written.getvalue()
