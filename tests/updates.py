"""Updates for tests that need no HTTP: what the gate would have made of the bytes."""

from __future__ import annotations

from fasthook import Update
from fasthook._scan import restore
from fasthook.testing import samples

BOT = 123456789


def update(update_id: int, kind: str = "message", *, chat: int = 1, attempt: int = 1) -> Update:
    """An admitted update; its text is its id."""
    return of(samples.update(update_id, kind, chat_id=chat, user_id=chat, text=str(update_id)), attempt=attempt)


def of(raw: bytes, *, attempt: int = 1) -> Update:
    """The update that these bytes are."""
    return restore(Update, raw, BOT, 1.5, attempt)
