"""The bot of these tests: it does what the text of a message says, and keeps a record of what it handled."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from fasthook.queues.deadletter import DeadLetter, DeadLetters

SOURCE = """\
import asyncio
import os
import threading

record = os.open("handled", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
held = os.environ.get("HELD")  # the chat whose handlers never end
pause = float(os.environ.get("PAUSE", "0"))
TEXT = "not a handler"
NUMBER = 5


def done(update):
    line = b"%d %d %s %d" % (update.lane[1], update.update_id, update.kind.encode(), update.attempt)
    os.write(record, line.ljust(63) + b"\\n")  # a kill cuts a write in two where a page ends: no line has one in it


async def handler(update):
    text = update["message"].get("text", "") if update.kind == "message" else ""
    if text.startswith("raise") and not os.path.exists("healed"):
        raise ValueError("the bot is broken")
    if text == "fail once" and update.attempt == 1:
        raise ValueError("not yet")
    if text == "hang" or str(update.lane[1]) == held:
        await asyncio.Event().wait()
    while text == "block":
        pass
    while text == "swallow":
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass
    if pause:
        await asyncio.sleep(pause)
    done(update)
    if text.startswith("say "):
        return update.reply("sendMessage", text=text[4:])
    if text == "nonsense":
        return 42


def plain(update):
    if update["message"]["text"] == "hang":
        threading.Event().wait()
    done(update)


def without_argument():
    pass


def generator(update):
    yield update


class Class:
    def __init__(self, update):
        pass
"""


@dataclass(frozen=True)
class Handled:
    """An update that the handler came to the end of."""

    chat: int  # or the user, where there is no chat
    update_id: int
    kind: str
    attempt: int


class Bot:
    """A directory with the bot in it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "bot.py").write_text(SOURCE)

    @property
    def handled(self) -> list[Handled]:
        """What was handled until now, in this order."""
        file = self.directory / "handled"
        lines = [line.split() for line in file.read_text().splitlines()] if file.exists() else []
        return [Handled(int(chat), int(update_id), kind, int(attempt)) for chat, update_id, kind, attempt in lines]

    @property
    def by_chat(self) -> dict[int, list[int]]:
        """The ids of what was handled, by chat."""
        found: dict[int, list[int]] = defaultdict(list)
        for one in self.handled:
            found[one.chat].append(one.update_id)
        return dict(found)

    @property
    def dead(self) -> list[DeadLetter]:
        """The dead letters in its state directory."""
        letters = DeadLetters(self.directory / ".fasthook" / "dead")
        try:
            return [letter for _, letter in letters.items()]
        finally:
            letters.close()
