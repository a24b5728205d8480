"""Deadlines: a head, a body and an idle connection each have a time of their own, and no drip makes it longer."""

from __future__ import annotations

import asyncio
import select
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import fasthook._protocol
from edge.client import BODY, Peer, Response, connected, head, new_id, numbered, parse_all, post
from edge.conftest import Serve
from edge.rows import CHUNKED, OLD
from edge.serving import LOOPS, PATIENCE, Certificate, Served
from edge.wire import Rig, Wire, rest
from fasthook._protocol import EDGE_COUNTERS, Edge

TIMES = {"header_timeout": 3.5, "body_timeout": 4.0, "keep_alive": 4.5}  # a peer may be held up for some
LATE = (
    4.0  # seconds that a deadline may be passed before a test fails: machines are busy, and the reaper comes by turns
)
DRIP = 0.05


@dataclass
class End:
    """What became of a connection: how long it lasted, from before its last step and from behind it, and what was
    answered by then. Its time begins somewhere between the two, which may be far apart on a busy machine."""

    at_most: float
    at_least: float
    answers: list[Response] = field(default_factory=list)


Step = Callable[[Peer, float], End]  # gets when it began, at the earliest


def drips(data: bytes, before: bytes = b"") -> Step:
    """Send `before`, then a byte every now and then for as long as the server stays."""

    def run(peer: Peer, came: float) -> End:
        peer.send(before)
        begun = time.monotonic()
        for n in range(len(data)):
            peer.socket.sendall(data[n : n + 1])
            if select.select([peer.socket], [], [], DRIP)[0]:
                break
        return ended(peer, came, begun)

    return run


def stops(data: bytes = b"") -> Step:
    """Send bytes, then nothing more."""

    def run(peer: Peer, came: float) -> End:
        peer.send(data)
        return ended(peer, came, time.monotonic())

    return run


def behind(then: Step, request: bytes = post()) -> Step:
    """The same behind a whole request."""

    def run(peer: Peer, came: float) -> End:
        came = time.monotonic()
        peer.send(numbered(request, new_id()))
        assert peer.read().status == 200
        return then(peer, came)

    return run


def ended(peer: Peer, came: float, begun: float) -> End:
    answers = parse_all(peer.rest())
    now = time.monotonic()
    return End(now - came, now - begun, answers)


LONG = b"X" * 100_000
KEPT = post(b"Connection: keep-alive", line=OLD)
UNSENT = post()[: -len(BODY)]
#: What the peer does, which time ends it, and what is answered.
WHAT: dict[str, tuple[Step, str, list[int]]] = {
    "silent": (stops(), "header_timeout", []),
    "half a head": (stops(b"POST /web"), "header_timeout", [408]),
    "a head without an end": (stops(head()[:-2]), "header_timeout", [408]),
    "dripped request line": (drips(LONG, b"POST /webhook?"), "header_timeout", [408]),
    "dripped head": (drips(head(b"X: " + LONG)), "header_timeout", [408]),
    "dripped headers": (drips(b"X: y\r\n" * 60, head()[:-2]), "header_timeout", [408]),
    "no body": (stops(UNSENT), "body_timeout", [408]),
    "half a body": (stops(post()[:-5]), "body_timeout", [408]),
    "chunked, no body": (stops(head(CHUNKED)), "body_timeout", [408]),
    "dripped body": (drips(LONG, head(b"Content-Length: 100000")), "body_timeout", [408]),
    "dripped chunks": (drips(b"1\r\nx\r\n" * 1000, head(CHUNKED)), "body_timeout", [408]),
    "dripped trailer": (drips(LONG, head(CHUNKED) + b"0\r\nX: "), "body_timeout", [408]),
    "expected, and not sent": (stops(post(b"Expect: 100-continue")[: -len(BODY)]), "body_timeout", [408]),
    "refused, its body not sent": (stops(UNSENT.replace(b"webhook", b"other")), "body_timeout", [404]),
    "idle": (behind(stops()), "keep_alive", []),
    "idle, HTTP/1.0": (behind(stops(), KEPT), "keep_alive", []),
    "half a head behind a request": (behind(stops(b"POST ")), "header_timeout", [408]),
    "dripped head behind a request": (behind(drips(LONG, b"POST /webhook?")), "header_timeout", [408]),
    "half a body behind a request": (behind(stops(post()[:-5])), "body_timeout", [408]),
}


