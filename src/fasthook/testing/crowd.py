"""Many people who talk to a bot at some rate, each doing now this and now that."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping

from fasthook.testing import samples
from fasthook.testing.account import Account
from fasthook.testing.chats import Chat, User
from fasthook.testing.clock import Clock
from fasthook.testing.updates import Event

#: What people do beside the kinds of `samples.KINDS`.
DEEDS = ("text", "photo", "press", "edit")
MIX = {"text": 80.0, "press": 10.0, "photo": 5.0, "edit": 5.0}

_WORDS = (
    "hello",
    "/start",
    "Where is my parcel?",
    "thank you",
    "and tomorrow?",
    "what can you do?",
    "one coffee, please",
    "is anybody there?",
    "Grüße aus Köln",
    "good morning \N{SUN WITH FACE}",
    "/help",
    "see you",
)


def parse_mix(text: str) -> dict[str, float]:
    """`text=80,press=20`: how often each deed or kind is, against the others. ValueError: it is not."""
    mix: dict[str, float] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*([a-z_]+)\s*(?:=\s*(\d+(?:\.\d+)?))?\s*", part)
        if not match:
            raise ValueError("must be KIND=WEIGHT with commas between, for instance text=80,press=15,photo=5")
        if match[1] not in DEEDS and match[1] not in samples.KINDS:
            raise ValueError(f"{match[1]!r} is none of {', '.join((*DEEDS, *samples.KINDS))}")
        mix[match[1]] = float(match[2] or 1)
    if not sum(mix.values()):
        raise ValueError("must have a weight above 0")
    return mix


class Crowd:
    """`chats` people, a private chat each, who do `rate` things a second together.

    The same `seed` makes the same deeds in the same order.
    """

    def __init__(
        self,
        account: Account,
        clock: Clock,
        *,
        chats: int = 3,
        rate: float = 1.0,
        mix: Mapping[str, float] = MIX,
        seed: int | None = None,
    ) -> None:
        self._account = account
        self._clock = clock
        self._rate = rate
        self._mix = dict(mix)
        self._random = random.Random(seed)
        first = 1_000_000_001
        names = ["Ann", *(f"User {n}" for n in range(2, chats + 1))]
        self.chats = [account.add_chat(first + n, "private", [User(first + n, name)]) for n, name in enumerate(names)]
        self.done = 0

    async def run(self, count: int | None = None) -> None:
        """Do so many things; without `count` until it is cancelled."""
        due = self._clock.now()
        while count is None or self.done < count:
            due += self._random.expovariate(self._rate)
            await self._clock.until(due)
            await self.act()

    async def act(self) -> None:
        """One thing that one of them does."""
        [deed] = self._random.choices(list(self._mix), list(self._mix.values()))
        chat = self._random.choice(self.chats)
        self.done += 1
        if deed == "photo":
            await chat.send_photo(self._random.choice(_WORDS))
        elif deed == "press":
            await self._press(chat)
        elif deed == "edit":
            await self._edit(chat)
        elif deed == "text":
            await chat.send(self._random.choice(_WORDS))
        else:
            self._sample(deed, chat)

    async def _press(self, chat: Chat) -> None:
        """Press a button of the last message that shows one; say something if there is none."""
        for message in reversed(chat.messages.values()):
            rows = message.get("reply_markup", {}).get("inline_keyboard", [])
            buttons = [button for row in rows for button in row if "callback_data" in button]
            if buttons:
                await chat.press(self._random.choice(buttons)["callback_data"])
                return
        await chat.send(self._random.choice(_WORDS))

    async def _edit(self, chat: Chat) -> None:
        mine = [message for message in chat.messages.values() if "text" in message and not _by_bot(message)]
        if mine:
            await chat.edit(mine[-1], self._random.choice(_WORDS))
        else:
            await chat.send(self._random.choice(_WORDS))

    def _sample(self, kind: str, chat: Chat) -> None:
        body = samples.update(0, kind, chat_id=chat.id, user_id=chat.person.id, text=self._random.choice(_WORDS))
        now = b"%d" % self._clock.unix()
        raw = body[len(b'{"update_id":0,\n"":') + len(kind) : -1].replace(b"%d" % samples.DATE, now)
        self._account.add(kind, _facts(kind, chat, self._clock.unix(), self.done), raw=raw)


def _facts(kind: str, chat: Chat, now: int, number: int) -> Event:
    """What decides the queue and the life of a sample."""
    person = {"id": chat.person.id}
    return {
        "id": samples.POLL if kind == "poll" else str(number),
        "poll_id": samples.POLL,
        "from": person,
        "user": person,
        "chat": {"id": chat.id},
        "date": now,
    }


def _by_bot(message: Event) -> bool:
    return bool(message.get("from", {}).get("is_bot"))
