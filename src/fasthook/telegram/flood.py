"""How fast replies leave: Telegram's limits kept on our side, so that its 429 is the exception.

Bots FAQ, "My bot is hitting limits": about 30 messages a second in all, one a second in a chat, 20 a minute in a group.
"""

from __future__ import annotations

import asyncio
from asyncio import sleep
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from time import monotonic
from typing import Any

from fasthook.settings import Rate

_REMEMBERED = 10_000  # chats whose last messages are known while nothing waits in them
_SENDS = ("send", "copyMessage", "forwardMessage", "editMessage")
_FREE = frozenset({"sendChatAction", "sendInvoiceLink"})


def is_message(method: str) -> bool:
    """Whether a method counts: those that send or edit a message do, an answer to a query does not."""
    return method.startswith(_SENDS) and method not in _FREE


class _Window:
    """When the last messages went; no more than `rate.count` in any `rate.seconds`."""

    __slots__ = ("_rate", "_times")

    def __init__(self, rate: Rate) -> None:
        self._rate = rate
        self._times: deque[float] = deque(maxlen=rate.count)

    def due(self, now: float) -> float:
        """When the next one may go, `now` or later."""
        if len(self._times) < self._rate.count:
            return now
        return max(now, self._times[0] + self._rate.seconds)

    def take(self, when: float) -> None:
        self._times.append(when)

    def move(self, was: float, when: float) -> None:
        """What was taken then counts from now on."""
        with suppress(ValueError):  # so much has gone since that it is forgotten
            self._times.remove(was)
        self._times.append(when)

    def idle(self, now: float) -> bool:
        return not self._times or self._times[-1] + self._rate.seconds <= now


class _Chat:
    __slots__ = ("waiting", "window")

    def __init__(self, rate: Rate | None) -> None:
        self.window = _Window(rate) if rate else None
        self.waiting: deque[asyncio.Future[None]] = deque()


class Governor:
    """Lets messages go at the rates that are given; None is no limit.

    Within a chat first come, first served. The first of each chat compete for the bot's own rate, in the order in which
    their chat's rate lets them, so a chat that waits holds up no other. Memory: what waits, and `_REMEMBERED` chats.
    """

    def __init__(self, *, bot: Rate | None, chat: Rate | None, group: Rate | None) -> None:
        self._all = _Window(bot) if bot else None
        self._rates = (chat, group)
        self._chats: OrderedDict[Any, _Chat] = OrderedDict()
        self._ready: deque[asyncio.Future[float]] = deque()  # allowed by their chats, waiting for the bot's rate
        self._timer: asyncio.TimerHandle | None = None
        self.waiting = 0

    @asynccontextmanager
    async def turn(self, chat_id: Any) -> AsyncIterator[None]:
        """Inside, a message may go to this chat (an id or an `@name`), and no other goes there.

        It counts from its end, when Telegram has it: it may have been on its way, or told to wait, before.
        """
        taken = 0.0
        chat = self._chat(chat_id)
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        chat.waiting.append(mine)
        self.waiting += 1
        try:
            if chat.waiting[0] is not mine:
                await mine
            if chat.window and (wait := chat.window.due(now := monotonic()) - now) > 0:
                await sleep(wait)
            if self._all:
                taken = await self._turn_of_bot()
            try:
                yield
            finally:
                if chat.window:
                    chat.window.take(monotonic())
                if self._all:
                    self._all.move(taken, monotonic())
        finally:
            self.waiting -= 1
            first = chat.waiting[0] is mine
            chat.waiting.remove(mine)
            if first and chat.waiting and not chat.waiting[0].done():
                chat.waiting[0].set_result(None)
            self._forget()

    async def _turn_of_bot(self) -> float:
        """Wait for it: when it was."""
        mine: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._ready.append(mine)
        self._let_go()
        try:
            return await mine
        except asyncio.CancelledError:
            if mine in self._ready:
                self._ready.remove(mine)
            raise

    def _let_go(self) -> None:
        """Let go who may, in order; look again when the next one may."""
        assert self._all
        if self._timer:
            self._timer.cancel()
        now = monotonic()
        while self._ready:
            due = self._all.due(now)
            if due > now:
                self._timer = asyncio.get_running_loop().call_later(due - now, self._let_go)
                return
            first = self._ready.popleft()
            if not first.done():
                self._all.take(now)
                first.set_result(now)

    def _chat(self, chat_id: Any) -> _Chat:
        chat = self._chats.get(chat_id)
        if chat is None:
            chat = self._chats[chat_id] = _Chat(self._rates[_is_group(chat_id)])
        self._chats.move_to_end(chat_id)
        return chat

    def _forget(self) -> None:
        """Forget chats that nothing waits in: those whose rate is unused, and the oldest of too many."""
        now = monotonic()
        while self._chats:
            chat_id, chat = next(iter(self._chats.items()))
            if chat.waiting:
                self._chats.move_to_end(chat_id)
                return
            if chat.window and not chat.window.idle(now) and len(self._chats) <= _REMEMBERED:
                return
            del self._chats[chat_id]


def _is_group(chat_id: Any) -> bool:
    """Groups and channels have negative ids; a public name is one of these too."""
    return (isinstance(chat_id, int) and chat_id < 0) or (isinstance(chat_id, str) and chat_id.startswith(("-", "@")))
