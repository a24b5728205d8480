"""A chat with a bot, and the people in it: they type, press buttons, send photos, and wait for what the bot does."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fasthook.testing.calls import Call, buttons_of
from fasthook.testing.parameters import structure
from fasthook.testing.updates import Event

_KEPT_MESSAGES = 1000
_KEPT_CALLS = 1000
#: The bytes of a photo where a test gives none: they are only carried.
PHOTO = b"\xff\xd8\xff\xe0simulated photo\xff\xd9"


class NotCome(AssertionError):
    """What was expected did not come. The message lists what came instead."""


@dataclass(frozen=True, slots=True)
class User:
    """Someone who talks to a bot."""

    id: int
    first_name: str = "Ann"
    username: str = ""
    language_code: str = "en"

    def event(self) -> Event:
        named = {"username": self.username} if self.username else {}
        return {
            "id": self.id,
            "is_bot": False,
            "first_name": self.first_name,
            **named,
            "language_code": self.language_code,
        }


@dataclass(frozen=True, slots=True)
class World:
    """What a chat needs of the bot it is with."""

    add: Callable[[str, Event], int | None]  # an update: its number
    unix: Callable[[], int]
    keep_file: Callable[[bytes], str]  # bytes that getFile finds: their file_id
    keep_query: Callable[[Chat], str]  # the number of a new query of this chat
    bot: Callable[[], Event]
    state: Callable[[], str]  # a line on what is wrong with the delivery, or empty


@dataclass(slots=True)
class _Awaited:
    fits: Callable[[Call], bool]
    future: asyncio.Future[Call] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Chat:
    """A chat of `people` with a bot; one of them is `person`, who does what is not said to be another's doing."""

    def __init__(self, chat_id: int, kind: str, people: list[User], world: World, title: str = "") -> None:
        self.id = chat_id
        self.kind = kind
        self.people = people
        self.title = title or "Group"
        self.blocked = False
        self.messages: dict[int, Event] = {}  # the last ones
        self.calls: list[Call] = []  # what the bot did here: the last ones
        self._world = world
        self._unread: list[Call] = []
        self._awaited: list[_Awaited] = []
        self._next_message = 1

    @property
    def person(self) -> User:
        return self.people[0]

    def event(self) -> Event:
        """The chat as Telegram writes it."""
        if self.kind != "private":
            return {"id": self.id, "title": self.title, "type": self.kind}
        named = {"username": self.person.username} if self.person.username else {}
        return {"id": self.id, "first_name": self.person.first_name, **named, "type": "private"}

    # ------------------------------------------------------------ what people do

    async def send(self, text: str, *, by: User | None = None, **more: Any) -> Event:
        """Type something: the message. `more`: other fields of it, by the names of the Bot API."""
        entities = {"entities": [_command(text)]} if re.match(r"/[A-Za-z]", text) else {}
        return self._say({"text": text, **entities, **more}, by)

    async def send_photo(self, caption: str = "", *, data: bytes = PHOTO, by: User | None = None) -> Event:
        """Send a photo; `data` is what the bot gets when it downloads it."""
        file_id = self._world.keep_file(data)
        sizes = [
            {"file_id": f"{file_id}{size}", "file_unique_id": f"{file_id}u{size}", "file_size": len(data),
             "width": width, "height": width * 3 // 4}
            for size, width in (("s", 90), ("m", 320), ("x", 800))
        ]  # fmt: skip
        return self._say({"photo": sizes, **({"caption": caption} if caption else {})}, by)

    async def edit(self, message: Event, text: str) -> Event:
        """Change the text of a message that someone here sent."""
        edited = self.messages[message["message_id"]] | {"edit_date": self._world.unix(), "text": text}
        self.messages[message["message_id"]] = edited
        self._world.add("edited_channel_post" if self.kind == "channel" else "edited_message", edited)
        return edited

    async def press(self, button: str, *, by: User | None = None) -> Event:
        """Press the button with these words, or this callback_data, that the bot showed last: what the bot is told.

        AssertionError: there is no such button. The message lists those there are.
        """
        seen: list[str] = []
        for message in reversed(self.messages.values()):
            for found in buttons_of(message.get("reply_markup")):
                if button in (found.get("text"), found.get("callback_data")):
                    return await self._press(message, found, by)
                seen.append(found["text"])
        shown = ", ".join(repr(text) for text in dict.fromkeys(seen)) or "none"
        raise AssertionError(f"no button {button!r} to press in this chat; the buttons here: {shown}")

    async def _press(self, message: Event, button: dict[str, Any], by: User | None) -> Event:
        if "inline_keyboard" not in message["reply_markup"]:
            return await self.send(button["text"], by=by)
        if "callback_data" not in button:
            raise AssertionError(f"the button {button['text']!r} opens something and tells the bot nothing")
        person = by or self.person
        query = {
            "id": self._world.keep_query(self),
            "from": person.event(),
            "message": message,
            "chat_instance": str(-(self.id * 7919) % (1 << 62)),
            "data": button["callback_data"],
        }
        self._world.add("callback_query", query)
        return query

    async def block(self) -> None:
        """Block the bot: what it sends here is refused with 403."""
        self._member("kicked", "member")
        self.blocked = True

    async def unblock(self) -> None:
        """Let the bot write again."""
        self.blocked = False
        self._member("member", "kicked")

    def _member(self, new: str, old: str) -> None:
        bot = self._world.bot()
        self._world.add(
            "my_chat_member",
            {
                "chat": self.event(),
                "from": self.person.event(),
                "date": self._world.unix(),
                "old_chat_member": {"user": bot, "status": old},
                "new_chat_member": {"user": bot, "status": new} | ({"until_date": 0} if new == "kicked" else {}),
            },
        )

    def _say(self, content: Event, by: User | None) -> Event:
        if self.kind == "channel":
            message = self.write({"sender_chat": self.event()}, content)
        else:
            message = self.write({"from": (by or self.person).event()}, content)
        self._world.add("channel_post" if self.kind == "channel" else "message", message)
        return message

    def write(self, sender: Event, content: Event) -> Event:
        """Put a message into the chat: as Telegram writes it, with its number."""
        head = {"message_id": self._next_message}
        message = {**head, **sender, "chat": self.event(), "date": self._world.unix(), **content}
        self._next_message += 1
        self.messages[message["message_id"]] = message
        if len(self.messages) > _KEPT_MESSAGES:
            del self.messages[next(iter(self.messages))]
        return message

    # ------------------------------------------------------------ what the bot does

    def took(self, call: Call) -> None:
        """The bot did something here."""
        self.calls.append(call)
        del self.calls[:-_KEPT_CALLS]
        for awaited in self._awaited:
            if not awaited.future.done() and awaited.fits(call):
                awaited.future.set_result(call)
                return
        self._unread.append(call)
        del self._unread[:-_KEPT_CALLS]

    async def expect(
        self,
        method: str | None = None,
        *,
        text: str | re.Pattern[str] | None = None,
        status: int = 200,
        timeout: float = 5.0,  # noqa: ASYNC109
        **params: Any,
    ) -> Call:
        """Wait for the bot to call a method here, for at most so many real seconds: the call.

        Calls are taken in the order in which they come, and each once. `text`: the whole of the text or caption, or a
        pattern to be found in it. `status`: what the call was answered. `params`: other parameters, and their values.
        NotCome: in time nothing came that fits.
        """

        def fits(call: Call) -> bool:
            return (
                (method is None or call.method.lower() == method.lower())
                and call.status == status
                and _reads(call.text, text)
                and all(_same(call.params.get(name), value) for name, value in params.items())
            )

        for call in self._unread:
            if fits(call):
                self._unread.remove(call)
                return call
        awaited = _Awaited(fits)
        self._awaited.append(awaited)
        try:
            return await asyncio.wait_for(awaited.future, timeout)
        except TimeoutError:
            wanted = _wanted(method, text, status, params)
            raise NotCome(f"the bot did not call {wanted} within {timeout:g} s; {self._instead()}") from None
        finally:
            self._awaited.remove(awaited)

    def _instead(self) -> str:
        came = "\n".join(f"  {call}" for call in self._unread)
        text = f"what came instead:\n{came}" if came else "nothing else came"
        state = self._world.state()
        return f"{text}\n{state}" if state else text


def _command(text: str) -> Event:
    return {"offset": 0, "length": len(text.split()[0]), "type": "bot_command"}


def _reads(found: str, wanted: str | re.Pattern[str] | None) -> bool:
    if isinstance(wanted, re.Pattern):
        return wanted.search(found) is not None
    return wanted is None or found == wanted


def _same(found: Any, wanted: Any) -> bool:
    """Whether a parameter is what is wanted; a form carries numbers and objects as text."""
    if found == wanted:
        return True
    if isinstance(wanted, (dict, list)):
        return bool(structure(found) == wanted)
    return found is not None and str(found).lower() == str(wanted).lower()


def _wanted(method: str | None, text: Any, status: int, params: dict[str, Any]) -> str:
    shown = {"text": text.pattern if isinstance(text, re.Pattern) else text} if text is not None else {}
    named = ", ".join(f"{name}={value!r}" for name, value in (shown | params).items())
    with_params = f"{method or 'a method'} with {named}" if named else method or "any method"
    return with_params if status == 200 else f"{with_params} that is answered {status}"
