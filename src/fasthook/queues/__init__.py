"""Where an accepted update is safe. `open_queue` makes the one that a URL names; all keep the protocol `Queue`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from fasthook._core import Verdict
    from fasthook.update import Update


class Delivery:
    """An update with its place in a queue: what the dispatcher gets and settles."""

    place: Any = None  # the queue's own name for where the update is kept, None: nowhere but here
    failure: BaseException | None = None  # why it was given up on, once it was

    def __init__(self, update: Update, place: Any = None) -> None:
        self.update = update
        if place is not None:
            self.place = place

    def __repr__(self) -> str:
        return f"<Delivery {self.update!r}>"


class Waiter(Protocol):
    """Who waits for an answer: a connection, or a request of the ASGI door."""

    def answer(self, verdict: Verdict) -> None: ...


Deliver = Callable[[Delivery], None]


class QueueError(Exception):
    """A queue that cannot be used. The message is one line that says what to do."""


class Queue(Protocol):
    """What every queue does. All but `open` and `close` is called in the event loop and returns at once."""

    @property
    def depth(self) -> int:
        """Updates accepted and not settled."""
        ...

    async def open(self, deliver: Deliver, wanted: Callable[[Update], bool]) -> int:
        """Give what waited since the last stop to `deliver`, in order, and from now on what is put.

        `wanted` claims an update's id; one that it refuses was settled already. How many were delivered.
        QueueError: the queue cannot be used.
        """
        ...

    def put(self, update: Update, waiter: Waiter) -> bool:
        """Take an update. True: it is safe now. False: the waiter will be answered."""
        ...

    def settle(self, delivery: Delivery) -> None:
        """Forget an update that was handled or is a dead letter."""
        ...

    async def close(self, left: Iterable[Delivery]) -> int:
        """Keep what was not settled for the next start, in this order. How many those were."""
        ...


def open_queue(url: str, state_dir: Path) -> Queue:
    """The queue that `url` names (`memory:`), not open yet. ValueError: no such kind of queue."""
    if url == "memory:":
        from fasthook.queues.memory import MemoryQueue

        return MemoryQueue(state_dir / "spill")
    raise ValueError(f"no queue is named by {url!r}")
