"""The delivery side: takes a bot's updates to its webhook, and tries again until each is taken or too old."""

from __future__ import annotations

import base64
import heapq
import itertools
import random
from collections import deque
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import SplitResult

from fasthook.testing import parameters
from fasthook.testing.clock import Clock, Timer
from fasthook.testing.connection import Address, Connection, Response
from fasthook.testing.limits import Window
from fasthook.testing.updates import Pending, QueueKey, Updates

TIMEOUT = 60.0  # seconds for a whole response, and that an idle connection is kept
LONGEST_RETRY_AFTER = 3600
GONE = 23 * 3600.0  # seconds of 410 after which a webhook is removed
_LONGEST_DELAY = 60
_ACTIVE = 10.0  # seconds since a success in which many connections may be opened
_NOT_IN_A_REPLY = ("setwebhook", "deletewebhook", "close", "logout")


@dataclass(frozen=True, slots=True)
class Attempt:
    """One request of the delivery, and what came of it."""

    update_id: int
    kind: str
    number: int  # 1 at the first
    body: bytes
    port: int  # of the connection's own end
    sent_at: float  # on the clock
    ended_at: float
    status: int  # 0 if there was no answer
    error: str  # empty if the update was taken
    reply: str  # the body of the answer


class Listener(Protocol):
    """Who is told what the delivery does."""

    def attempted(self, attempt: Attempt) -> None: ...

    def sent(self, update: Pending) -> None: ...

    def failed(self, error: str) -> None: ...

    def replied(self, method: str, given: parameters.Parameters) -> None: ...

    def gone(self) -> None: ...


