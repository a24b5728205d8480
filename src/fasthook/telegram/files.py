"""Files among the parameters of a Bot API method (Bot API, "Sending files")."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def is_file(value: Any) -> bool:
    """Whether a value is bytes, a path, an open file, or a pair of a name and one of these. A str is none."""
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str):
        value = value[1]
    return isinstance(value, (bytes, bytearray, os.PathLike)) or hasattr(value, "read")


def named(value: Any) -> tuple[str, Any]:
    """A file's name, and its bytes, path or open file."""
    if isinstance(value, tuple):
        name, content = value
        return name, bytes(content) if isinstance(content, bytearray) else content
    if isinstance(value, os.PathLike):
        return Path(value).name, value
    if isinstance(value, (bytes, bytearray)):
        return "file", bytes(value)
    name = getattr(value, "name", None)
    return Path(name).name if isinstance(name, str) else "file", value


def has_files(params: Any) -> bool:
    """Whether there are files among the parameters of a call."""
    if isinstance(params, dict):
        return any(has_files(value) for value in params.values())
    if is_file(params):
        return True
    return isinstance(params, (list, tuple)) and any(has_files(value) for value in params)
