"""A connection's share of memory: bounded before it has shown the secret, after that, and while an answer waits."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge.client import chunked, head, numbered, parse_all, post
from edge.rows import CHUNKED
from edge.serving import SECRET
from edge.wire import ACCEPTED, Rig, Wire, rest

KIB, MIB = 1024, 1024 * 1024
MAX_HEAD, MAX_BODY = 16 * KIB, 1 * MIB
PIECE = 16 * KIB
AHEAD = 64 * KIB
OWN = 8 * KIB  # the objects of a connection, its parser and what is left of a last piece


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with asyncio.Runner() as runner:
        rig = Rig(runner.get_loop(), tmp_path / "state", max_body=MAX_BODY, max_head=MAX_HEAD)
        yield rig
        rig.close()


def held_while(rig: Rig, pieces: list[bytes]) -> int:
    """The most that a connection holds between pieces that arrive one after the other."""

    async def feeding() -> int:
        for counted in (False, True):  # the first makes what all connections share
            wire = rig.connect()
            tracemalloc.start()
            before, most = tracemalloc.get_traced_memory()[0], 0
            for piece in pieces:
                if not await wire.feed(piece):
                    break
                wire.answered.clear()
                most = max(most, tracemalloc.get_traced_memory()[0] - before)
            tracemalloc.stop()
            await wire.lose()
            rig.taken.clear()
            assert counted or most >= 0
        return most

    return rig.loop.run_until_complete(feeding())


def in_pieces(data: bytes) -> list[bytes]:
    return [data[at : at + PIECE] for at in range(0, len(data), PIECE)]


def test_a_head_without_an_end(rig: Rig) -> None:
    assert held_while(rig, [head()[:-2], *[b"X: " + b"x" * 90 + b"\r\n"] * 1000]) < 2 * MAX_HEAD + OWN


@pytest.mark.parametrize("line", [b"POST /webhook HTTP/1.1", b"POST /other HTTP/1.1", b"PUT /webhook HTTP/1.1"])
def test_the_body_of_a_stranger_is_not_kept(rig: Rig, line: bytes) -> None:
    wrong = head(CHUNKED, line=line).replace(SECRET.encode(), b"wrong")
    assert held_while(rig, in_pieces(wrong + chunked(*[b"x" * KIB] * 900))) < OWN + PIECE


def test_a_body_that_is_too_large_is_not_kept(rig: Rig) -> None:
    assert held_while(rig, in_pieces(head(b"Content-Length: %d" % (8 * MIB)) + b"x" * 8 * MIB)) < OWN + PIECE


@pytest.mark.parametrize("framing", [b"Content-Length: %d" % MAX_BODY, CHUNKED], ids=["length", "chunked"])
def test_a_body_is_kept_once(rig: Rig, framing: bytes) -> None:
    body = b"x" * MAX_BODY if framing != CHUNKED else chunked(*[b"x" * KIB] * 3000)
    most = held_while(rig, in_pieces(head(framing) + body[:-1]))
    assert MAX_BODY / 2 < most < MAX_BODY * 9 / 8 + OWN + PIECE  # a bytearray that grows has up to an eighth to spare


def test_reading_pauses_behind_64_kib_while_an_answer_waits(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting: list[Any] = []
    monkeypatch.setattr(rig.receiver, "accept", lambda update, waiter: waiting.append((update, waiter)))

    async def main() -> None:
        wire: Wire = rig.connect()
        one = numbered(post(), 1_000_000_001)
        await wire.feed(one)
        assert len(waiting) == 1
        behind = head(line=b"GET /pipelined HTTP/1.1")
        sent = 0
        while not wire.paused:
            assert sent <= AHEAD, "it reads on"
            assert await wire.feed(behind)
            sent += len(behind)
        assert sent > AHEAD
        assert not wire.answered, "they are answered in order"
        update, waiter = waiting.pop()
        rig.receiver.gate.release(update)
        waiter.answer(ACCEPTED)
        for _ in range(100):
            await rest()
        assert not wire.paused
        statuses = [answer.status for answer in parse_all(bytes(wire.answered))]
        assert statuses == [200] + [404] * (sent // len(behind))
        await wire.lose()

    rig.loop.run_until_complete(main())
