"""Slow clients by the hundred: others are answered all the same, memory stays bounded, and none stays past its time."""

from __future__ import annotations

import contextlib
import resource
import selectors
import socket
import time
from collections.abc import Iterator

import pytest

from edge.client import Peer, connected, head, new_id, numbered, parse_all, post
from edge.conftest import Run
from edge.rows import CHUNKED
from edge.serving import PATIENCE, SECRET, Process

COUNT = 1000
KIB, MIB = 1024, 1024 * 1024
HEADER_TIMEOUT, BODY_TIMEOUT = 2, 2
TIMES = ["--header-timeout", str(HEADER_TIMEOUT), "--body-timeout", str(BODY_TIMEOUT)]


class Crowd:
    """Many connections that go on at the same time.

    `first`: what each sends as soon as it is there; its time for a head begins then, however long all of them take.
    """

    def __init__(self, process: Process, first: bytes = b"", *, count: int = COUNT, receive_buffer: int = 0) -> None:
        self.peers: list[Peer] = []
        for _ in range(count):
            self.peers.append(Peer(process, receive_buffer=receive_buffer))
            self.peers[-1].send(first)
        self.answers = {peer.socket: b"" for peer in self.peers}
        self._open = selectors.DefaultSelector()
        for peer in self.peers:
            self._open.register(peer.socket, selectors.EVENT_READ)

    @property
    def left(self) -> list[socket.socket]:
        """The connections that the server has not closed."""
        return [key.fileobj for key in self._open.get_map().values()]  # type: ignore[misc]

    def send(self, data: bytes) -> None:
        """The same to all."""
        for one in self.left:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                one.sendall(data)

    def drip(self, byte: bytes) -> None:
        """Send a byte to each, again and again, until the server has closed all of them."""
        end = time.monotonic() + BODY_TIMEOUT + PATIENCE
        while self.left:
            assert time.monotonic() < end, f"{len(self.left)} of {len(self.peers)} are still there"
            self.read(0.0)  # who is closed is not written to: the reset would take away an answer that is not read yet
            self.send(byte)
            self.read(0.2)

    def read(self, seconds: float) -> None:
        """Take what comes for so long, and see who is closed."""
        end = time.monotonic() + seconds
        while self.left and (ready := self._open.select(max(0.0, end - time.monotonic()))):
            for key, _ in ready:
                one: socket.socket = key.fileobj  # type: ignore[assignment]
                try:
                    data = one.recv(65536)
                except ConnectionResetError:  # it was closed while the byte was on its way
                    data = b""
                self.answers[one] += data
                if not data:
                    self._open.unregister(one)

    def statuses(self) -> set[tuple[int, ...]]:
        """What was answered to them."""
        return {tuple(answer.status for answer in parse_all(answers)) for answers in self.answers.values()}

    def close(self) -> None:
        self._open.close()
        for peer in self.peers:
            peer.close()


@contextlib.contextmanager
def crowd(process: Process, first: bytes = b"", **options: int) -> Iterator[Crowd]:
    many = Crowd(process, first, **options)
    try:
        yield many
    finally:
        many.close()


def served_meanwhile(process: Process, count: int = 100) -> None:
    """Another client is served on one connection, and on new ones."""
    with connected(process) as peer:
        for _ in range(count):
            peer.send(numbered(post(), new_id()))
            assert peer.read().status == 200
    for _ in range(20):
        with connected(process) as peer:
            peer.send(numbered(post(), new_id()))
            assert peer.read().status == 200


def check(process: Process, many: Crowd, before: int, allowed: int) -> None:
    """Others are served, and so much memory at most was taken on top of what there was.

    The interpreter's own is not the clients': its allocator takes a MiB at a time, and gives it back when it likes.
    """
    served_meanwhile(process)
    grown = process.resident - before
    assert grown < allowed + 3 * MIB, f"{grown // MIB} MiB for {len(many.peers)} slow clients"


@pytest.fixture(scope="module", autouse=True)
def enough_descriptors() -> Iterator[None]:
    """As many open sockets as the crowd needs, here and in the servers that are started from here."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 2 * COUNT)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def process(run: Run) -> Process:
    process = run(*TIMES)
    served_meanwhile(process)
    return process


OWN = 8 * KIB  # of a connection, with the loop's transport


def test_silent(process: Process) -> None:
    before = process.resident
    with crowd(process) as many:
        check(process, many, before, COUNT * OWN)
        many.drip(b"")
        assert many.statuses() == {()}
    served_meanwhile(process)


def test_heads_dripped(process: Process) -> None:
    before = process.resident
    with crowd(process, head(b"X: " + b"x" * 8 * KIB)[:-2]) as many:
        check(process, many, before, COUNT * (OWN + 2 * 8 * KIB))
        many.drip(b"Y")
        assert many.statuses() == {(408,)}
    served_meanwhile(process)


def test_bodies_dripped(process: Process) -> None:
    before = process.resident
    with crowd(process, head(b"Content-Length: 1048576") + b"x" * 16 * KIB) as many:
        check(process, many, before, COUNT * (OWN + 2 * 16 * KIB))
        many.drip(b"Y")
        assert many.statuses() == {(408,)}
    served_meanwhile(process)


def test_bodies_of_strangers_are_not_kept(process: Process) -> None:
    before = process.resident
    unwanted = head(CHUNKED).replace(SECRET.encode(), b"wrong") + (b"ffff\r\n" + b"x" * 0xFFFF + b"\r\n") * 4
    with crowd(process, unwanted) as many:
        check(process, many, before, COUNT * OWN)
        many.drip(b"1\r\nx\r\n")
        assert many.statuses() == {(401,)}
    served_meanwhile(process)


@pytest.mark.parametrize(("known", "share"), [(True, 384 * KIB), (False, 336 * KIB)], ids=["known", "strangers"])
def test_answers_unread(run: Run, known: bool, share: int) -> None:
    """A peer that asks on and on and reads nothing is not read from any more; the others go on.

    One that has shown no secret is cut off instead of waited for, once 64 KiB are waiting on either side.
    """
    process = run()
    served_meanwhile(process)
    before = process.resident
    asked = head(line=b"GET /unread HTTP/1.1") * 500
    with crowd(process, count=20, receive_buffer=4096) as many:
        for peer in many.peers:
            if known:
                peer.send(numbered(post(), new_id()))
                assert peer.read().status == 200
            peer.socket.setblocking(False)
        for _ in range(4):
            for one in many.left:
                with contextlib.suppress(BlockingIOError, ConnectionResetError, BrokenPipeError):
                    while one.send(asked):
                        pass
            served_meanwhile(process, 10)
        check(process, many, before, 20 * (OWN + share))
    served_meanwhile(process)
