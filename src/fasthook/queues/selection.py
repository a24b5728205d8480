"""Which updates or dead letters somebody means, and what is told of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fasthook._scan import scan
from fasthook.queues.deadletter import UNREADABLE, DeadLetter
from fasthook.update import Update

Row = dict[str, Any]  # as it goes over the control socket, and to a program that reads JSON

WAITING, IN_HAND, HANDLED = "waiting", "in hand", "handled"
_NO_UPDATE = ("invalid", UNREADABLE)  # reasons


@dataclass(frozen=True, slots=True)
class Selection:
    """Numbers, or what all of those that are meant have in common; an empty part is true of all.

    `before`, `after`: seconds since the epoch between which the update came, or the letter died.
    """

    numbers: tuple[int, ...] = ()
    bots: tuple[int, ...] = ()
    kinds: tuple[str, ...] = ()
    chats: tuple[int, ...] = ()
    reasons: tuple[str, ...] = ()
    before: float | None = None
    after: float | None = None

    @classmethod
    def of(cls, packed: Mapping[str, Any]) -> Selection:
        """From what `packed` made. TypeError: it is something else."""
        parts: dict[str, Any] = {name: tuple(it) if isinstance(it, list) else it for name, it in packed.items()}
        return cls(**parts)

    def packed(self) -> Row:
        return asdict(self)

    def names_all(self) -> bool:
        """There are no numbers and no filters."""
        return self == Selection()

    def has(self, row: Row) -> bool:
        """Whether a row of `waiting_row` or `dead_row` is meant."""
        when: float | None = row["died_at" if "died_at" in row else "received_at"]
        return (
            (not self.numbers or row["number"] in self.numbers)
            and self._has_facts(row["bot_id"], row["kind"], row["chat_id"], when)
            and (not self.reasons or row.get("reason") in self.reasons)
        )

    def has_update(self, update: Update) -> bool:
        """Whether an update is meant, whatever its number."""
        return self._has_facts(update.bot_id, update.kind, update.chat_id, update.received_at)

    def _has_facts(self, bot: int | None, kind: str | None, chat: int | None, when: float | None) -> bool:
        return (
            (not self.bots or bot in self.bots)
            and (not self.kinds or kind in self.kinds)
            and (not self.chats or chat in self.chats)
            and (self.before is None or (when is not None and when <= self.before))
            and (self.after is None or (when is not None and when >= self.after))
        )


def waiting_row(number: int, update: Update, state: str, handled_at: float | None = None) -> Row:
    """What is told of an update in a queue."""
    row = {
        "number": number,
        "update_id": update.update_id,
        "bot_id": update.bot_id,
        "kind": update.kind,
        "chat_id": update.chat_id,
        "user_id": update.user_id,
        "received_at": update.received_at,
        "attempt": update.attempt,
        "state": state,
        "bytes": len(update.raw),
    }
    return row if handled_at is None else row | {"handled_at": handled_at}


def unreadable_row(number: int, record: bytes) -> Row:
    """What is told of something in a queue that cannot be read."""
    unknown = dict.fromkeys(("update_id", "bot_id", "kind", "chat_id", "user_id", "received_at", "attempt"))
    return {"number": number, **unknown, "state": UNREADABLE, "bytes": len(record)}


def dead_row(number: int, letter: DeadLetter) -> Row:
    """What is told of a dead letter. Of one that is not an update, `update_id`, `kind`, `chat_id` are None; of one that
    cannot be read, all is None that isn't known.
    """
    found = scan(letter.raw) if letter.reason not in _NO_UPDATE else None
    known = letter.reason != UNREADABLE
    return {
        "number": number,
        "update_id": found.update_id if found else None,
        "bot_id": letter.bot_id if known else None,
        "kind": found.kind if found else None,
        "chat_id": found.chat_id if found else None,
        "user_id": found.user_id if found else None,
        "reason": letter.reason,
        "attempts": letter.attempts,
        "received_at": letter.received_at if known else None,
        "died_at": letter.died_at if known else None,
        "bytes": len(letter.raw),
    }
