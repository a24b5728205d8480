"""Lanes whose updates are handled by worker processes: who gets which chat, and what follows when a worker dies.

No task, no future and no timer for each update: a ready lane becomes a frame in the buffer of its worker, which is
written once in each turn of the loop, and the frame with its outcome calls back into the lanes.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from struct import error as StructError
from typing import Any

import orjson

from fasthook._core import Shares
from fasthook.bottables import BotTable
from fasthook.crew import Crew
from fasthook.frames import HEAD, UPDATE, FrameError, Kind, unpack
from fasthook.handlers import WorkersError
from fasthook.lanes import GaveUp, Lane, Lanes, Reported
from fasthook.link import Worker
from fasthook.ops.blocks import Blocks
from fasthook.settings import Settings
from fasthook.telegram.files import is_packed, unpacked

log = logging.getLogger("fasthook.workers")

_SOON = 5.0  # seconds that what a dead worker had in hand waits for its successor, or longer where starts are slow
_DEATHS = 3  # of workers with an update in hand, the last with no other, before it is a dead letter
_ALONE = 2  # deaths after which an update is begun with no other beside it
_HARMLESS = 1.0  # seconds that such a one runs before the next is begun beside it; after one more death it is to end
_BURIAL = 10.0  # seconds that a stop waits for dead letters being written
_TOLD = 20  # ids of updates in a log line
_BEFORE = HEAD.size + UPDATE.size


class Workers(Lanes):
    """The front door's dispatcher when the bot runs in processes of its own.

    A chat stays with a worker while it has updates in hand or waiting; an idle one goes to the worker that has least
    to do. What was begun when a worker died is under suspicion: it goes to one worker alone of all, and after a second
    death with nothing beside it, for a while or to its end, so that it brings down no more than it must.

    Several bots share the window of each worker; a bot keeps its place there until its reply is sent.

    `blocks`: where each worker counts. `policy`: what `Lanes` takes. `failed`: told when there is no use in going on.
    `answers`: what a handler returns may go into an answer to Telegram. `bots`: several, instead of a target.
    """

    def __init__(
        self,
        target: str,
        settings: Settings,
        *,
        blocks: Blocks,
        failed: Callable[[WorkersError], None],
        answers: bool = True,
        bots: tuple[BotTable, ...] = (),
        **policy: Any,
    ) -> None:
        super().__init__(**policy)
        self.crew: Crew = Crew(self, target, settings, blocks, answers=answers, bots=bots)
        self.failed = failed
        self._replying = 0
        self._most_replies = settings.concurrency * settings.workers
        self._serving: list[Worker] = []  # those that take deliveries
        self._unplaced: dict[int, deque[Lane]] = {}  # by bot, wait for a worker with room
        self._suspects: deque[Lane] = deque()
        self._quarantine: Worker | None = None  # the one that gets them
        self._await_quarantine: asyncio.TimerHandle | None = None  # the successor of one that died will be it
        self._number = 0
        self._turns_taken = itertools.count()
        self._turn: dict[Lane, int] = {}  # when those that wait for room began to
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def in_flight(self) -> int:
        return sum(len(worker.in_hand) for worker in self.crew.members)

    @property
    def stuck(self) -> int:
        return 0

    def hurry(self) -> None:
        super().hurry()
        self.crew.hurry()

    def _in_no_hand(self) -> set[Lane]:
        return {*self._ready, *self._turn, *self._suspects}

    def _pick(self, lane: Lane) -> None:
        if lane in self._ready:
            self._ready.remove(lane)
        elif lane in self._suspects:
            self._suspects.remove(lane)
        for queues in (self._unplaced, *(one.waiting for one in self._serving)):
            if lane in queues.get(lane.bot, ()):
                queues[lane.bot].remove(lane)
                if not queues[lane.bot]:
                    del queues[lane.bot]
        self._turn.pop(lane, None)

    def set_bots(self, bots: Iterable[int]) -> None:
        among = frozenset(bots)
        gone = [lane for lane in (*self._suspects, *self._turn) if lane.bot not in among]
        for lane in gone:
            self._pick(lane)
        self._ready.extendleft(reversed(gone))
        super().set_bots(among)

    # ------------------------------------------------------------ to the workers

    def _wake(self) -> None:
        if not self._awake and not self._stopped:
            self._awake = 1
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Give what is ready to workers that have room, in one write for each."""
        self._awake = 0
        if self._stopped or (self._replying >= self._most_replies and self._turns is None):
            return
        if self._suspects or self._quarantine:
            self._give_suspects()
        if self._unplaced:
            self._place_waiting()
        for worker in self._serving:
            for bot, queue in list(worker.waiting.items()):
                while queue and not worker.closed and _has_room(worker, bot):
                    self._give(worker, self._from_queue(worker.waiting, bot))
        ready = self._ready
        while ready:
            lane = ready.popleft()
            delivery = lane.first
            if delivery.failure is not None:
                self._begin(self._failed(lane))
            elif delivery.deaths:
                self._suspects.append(lane)
            else:
                its: Worker | None = lane.worker
                if its is None or its.closed:
                    its = None if lane.bot in self._unplaced else self._least_busy(lane.bot)
                    if its is None:
                        self._queue(lane, self._unplaced)
                        continue
                elif lane.bot in its.waiting or not _has_room(its, lane.bot):
                    self._queue(lane, its.waiting)
                    continue
                self._give(its, lane)
        if self._suspects:
            self._give_suspects()
        again = False
        for worker in self._serving:
            full = not worker.writable
            worker.flush()
            again = again or (full and worker.writable)
        if again and (self._unplaced or any(worker.waiting for worker in self._serving)):
            self._wake()

    def _least_busy(self, bot: int) -> Worker | None:
        """Who has room for a bot and the least in hand; one that may be blocked, or has suspects, only if no other."""
        best, least = None, 1 << 30
        for worker in self._serving:
            busy = len(worker.in_hand)
            if not worker.closed and _has_room(worker, bot):
                if worker.quiet or worker is self._quarantine:
                    busy += 1 << 24
                if busy < least:
                    best, least = worker, busy
        return best

    def _give(self, worker: Worker, lane: Lane) -> None:
        delivery = lane.first
        update = delivery.update
        raw = update.raw
        self._number = number = self._number + 1
        lane.worker = worker
        worker.in_hand[number] = lane
        worker.given += 1
        if worker.shares is not None:
            worker.shares.force(lane.bot)
        head = HEAD.pack(_BEFORE + len(raw), Kind.DELIVER, number)
        attempt = min(delivery.attempt, 0xFFFF)
        worker.put(head + UPDATE.pack(attempt, update.bot_id, update.received_at, delivery.since), raw)
        if worker.limit is None or worker.given < worker.limit:
            return
        # One that is blocked, or has suspects, may have to be killed, and then there is a successor anyway.
        if not worker.quiet and worker is not self._quarantine:
            self.crew.recycle(worker)

    def _queue(self, lane: Lane, behind: dict[int, deque[Lane]]) -> None:
        self._turn[lane] = next(self._turns_taken)
        queue = behind.get(lane.bot)
        if queue is None:
            behind[lane.bot] = queue = deque()
        queue.append(lane)

    def _from_queue(self, queues: dict[int, deque[Lane]], bot: int) -> Lane:
        queue = queues[bot]
        lane = queue.popleft()
        if not queue:
            del queues[bot]
        del self._turn[lane]
        return lane

    def _place_waiting(self) -> None:
        """Lanes without a worker take turns, bot by bot, as long as any of them can be placed."""
        placed = True
        while placed:
            placed = False
            for bot in list(self._unplaced):
                if bot in self._unplaced:
                    placed |= self._place_one(bot)

    def _place_one(self, bot: int) -> bool:
        """One lane without a worker, or one that waits for its own, in the order in which they came."""
        worker = self._least_busy(bot)
        if worker is None:
            return False
        own = worker.waiting.get(bot)
        if own and self._turn[own[0]] < self._turn[self._unplaced[bot][0]]:
            self._give(worker, self._from_queue(worker.waiting, bot))
        else:
            self._give(worker, self._from_queue(self._unplaced, bot))
        return True

    # ------------------------------------------------------------ suspects

    def _give_suspects(self) -> None:
        worker = self._quarantine
        if worker is None:
            if self._await_quarantine or not self._suspects:
                return
            worker = min(self._serving, key=lambda one: len(one.in_hand), default=None)
            if worker is None:
                return
            self._quarantine = worker
        while self._suspects and _has_room(worker, self._suspects[0].bot):
            deaths = self._suspects[0].first.deaths
            alone = deaths >= _ALONE
            if alone and not worker.closed:
                self._close(worker)
            if worker.alone or (alone and worker.in_hand.keys() - (worker.cleared if deaths < _DEATHS else ())):
                return
            worker.suspects += 1
            self._give(worker, self._suspects.popleft())
            if alone:
                worker.alone = self._number
                if deaths < _DEATHS:
                    self._loop.call_later(_HARMLESS, self._clear, worker, worker.alone)
        if not self._suspects and not worker.suspects:
            self._quarantine = None
            if not worker.retired:
                worker.closed = False

    def _clear(self, worker: Worker, number: int) -> None:
        """An update that ran alone for a while has done no harm: the next may be begun beside it."""
        if worker.alone != number:
            return
        if not worker.runs_all:
            self._loop.call_later(_HARMLESS, self._clear, worker, number)
            return
        worker.alone = 0
        worker.cleared.add(number)
        worker.suspects -= 1
        self._wake()

    def _close(self, worker: Worker) -> None:
        """Give a worker nothing more; the chats that wait for it may go to another."""
        worker.closed = True
        for bot, waiting in worker.waiting.items():
            lanes = sorted([*self._unplaced.get(bot, ()), *waiting], key=self._turn.__getitem__)
            self._unplaced[bot] = deque(lanes)
        worker.waiting.clear()

    # ------------------------------------------------------------ from the workers

    def outcome(self, worker: Worker, kind: int, number: int, payload: bytes) -> None:
        failure = Reported(**unpack(Kind.FAILED, payload)) if kind == Kind.FAILED else None
        result = _returned(payload) if payload and failure is None else None
        lane = worker.in_hand.pop(number, None)
        if lane is None:
            return
        if number in worker.cleared:
            worker.cleared.remove(number)
        elif worker.suspects and lane.first.deaths:
            worker.suspects -= 1
            if number == worker.alone:
                worker.alone = 0
        if kind != Kind.BACK:
            self.crew.at_once = self.crew.crashes = 0  # something was handled since
        keeps = False
        if kind == Kind.DONE:
            if result is not None:
                keeps = self._answer(lane, result, worker.shares)
            else:
                self._advance(lane)
        elif kind == Kind.FAILED:
            lane.first.failure = failure
            self._begin(self._failed(lane))
        else:
            self._ready.appendleft(lane)
        if worker.shares is not None and not keeps:
            worker.shares.leave(lane.bot)
        if not self._awake and (self._ready or self._unplaced or worker.waiting or self._quarantine):
            self._wake()

    def _answer(self, lane: Lane, result: Any, shares: Shares | None) -> bool:
        """See to what a handler returned. True: its place is kept until that is sent."""
        try:
            sending = self._reply(lane.first.update, result)
        except Exception as error:
            lane.first.failure = error
            self._begin(self._failed(lane))
            return False
        if sending is None:
            self._advance(lane)
            return False
        self._replying += 1
        self._begin(self._send(lane, sending, shares))
        return True

    async def _send(self, lane: Lane, sending: Awaitable[None], shares: Shares | None) -> None:
        """Wait for a reply to reach Telegram, then go on as after any handler."""
        delivery = lane.first
        try:
            await sending
        except asyncio.CancelledError:
            delivery.failure = GaveUp("the server stopped before Telegram had the reply", "reply failed")
        except Exception as error:
            delivery.failure = error
        finally:
            self._replying -= 1
            if shares is not None:
                shares.leave(lane.bot)
        if delivery.failure is None:
            self._advance(lane)
        else:
            await self._failed(lane)

    def _begin(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended_task)

    def _ended_task(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("an update could not be settled", exc_info=error)
        self._wake()

    # ------------------------------------------------------------ what becomes of the workers

    def joined(self, worker: Worker) -> None:
        self._serving.append(worker)
        if self._await_quarantine:
            self._end_wait()
            self._quarantine = worker
        if not self._stopped:
            self._wake()

    def writable(self) -> None:
        self._wake()

    def not_replaced(self) -> None:
        self._end_wait()
        self._wake()

    def _end_wait(self) -> None:
        if self._await_quarantine:
            self._await_quarantine.cancel()
            self._await_quarantine = None

    def retiring(self, worker: Worker) -> None:
        self._part(worker)

    def _part(self, worker: Worker) -> None:
        if worker in self._serving:
            self._serving.remove(worker)
        worker.flush()
        self._close(worker)
        if worker is self._quarantine:
            self._quarantine = None
        if not self._stopped:
            self._wake()

    def ended(self, worker: Worker, how: str) -> None:
        """What a dead worker had in hand is delivered again, first and in order."""
        self._part(worker)
        lanes = list(worker.in_hand.values())
        begun = worker.begun - worker.ran
        for lane in lanes[:begun]:  # it takes them in the order in which it gets them
            lane.first.since = -1.0
        run_on = [lane for number, lane in worker.in_hand.items() if number in worker.run_on]
        others = [lane for lane in lanes if lane not in run_on]
        worker.in_hand.clear()
        worker.suspects = worker.alone = 0
        self._suspect(_firsts(others, begun - len(run_on)) or others, how)
        if run_on:
            log.warning("%r has ended while handlers ran that cannot be stopped; %s", worker, _in_hand(run_on))
        if worker.ready and (others or not run_on):
            log.error("%r died: %s; %s", worker, how, _in_hand(others))
        if not lanes:
            return
        for lane in lanes:
            lane.worker = None
        self._ready.extendleft(reversed(lanes))
        # Its successor, so that no other suffers; one that leaves anyway has none.
        if self._quarantine is None and not worker.retired:
            self._end_wait()
            self._await_quarantine = self._loop.call_later(self.crew.patience(_SOON), self.not_replaced)
        if not self._stopped:
            self._wake()

    def _suspect(self, lanes: list[Lane], how: str) -> None:
        """The first updates of these may each have been the end of their worker."""
        for lane in lanes:
            delivery = lane.first
            deaths = delivery.deaths + 1
            if deaths >= _DEATHS and len(lanes) == 1:  # else all of them are to be handled alone
                delivery.failure = GaveUp(
                    f"{deaths} workers died with it in hand, the last: {how}", "crashed the worker"
                )
            else:
                delivery.deaths = deaths

    # ------------------------------------------------------------ the end

    async def _stop(self) -> None:
        self._stopped = True
        await asyncio.sleep(0)  # what was just begun has its first turn
        for task in self._tasks:
            task.cancel()
        await self.crew.stop(0.0)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_BURIAL)


