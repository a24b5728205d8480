"""What the tools for queues and dead letters do in a server that runs; `resting.py` is the same on its files.

Each is a command of the control socket. They share the loop with the updates, so what may be long goes in pages.
"""

from __future__ import annotations

import asyncio
import base64
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from fasthook._scan import restore
from fasthook.control import Command, Refused, Send
from fasthook.lanes import GaveUp
from fasthook.queues import Delivery, Queue, QueueError
from fasthook.queues.deadletter import DeadLetter, DeadLetters
from fasthook.queues.selection import HANDLED, IN_HAND, WAITING, Row, Selection, dead_row, waiting_row
from fasthook.queues.store import StoreError, unpack_update
from fasthook.update import Update

_PAGE = 200  # rows before the loop has its turn: some milliseconds

Arguments = Mapping[str, Any]


class Hands(Protocol):
    """Who has the deliveries that a queue gave out."""

    def deliveries(self) -> Iterator[tuple[Delivery, bool]]:
        """All that are not settled, and whether somebody has them in hand."""
        ...

    def take_out(self, match: Callable[[Delivery], bool]) -> list[Delivery]:
        """Take back those that match and that nobody has in hand."""
        ...


class RunningTools:
    """`name`: the queue, as a person calls it. `capacity`: updates that one in memory may hold. `settled`: told of a
    delivery that is done with.
    """

    def __init__(
        self,
        name: str,
        queue: Queue,
        hands: Hands,
        dead: DeadLetters,
        *,
        capacity: int,
        settled: Callable[[Delivery], None],
    ) -> None:
        self._name = name
        self._queue = queue
        self._hands = hands
        self._dead = dead
        self._capacity = capacity
        self._settled = settled
        self._numbers: WeakKeyDictionary[Delivery, int] = WeakKeyDictionary()  # of a queue that gives none
        self._number = 0
        self._retrying = asyncio.Lock()  # two at once would find the same letters

    def commands(self) -> dict[str, Command]:
        declared: dict[str, Command] = {
            "queue.stats": self.stats,
            "queue.list": self.list_queue,
            "queue.show": self.show,
            "queue.replay": self.replay,
            "queue.purge": self.purge,
            "dead.list": self.list_dead,
            "dead.show": self.show_dead,
            "dead.retry": self.retry,
            "dead.drop": self.drop,
        }
        return {name: _refusing(command) for name, command in declared.items()}

    # ------------------------------------------------------------ the queue

    async def stats(self, arguments: Arguments, send: Send) -> Row:
        queue, now = self._queue, time.time()
        kinds: Counter[str] = Counter()
        bots: Counter[int] = Counter()
        oldest, in_hand = now, 0
        async for row in self._waiting():
            kinds[row["kind"]] += 1
            bots[row["bot_id"]] += 1
            oldest = min(oldest, row["received_at"])
            in_hand += row["state"] == IN_HAND
        handled = 0
        async for _ in self._pages(queue.handled_snapshot, 0):
            handled += 1
        return stats_row(
            self._name, kinds, bots, oldest_age=now - oldest, in_flight=in_hand, size=queue.bytes,
            handled=handled, trouble=queue.trouble, pid=os.getpid(),
        )  # fmt: skip

    async def list_queue(self, arguments: Arguments, send: Send) -> Row:
        rows = self._handled() if arguments["handled"] else self._waiting()
        return await _send_some(rows, arguments, send)

    async def show(self, arguments: Arguments, send: Send) -> Row:
        number = arguments["number"]
        async for row, raw in self._found(number):
            return row | {"raw": packed(raw)}
        raise no_update(number)

    async def replay(self, arguments: Arguments, send: Send) -> Row:
        wanted = Selection.of(arguments["selection"])
        numbers = [row["number"] async for row in self._handled() if wanted.has(row)]
        require(wanted.numbers, numbers, "no handled update that is kept")
        if arguments["count_only"]:
            return {"count": len(numbers)}
        return {"count": await self._queue.requeue(numbers)}

    async def purge(self, arguments: Arguments, send: Send) -> Row:
        wanted = Selection.of(arguments["selection"])
        states: Counter[str] = Counter()
        named: dict[int, tuple[int, int]] = {}
        async for row in self._waiting():
            if wanted.has(row):
                states[row["state"]] += 1
                if wanted.numbers:  # else they may be a million
                    named[row["number"]] = row["bot_id"], row["update_id"]
        require(wanted.numbers, named, "no waiting update")
        in_hand = states[IN_HAND]
        if arguments["count_only"]:
            return {"count": states[WAITING], "in_hand": in_hand}
        names = set(named.values())

        def match(update: Update) -> bool:
            return (update.bot_id, update.update_id) in names if names else wanted.has_update(update)

        count = self._take_out(match)
        count += await self._queue.purge(match)
        return {"count": count + self._take_out(match), "in_hand": in_hand}  # some may have come in from the disk

    def _take_out(self, match: Callable[[Update], bool]) -> int:
        taken = self._hands.take_out(lambda delivery: match(delivery.update))
        for delivery in taken:
            delivery.failure = GaveUp("it was purged", "purged")  # so that it isn't kept as handled
            self._settled(delivery)
        return len(taken)

    def _number_of(self, delivery: Delivery) -> int:
        if self._queue.durable:
            return int(delivery.place)
        if delivery not in self._numbers:
            self._number += 1
            self._numbers[delivery] = self._number
        return self._numbers[delivery]

    # ------------------------------------------------------------ reading

    async def _waiting(self) -> AsyncIterator[Row]:
        async for row, _ in self._waiting_updates():
            yield row

    async def _waiting_updates(self, behind: int = 0) -> AsyncIterator[tuple[Row, bytes]]:
        held = sorted(self._hands.deliveries(), key=lambda one: one[0].update.received_at)
        known = {self._number_of(delivery): (delivery.update, in_hand) for delivery, in_hand in held}
        if not self._queue.durable:
            for count, number in enumerate(sorted(number for number in known if number > behind), 1):
                update, in_hand = known[number]
                yield waiting_row(number, update, IN_HAND if in_hand else WAITING), update.raw
                if count % _PAGE == 0:
                    await asyncio.sleep(0)
            return
        async for number, record in self._pages(self._queue.snapshot, behind):
            read, in_hand = known.get(number) or (readable(record), False)
            if read is not None:
                yield waiting_row(number, read, IN_HAND if in_hand else WAITING), read.raw

    async def _handled(self) -> AsyncIterator[Row]:
        async for row, _ in self._handled_updates():
            yield row

    async def _handled_updates(self, behind: int = 0) -> AsyncIterator[tuple[Row, bytes]]:
        async for number, handled_at, record in self._pages(self._queue.handled_snapshot, behind):
            if (update := readable(record)) is not None:
                yield waiting_row(number, update, HANDLED, handled_at), update.raw

    async def _found(self, number: int) -> AsyncIterator[tuple[Row, bytes]]:
        for source in (self._waiting_updates, self._handled_updates):
            async for row, raw in source(number - 1):
                if row["number"] == number:
                    yield row, raw
                break

    async def _pages(self, snapshot: Callable[[int, int], list[Any]], behind: int) -> AsyncIterator[Any]:
        while page := snapshot(behind, _PAGE):
            for one in page:
                yield one
            behind = page[-1][0]
            await asyncio.sleep(0)

    # ------------------------------------------------------------ dead letters

    async def list_dead(self, arguments: Arguments, send: Send) -> Row:
        return await _send_some(self._dead_rows(), arguments, send)

    async def show_dead(self, arguments: Arguments, send: Send) -> Row:
        number = arguments["number"]
        try:
            letter = await self._dead.aget(number)
        except ValueError as error:
            raise Refused(f"dead letter {number} cannot be read: {error}") from None
        if letter is None:
            raise no_letter(number)
        return dead_row(number, letter) | {"raw": packed(letter.raw), "traceback": letter.traceback}

    async def retry(self, arguments: Arguments, send: Send) -> Row:
        async with self._retrying:
            wanted = Selection.of(arguments["selection"])
            found = [row async for row in self._dead_rows() if wanted.has(row)]
            numbers = to_retry(wanted, found)
            if not arguments["count_only"]:
                room = self._capacity - self._queue.depth
                if not self._queue.durable and len(numbers) > room:
                    raise Refused(
                        f"the queue has room for {max(0, room)} updates, not for {len(numbers)}; nothing was done"
                    )
                for start in range(0, len(numbers), _PAGE):
                    await self._retry(numbers[start : start + _PAGE])
            return {"count": len(numbers), "invalid": len(found) - len(numbers)}

    async def _retry(self, numbers: list[int]) -> None:
        """Each is safe in the queue before its letter is deleted."""
        letters = [(number, await self._dead.aget(number)) for number in numbers]
        there = [(number, letter) for number, letter in letters if letter is not None]
        await self._queue.again([fresh(letter) for _, letter in there])
        await self._dead.adelete([number for number, _ in there])

    async def drop(self, arguments: Arguments, send: Send) -> Row:
        wanted = Selection.of(arguments["selection"])
        numbers = [row["number"] async for row in self._dead_rows() if wanted.has(row)]
        require(wanted.numbers, numbers, "no dead letter")
        return {"count": len(numbers) if arguments["count_only"] else await self._dead.adelete(numbers)}

    async def _dead_rows(self) -> AsyncIterator[Row]:
        behind = 0
        while page := await self._dead.aitems(behind, _PAGE):
            for number, letter in page:
                yield dead_row(number, letter)
            behind = page[-1][0]


