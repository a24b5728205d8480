"""When a request is answered: as soon as its update is safe, or when its handler is done (`--ack queued|handled`)."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Iterable
from time import monotonic
from typing import Any, Protocol

import orjson

from fasthook._core import CODES, Gate, Verdict
from fasthook.queues import REPLY_BYTES, Delivery, Outcome, Queue, Reply
from fasthook.update import Update

log = logging.getLogger("fasthook")

Name = tuple[int, int]  # the bot and the update_id

_ACCEPTED = Verdict(CODES["accepted"])
_DUPLICATE = Verdict(CODES["duplicate"])
_FAILED = Verdict(CODES["failed"])
_BUSY = Verdict(CODES["busy"], 1)
_LARGEST_REPLY = 1 << 20  # bytes of JSON that Telegram reads in an answer
_FORBIDDEN = frozenset({"setwebhook", "deletewebhook", "close", "logout"})  # in an answer; and all get…


class Waiter(Protocol):
    """Who waits for an answer: a connection, or a request of the ASGI door."""

    def answer(self, verdict: Verdict) -> None: ...


class Acknowledge(Protocol):
    """Stands between the doors and the queue, and knows who waits for which answer."""

    def accept(self, update: Update, waiter: Waiter) -> Verdict | None:
        """Take an admitted update: the answer if it is known now, else None, and the waiter gets it."""
        ...

    def answered(self, update: Update, outcome: Outcome) -> None:
        """The queue's word on an update that it was given."""
        ...

    def redelivered(self, update: Update) -> None:
        """An update from before is handled now."""
        ...

    def reply(self, update: Update, call: dict[str, Any]) -> bool:
        """Whether the method that a handler returned goes back in the answer."""
        ...

    def hand_back(self, delivery: Delivery) -> bool:
        """Whether a failed update goes back to Telegram, to be sent again."""
        ...

    def returned(self, update: Update) -> bytes | None:
        """What an update's handler returned, if that goes back in the answer: to be kept with it."""
        ...

    def settled(self, update: Update) -> None:
        """An update was handled, or is a dead letter."""
        ...

    def recall(self, replies: Iterable[Reply]) -> None:
        """What was returned before this start, oldest first."""
        ...

    def replies(self) -> list[Reply]:
        """What is known of what was returned, oldest first."""
        ...

    def stop(self, left: list[Delivery]) -> list[Delivery]:
        """At the end: answer who still waits. What of `left` was acknowledged."""
        ...


class WhenQueued:
    """200 as soon as the queue has the update. `state`: what `lifespan` yielded, given to each update."""

    def __init__(self, gate: Gate, queue: Queue, state: Any) -> None:
        self._gate = gate
        self._put = queue.put
        self._state = state
        self._durable = queue.durable
        self._pending: dict[Name, list[Waiter]] = {}  # waiting for the queue's word
        gate.joins_running = gate.answers_later = queue.durable

    def accept(self, update: Update, waiter: Waiter) -> Verdict | None:
        if update.redelivery:
            waiters = self._pending.get((update.bot_id, update.update_id))
            if waiters is None:
                return _DUPLICATE
            waiters.append(waiter)
            return None
        update.state = self._state
        try:
            if self._put(update):
                return _ACCEPTED
        except BaseException:
            self._gate.release(update)
            raise
        self._pending[update.bot_id, update.update_id] = [waiter]
        return None

    def answered(self, update: Update, outcome: Outcome) -> None:
        if outcome is Outcome.PURGED:
            return
        if outcome is Outcome.FULL:
            self._gate.release(update)
            verdict = _BUSY
        else:
            self._gate.settle(update)  # it is safe: to Telegram it is done
            verdict = _ACCEPTED if outcome is Outcome.SAFE else _DUPLICATE
            if outcome is Outcome.KNOWN:
                self._gate.known(update.bot_id)
        _answer(self._pending.pop((update.bot_id, update.update_id), ()), verdict)

    def redelivered(self, update: Update) -> None:
        update.state = self._state
        if self._durable:
            self._gate.settle(update)

    def reply(self, update: Update, call: dict[str, Any]) -> bool:
        return False

    def hand_back(self, delivery: Delivery) -> bool:
        return False

    def returned(self, update: Update) -> bytes | None:
        return None

    def settled(self, update: Update) -> None:
        self._gate.settle(update)

    def recall(self, replies: Iterable[Reply]) -> None:
        pass  # a redelivery gets an empty 200

    def replies(self) -> list[Reply]:
        return []

    def stop(self, left: list[Delivery]) -> list[Delivery]:
        return left