def _returned(payload: bytes) -> Any:
    """What a handler returned. FrameError: it cannot be told."""
    try:
        return unpacked(payload) if is_packed(payload) else orjson.loads(payload)
    except (ValueError, TypeError, StructError) as error:
        raise FrameError(f"a result that cannot be read: {error}") from None


def _has_room(worker: Worker, bot: int) -> bool:
    return (
        worker.writable
        and len(worker.in_hand) < worker.window
        and (worker.shares is None or worker.shares.has_room(bot))
    )


def _firsts(lanes: list[Lane], begun: int) -> list[Lane]:
    """Those that a worker may have begun, when it has begun so many: each bot's in order, but the bots take turns."""
    rank: Counter[int] = Counter()
    found = []
    for lane in lanes:
        rank[lane.bot] += 1
        if rank[lane.bot] <= begun:
            found.append(lane)
    return found


def _in_hand(lanes: list[Lane]) -> str:
    """What a worker had, and what becomes of it."""
    again = [lane for lane in lanes if lane.first.failure is None]
    given_up = [lane for lane in lanes if lane.first.failure is not None]
    if not lanes:
        return "it had nothing in hand"
    if not again:
        return f"it had in hand, and that is given up on: {_named(given_up)}"
    rest = f"; given up on: {_named(given_up)}" if given_up else ""
    return f"it had in hand, and they are delivered again: {_named(again)}{rest}"


def _named(lanes: list[Lane]) -> str:
    ids = [str(lane.first.update.update_id) for lane in lanes]
    more = f" and {len(ids) - _TOLD} more" if len(ids) > _TOLD else ""
    word = "update" if len(ids) == 1 else f"{len(ids)} updates"
    return f"{word} {', '.join(ids[:_TOLD])}{more}"