def _refusing(command: Command) -> Command:
    """Says in a line what the disk refuses."""

    async def refusing(arguments: Arguments, send: Send) -> Any:
        try:
            return await command(arguments, send)
        except (QueueError, StoreError) as error:
            raise Refused(str(error)) from None

    return refusing


async def _send_some(rows: AsyncIterator[Row], arguments: Arguments, send: Send) -> Row:
    wanted, limit = Selection.of(arguments["selection"]), arguments["limit"]
    sent = 0
    async for row in rows:
        if wanted.has(row):
            if limit and sent == limit:
                return {"more": True}
            await send(row)
            sent += 1
    return {"more": False}


# ---------------------------------------------------------------- said and made by both kinds of tools


def stats_row(
    name: str, kinds: Counter[str], bots: Counter[int], *, oldest_age: float, in_flight: int, size: int, handled: int,
    trouble: str | None, pid: int | None,
) -> Row:  # fmt: skip
    """What `queue stats` tells. `pid`: of the server, None if none runs."""
    depth = kinds.total()
    return {
        "queue": name,
        "pid": pid,
        "depth": depth,
        "in_flight": in_flight,
        "oldest_age": round(oldest_age, 3) if depth else None,
        "bytes": size,
        "by_kind": dict(kinds.most_common()),
        "by_bot": {str(bot): count for bot, count in bots.most_common()},
        "handled_kept": handled,
        "trouble": trouble,
    }


