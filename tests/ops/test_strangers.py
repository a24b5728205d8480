"""Whoever reaches the address of the ops server takes neither descriptors nor memory from the bot."""

from __future__ import annotations

import contextlib
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.process import PATIENCE, Server
from fasthook.ops.connection import LARGEST_HEAD, MOST
from ops.conftest import Serve
from ops.scrape import Ops

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="open files are counted in /proc")


@contextlib.contextmanager
def strangers(ops: Ops, count: int) -> Iterator[list[socket.socket]]:
    """So many connections."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(socket.create_connection(ops.address, PATIENCE)) for _ in range(count)]


def descriptors(server: Server) -> int:
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))


def test_many_silent_connections(serve: Serve) -> None:
    """They are few at any time, and who asks is answered beside them."""
    server, ops = serve()
    assert ops.ask("/healthz").status == 200
    before = descriptors(server)
    with strangers(ops, 10 * MOST):
        for path in ("/healthz", "/readyz", "/metrics"):
            assert ops.ask(path).status == 200
        assert descriptors(server) <= before + MOST + 1


def test_a_silent_connection_has_its_time(serve: Serve) -> None:
    _, ops = serve()
    with strangers(ops, 3) as (silent, begun, slow):
        begun.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n")
        slow.sendall(b"POST /healthz HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel")
        assert slow.recv(100).startswith(b"HTTP/1.1 405 ")
        for one in (silent, begun, slow):
            with contextlib.suppress(ConnectionResetError):
                while one.recv(1000):
                    pass


def test_a_head_without_an_end(serve: Serve) -> None:
    """It is refused as soon as it is too large, and not kept."""
    _, ops = serve()
    with strangers(ops, 1) as (stranger,):
        stranger.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\nA: ")
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            stranger.sendall(b"a" * LARGEST_HEAD * 1000)
    assert ops.ask("/healthz").status == 200


def test_strangers_that_ask_much_and_do_not_read(serve: Serve) -> None:
    """They are as many as there is room for, and who asks is answered beside them; in the end they are cut off."""
    server, ops = serve()
    assert ops.ask("/healthz").status == 200
    before = descriptors(server)
    with contextlib.ExitStack() as stack:
        for _ in range(MOST + 8):
            one = stack.enter_context(socket.socket())
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            one.settimeout(PATIENCE)
            one.connect(ops.address)
            one.sendall(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n" * 200)
        for _ in range(5):
            for path in ("/healthz", "/readyz", "/metrics"):
                assert ops.ask(path).status == 200
        end = time.monotonic() + PATIENCE
        while descriptors(server) > before:
            assert time.monotonic() < end
            time.sleep(0.1)
