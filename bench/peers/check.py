"""--check: that each peer really does the job it is measured at, seen from outside, with a handful of requests."""

from __future__ import annotations

import socket
import time

from bench.peers import job, traffic
from bench.peers.catalog import Peer
from bench.peers.process import Server, serving

HANDLED_WITHIN = 5.0  # seconds


class CheckError(Exception):
    """The peer does not do what the others do."""


def _answer(connection: socket.socket, request: bytes) -> int:
    """The status of the answer, read whole (all peers send Content-Length), so that the connection can go on."""
    connection.sendall(request)
    with connection.makefile("rb") as lines:
        status = int(lines.readline().split()[1])
        length = 0
        while (line := lines.readline().strip().lower()) not in (b"", b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        lines.read(length)
    return status


def _expect(what: str, found: object, wanted: object) -> None:
    if found != wanted:
        raise CheckError(f"{what}: {found}, not {wanted}")


def _wait_until_handled(server: Server, ids: list[int]) -> None:
    witness = server.log.parent / "witness"
    deadline = time.monotonic() + HANDLED_WITHIN
    seen: list[int] = []
    while time.monotonic() < deadline:
        seen = sorted(int(line) for line in witness.read_text().split()) if witness.exists() else []
        if len(seen) >= len(ids):
            break
        time.sleep(0.05)
    server.settle()  # a duplicate that slips through comes a little later
    seen = sorted(int(line) for line in witness.read_text().split()) if witness.exists() else []
    _expect("handled", seen, ids)


def check(peer: Peer) -> str:
    """Good requests on one connection, a wrong secret, a duplicate; answers what was seen.

    Raises:
        CheckError: something was not as it should be.
        ServerError: the peer did not start.
    """
    ids = [300_000_001, 300_000_002, 300_000_003]
    with serving(peer, witnessed=True) as server:
        text = traffic.template(server.port, peer.path)
        good = [traffic.request(text, update_id) for update_id in ids]
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            for request in good:
                _expect("status", _answer(connection, request), 200)
            if peer.handles:
                _expect("status of a duplicate", _answer(connection, good[0]), 200)
        if peer.refuses:
            wrong = traffic.request(text, 300_000_004).replace(job.SECRET.encode(), b"x" * len(job.SECRET))
            with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
                _expect("status with a wrong secret", _answer(connection, wrong), peer.refuses)
        if peer.handles:
            _wait_until_handled(server, ids)
    refused = f", {peer.refuses} to a wrong secret" if peer.refuses else ""
    handled = ", each id handled once" if peer.handles else ""
    return f"200 to good{refused}{handled}"
