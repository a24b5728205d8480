"""`memory:`: updates wait in the process; an orderly stop writes what is left to a spill that the next start reads."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from pathlib import Path

from fasthook.queues import Answered, Deliver, Delivery, QueueError, Redeliver
from fasthook.queues.store import Store, StoreError, pack_update, set_aside, unpack_update
from fasthook.update import Update

log = logging.getLogger("fasthook.queue")

_SPILL = object()  # the place of a delivery that is in the spill


class MemoryQueue:
    """A queue in memory. What it acknowledged survives an orderly stop, not a `kill -9`.

    The spill is kept until all of it is settled; until then a crash leaves it as it was, and what of it was settled is
    known by its id. `spill`: a directory, made when it is needed.
    """

    durable = False
    bytes = 0

    def __init__(self, spill: Path) -> None:
        self._held: dict[Delivery, None] = {}  # in the order of their arrival
        self.trouble: str | None = None
        self._spill = spill
        self._spilled = False  # there is something in the spill
        self._unsettled = 0  # deliveries from the spill
        self._emptied: asyncio.Future[None] | None = None

    async def open(self, deliver: Deliver, redeliver: Redeliver, answered: Answered) -> int:
        self._deliver = deliver
        if not self._spill.exists():
            return 0
        updates = await asyncio.to_thread(self._read)
        self._spilled = bool(updates)
        for update in updates:
            delivery = Delivery(update, _SPILL)
            if redeliver(delivery):
                self._held[delivery] = None
                self._unsettled += 1
        if self._spilled and not self._unsettled:
            self._empty_spill()
        return self.depth

    @property
    def depth(self) -> int:
        return len(self._held)

    @property
    def oldest(self) -> float | None:
        held = tuple(self._held)  # one step for the interpreter: another thread may ask
        return held[0].update.received_at if held else None

    def put(self, update: Update) -> bool:
        delivery = Delivery(update)
        self._held[delivery] = None
        self._deliver(delivery)
        return True

    def settle(self, delivery: Delivery, *, forget: bool = False) -> None:
        del self._held[delivery]
        if delivery.place is _SPILL:
            self._unsettled -= 1
            if not self._unsettled:
                self._empty_spill()

    def _empty_spill(self) -> None:
        self._emptied = asyncio.get_running_loop().run_in_executor(None, self._write, [])

    async def close(self, left: Iterable[Delivery]) -> int:
        updates = [delivery.update for delivery in left]
        if self._emptied is not None:
            await asyncio.wait([self._emptied])
            if (error := self._emptied.exception()) is None:
                self._spilled = False
            else:
                log.error("the spill could not be emptied: %s", error)
        if updates or self._spilled:
            try:
                await asyncio.to_thread(self._write, updates)
            except StoreError as error:
                raise QueueError(f"{len(updates)} updates are lost: {error}") from None
            self._spilled = bool(updates)
        return len(updates)

    def _write(self, updates: list[Update]) -> None:
        store = Store(self._spill)
        try:
            store.append(map(pack_update, updates), replace=True)
        finally:
            store.close()

    def _read(self) -> list[Update]:
        updates: list[Update] = []
        try:
            store = Store(self._spill)
            try:
                updates.extend(unpack_update(record) for _, record in store.items())
            finally:
                store.close()
        except (StoreError, ValueError) as error:
            aside = set_aside(self._spill)
            log.error(
                "the spill is damaged (%s): %d updates could be read; it is kept as %s", error, len(updates), aside
            )
        return updates
