"""Where an accepted update is safe. `open_queue` makes the one that a URL names; all keep the protocol `Queue`."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from fasthook.settings import Settings
    from fasthook.update import Update


class Delivery:
    """An update with its place in a queue: what the dispatcher gets and settles."""

    place: Any = None  # the queue's own name for where the update is kept, None: nowhere but here
    failure: BaseException | None = None  # why it was given up on, once it was
    since = 0.0  # when it was acknowledged, s since the epoch; 0: when it was received

    def __init__(self, update: Update, place: Any = None) -> None:
        self.update = update
        if place is not None:
            self.place = place

    def __repr__(self) -> str:
        return f"<Delivery {self.update!r}>"


class Outcome(enum.Enum):
    """What became of an update that was put."""

    SAFE = enum.auto()
    KNOWN = enum.auto()  # it was put before, and not taken again
    FULL = enum.auto()  # it was not taken: there is no room, or the queue cannot be written


Deliver = Callable[[Delivery], None]
Redeliver = Callable[[Delivery], bool]
Answered = Callable[["Update", Outcome], None]


class QueueError(Exception):
    """A queue that cannot be used. The message is one line that says what to do."""


class Queue(Protocol):
    """What every queue does. All but `open` and `close` is called in the event loop and returns at once."""

    @property
    def depth(self) -> int:
        """Updates accepted and not settled."""
        ...

    @property
    def oldest(self) -> float | None:
        """When the oldest update that is not settled was received, s since the epoch; None: there is none."""
        ...

    @property
    def bytes(self) -> int:
        """Bytes that it takes on disk."""
        ...

    @property
    def durable(self) -> bool:
        """What is in it outlives the process, however that ends."""
        ...

    @property
    def trouble(self) -> str | None:
        """Why it cannot be written, while it cannot."""
        ...

    async def open(self, deliver: Deliver, redeliver: Redeliver, answered: Answered) -> int:
        """Give what waits from before to `redeliver`, in order, and what is put from now on to `deliver`.

        `redeliver` says whether the update was still to be handled. `answered` is told what became of an update for
        which `put` said False. How many wait from before. QueueError: the queue cannot be used.
        """
        ...

    def put(self, update: Update) -> bool:
        """Take an update. True: it is safe now. False: `answered` will be called."""
        ...

    def settle(self, delivery: Delivery, *, forget: bool = False) -> None:
        """Take out an update that was handled or is a dead letter. `forget`: take out its id too."""
        ...

    async def close(self, left: Iterable[Delivery]) -> int:
        """Keep what was not settled for the next start, in this order. How many those were."""
        ...


def open_queue(settings: Settings, committed: Callable[[float], None] = lambda seconds: None) -> Queue:
    """The queue that the settings name (`memory:`, `journal:DIR`), not open yet. ValueError: no such kind of queue.

    `committed`: told how many seconds each commit took.
    """
    kind, _, place = settings.queue.partition(":")
    if kind == "memory":
        from fasthook.queues.memory import MemoryQueue

        return MemoryQueue(settings.state_dir / "spill")
    if kind == "journal":
        from fasthook.queues.journal import JournalQueue

        return JournalQueue(
            Path(place),
            window=settings.queue_size,
            remember=settings.dedup_size,
            limit=settings.journal_max,
            committed=committed,
        )
    raise ValueError(f"no queue is named by {settings.queue!r}")
