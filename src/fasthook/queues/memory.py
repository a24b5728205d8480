"""`memory:`: updates wait in the process; an orderly stop writes what is left to a spill that the next start reads."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import struct
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from fasthook.queues import Answered, Deliver, Delivery, Json, Match, QueueError, Record, Redeliver, Reply
from fasthook.queues.store import (
    REPLAYED,
    DamagedError,
    Store,
    StoreError,
    SyncError,
    pack_update,
    replayed,
    set_aside,
    unpack_update,
)
from fasthook.update import Update

log = logging.getLogger("fasthook.queue")

_ID = struct.Struct("<qq")


class MemoryQueue:
    """A queue in memory. What it acknowledged survives an orderly stop, not a `kill -9`.

    The spill is kept until all of it is settled; until then a crash leaves it as it was, and what of it was settled is
    known by its id; what a person gave to the handler again, of which the id says nothing, is taken out by itself.
    `spill`: a directory, made when it is needed; what handlers returned goes into another beside it.
    `owner`: False in the further processes of a server, each of which has a spill of its own, which the next owner
    takes over.
    """

    durable = False
    oldest = None  # the dispatcher has them all
    bytes = 0
    used = 0

    def __init__(self, spill: Path, *, owner: bool = True) -> None:
        self.depth = 0
        self.trouble: str | None = None
        self._owner = owner
        self._spill = spill if owner else spill.with_name(f"{spill.name}-{os.getpid()}")
        self._kept_replies = self._spill.with_name(self._spill.name.replace(spill.name, "replies", 1))
        self._replies: list[Reply] = []
        self._spilled = False  # there is something in the spill
        self._unsettled = 0  # deliveries from the spill
        self._handled: list[int] = []  # numbers in the spill that are to be taken out
        self._writing: asyncio.Future[None] | None = None  # the spill is being changed
        self._closing = False

    async def open(self, deliver: Deliver, redeliver: Redeliver, answered: Answered) -> int:
        self._deliver = deliver
        self._redeliver = redeliver
        if self._kept_replies.exists():
            self._replies = await asyncio.to_thread(self._read_replies)
        if self._owner:
            await asyncio.to_thread(take_over, self._spill)
        if not self._spill.exists():
            return 0
        deliveries = await asyncio.to_thread(self._read)
        self._spilled = bool(deliveries)
        for delivery in deliveries:
            if redeliver(delivery):
                self.depth += 1
                self._unsettled += 1
        self._clear_spill()
        return self.depth

    def put(self, update: Update) -> bool:
        self.depth += 1
        self._deliver(Delivery(update))
        return True

    def settle(self, delivery: Delivery, *, forget: bool = False) -> None:
        self.depth -= 1
        if delivery.place is None:
            return
        self._unsettled -= 1
        if delivery.again:
            self._handled.append(delivery.place)
        self._clear_spill()

    def tried(self, delivery: Delivery) -> None:
        pass  # what the spill says of it is written at the end

    def _clear_spill(self) -> None:
        """Empty it if nothing in it is unsettled, else take out what no id would tell of; one thing at a time."""
        if self._writing is not None or self._closing or not self._spilled:
            return
        loop, emptied = asyncio.get_running_loop(), not self._unsettled
        if emptied:
            self._writing = loop.run_in_executor(None, self._write, [])
        elif self._handled:
            self._writing = loop.run_in_executor(None, self._take_out, self._handled)
        else:
            return
        self._handled = []
        self._writing.add_done_callback(lambda written: self._cleared(written, emptied))

    def _cleared(self, written: asyncio.Future[None], emptied: bool) -> None:
        self._writing = None
        if (error := written.exception()) is not None:
            log.error("what was handled could not be taken out of the spill: %s", error)
            return
        self._spilled = not emptied
        self._clear_spill()

    def _take_out(self, numbers: list[int]) -> None:
        store = Store(self._spill)
        try:
            store.delete(numbers)
        finally:
            store.close()

    def replies(self) -> list[Reply]:
        return self._replies

    def reply(self, bot_id: int, update_id: int) -> Json | None:
        return None

    def snapshot(self, behind: int, most: int) -> list[tuple[int, Record]]:
        return []

    def handled_snapshot(self, behind: int, most: int) -> list[tuple[int, float, Record]]:
        return []

    async def purge(self, match: Match) -> int:
        return 0

    async def requeue(self, numbers: Iterable[int]) -> int:
        raise QueueError("memory: keeps nothing that was handled: set --queue journal:DIRECTORY and --keep-handled")

    async def again(self, updates: Iterable[Update]) -> int:
        count = 0
        for update in updates:
            delivery = Delivery(update)
            delivery.again = True
            self.depth += 1
            self._redeliver(delivery)
            count += 1
        return count

    async def close(self, left: Iterable[Delivery], replies: Sequence[Reply] = ()) -> int:
        await asyncio.to_thread(self._write_replies, replies)
        deliveries = _oldest_first(left)
        await self._written()
        if deliveries or self._spilled:
            try:
                await asyncio.to_thread(self._write, deliveries)
            except StoreError as error:
                raise QueueError(f"{len(deliveries)} updates are lost: {error}") from None
            self._spilled = bool(deliveries)
        return len(deliveries)

    def _write(self, deliveries: list[Delivery]) -> None:
        try:
            self._write_spill(deliveries)
        except SyncError as error:
            log.error("%s: it is kept as %s, and another is written", error, set_aside(self._spill))
            self._write_spill(deliveries)

    def _write_spill(self, deliveries: list[Delivery]) -> None:
        store = Store(self._spill)
        try:
            records = (pack_update(one.update, REPLAYED if one.again else 0) for one in deliveries)
            store.append(records, replace=True)
        finally:
            store.close()

    def bots_changed(self) -> None:
        pass  # all is in memory

    async def abandon(self) -> None:
        await self._written()

    async def _written(self) -> None:
        self._closing = True
        if self._writing is not None:
            await asyncio.wait([self._writing])

    def _write_replies(self, replies: Sequence[Reply]) -> None:
        if not replies and not self._replies:
            return
        try:
            store = Store(self._kept_replies)
            try:
                store.append((_ID.pack(*name) + reply for name, reply in replies), replace=True)
            finally:
                store.close()
        except StoreError as error:
            log.error("what the handlers returned is not known after the next start: %s", error)

    def _read_replies(self) -> list[Reply]:
        found: list[Reply] = []
        try:
            store = Store(self._kept_replies)
            try:
                for _, record in store.items():
                    bot_id, update_id = _ID.unpack_from(record)
                    found.append(((bot_id, update_id), record[_ID.size :]))
            finally:
                store.close()
        except (DamagedError, struct.error) as error:
            aside = set_aside(self._kept_replies)
            log.error("what the handlers returned is damaged (%s): it is kept as %s", error, aside)
        except StoreError as error:
            log.error("what the handlers returned before this start is not known: %s", error)
        return found

    def _read(self) -> list[Delivery]:
        found: list[Delivery] = []
        try:
            store = Store(self._spill)
            try:
                for number, record in store.items():
                    delivery = Delivery(unpack_update(record), number)
                    delivery.again = replayed(record)
                    delivery.before = not delivery.again
                    found.append(delivery)
            finally:
                store.close()
        except (DamagedError, ValueError) as error:
            aside = set_aside(self._spill)
            log.error("the spill is damaged (%s): %d updates could be read; it is kept as %s", error, len(found), aside)
        except StoreError as error:
            raise QueueError(f"the spill cannot be read: {error}") from None
        return found


def _oldest_first(left: Iterable[Delivery]) -> list[Delivery]:
    """By the time they came, but none before an earlier one of its chat: the clock may have been set back."""
    latest: dict[tuple[int, int], float] = {}

    def when(delivery: Delivery) -> float:
        update = delivery.update
        latest[update.lane] = at = max(update.received_at, latest.get(update.lane, 0.0))
        return at

    return sorted(left, key=when)


def take_over(spill: Path) -> None:
    """What processes that are gone have left beside a spill goes into it. QueueError: it cannot be read."""
    for left in spill.parent.glob(f"{spill.name}-*"):
        pid = left.name.rpartition("-")[2]
        if not pid.isdecimal() or _lives(int(pid)):
            continue
        try:
            theirs = Store(left)
            try:
                records = [record for _, record in theirs.items()]
            finally:
                theirs.close()
            ours = Store(spill)
            try:
                ours.append(records)
            finally:
                ours.close()
        except DamagedError as error:
            log.error("the spill of process %s is damaged (%s): it is kept as %s", pid, error, set_aside(left))
        except StoreError as error:
            raise QueueError(f"the spill of process {pid} cannot be read: {error}") from None
        else:
            shutil.rmtree(left)


def _lives(pid: int) -> bool:
    """Whether another process has this number."""
    if sys.platform == "win32" or pid == os.getpid():
        return pid != os.getpid()
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
