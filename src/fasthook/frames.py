"""Frames between the front door and a worker, over a socket pair: raw bytes behind a short head, many in one write."""

from __future__ import annotations

import enum
import json
from collections.abc import Callable
from struct import Struct
from typing import Any

HEAD = Struct("<IBQ")  # length of the whole frame in bytes, kind, number of the delivery; then the payload
# At the beginning of a delivery's payload: attempt, bot_id, received_at, since when it waits (`Delivery.since`); then
# the raw bytes.
UPDATE = Struct("<Hqdd")
_LENGTH = HEAD.size
LARGEST = (1 << 32) - 1
LARGEST_OUTCOME = 64 << 20  # bytes of a frame from a worker: the largest file that a bot may send, and more


class Kind(enum.IntEnum):
    """What a frame says. `deliver` to `leave` go to the worker, the others come from it."""

    SET_UP = 1  # pickled, before anything else
    DELIVER = 2
    PING = 3
    LEAVE = 4  # finish what you have, in so many seconds, and go
    READY = 5
    REFUSED = 6  # the bot does not start
    DONE = 7  # handled; the payload is what the handler returned (JSON, or `files.packed`), or nothing
    FAILED = 8
    BACK = 9  # not handled, as if it had never been delivered
    PONG = 10
    ASKS = 11  # the worker wants to leave
    SOURCES = 12  # more source files of the bot


class FrameError(Exception):
    """Bytes that are no frame."""


Take = Callable[[int, int, bytes], None]  # kind, number, payload


class Reader:
    """Cuts a stream into frames and gives each to `take`. `largest`: bytes that one may have."""

    def __init__(self, take: Take, largest: int) -> None:
        self._take = take
        self._largest = largest
        self._parts: list[bytes] = []
        self._have = self._need = 0

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the stream. FrameError: they are no frames."""
        if self._parts:
            self._parts.append(data)
            self._have += len(data)
            if self._have < self._need:
                return
            data = b"".join(self._parts)
            self._parts = []
        at, end, need, take = 0, len(data), _LENGTH, self._take
        while end - at >= _LENGTH:
            length, kind, number = HEAD.unpack_from(data, at)
            if not _LENGTH <= length <= self._largest:
                raise FrameError(f"a frame of {length} bytes")
            if length > end - at:
                need = length
                break
            take(kind, number, data[at + _LENGTH : at + length])
            at += length
        if at < end:
            self._parts = [data[at:]]
            self._have, self._need = end - at, need


def frame(kind: Kind, number: int = 0, payload: bytes = b"") -> bytes:
    return HEAD.pack(_LENGTH + len(payload), kind, number) + payload


def pack(value: dict[str, Any]) -> bytes:
    """The payload of a frame that is not about many updates. Any text is kept, lone surrogates too."""
    return json.dumps(value).encode()


def unpack(payload: bytes) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(payload)
    return value
