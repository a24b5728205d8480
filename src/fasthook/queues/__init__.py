"""Where an accepted update is safe. `open_queue` makes the one that a URL names; all keep the protocol `Queue`."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from fasthook._core import Shares
    from fasthook.settings import Settings
    from fasthook.update import Update


REPLY_BYTES = 16 << 20  # bytes of replies that are in memory, the newest; a journal has the others on disk
_SHARE = 32  # updates of one chat that may be in memory at once; one is handled at a time


class Delivery:
    """An update with its place in a queue: what the dispatcher gets and settles."""

    place: Any = None  # the queue's own name for where the update is kept, None: nowhere but here
    failure: BaseException | None = None  # why it was given up on, once it was
    since = 0.0  # when it was acknowledged, s since the epoch; 0: when it was received; below 0: it was begun before
    before: bool = False  # from before this start, so that it may have outlived its use
    again: bool = False  # a person gave it to the handler once more: that its id is known says nothing
    reply: bytes | None = None  # what its handler returned, to be given again to a redelivery
    deaths = 0  # how many workers have died with it in hand, and it was not given up on then

    def __init__(self, update: Update, place: Any = None) -> None:
        self.update = update
        if place is not None:
            self.place = place

    @property
    def attempt(self) -> int:
        """The number of its run: of the handler's, those that failed count and those that ended with their worker."""
        return self.update.attempt + (self.deaths if self.since < 0.0 else 0)

    def __repr__(self) -> str:
        return f"<Delivery {self.update!r}>"


class Outcome(enum.Enum):
    """What became of an update that was put."""

    SAFE = enum.auto()
    KNOWN = enum.auto()  # it was put before, and not taken again
    PURGED = enum.auto()  # it was safe, and a person took it out: nobody will handle it
    FULL = enum.auto()  # it was not taken: there is no room, or the queue cannot be written


Deliver = Callable[[Delivery], None]
Redeliver = Callable[[Delivery], bool]
Answered = Callable[["Update", Outcome], None]
Record = bytes  # an update as it lies on disk (`store.unpack_update`)
Match = Callable[["Update"], bool]
Json = bytes  # a method as a handler returned it
Reply = tuple[tuple[int, int], bytes]  # bot and update_id, and the method that the handler returned, as JSON


class QueueError(Exception):
    """A queue that cannot be used. The message is one line that says what to do."""


class Queue(Protocol):
    """What every queue does, in the event loop; what is no coroutine returns at once."""

    @property
    def depth(self) -> int:
        """Updates accepted and not settled."""
        ...

    @property
    def durable(self) -> bool:
        """What is in it outlives the process, however that ends."""
        ...

    @property
    def trouble(self) -> str | None:
        """Why it cannot be written, while it cannot."""
        ...

    @property
    def oldest(self) -> float | None:
        """When the oldest waiting update came, in seconds since the epoch; None if none waits, or it is not known."""
        ...

    @property
    def bytes(self) -> int:
        """Size on disk, 0 if there is nothing."""
        ...

    @property
    def used(self) -> int:
        """How much of it was in use at the last commit. Any thread may ask."""
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

    def tried(self, delivery: Delivery) -> None:
        """An update has failed, and has the next attempt before it: that it was tried outlives the process."""
        ...

    def replies(self) -> list[Reply]:
        """What the handlers of the last run returned, oldest first; known when it is open."""
        ...

    def reply(self, bot_id: int, update_id: int) -> Json | None:
        """What the handler of a settled update returned, if the queue has kept that."""
        ...

    def snapshot(self, behind: int, most: int) -> list[tuple[int, Record]]:
        """So many waiting updates with numbers behind this one, as far as they are on disk: number and record."""
        ...

    def handled_snapshot(self, behind: int, most: int) -> list[tuple[int, float, Record]]:
        """So many handled updates that are kept: number, when it was handled, record."""
        ...

    async def purge(self, match: Match) -> int:
        """Take out what waits on disk only and matches; it is not handled, and `answered` is told.

        How many those were. QueueError.
        """
        ...

    async def requeue(self, numbers: Iterable[int]) -> int:
        """Give handled updates to the handler again. How many of these were kept. QueueError."""
        ...

    async def again(self, updates: Iterable[Update]) -> int:
        """Give updates to the handler although their ids are known; they are as safe as others at return. QueueError.

        How many those were.
        """
        ...

    def bots_changed(self) -> None:
        """The bots that share the memory are others now."""
        ...

    async def abandon(self) -> None:
        """Give up what `open` has taken, as far as it came: nothing was put or settled."""
        ...

    async def close(self, left: Iterable[Delivery], replies: Sequence[Reply] = ()) -> int:
        """Keep what was not settled for the next start, in this order, and `replies`. How many updates those were."""
        ...


def open_queue(
    settings: Settings,
    *,
    owner: bool = True,
    committed: Callable[[float], None] = lambda seconds: None,
    shares: Shares | None = None,
) -> Queue:
    """The queue that the settings name (`memory:`, `journal:DIR`), not open yet. `owner`: the state directory is ours.

    `committed`: told how many seconds each commit took. `shares`: places in memory of several bots. ValueError: no such
    kind of queue.
    """
    kind, _, place = settings.queue.partition(":")
    if kind == "memory":
        from fasthook.queues.memory import MemoryQueue

        return MemoryQueue(settings.state_dir / "spill", owner=owner)
    if kind == "journal":
        from fasthook.queues.journal import JournalQueue

        return JournalQueue(
            Path(place),
            window=settings.queue_size,
            remember=settings.dedup_size,
            limit=settings.journal_max,
            committed=committed,
            share=_SHARE if settings.order == "chat" else settings.queue_size,
            keep=settings.keep_handled,
            shares=shares,
        )
    raise ValueError(f"no queue is named by {settings.queue!r}")