class Delivery:
    """Delivers `updates` to the webhook at `url`.

    An update waits behind the one before it in its queue; queues don't wait for each other. Up to `connections`
    requests are under way at once, one on a connection.
    """

    def __init__(
        self,
        url: SplitResult,
        address: Address,
        updates: Updates,
        listener: Listener,
        clock: Clock,
        seed: random.Random,
        *,
        secret: str = "",
        connections: int = 40,
    ) -> None:
        self._head, self._tail = _request_head(url, secret)
        self._address = address
        self._updates = updates
        self._listener = listener
        self._clock = clock
        self._random = seed
        self._most = connections
        self._queues: dict[QueueKey, deque[Pending]] = {}
        self._due: list[tuple[float, int, QueueKey]] = []  # queues whose head may be sent, by the time it may
        self._order = itertools.count()
        self._connections: set[Connection] = set()
        self._free: deque[Connection] = deque()
        self._sent_at: dict[Connection, float] = {}
        self._deadlines: dict[Connection, Timer] = {}
        self._active_flood = Window(10, 0.5)
        self._idle_flood = Window(1, 2.0)
        self._last_success = clock.now() - 3600
        self._checked = False
        self._gone_since: float | None = None
        self._timer: Timer | None = None
        self._closed = False
        updates.rewind()

    @property
    def in_flight(self) -> int:
        """Requests under way."""
        return len(self._sent_at)

    @property
    def open(self) -> int:
        """Connections that are open or being opened."""
        return len(self._connections)

    def wake(self) -> None:
        """Look for something to do."""
        if self._closed:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._load()
        self._open_connections()
        self._send()

    def close(self) -> None:
        """Stop. What was in flight is with the webhook, its answer is not waited for."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for connection in list(self._connections):
            self._remove(connection)
            connection.close()

    # ------------------------------------------------------------ a turn

    def _load(self) -> None:
        while (room := 2 * self._most - len(self._queues)) > 0:
            loaded = self._updates.load(room)
            if not loaded:
                return
            for update in loaded:
                queue = self._queues.setdefault(update.queue, deque())
                queue.append(update)
                if len(queue) == 1:
                    update.wakeup_at = self._clock.now()
                    self._plan(update)

    def _plan(self, update: Pending) -> None:
        heapq.heappush(self._due, (update.wakeup_at, next(self._order), update.queue))

    def _open_connections(self) -> None:
        now = self._clock.now()
        need = min(len(self._queues), self._most) if self._checked else 1
        if self._last_success + _ACTIVE < now:
            flood, need = self._idle_flood, min(need, 1)
        else:
            flood, need = self._active_flood, max(need, 1)
        while len(self._connections) < need:
            at = flood.wait_until(now)
            if at > now:
                self._wake_at(at)
                return
            flood.times.append(now)
            self._checked = True
            connection = Connection(self._address, self._answered, self._lost)
            self._connections.add(connection)
            self._put(connection)

    def _send(self) -> None:
        while self._due and self._free:
            wakeup_at, _, key = self._due[0]
            if wakeup_at > self._clock.now():
                self._wake_at(wakeup_at)
                return
            heapq.heappop(self._due)
            update = self._queues[key][0]
            connection = self._free.popleft()  # in turn: the one that was used longest ago
            now = self._clock.now()
            update.attempts += 1
            connection.in_flight = update.update_id
            connection.deadline = now + TIMEOUT
            self._sent_at[connection] = now
            body = update.body
            connection.send(b"%s%d%s%s" % (self._head, len(body), self._tail, body))
            self._listener.sent(update)

    def _wake_at(self, when: float) -> None:
        if self._timer is None or self._timer.when > when:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._clock.at(when, self._alarm)

    def _alarm(self) -> None:
        self._timer = None
        self.wake()

    # ------------------------------------------------------------ connections

    def _put(self, connection: Connection) -> None:
        """A connection is free."""
        connection.in_flight = None
        connection.deadline = self._clock.now() + TIMEOUT
        self._free.append(connection)
        if connection not in self._deadlines:
            self._watch(connection)

    def _watch(self, connection: Connection) -> None:
        self._deadlines[connection] = self._clock.at(connection.deadline, lambda: self._overdue(connection))

    def _overdue(self, connection: Connection) -> None:
        if connection.deadline > self._clock.now():
            self._watch(connection)
        else:
            connection.close_with("Read timeout expired" if connection.in_flight is not None else "")

    def _remove(self, connection: Connection) -> float:
        """Forget a connection: when its request was sent."""
        self._connections.discard(connection)
        if connection in self._free:
            self._free.remove(connection)
        timer = self._deadlines.pop(connection, None)
        if timer is not None:
            timer.cancel()
        return self._sent_at.pop(connection, 0.0)

    def _lost(self, connection: Connection, why: str) -> None:
        update_id = connection.in_flight
        sent_at = self._remove(connection)
        if why:
            self._listener.failed(why)
        if update_id is not None:
            self._settle(update_id, connection, sent_at, 0, why or "Connection closed", b"")
        self.wake()

    def _answered(self, connection: Connection, response: Response) -> None:
        update_id = connection.in_flight
        assert update_id is not None
        sent_at = self._sent_at.pop(connection)
        keep = response.keep_alive
        error = self._judge(response)
        if keep:
            self._put(connection)
        else:
            self._remove(connection)
            connection.close()
        retry_after = _seconds(response.headers.get("retry-after", "")) if error else 0
        self._settle(update_id, connection, sent_at, response.status, error, response.body, retry_after)
        if response.status == 410 and self._gone_since is not None and self._clock.now() > self._gone_since + GONE:
            self.close()
            self._listener.gone()
        self.wake()

    def _judge(self, response: Response) -> str:
        """Why this answer is none; empty for one that takes the update."""
        if response.status != 410:
            self._gone_since = None
        elif self._gone_since is None:
            self._gone_since = self._clock.now()
        if not 200 <= response.status <= 299:
            error = f"Wrong response from the webhook: {response.status} {response.reason}".rstrip()
            self._listener.failed(error)
            return error
        try:
            reply = _reply(response)
        except ValueError as broken:
            error = f"Wrong response from the webhook: {broken}"
            self._listener.failed(error)
            return error
        method = str(reply.values.pop("method", "")).lower()
        if method and method not in _NOT_IN_A_REPLY and not method.startswith("get"):
            self._listener.replied(method, reply)
        return ""

    # ------------------------------------------------------------ an update

    def _settle(
        self,
        update_id: int,
        connection: Connection,
        sent_at: float,
        status: int,
        error: str,
        answer: bytes,
        retry_after: int = 0,
    ) -> None:
        update = self._updates.get(update_id)
        if update is None:
            return  # it was dropped meanwhile
        now = self._clock.now()
        reply = answer.decode("utf-8", "replace")
        body, port = update.body, connection.local_port
        attempt = Attempt(update_id, update.kind, update.attempts, body, port, sent_at, now, status, error, reply)
        if not error:
            self._last_success = now
            self._drop(update)
        else:
            self._retry(update, now, retry_after)
        self._listener.attempted(attempt)

    def _retry(self, update: Pending, now: float, retry_after: int) -> None:
        delay, wait = update.delay, float(min(retry_after, LONGEST_RETRY_AFTER))
        if wait == 0 and update.failures > 0:
            longest = self._random.randint(_LONGEST_DELAY, 2 * _LONGEST_DELAY)
            wait = delay = min(float(longest), delay * 2)
        if now + wait > update.expires_at:
            self._updates.expired += 1
            self._drop(update)
            return
        update.delay = delay
        update.wakeup_at = now + wait
        update.failures += 1
        self._plan(update)

    def _drop(self, update: Pending) -> None:
        queue = self._queues[update.queue]
        queue.popleft()
        self._updates.forget(update.update_id)
        if queue:
            self._plan(queue[0])
        else:
            del self._queues[update.queue]


def _request_head(url: SplitResult, secret: str) -> tuple[bytes, bytes]:
    """What stands before and behind the length of the body."""
    target = (url.path or "/") + (f"?{url.query}" if url.query else "")
    lines = [f"POST {target} HTTP/1.1", f"Host: {url.hostname}"]
    if url.username is not None:
        user = f"{url.username}:{url.password or ''}".encode()
        lines.append(f"Authorization: Basic {base64.b64encode(user).decode()}")
    if secret:
        lines.append(f"X-Telegram-Bot-Api-Secret-Token: {secret}")
    lines += ["Content-Type: application/json", "Content-Length: "]
    return "\r\n".join(lines).encode(), b"\r\nConnection: keep-alive\r\nAccept-Encoding: gzip, deflate\r\n\r\n"


def _reply(response: Response) -> parameters.Parameters:
    """The method in an answer. ValueError: what Telegram takes for a failure."""
    if not response.body:
        return parameters.Parameters()
    body = parameters.decompress(response.headers.get("content-encoding", "").lower(), response.body)
    content_type = response.headers.get("content-type", "")
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "application/json" and len(body) <= 1 << 20:
        try:
            return parameters.read(content_type, body)
        except ValueError:
            return parameters.Parameters()  # not JSON: no method, and no failure
    return parameters.read(content_type, body)


def _seconds(retry_after: str) -> int:
    return int(retry_after) if retry_after.isdecimal() and len(retry_after) < 10 else 0