class Ends:
    """What becomes of all of these connections, which begin together."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self._found: dict[str, End | BaseException] = {}
        self._threads = {name: threading.Thread(target=self._try, args=(name,)) for name in WHAT}
        for thread in self._threads.values():
            thread.start()

    def _try(self, name: str) -> None:
        came = time.monotonic()
        try:
            with connected(self.served) as peer:
                self._found[name] = WHAT[name][0](peer, came)
        except BaseException as error:
            self._found[name] = error

    def of(self, name: str) -> End:
        self._threads[name].join(PATIENCE)
        found = self._found[name]
        if isinstance(found, BaseException):
            raise found
        return found

    def join(self) -> None:
        for thread in self._threads.values():
            thread.join(PATIENCE)


@pytest.fixture(scope="module", params=[*LOOPS, "uvloop-tls"])
def ends(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, certificate: Certificate
) -> Iterator[Ends]:
    loop, _, tls = request.param.partition("-")
    state = tmp_path_factory.mktemp("time") / "state"
    served = Served(state, loop=loop, certificate=certificate if tls else None, **TIMES)
    ends = Ends(served)
    yield ends
    ends.join()
    served.stop()


@pytest.mark.parametrize("name", WHAT)
def test_deadline(name: str, ends: Ends) -> None:
    _, setting, statuses = WHAT[name]
    end = ends.of(name)
    assert [answer.status for answer in end.answers] == statuses
    assert TIMES[setting] <= end.at_most
    assert end.at_least <= TIMES[setting] + LATE
    if 408 in statuses:
        assert end.answers[-1].closes


def test_deadlines_are_counted(ends: Ends) -> None:
    """One for each that had to be ended before its request was whole; an idle connection is none."""
    ends.join()
    stats = ends.served.hook.receiver.gate.stats
    counted = stats.counter(stats.counters - len(EDGE_COUNTERS) + EDGE_COUNTERS.index("timeouts"))
    assert counted == sum(setting != "keep_alive" for _, setting, _ in WHAT.values())


# ---------------------------------------------------------------- with a clock of the test's own


class Loop:
    """A loop that keeps what the edge has scheduled for later."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.handles: list[asyncio.TimerHandle] = []

    def call_later(self, delay: float, callback: Callable[..., None], *arguments: object) -> asyncio.TimerHandle:
        handle = self._loop.call_later(delay, callback, *arguments)
        if isinstance(getattr(callback, "__self__", None), Edge):
            self.handles.append(handle)
        return handle

    @property
    def waiting(self) -> int:
        """Timers that have not run out."""
        return sum(not handle.cancelled() and handle.when() > self._loop.time() for handle in self.handles)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with asyncio.Runner() as runner:
        rig = Rig(Loop(runner.get_loop()), tmp_path / "state")  # type: ignore[arg-type]
        yield rig
        rig.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The edge's: what stands in it, s."""
    clock = [time.monotonic()]
    monkeypatch.setattr(fasthook._protocol, "monotonic", lambda: clock[0])
    return clock


@pytest.mark.parametrize(("before", "setting"), [(20, "header_timeout"), (len(post()) - 10, "body_timeout")])
def test_a_blocked_loop_is_not_held_against_the_peer(
    serve: Serve, clock: list[float], loop_name: str, before: int, setting: str
) -> None:
    """What came in time is read before a deadline that has passed meanwhile is kept."""
    served = serve(loop=loop_name, **{setting: 0.5})
    request = numbered(post(), new_id())
    with connected(served) as peer:
        peer.send(request[:before], [before])
        served.settle()
        blocked, sent = threading.Event(), threading.Event()

        def block() -> None:
            blocked.set()
            sent.wait(PATIENCE)
            clock[0] += 10
            time.sleep(0.5)  # now a look at the deadlines is due, too

        served.loop.call_soon_threadsafe(block)
        assert blocked.wait(PATIENCE)
        peer.send(request[before:])
        sent.set()
        assert peer.read().status == 200


def test_a_time_that_begins_behind_a_blocked_loop_is_whole(serve: Serve, clock: list[float], loop_name: str) -> None:
    """Half a head that came meanwhile is no reason to end the connection at once."""
    served = serve(loop=loop_name, header_timeout=0.5)
    request = numbered(post(), new_id())
    with connected(served) as peer:
        peer.send(numbered(post(), new_id()))
        assert peer.read().status == 200
        blocked, sent = threading.Event(), threading.Event()

        def block() -> None:
            blocked.set()
            sent.wait(PATIENCE)
            clock[0] += 10
            time.sleep(0.5)

        served.loop.call_soon_threadsafe(block)
        assert blocked.wait(PATIENCE)
        peer.send(request[:20])
        sent.set()
        served.settle()
        peer.send(request[20:])
        assert peer.read().status == 200