def readable(record: bytes) -> Update | None:
    """The update in a record; None if it cannot be read: the queue has said so in the log."""
    try:
        return unpack_update(record)
    except ValueError:
        return None


def packed(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")


def fresh(letter: DeadLetter) -> Update:
    """The update of a dead letter as if it came now, so that it is not too old for anybody."""
    return restore(Update, letter.raw, letter.bot_id, time.time(), 1)


def to_retry(wanted: Selection, found: Iterable[Row]) -> list[int]:
    """The numbers of those letters that can be handled again. Refused: one that was named is none of them."""
    rows = list(found)
    require(wanted.numbers, [row["number"] for row in rows], "no dead letter")
    for row in rows:
        if wanted.numbers and row["update_id"] is None:
            raise Refused(f"dead letter {row['number']} is not an update: it cannot be retried")
    return [row["number"] for row in rows if row["update_id"] is not None]


def require(named: Iterable[int], found: Iterable[int], what: str) -> None:
    """Refused: a number that was named is not there. `what`: "no dead letter", for instance."""
    missing = sorted(set(named) - set(found))
    if missing:
        raise Refused(f"there is {what} with the number {', '.join(map(str, missing))}; nothing was done")


def no_update(number: int) -> Refused:
    return Refused(f"there is no update with the number {number} in the queue")


def no_letter(number: int) -> Refused:
    return Refused(f"there is no dead letter with the number {number}")
