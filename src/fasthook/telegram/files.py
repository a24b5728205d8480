"""Files among the parameters of a Bot API method (Bot API, "Sending files")."""

from __future__ import annotations

import os
from pathlib import Path
from struct import Struct
from typing import Any

import orjson

_MARK = b"\0"  # no JSON begins with it
_LENGTH = Struct("<I")


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


def apart(params: dict[str, Any]) -> tuple[dict[str, Any], dict[str, tuple[str, Any]]]:
    """Parameters without their files, and the files: name and content, by the field that each is sent in.

    One deep inside a parameter leaves `attach://FIELD` in its place.
    """
    files: dict[str, tuple[str, Any]] = {}

    def inside(value: Any) -> Any:
        if is_file(value):
            field = f"file{len(files)}"
            files[field] = named(value)
            return f"attach://{field}"
        if isinstance(value, dict):
            return {name: inside(one) for name, one in value.items()}
        if isinstance(value, (list, tuple)):
            return [inside(one) for one in value]
        return value

    rest: dict[str, Any] = {}
    for name, value in params.items():
        if is_file(value):
            files[name] = named(value)
        else:
            rest[name] = inside(value)
    return rest, files


# ---------------------------------------------------------------- from one process to another


def packed(call: dict[str, Any]) -> bytes:
    """A call as bytes, with what is in its files; a path goes as a path.

    TypeError: a parameter cannot be sent. OSError: a file cannot be read.
    """
    rest, files = apart(call)
    heads: list[tuple[str, str, str | int]] = []
    contents: list[bytes] = []
    for field, (name, content) in files.items():
        if isinstance(content, os.PathLike):
            heads.append((field, name, str(Path(content).absolute())))
            continue
        data = content if isinstance(content, bytes) else _read(content)
        heads.append((field, name, len(data)))
        contents.append(data)
    head = orjson.dumps([rest, heads])
    return b"".join((_MARK, _LENGTH.pack(len(head)), head, *contents))


def _read(file: Any) -> bytes:
    if hasattr(file, "seek"):
        file.seek(0)  # as at each try to send it
    data = file.read()
    if not isinstance(data, bytes):
        raise TypeError(f"a file gives {type(data).__name__}, not bytes; open it in binary mode")
    return data


def is_packed(data: bytes) -> bool:
    return data.startswith(_MARK)


def unpacked(data: bytes) -> dict[str, Any]:
    """The call that was packed; its files are pairs of a name and bytes or a path."""
    (length,) = _LENGTH.unpack_from(data, len(_MARK))
    at = len(_MARK) + _LENGTH.size
    call: dict[str, Any]
    call, heads = orjson.loads(data[at : at + length])
    at += length
    for field, name, content in heads:
        if isinstance(content, str):
            call[field] = name, Path(content)
        else:
            call[field] = name, data[at : at + content]
            at += content
    return call
