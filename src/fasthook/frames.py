"""Frames between the front door and a worker, over a socket pair: raw bytes behind a short head, many in one write."""

from __future__ import annotations

import enum
import json
from collections.abc import Callable, Mapping
from struct import Struct
from types import NoneType
from typing import Any

HEAD = Struct("<IBQ")  # length of the whole frame in bytes, kind, number of the delivery; then the payload
# At the beginning of a delivery's payload: attempt, bot_id, received_at, since when it waits (`Delivery.since`); then
# the raw bytes.
UPDATE = Struct("<Hqdd")
_LENGTH = HEAD.size
_LARGEST = (1 << 32) - 1
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
    RUNS_ON = 13  # its handler cannot be stopped: nobody else may have it while this process lives


#: The frames that come from each side, and how long they may be, in bytes: the shortest and the longest.
Lengths = Mapping[int, tuple[int, int]]
_EMPTY = (_LENGTH, _LENGTH)
_NONE = (1, 0)
FROM_DOOR: Lengths = {
    Kind.DELIVER: (_LENGTH + UPDATE.size, _LARGEST),
    Kind.PING: _EMPTY,
    Kind.LEAVE: (_LENGTH + 1, _LENGTH + 30),
}
FROM_WORKER: Lengths = {
    Kind.READY: (_LENGTH + 2, LARGEST_OUTCOME),
    Kind.REFUSED: (_LENGTH + 2, LARGEST_OUTCOME),
    Kind.DONE: (_LENGTH, LARGEST_OUTCOME),
    Kind.FAILED: (_LENGTH + 2, LARGEST_OUTCOME),
    Kind.BACK: _EMPTY,
    Kind.PONG: _EMPTY,
    Kind.ASKS: _EMPTY,
    Kind.SOURCES: (_LENGTH + 2, LARGEST_OUTCOME),
    Kind.RUNS_ON: _EMPTY,
}
#: What the others tell, by name; a list is one of texts, a dict has such lists, or None, by bot.
_SAYS: Mapping[Kind, Mapping[str, tuple[type, ...]]] = {
    Kind.READY: {"files": (list,), "token": (str, NoneType), "kinds": (dict,)},
    Kind.REFUSED: {"line": (str,), "code": (int,), "trace": (str,), "files": (list,)},
    Kind.FAILED: {"line": (str,), "reason": (str,), "final": (bool,), "trace": (str,)},
    Kind.SOURCES: {"files": (list,)},
}


class FrameError(Exception):
    """Bytes that are no frame, or none that may come from there."""


Take = Callable[[int, int, bytes], None]  # kind, number, payload


class Reader:
    """Cuts a stream into frames and gives each to `take`. `lengths`: of those that may come.

    After a FrameError, raised here or by `take`, nothing more can be read.
    """

    def __init__(self, take: Take, lengths: Lengths) -> None:
        self._take = take
        self._lengths = lengths
        self._parts: list[bytes] = []
        self._have = self._need = 0

    def feed(self, data: bytes) -> bool:
        """Take the next bytes of the stream; whether a frame has come to its end. FrameError: they are no frames."""
        if self._parts:
            self._parts.append(data)
            self._have += len(data)
            if self._have < self._need:
                return False
            data = b"".join(self._parts)
            self._parts = []
        at, end, need, take, lengths = 0, len(data), _LENGTH, self._take, self._lengths
        while end - at >= _LENGTH:
            length, kind, number = HEAD.unpack_from(data, at)
            shortest, longest = lengths.get(kind, _NONE)
            if not shortest <= length <= longest:
                raise FrameError(f"a frame of kind {kind} and {length} bytes")
            if length > end - at:
                need = length
                break
            take(kind, number, data[at + _LENGTH : at + length])
            at += length
        if at < end:
            self._parts = [data[at:]]
            self._have, self._need = end - at, need
        return at > 0


def frame(kind: Kind, number: int = 0, payload: bytes = b"") -> bytes:
    return HEAD.pack(_LENGTH + len(payload), kind, number) + payload


def pack(value: dict[str, Any]) -> bytes:
    """The payload of a frame that is not about many updates. Any text is kept, lone surrogates too."""
    return json.dumps(value).encode()


def unpack(kind: Kind, payload: bytes) -> dict[str, Any]:
    """What such a frame tells. FrameError: it does not."""
    try:
        value = json.loads(payload)
    except (ValueError, RecursionError):
        value = None
    says = _SAYS[kind]
    if not isinstance(value, dict) or value.keys() != says.keys():
        raise FrameError(f"a frame of kind {kind} that tells nothing")
    if not all(_is(value[name], types) for name, types in says.items()):
        raise FrameError(f"a frame of kind {kind} that tells nothing")
    return value


def _is(value: object, types: tuple[type, ...]) -> bool:
    if isinstance(value, list):
        return list in types and all(isinstance(one, str) for one in value)
    if isinstance(value, dict):
        return dict in types and all(_is(one, (list, NoneType)) for one in value.values())
    return isinstance(value, types)
