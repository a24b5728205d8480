"""Text as libraries can take it."""

from __future__ import annotations

import re
from typing import Any

from fasthook.update import Update

_SURROGATE = re.compile("[\ud800-\udfff]")


def well_formed(update: Update) -> dict[str, Any]:
    """The update's data; if there are lone surrogates in it, which pydantic refuses, they are U+FFFD."""
    data = update.data
    cleaned: dict[str, Any] = _cleaned(data) if b"\\ud" in update.raw or b"\\uD" in update.raw else data
    return cleaned


def _cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, dict):
        return {name: _cleaned(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_cleaned(one) for one in value]
    return value
