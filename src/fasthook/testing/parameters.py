"""The parameters of a Bot API method, in each of the forms that Telegram reads."""

from __future__ import annotations

import email.message
import email.parser
import email.policy
import json
import zlib
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

_LARGEST_JSON = 1 << 20


@dataclass(frozen=True, slots=True)
class Upload:
    """A file in a multipart body."""

    name: str
    data: bytes


@dataclass(slots=True)
class Parameters:
    """What a method was given: text for a form and a query, any JSON value for JSON."""

    values: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Upload] = field(default_factory=dict)


def read(content_type: str, body: bytes) -> Parameters:
    """The parameters in a body; none in a body of another type. ValueError: it is too large or broken."""
    kind = content_type.partition(";")[0].strip().lower()
    if not body:
        return Parameters()
    if kind == "application/json":
        return Parameters(_json(body))
    if kind == "application/x-www-form-urlencoded":
        return Parameters(query(body.decode("utf-8", "replace")))
    if kind == "multipart/form-data":
        return _multipart(content_type, body)
    return Parameters()


def query(text: str) -> dict[str, Any]:
    """The parameters in a query string."""
    return dict(parse_qsl(text, keep_blank_values=True))


def decompress(encoding: str, body: bytes) -> bytes:
    """The body without its Content-Encoding. ValueError: it is unknown or broken."""
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise ValueError(f"unknown Content-Encoding {encoding}")
    try:
        return zlib.decompress(body, zlib.MAX_WBITS | 32)
    except zlib.error as error:
        raise ValueError(f"broken {encoding}: {error}") from None


def structure(value: Any) -> Any:
    """A parameter that is an object or an array, which a form carries as the text of it; None if it is neither."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    return value if isinstance(value, (dict, list)) else None


def whole(value: Any) -> int | None:
    """A parameter that is a number, which a form carries as text."""
    try:
        return int(value)
    except (TypeError, ValueError):
        return None


def truth(value: Any) -> bool:
    """A parameter that is a boolean, which a form carries as text."""
    return value is True or str(value).lower() in ("true", "yes", "1")


def _json(body: bytes) -> dict[str, Any]:
    if len(body) > _LARGEST_JSON:
        raise ValueError("more than 1 MiB of JSON")
    value = json.loads(body.decode("utf-8", "replace"))
    if not isinstance(value, dict):
        raise ValueError("the JSON is no object")
    return value


def _multipart(content_type: str, body: bytes) -> Parameters:
    head = b"Content-Type: " + content_type.encode("latin-1") + b"\r\n\r\n"
    whole_message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + body)
    boundary = whole_message.get_boundary()
    if not boundary or f"--{boundary}--".encode("latin-1", "replace") not in body:
        raise ValueError("broken multipart")
    found = Parameters()
    for part in whole_message.iter_parts():
        _take(found, part)
    return found


def _take(found: Parameters, part: email.message.Message) -> None:
    name = part.get_param("name", header="content-disposition")
    data = part.get_payload(decode=True)
    if not isinstance(name, str) or not isinstance(data, bytes):
        raise ValueError("broken multipart")
    file_name = part.get_filename()
    if file_name is not None:
        found.files[name] = Upload(file_name, data)
    else:
        found.values[name] = data.decode("utf-8", "replace")
