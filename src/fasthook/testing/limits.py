"""How often something may be: windows of time, and what Telegram lets a bot send in them."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from fasthook.testing.calls import Refused
from fasthook.testing.clock import Clock

_REMEMBERED = 10_000  # chats


@dataclass(slots=True)
class Window:
    """So many events in any so many seconds."""

    count: int
    seconds: float
    times: deque[float] = field(default_factory=deque)

    def wait_until(self, now: float) -> float:
        """When the next may be; not after `now` if it may be now."""
        while self.times and self.times[0] <= now - self.seconds:
            self.times.popleft()
        return now if len(self.times) < self.count else self.times[0] + self.seconds


@dataclass(frozen=True, slots=True)
class Limits:
    """Messages that a bot may send, each as a count and seconds: in all, in a private chat, in a group or channel.

    Bots FAQ, "My bot is hitting limits". Telegram itself forgives short bursts; this doesn't.
    """

    bot: tuple[int, float] = (30, 1.0)
    chat: tuple[int, float] = (1, 1.0)
    group: tuple[int, float] = (20, 60.0)


class Sent:
    """What a bot has sent lately, held to its limits."""

    def __init__(self, limits: Limits, clock: Clock) -> None:
        self._limits = limits
        self._clock = clock
        self._all = Window(*limits.bot)
        self._chats: dict[int, Window] = {}

    def count(self, chat_id: int) -> None:
        """A message to this chat. Refused: it is one too many, and isn't counted."""
        limits, now = self._limits, self._clock.now()
        chat = self._chats.pop(chat_id, None) or Window(*(limits.chat if chat_id > 0 else limits.group))
        self._chats[chat_id] = chat  # now the youngest
        if len(self._chats) > _REMEMBERED:
            del self._chats[next(iter(self._chats))]
        due = max(self._all.wait_until(now), chat.wait_until(now))
        if due > now:
            seconds = math.ceil(due - now)
            raise Refused(429, f"Too Many Requests: retry after {seconds}", seconds)
        self._all.times.append(now)
        chat.times.append(now)
