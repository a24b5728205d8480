"""The core again, slow and obvious: the twin that the compiled one must agree with.

The names are those of `fasthook._core` and `fasthook._scan`; the rules are theirs too, told here in plain Python.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NoReturn

# ---------------------------------------------------------------- scan

#: Bot API, "Update".
KINDS = (
    "unknown",
    "message",
    "edited_message",
    "channel_post",
    "edited_channel_post",
    "callback_query",
    "inline_query",
    "chosen_inline_result",
    "business_connection",
    "business_message",
    "edited_business_message",
    "deleted_business_messages",
    "message_reaction",
    "message_reaction_count",
    "shipping_query",
    "pre_checkout_query",
    "purchased_paid_media",
    "poll",
    "poll_answer",
    "my_chat_member",
    "chat_member",
    "chat_join_request",
    "chat_boost",
    "removed_chat_boost",
)

USER_IS_NAMED_USER = {"business_connection", "message_reaction", "poll_answer"}
MAX_UPDATE_ID = 2**53 - 1
MAX_DEPTH = 512


class Object(list[tuple[str, Any]]):
    """A JSON object with its names as they came, twice if they came twice."""

    def last(self, name: str) -> Any:
        return next((value for key, value in reversed(self) if key == name), None)


@dataclass(frozen=True)
class Number:
    """A JSON number as it was written."""

    text: str

    def whole(self) -> int | None:
        """Its value, if it is a plain integer of at most 18 digits."""
        return int(self.text) if re.fullmatch(r"-?[0-9]{1,18}", self.text) else None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


_DECODER = json.JSONDecoder(
    object_pairs_hook=Object, parse_int=Number, parse_float=Number, parse_constant=_refuse, strict=True
)


@dataclass
class Admitted:
    raw: bytes
    update_id: int
    kind: str
    chat_id: int | None
    user_id: int | None
    bot_id: int = 0
    received_at: float = 0.0
    attempt: int = 1
    state: Any = None

    @property
    def kind_index(self) -> int:
        return KINDS.index(self.kind) if self.kind in KINDS else 0

    @property
    def lane(self) -> tuple[int, int]:
        return self.bot_id, next((number for number in (self.chat_id, self.user_id) if number is not None), 0)


def scan(raw: bytes) -> Admitted | None:
    """Read `raw` as an update: what was found, or None if it is not one."""
    try:
        # Bytes that are not UTF-8 become lone surrogates, which JSON refuses everywhere but inside strings.
        document = _DECODER.decode(raw.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, Object) or _depth(document) > MAX_DEPTH:
        return None
    update_id = _update_id(document)
    if update_id is None:
        return None
    kind, event = _kind(document)
    holder = _member(event, "message") if kind == "callback_query" else event
    user = _member(event, "user" if kind in USER_IS_NAMED_USER else "from")
    return Admitted(raw, update_id, _readable(kind), _id(_member(holder, "chat")), _id(user))


def _depth(document: Any) -> int:
    depth = 0
    level = [document]
    while level := [value for value in level if isinstance(value, list)]:
        depth += 1
        level = [child for value in level for child in _children(value)]
    return depth


def _children(value: list[Any]) -> list[Any]:
    return [child for _, child in value] if isinstance(value, Object) else value


def _update_id(document: Object) -> int | None:
    values = [value for name, value in document if name == "update_id"]
    if len(values) != 1 or not isinstance(values[0], Number) or values[0].text.startswith("-"):
        return None
    number = values[0].whole()
    return number if number is not None and number <= MAX_UPDATE_ID else None


def _kind(document: Object) -> tuple[str, Any]:
    """The name that says the kind, and what stands behind it."""
    members = [(name, value) for name, value in document if name != "update_id"]
    for name, _ in members:
        if name in KINDS[1:]:
            return name, document.last(name)
    return members[0] if members else ("unknown", None)


def _member(value: Any, name: str) -> Any:
    return value.last(name) if isinstance(value, Object) else None


def _id(value: Any) -> int | None:
    number = _member(value, "id")
    return number.whole() if isinstance(number, Number) else None


def _readable(name: str) -> str:
    """A name whose bytes may not have been UTF-8, with U+FFFD for those that were not."""
    return re.sub(
        "[\udc80-\udcff]+", lambda run: run[0].encode("utf-8", "surrogateescape").decode("utf-8", "replace"), name
    )


# ---------------------------------------------------------------- memory that outlives us


def _words(buffer: object, words: int) -> memoryview:
    """The buffer as 64-bit words; a private one where none is given."""
    view = memoryview(bytearray(words * 8) if buffer is None else buffer)  # type: ignore[arg-type]
    if view.readonly:
        raise BufferError("not writable")
    if view.nbytes < words * 8:
        raise ValueError("too small")
    return view.cast("B")[: words * 8].cast("q")


# ---------------------------------------------------------------- duplicates

NEW, IN_FLIGHT, DUPLICATE, FULL = range(4)
FREE, FLYING, DONE = range(3)
RING_HEADER = 8
RING_MAGIC = int.from_bytes(b"FHRING1\0", "little")


class DedupRing:
    """A circle of entries. The head goes round, passes over what is in flight and takes the place of what is done."""

    def __init__(self, capacity: int, in_flight: int | None = None, buffer: object = None) -> None:
        limit = capacity if in_flight is None else in_flight
        if capacity < 1 or limit < 1 or capacity + limit > 2**28:
            raise ValueError("out of range")
        self.capacity, self.limit, self.slots = capacity, limit, capacity + limit
        self._words = _words(buffer, RING_HEADER + 2 * self.slots)
        if self._words[0] == 0:
            self._words[0], self._words[1], self._words[2] = RING_MAGIC, capacity, limit
        if self._words[:3].tolist() != [RING_MAGIC, capacity, limit] or not 0 <= self._head < self.slots:
            raise ValueError("not a ring of these sizes")
        self._known = self._read()
        if self.in_flight > limit:
            raise ValueError("damaged")

    def _read(self) -> dict[tuple[int, int], int]:
        known: dict[tuple[int, int], int] = {}
        for slot in range(self.slots):
            bot, update_id, state = self._entry(slot)
            if state == FREE and update_id == 0:
                continue
            if state not in (FLYING, DONE) or update_id < 0 or (bot, update_id) in known:
                raise ValueError("damaged")
            known[bot, update_id] = slot
        return known

    @staticmethod
    def nbytes(capacity: int, in_flight: int | None = None) -> int:
        return 8 * (RING_HEADER + 2 * (capacity + (capacity if in_flight is None else in_flight)))

    @property
    def in_flight(self) -> int:
        return sum(self._entry(slot)[2] == FLYING for slot in self._known.values())

    @property
    def _head(self) -> int:
        return self._words[3]

    def _entry(self, slot: int) -> tuple[int, int, int]:
        bot, word = self._words[RING_HEADER + 2 * slot], self._words[RING_HEADER + 2 * slot + 1]
        return bot, word >> 2, word & 3

    def _write(self, slot: int, update_id: int, state: int) -> None:
        self._words[RING_HEADER + 2 * slot + 1] = update_id << 2 | state

    def claim(self, bot: int, update_id: int) -> int:
        _check(update_id)
        if (bot, update_id) in self._known:
            return DUPLICATE if self._entry(self._known[bot, update_id])[2] == DONE else IN_FLIGHT
        if self.in_flight >= self.limit:
            return FULL
        slot = self._head
        while self._entry(slot)[2] == FLYING:
            slot = (slot + 1) % self.slots
        old_bot, old_id, old_state = self._entry(slot)
        if old_state == DONE:
            del self._known[old_bot, old_id]
        self._words[RING_HEADER + 2 * slot] = bot
        self._write(slot, update_id, FLYING)
        self._known[bot, update_id] = slot
        self._words[3] = (slot + 1) % self.slots
        return NEW

    def _flying(self, bot: int, update_id: int) -> int | None:
        slot = self._known.get((bot, _check(update_id)))
        return slot if slot is not None and self._entry(slot)[2] == FLYING else None

    def settle(self, bot: int, update_id: int) -> bool:
        slot = self._flying(bot, update_id)
        if slot is not None:
            self._write(slot, update_id, DONE)
        return slot is not None

    def release(self, bot: int, update_id: int) -> bool:
        slot = self._flying(bot, update_id)
        if slot is None:
            return False
        self._write(slot, 0, FREE)
        del self._known[bot, update_id]
        if self._head == (slot + 1) % self.slots:
            self._words[3] = slot  # the newest: its place is the next to be taken
        return True

    def release_all(self) -> int:
        flying = [(bot, update_id) for bot, update_id, done in self._by_slot(0) if not done]
        for bot, update_id in flying:
            self.release(bot, update_id)
        return len(flying)

    def items(self) -> list[tuple[int, int, bool]]:
        return self._by_slot(self._head)

    def _by_slot(self, first: int) -> list[tuple[int, int, bool]]:
        entries = [self._entry((first + i) % self.slots) for i in range(self.slots)]
        return [(bot, update_id, state == DONE) for bot, update_id, state in entries if state != FREE]


def _check(update_id: int) -> int:
    if not 0 <= update_id <= MAX_UPDATE_ID:
        raise ValueError("update_id out of range")
    return update_id


# ---------------------------------------------------------------- rates


@dataclass
class Bucket:
    tokens: Fraction
    at: int  # ns: when it held them


class TokenBuckets:
    """Each bucket is refilled by the clock up to `burst`; the one closest to full makes room for a new key."""

    def __init__(self, size: int, interval: int, burst: int) -> None:
        if not 1 <= size <= 2**28 or interval < 1 or burst < 1 or interval * burst > 2**61:
            raise ValueError("out of range")
        self.size, self.interval, self.burst = size, interval, burst
        self._buckets: dict[int, Bucket] = {}

    def __len__(self) -> int:
        return len(self._buckets)

    def _tokens(self, bucket: Bucket, now: int) -> Fraction:
        return min(Fraction(self.burst), bucket.tokens + Fraction(now - bucket.at, self.interval))

    def take(self, key: int, now: int) -> int:
        key %= 2**64
        if key not in self._buckets:
            if len(self._buckets) == self.size:
                del self._buckets[max(self._buckets, key=lambda other: self._tokens(self._buckets[other], now))]
            self._buckets[key] = Bucket(Fraction(self.burst), now)
        tokens = self._tokens(self._buckets[key], now)
        if tokens < 1:
            wait = (1 - tokens) * self.interval
            assert wait.denominator == 1
            return int(wait)
        self._buckets[key] = Bucket(tokens - 1, now)
        return 0


# ---------------------------------------------------------------- statistics

STATS_HEADER = 8
STATS_MAGIC = int.from_bytes(b"FHSTAT1\0", "little")
FIRST_OCTAVE, LAST_OCTAVE = 9, 37  # from 512 ns to 137 s
#: The exclusive upper bounds: one bucket below the octaves, sixteen in each, and one for the rest.
BOUNDS: list[int] = [
    2**FIRST_OCTAVE,
    *((17 + step) * 2 ** (octave - 4) for octave in range(FIRST_OCTAVE, LAST_OCTAVE) for step in range(16)),
    2**63 - 1,
]
ROW = 1 + len(BOUNDS)


class Stats:
    def __init__(self, counters: int, histograms: int, buffer: object = None) -> None:
        if counters < 0 or histograms < 0:
            raise ValueError("negative")
        self.counters, self.histograms = counters, histograms
        self._words = _words(buffer, STATS_HEADER + counters + histograms * ROW)
        if self._words[0] == 0:
            self._words[0], self._words[1], self._words[2] = STATS_MAGIC, counters, histograms
        if self._words[:3].tolist() != [STATS_MAGIC, counters, histograms]:
            raise ValueError("not statistics of these sizes")

    @staticmethod
    def nbytes(counters: int, histograms: int) -> int:
        return 8 * (STATS_HEADER + counters + histograms * ROW)

    def _counter(self, counter: int) -> int:
        if not 0 <= counter < self.counters:
            raise IndexError(counter)
        return STATS_HEADER + counter

    def _row(self, histogram: int) -> int:
        if not 0 <= histogram < self.histograms:
            raise IndexError(histogram)
        return STATS_HEADER + self.counters + histogram * ROW

    def add(self, counter: int, n: int = 1) -> None:
        self._words[self._counter(counter)] += n

    def counter(self, counter: int) -> int:
        return self._words[self._counter(counter)]

    def observe(self, histogram: int, ns: int) -> None:
        row = self._row(histogram)
        bucket = min(bisect_right(BOUNDS, ns), len(BOUNDS) - 1)
        self._words[row + 1 + bucket] += 1
        self._words[row] += max(ns, 0)

    def histogram(self, histogram: int) -> tuple[int, list[tuple[int, int]]]:
        row = self._row(histogram)
        counts = zip(BOUNDS, self._words[row + 1 : row + ROW].tolist(), strict=True)
        return self._words[row], [(bound, count) for bound, count in counts if count]

    def quantile(self, histogram: int, q: float) -> float | None:
        if not 0 <= q <= 1:
            raise ValueError("q must be from 0 to 1")
        _, counts = self.histogram(histogram)
        total, seen = sum(count for _, count in counts), 0
        for bound, count in counts:
            seen += count
            if seen >= q * total:
                return _middle(BOUNDS.index(bound))
        return None


def _middle(bucket: int) -> float:
    if bucket == 0:
        return BOUNDS[0] / 2
    if bucket == len(BOUNDS) - 1:
        return float(BOUNDS[-2])
    return (BOUNDS[bucket - 1] + BOUNDS[bucket]) / 2
