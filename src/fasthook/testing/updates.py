"""The updates that a bot has not taken yet: their numbers, their queues, their lives."""

from __future__ import annotations

import json
import random
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fasthook.testing.clock import Clock

Event = dict[str, Any]
QueueKey = tuple[str, int | str]

LARGEST_EVENT = 524_288
MOST_UPDATES = 100_000
MOST_BYTES = 128 << 20
DAY = 86_400
_WEEK = 7 * DAY
_NUMBERS = 2_000_000_000

#: Seconds that an update is kept. What is not named here is kept for a day.
LIVES = {
    "inline_query": 30,
    "callback_query": 150,
    "shipping_query": 150,
    "pre_checkout_query": 150,
    "chosen_inline_result": 600,
}
_MESSAGES = ("message", "edited_message", "channel_post", "edited_channel_post")
_BY_USER = ("callback_query", "inline_query", "chosen_inline_result", "shipping_query", "pre_checkout_query")
_BY_USER_TOO = ("purchased_paid_media", "chat_member", "business_connection")

#: Kinds that a bot gets only if it names them in `allowed_updates`.
OFF_BY_DEFAULT = frozenset({"chat_member", "message_reaction", "message_reaction_count"})


def life(kind: str, event: Event, now: int) -> int:
    """Seconds that an update has to live; for a message they count from its date."""
    if kind in _MESSAGES:
        return DAY - max(0, now - int(event.get("edit_date") or event.get("date") or now))
    return LIVES.get(kind, DAY)


def queue_of(kind: str, event: Event) -> QueueKey:
    """What an update waits behind: of two with the same key the second is not sent before the first is taken."""
    if kind in _MESSAGES:
        return ("message", _id(event, "chat"))
    if kind in ("poll", "poll_answer"):
        return ("poll", str(event.get("id" if kind == "poll" else "poll_id")))
    if kind in _BY_USER or kind in _BY_USER_TOO:
        return (kind, _id(event, "from" if "from" in event else "user"))
    if "chat" in event:  # reactions, my_chat_member, join requests, boosts, business messages: tags of their own
        return (kind, _id(event, "chat"))
    return (kind, 0)


def _id(event: Event, name: str) -> int:
    return int(event.get(name, {}).get("id", 0))


def encode(event: Event) -> bytes:
    """An event as Telegram writes it: no white space, and only ASCII."""
    return json.dumps(event, separators=(",", ":")).encode()


@dataclass(slots=True)
class Pending:
    """An update that waits, with what became of it until now."""

    update_id: int
    kind: str
    event: bytes
    queue: QueueKey
    expires_at: float  # on the clock
    delay: float = 1.0
    wakeup_at: float = 0.0
    failures: int = 0
    attempts: int = 0

    @property
    def body(self) -> bytes:
        """The body of the request that carries it."""
        return b'{"update_id":%d,\n"%s":%s}' % (self.update_id, self.kind.encode(), self.event)


class Updates:
    """All that a bot has not taken yet, in the order of their numbers.

    Numbers begin at random and go up by one. What expires leaves a gap. After a week without an update they begin
    anew.
    """

    def __init__(self, clock: Clock, seed: random.Random) -> None:
        self._clock = clock
        self._random = seed
        self._all: OrderedDict[int, Pending] = OrderedDict()
        self._fresh: deque[int] = deque()  # not loaded by a delivery yet
        self._bytes = 0
        self._next = 0
        self._last_at = -float("inf")
        self.allowed: frozenset[str] | None = None  # None: all but what is off by default
        self.lost = 0  # for want of room
        self.expired = 0

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Pending]:
        return iter(self._all.values())

    def get(self, update_id: int) -> Pending | None:
        return self._all.get(update_id)

    def allows(self, kind: str) -> bool:
        """Whether the bot wants updates of this kind."""
        return kind not in OFF_BY_DEFAULT if self.allowed is None else kind in self.allowed

    def add(self, kind: str, event: Event, *, raw: bytes | None = None, seconds: float | None = None) -> int | None:
        """Add an update: its number, or None if the bot doesn't want it or there is no room.

        `raw`: the bytes to send, if not those that `event` would be written as. `seconds`: its life, if not that of
        its kind. ValueError: it is larger than Telegram's updates are.
        """
        body = encode(event) if raw is None else raw
        size = len(body) + len(kind) + 3  # with its kind, in quotes, and the colon
        if size > LARGEST_EVENT:
            raise ValueError(f"an update has at most {LARGEST_EVENT} bytes, not {size}")
        if not self.allows(kind):
            return None
        if len(self._all) >= MOST_UPDATES or self._bytes + size > MOST_BYTES:
            self.lost += 1
            return None
        now = self._clock.now()
        lives = life(kind, event, self._clock.unix()) if seconds is None else seconds
        update_id = self._number(now)
        self._all[update_id] = Pending(update_id, kind, body, queue_of(kind, event), now + lives, wakeup_at=now)
        self._fresh.append(update_id)
        self._bytes += size
        return update_id

    def _number(self, now: float) -> int:
        if now - self._last_at > _WEEK or self._next >= _NUMBERS:
            self._next = self._random.randrange(1, _NUMBERS // 2)
        self._last_at = now
        self._next += 1
        return self._next - 1

    def forget(self, update_id: int) -> None:
        """An update is taken, or given up."""
        update = self._all.pop(update_id, None)
        if update is not None:
            self._bytes -= len(update.event) + len(update.kind) + 3

    def clear(self) -> None:
        """Forget all."""
        self._all.clear()
        self._fresh.clear()
        self._bytes = 0

    def rewind(self) -> None:
        """Give all out again, as if none had been tried."""
        self._fresh = deque(self._all)
        for update in self._all.values():
            update.delay, update.failures, update.wakeup_at = 1.0, 0, 0.0

    def load(self, count: int) -> list[Pending]:
        """The next so many that were not given out yet."""
        found: list[Pending] = []
        now = self._clock.now()
        while self._fresh and len(found) < count:
            update = self._all.get(self._fresh.popleft())
            if update is None:
                continue
            if update.expires_at < now:
                self.expired += 1
                self.forget(update.update_id)
                continue
            found.append(update)
        return found

    def page(self, offset: int, limit: int) -> list[Pending]:
        """What getUpdates answers: forgets what is before `offset`, which counts from the end if it is negative."""
        self.expire()
        if offset < 0 and self._all:
            offset = max(next(iter(self._all)), next(reversed(self._all)) + 1 + offset)
        known = 0 < offset <= self._next  # one that was never given out forgets nothing
        while known and self._all and next(iter(self._all)) < offset:
            self.forget(next(iter(self._all)))
        return [update for update, _ in zip(self._all.values(), range(limit), strict=False)]

    def expire(self) -> None:
        """Forget what is too old."""
        now = self._clock.now()
        for update_id in [update.update_id for update in self._all.values() if update.expires_at < now]:
            self.expired += 1
            self.forget(update_id)