def test_a_busy_connection_is_not_idle(rig: Rig, clock: list[float]) -> None:
    """Each request begins the time anew, which is 75 s."""

    async def busy() -> None:
        wire = rig.connect()
        edge = rig.receiver.edge
        for _ in range(7):
            edge.reap()
            assert await wire.feed(numbered(post(), new_id()))
            await rest()
            clock[0] += 50
            edge.reap()
            assert not wire.closing, "closed too early"
        clock[0] += 50
        edge.reap()
        assert wire.closing
        assert [answer.status for answer in parse_all(bytes(wire.answered))] == [200] * 7
        await rest()

    rig.loop.run_until_complete(busy())


def test_one_reaper_however_connections_come_and_go(rig: Rig) -> None:
    for _ in range(100):
        assert [answer.status for answer in parse_all(rig.talk([numbered(post(), new_id())]))] == [200]
    assert rig.loop.waiting <= 1  # type: ignore[attr-defined]


def test_an_unread_answer_has_a_deadline(rig: Rig, clock: list[float]) -> None:
    """30 s from when the peer stopped to read; the edge looks about once a second."""
    wire = rig.loop.run_until_complete(unread(rig))
    edge = rig.receiver.edge
    edge.reap()
    clock[0] += 29
    edge.reap()
    assert not wire.closing
    clock[0] += 4
    edge.reap()
    assert wire.closing
    assert edge_counter(rig, "timeouts") == 1
    rig.loop.run_until_complete(rest())


async def unread(rig: Rig) -> Wire:
    """A connection whose peer has stopped to read its answers."""
    wire = rig.connect()
    assert await wire.feed(numbered(post(), new_id()))
    wire.protocol.pause_writing()
    await rest()
    return wire


def edge_counter(rig: Rig, name: str) -> int:
    stats = rig.receiver.gate.stats
    return stats.counter(stats.counters - len(EDGE_COUNTERS) + EDGE_COUNTERS.index(name))


# ---------------------------------------------------------------- an error in one of them


def test_an_error_at_a_deadline_ends_one_connection(
    rig: Rig, clock: list[float], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Deadlines go on: for the connections behind it, and at the next look."""

    def broken(wire: Wire, data: object) -> None:
        raise RuntimeError("it cannot be written")

    async def connecting() -> list[Wire]:
        with monkeypatch.context() as patch:
            patch.setattr(Wire, "write", broken)
            wires = [rig.connect()]
        wires += [rig.connect() for _ in range(2)]
        for wire in wires:
            assert await wire.feed(b"POST /")
        return wires

    first, second, third = rig.loop.run_until_complete(connecting())
    edge = rig.receiver.edge
    rig.loop.handles.clear()  # type: ignore[attr-defined]
    clock[0] += 12
    edge.reap()
    assert first.closing
    for wire in (second, third):
        assert [answer.status for answer in parse_all(bytes(wire.answered))] == [408]
    assert rig.loop.waiting == 1  # type: ignore[attr-defined]
    [record] = [record for record in caplog.records if record.name == "fasthook.edge"]
    assert record.getMessage() == "a connection is given up"
    for wire in (second, third):
        rig.loop.run_until_complete(wire.lose())
    rig.loop.run_until_complete(rest())


# ---------------------------------------------------------------- the last answer


def test_the_last_answer_has_as_long_as_any_to_be_read(rig: Rig, clock: list[float]) -> None:
    """Not the two seconds of a peer that has it: 30 s, and again two from when it has read."""
    unsent = [100_000, 100_000]

    async def closing(number: int) -> Wire:
        wire = rig.connect()
        wire.get_write_buffer_size = lambda: unsent[number]  # type: ignore[method-assign]
        assert await wire.feed(numbered(post(b"Connection: close"), new_id()))
        await rest()
        assert wire.eof
        return wire

    wires = [rig.loop.run_until_complete(closing(number)) for number in range(2)]
    edge = rig.receiver.edge
    for _ in range(7):
        clock[0] += 4
        edge.reap()
    assert not any(wire.closing for wire in wires)
    unsent[0] = 0
    clock[0] += 4
    edge.reap()
    assert wires[0].closing
    clock[0] += 4
    edge.reap()
    assert wires[1].closing
    rig.loop.run_until_complete(rest())