class _Run:
    """An update on its way to its handler and through it, and who waits for it."""

    __slots__ = ("began", "ours", "promoted", "reply", "safe", "waiters")

    def __init__(self, waiters: list[Waiter]) -> None:
        self.waiters = waiters
        self.began = monotonic()
        self.safe = False  # the queue has it
        self.promoted = False  # acknowledged at the deadline, and still running
        self.ours = False  # it was, or may have been, acknowledged: Telegram won't send it again if it fails
        self.reply: Verdict | None = None


class WhenHandled:
    """200 when the handler is done, with the method it returned in the answer; 500 if it fails.

    A redelivery joins the run in flight, or gets the answer of the one that ended. At `deadline` seconds an update is
    acknowledged and goes on. `remember`: how many answers and counts of failures are kept.
    """

    def __init__(self, gate: Gate, queue: Queue, state: Any, *, deadline: float, remember: int) -> None:
        self._gate = gate
        self._queue = queue
        self._state = state
        self._deadline = deadline
        self._remember = remember
        self._runs: dict[Name, _Run] = {}
        self._replies = _Replies(remember)
        self._failures: OrderedDict[Name, int] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        gate.joins_running = gate.joins_done = gate.answers_later = True

    def accept(self, update: Update, waiter: Waiter) -> Verdict | None:
        name = (update.bot_id, update.update_id)
        run = self._runs.get(name)
        if update.redelivery:
            if run is None:
                return self._known_reply(name)
            if run.promoted:
                return _ACCEPTED
            run.waiters.append(waiter)
            return None
        update.state = self._state
        update.attempt = self._failures.get(name, 0) + 1
        self._runs[name] = run = _Run([waiter])
        run.safe = self._queue.put(update)
        self._promote_in_time()
        return None

    def answered(self, update: Update, outcome: Outcome) -> None:
        if outcome is Outcome.SAFE:
            run = self._runs.get((update.bot_id, update.update_id))
            if run is not None:
                run.safe = True  # the handler has the word now
                if run.began + self._deadline <= monotonic():
                    self._acknowledge((update.bot_id, update.update_id), run)
            return
        if outcome is Outcome.PURGED:
            self.settled(update)
        elif outcome is Outcome.FULL:
            self._gate.release(update)
            self._end(update, _BUSY)
        else:
            self._gate.settle(update)  # handled before, or safe in the queue already
            self._gate.known(update.bot_id)
            self._end(update, self._known_reply((update.bot_id, update.update_id)))

    def _known_reply(self, name: Name) -> Verdict:
        """The answer that an update had which was handled before."""
        known = self._replies.known.get(name)
        if known is not None:
            return known
        json = self._queue.reply(*name)
        return _DUPLICATE if json is None else Verdict(CODES["accepted"], json=json)

    def redelivered(self, update: Update) -> None:
        update.state = self._state
        name = (update.bot_id, update.update_id)
        if name not in self._runs:  # else it waited on disk only for its turn, and its request still waits
            run = self._runs[name] = _Run([])
            run.safe = run.ours = True
            self._promote_in_time()

    def reply(self, update: Update, call: dict[str, Any]) -> bool:
        run = self._runs.get((update.bot_id, update.update_id))
        method = call["method"].lower()
        if run is None or run.promoted or not run.waiters or method in _FORBIDDEN or method.startswith("get"):
            return False
        body = orjson.dumps(call)
        if len(body) > _LARGEST_REPLY:
            return False
        run.reply = Verdict(CODES["accepted"], json=body)
        return True

    def hand_back(self, delivery: Delivery) -> bool:
        update = delivery.update
        name = (update.bot_id, update.update_id)
        run = self._runs.get(name)
        if run is None or run.ours:
            return False
        self._failures[name] = update.attempt
        _shorten(self._failures, self._remember)
        self._queue.settle(delivery, forget=True)
        self._gate.release(update)
        self._end(update, _FAILED)
        return True

    def returned(self, update: Update) -> bytes | None:
        run = self._runs.get((update.bot_id, update.update_id))
        return run.reply.body if run is not None and run.reply is not None else None

    def settled(self, update: Update) -> None:
        name = (update.bot_id, update.update_id)
        self._gate.settle(update)
        self._failures.pop(name, None)
        run = self._runs.get(name)
        if run is None:
            return
        if run.reply is not None:
            self._replies.add(name, run.reply)
        self._end(update, run.reply or _ACCEPTED)

    def recall(self, replies: Iterable[Reply]) -> None:
        for name, json in replies:
            self._replies.add(name, Verdict(CODES["accepted"], json=json))

    def replies(self) -> list[Reply]:
        return [(name, verdict.body) for name, verdict in self._replies.known.items()]

    def stop(self, left: list[Delivery]) -> list[Delivery]:
        if self._timer:
            self._timer.cancel()
        acknowledged = []
        for delivery in left:
            update = delivery.update
            run = self._runs.get((update.bot_id, update.update_id))
            if run is None or run.ours:
                acknowledged.append(delivery)
            else:
                self._gate.release(update)
            self._end(update, _BUSY)
        for run in self._runs.values():  # the queue doesn't have them yet: if it still takes them, they are known then
            _answer(run.waiters, _BUSY)
        self._runs.clear()
        return acknowledged

    def _end(self, update: Update, verdict: Verdict) -> None:
        run = self._runs.pop((update.bot_id, update.update_id), None)
        _answer(run.waiters if run else (), verdict)

    def _promote_in_time(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(self._deadline, self._promote)

    def _promote(self) -> None:
        """Acknowledge what is at the deadline. Runs stand in the order of their beginning."""
        self._timer = None
        now = monotonic()
        late = []
        for name, run in self._runs.items():
            if run.began + self._deadline > now:
                self._timer = self._loop.call_later(run.began + self._deadline - now, self._promote)
                break
            if run.safe and not run.promoted:  # what the queue doesn't have yet is acknowledged when it has
                late.append((name, run))
        for name, run in late:
            self._acknowledge(name, run)

    def _acknowledge(self, name: Name, run: _Run) -> None:
        run.promoted = run.ours = True
        waiters, run.waiters = run.waiters, []
        if waiters:
            bot_id, update_id = name
            log.info(
                "update %d is acknowledged after %g s and goes on running", update_id, self._deadline,
                extra={"update_id": update_id, "bot": bot_id, "duration": monotonic() - run.began},
            )  # fmt: skip
        _answer(waiters, _ACCEPTED)


class _Replies:
    """The newest so many answers with a method in them, and no more bytes of them than `REPLY_BYTES`."""

    def __init__(self, remember: int) -> None:
        self.known: OrderedDict[Name, Verdict] = OrderedDict()
        self._remember = remember
        self._bytes = 0

    def add(self, name: Name, verdict: Verdict) -> None:
        old = self.known.pop(name, None)
        self._bytes += len(verdict.body) - (len(old.body) if old else 0)
        self.known[name] = verdict
        while len(self.known) > self._remember or self._bytes > REPLY_BYTES:
            _, oldest = self.known.popitem(last=False)
            self._bytes -= len(oldest.body)


def _answer(waiters: Iterable[Waiter], verdict: Verdict) -> None:
    for waiter in waiters:
        try:
            waiter.answer(verdict)
        except Exception:  # of one of them; those behind it, and the updates of the same commit, have theirs
            log.exception("an answer is lost")


def _shorten(known: OrderedDict[Name, Any], size: int) -> None:
    while len(known) > size:
        known.popitem(last=False)
