"""New workers for old ones, with new code or other bots: all of them are ready before the first old one leaves."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fasthook.bottables import BotTable
from fasthook.handlers import WorkersError
from fasthook.link import Worker
from fasthook.wording import below, one_line

if TYPE_CHECKING:
    from fasthook.crew import Crew

log = logging.getLogger("fasthook.workers")


@dataclass(frozen=True)
class _Renewal:
    """A reload with other bots. `took_over`: whether the new workers did, when it is known."""

    bots: Mapping[int, BotTable]
    took_over: asyncio.Future[bool]


class Reload:
    """The reload of a crew, one at a time; what is asked for meanwhile is one more behind it."""

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self._new: list[Worker] | None = None
        self._again = False
        self._on_end: list[Callable[[], None]] = []
        self._wanted: _Renewal | None = None  # for the next
        self._renewal: _Renewal | None = None  # of the one under way

    @property
    def is_under_way(self) -> bool:
        return self._new is not None

    @property
    def is_wanted_again(self) -> bool:
        """There is newer code than that which starts now."""
        return self._again

    def brings(self, worker: Worker) -> bool:
        """Whether it is one of the new workers."""
        return self._new is not None and worker in self._new

    def begin(self, done: Callable[[], None] | None = None) -> None:
        """Start as many new workers, and retire the old ones when all are ready. `done`: told when that has ended."""
        if done:
            self._on_end.append(done)
        if not self._crew.serves:
            return
        if self._new is not None:
            self._again = True
            return
        log.info("reloading: %d new workers start", self._crew.size)
        self._new = []
        self._renewal, self._wanted = self._wanted, None
        try:
            for _ in range(self._crew.size):
                self._new.append(self._crew.spawn(bots=self._renewal.bots if self._renewal else None))
        except WorkersError as error:
            self._give_up(error)
        except Exception as error:  # one of ours, which must not be the end of all reloads
            self._give_up(WorkersError(one_line(error), trace="".join(traceback.format_exception(error))))

    async def renew(self, bots: Mapping[int, BotTable]) -> bool:
        """Reload with these bots, by their rows. False, or cancelled: the new workers end, and the old ones go on."""
        if self._crew.is_stopping:
            return False
        self._wanted = wanted = _Renewal(bots, asyncio.get_running_loop().create_future())
        self.begin()
        try:
            return await wanted.took_over
        except asyncio.CancelledError:
            self._abandon(wanted)
            raise

    def _abandon(self, renewal: _Renewal) -> None:
        """Nobody waits any more for the workers that have these bots: they end, ready or not."""
        if self._wanted is renewal:
            self._wanted = None
        elif self._renewal is renewal:
            self._renewal = None
            self._end_new()
            self._end()

    def ready(self) -> None:
        """One of the new workers is. When all are, they take over."""
        new = self._new or []
        if not all(worker.ready for worker in new):
            return
        crew = self._crew
        old = [worker for worker in crew.members if worker not in new and not worker.retired]
        for worker in new:
            crew.owner.joined(worker)
        for worker in old:
            crew.retire(worker)
        crew.kinds = new[-1].kinds
        if self._renewal is None:  # else who wants other bots does it
            crew.new_code()
        self._end_renewal(True)
        log.info("reloaded: workers %s take over", ", ".join(str(worker.number) for worker in new))
        self._end()

    def give_up(self, worker: Worker) -> None:
        """One of the new workers has died before it was ready."""
        self._crew.watch(worker.files)
        self._give_up(worker.refused or WorkersError(f"a new worker died before it was ready ({worker.how})"))

    def _give_up(self, why: WorkersError) -> None:
        log.error("the new code does not start, the old workers go on: %s%s", why, below(why.trace))
        self._end_new()
        self._end_renewal(False)
        self._end()

    def _end_new(self) -> None:
        for one in self._new or []:
            if one in self._crew.members:
                self._crew.retire(one, 0.0)

    def stop(self) -> None:
        """There will be no other bots."""
        self._end_renewal(False)
        self._renewal, self._wanted = self._wanted, None
        self._end_renewal(False)

    def _end_renewal(self, took_over: bool) -> None:
        renewal, self._renewal = self._renewal, None
        if renewal and took_over:
            self._crew.set_bots(renewal.bots)
        if renewal and not renewal.took_over.done():  # nobody waits any more
            renewal.took_over.set_result(took_over)

    def _end(self) -> None:
        self._new = None
        if self._again:
            self._again = False
            self.begin()
            return
        for worker in [one for one in self._crew.members if one.used_up]:
            self._crew.recycle(worker)
        told, self._on_end = self._on_end, []
        for done in told:
            done()
