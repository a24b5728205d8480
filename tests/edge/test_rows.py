"""Every row of the HTTP rules, over real sockets: sent whole, cut at every byte, and cut at random places."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Iterator

import pytest

from edge.client import Peer, connected, new_id, numbered, still_open
from edge.rows import ROWS, Row
from edge.serving import Served
from edge.wire import Rig


def check(row: Row, served: Served, cuts: list[int], *, may_reset: bool = False) -> None:
    """Send the row's bytes in pieces; the answer is what the row says, and what becomes of the connection.

    `may_reset`: a connection may end with a reset.
    """
    update_id = new_id()
    with connected(served) as peer:
        peer.send(numbered(row.sent, update_id), cuts)
        answer = peer.read(row.method)
        assert answer.status in row.status
        assert answer.interim in row.interim
        for name, value in row.headers.items():
            assert answer.header(name) == value
        if row.method == b"HEAD":
            assert answer.header(b"content-length") is not None
        with contextlib.suppress(*[ConnectionResetError] * may_reset):
            check_end(row, peer, answer.closes)
    if row.body is None:
        assert served.seen.times(update_id) == 0
    else:
        assert served.seen.wait_for(update_id) == numbered(row.body, update_id)


def check_end(row: Row, peer: Peer, says_close: bool) -> None:
    close = says_close if row.close is None else row.close
    assert says_close == close
    if close:
        assert peer.end() == b"", "bytes behind the answer that closes"
    else:
        still_open(peer)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_whole(row: Row, served: Served) -> None:
    check(row, served, [])


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_cut_at_random_places(row: Row, served: Served) -> None:
    chosen = random.Random(row.name)
    places = range(1, len(row.sent))
    for count in (1, 1, 1, 1, 3, 12):
        cuts = sorted(chosen.sample(places, min(count, len(places))))
        with told(row, cuts):
            check(row, served, cuts)


@pytest.mark.parametrize("row", [row for row in ROWS if row.short], ids=lambda row: row.name)
def test_byte_by_byte(row: Row, plain: Served) -> None:
    check(row, plain, list(range(1, len(row.sent))))


@pytest.mark.parametrize("row", [row for row in ROWS if row.short], ids=lambda row: row.name)
def test_cut_in_two_at_every_byte(row: Row, rig: Rig) -> None:
    sent = numbered(row.sent, new_id())
    whole = rig.talk([sent])
    for place in range(1, len(sent)):
        with told(row, [place]):
            assert rig.talk([sent[:place], sent[place:]]) == whole


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with asyncio.Runner() as runner:
        rig = Rig(runner.get_loop(), tmp_path_factory.mktemp("rows") / "state")
        yield rig
        rig.close()


@contextlib.contextmanager
def told(row: Row, cuts: list[int]) -> Iterator[None]:
    """Say in a failure where the bytes were cut."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"cut at {', '.join(f'byte {cut} ({row.sent[cut - 8 : cut + 8]!r})' for cut in cuts)}")
        raise


def test_the_rows_have_names_of_their_own() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)
