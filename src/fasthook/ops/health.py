"""Whether a server is ready for updates, and if not, why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fasthook.crew import Crew
    from fasthook.receiver import Receiver

#: Every reason there is for not being ready; the codes stay what they are.
CODES = ("starting", "stopping", "queue_unwritable", "queue_high", "loop_blocked", "no_worker")

_HIGH_WATER = 0.9  # of --queue-size under `memory:`, of --journal-max under `journal:`
_BLOCKED = 5.0  # seconds


@dataclass(frozen=True, slots=True)
class Reason:
    """One reason: a code from `CODES`, and words for a person."""

    code: str
    words: str


class Health:
    """What the ops server asks. Any thread may. `connections`: how many there are."""

    def __init__(self, receiver: Receiver, connections: Callable[[], int]) -> None:
        self.receiver = receiver
        self.connections = connections
        self.starting = True  # until the server serves
        self.stopping = False  # set as soon as a signal says so, before anything else happens

    def reasons(self) -> list[Reason]:
        """Why the server is not ready; empty if it is."""
        receiver, found = self.receiver, []
        if self.starting:
            found.append(Reason("starting", "the server is starting"))
        if self.stopping or not (self.starting or receiver.running):
            found.append(Reason("stopping", "the server is stopping"))
        if self.starting:
            return found
        queue = receiver.queue
        trouble = queue.trouble
        if trouble is not None:
            found.append(Reason("queue_unwritable", trouble))
        settings = receiver.settings
        if queue.durable:
            used, limit, what = queue.used, settings.journal_max, "bytes of --journal-max"
        else:
            used, limit, what = queue.depth, settings.queue_size, "updates of --queue-size"
        if used >= _HIGH_WATER * limit:
            found.append(Reason("queue_high", f"{used} of {limit} {what} are taken"))
        for member in receiver.blocks.members:
            late = member.blocked()
            if member.name == "door" and late > _BLOCKED:
                found.append(Reason("loop_blocked", f"the event loop has not come round for {late:.0f} s"))
        workers = receiver.workers
        if workers is not None and "stopping" not in {reason.code for reason in found}:
            found += _without_workers(workers.crew)
        return found


def _without_workers(crew: Crew) -> list[Reason]:
    """No worker takes updates now: dead ones are being replaced, or the loops of all are blocked."""
    ready = [worker for worker in list(crew.members) if worker.ready and worker.lives]
    able = [worker for worker in ready if not worker.retired and not worker.killed]
    if any(worker.blocked() <= _BLOCKED for worker in able):
        return []
    words = f"the event loops of all {len(able)} are blocked" if able else crew.trouble or "new ones are being started"
    return [Reason("no_worker", f"no worker process can handle updates: {words}")]
