"""What a connection does beyond one request and its answer: order, waiting, peers that leave, limits of addresses."""

from __future__ import annotations

import itertools
import logging
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from edge.client import (
    BODY,
    Peer,
    again_if_held_up,
    allowed,
    chunked,
    connected,
    exchange,
    head,
    new_id,
    numbered,
    parse_all,
    post,
    still_open,
)
from edge.conftest import Serve
from edge.rows import CHUNKED
from edge.serving import PATIENCE, SECRET, Served
from fasthook import Gate, Verdict
from fasthook._core import VERDICTS
from fasthook._protocol import EDGE_COUNTERS

ACCEPTED = Verdict(0)


def counter(served: Served, name: str) -> int:
    """What the edge has counted."""
    stats = served.hook.receiver.gate.stats
    return stats.counter(stats.counters - len(EDGE_COUNTERS) + EDGE_COUNTERS.index(name))


def wait_for_count(served: Served, name: str, value: int) -> None:
    """Let the server's loop run until a counter stands at this."""
    end = time.monotonic() + PATIENCE
    while (stands := counter(served, name)) != value:
        assert time.monotonic() < end, f"{name} stands at {stands}, not {value}"
        served.settle()


class Held:
    """A receiver whose answers are kept back until it is told to give them."""

    def __init__(self, served: Served) -> None:
        self._accept = served.hook.receiver.accept
        self._waiting: list[Any] = []
        self._arrived = threading.Semaphore(0)
        self._served = served
        served.hook.receiver.accept = self.accept

    def accept(self, update: Any, waiter: Any) -> None:
        self._accept(update, waiter)
        self._waiting.append(waiter)
        self._arrived.release()

    def wait_for_one(self) -> None:
        """Return when one more update has come."""
        assert self._arrived.acquire(timeout=PATIENCE)

    def answer_one(self) -> None:
        self._served.call(lambda: self._waiting.pop(0).answer(ACCEPTED))


@pytest.fixture
def held(serve: Serve, loop_name: str) -> tuple[Served, Held]:
    """A server whose answers wait, and what gives them."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32768)
    served = serve(loop=loop_name, listener=listener)
    return served, Held(served)


# ---------------------------------------------------------------- order

MIXED = [
    (post(), 200),
    (head(line=b"GET /webhook HTTP/1.1"), 405),
    (head(CHUNKED) + chunked(BODY), 200),
    (post(line=b"POST /other HTTP/1.1"), 404),
    (post().replace(SECRET.encode(), b"wrong"), 401),
    (post(b"Content-Encoding: gzip"), 415),
    (post(), 200),
    (post(b"Connection: Upgrade", b"Upgrade: h2c"), 200),
    (post(b"Connection: keep-alive", line=b"POST /webhook HTTP/1.0"), 200),
    (post(b"X: y"), 200),
]


def test_a_hundred_pipelined_requests(served: Served) -> None:
    requests = list(itertools.islice(itertools.cycle(MIXED), 100))
    ids = [new_id() for _ in requests]
    sent = b"".join(numbered(request, update_id) for (request, _), update_id in zip(requests, ids, strict=True))
    with connected(served) as peer:
        peer.send(sent)
        assert [peer.read().status for _ in requests] == [status for _, status in requests]
        still_open(peer)
    for update_id, (_, status) in zip(ids, requests, strict=True):
        if status == 200:
            served.seen.wait_for(update_id)
        else:
            assert served.seen.times(update_id) == 0


def test_pipelined_requests_cut_anywhere(plain: Served) -> None:
    sent = b"".join(numbered(request, new_id()) for request, _ in MIXED)
    expected = [status for _, status in MIXED]
    for place in range(1, len(sent), 31):
        with connected(plain) as peer:
            peer.send(sent, [place])
            assert [peer.read().status for _ in MIXED] == expected


def test_nothing_is_read_behind_a_last_request(plain: Served) -> None:
    last = numbered(post(b"Connection: close"), new_id())
    later = new_id()
    answers = exchange(plain, last + numbered(post(), later))
    assert [answer.status for answer in answers] == [200]
    assert plain.seen.times(later) == 0


def test_answers_wait_for_each_other(held: tuple[Served, Held]) -> None:
    served, queue = held
    sent = numbered(post(), new_id()) + head(line=b"GET / HTTP/1.1") + numbered(post(), new_id())
    with connected(served) as peer:
        peer.send(sent)
        queue.wait_for_one()
        served.settle()
        assert peer.pending == b""
        queue.answer_one()
        assert peer.read().status == 200
        assert peer.read().status == 404
        queue.wait_for_one()
        served.settle()
        assert peer.pending == b""
        queue.answer_one()
        assert peer.read().status == 200
        still_open(peer)


def test_reading_pauses_behind_a_request_in_hand(held: tuple[Served, Held]) -> None:
    served, queue = held
    one = head(line=b"GET /pipelined HTTP/1.1")
    count = 8 * 1024 * 1024 // len(one)
    with connected(served) as peer:
        peer.send(numbered(post(), new_id()))
        queue.wait_for_one()
        sent = flood(served, peer, one * count)
        assert sent < 4 * 1024 * 1024, "the server reads without an end while a request is in hand"
        queue.answer_one()
        assert peer.read().status == 200
        for _ in range(sent // len(one)):
            assert peer.read().status == 404


def flood(served: Served, peer: Peer, data: bytes) -> int:
    """Send until the server takes no more; how many bytes went."""
    peer.socket.setblocking(False)
    sent = idle = 0
    while sent < len(data) and idle < 20:
        try:
            sent += peer.socket.send(data[sent : sent + 65536])
            idle = 0
        except BlockingIOError:
            served.settle()
            idle += 1
    peer.socket.settimeout(PATIENCE)
    return sent


# ---------------------------------------------------------------- peers that leave


def test_half_closed_behind_a_whole_request(plain: Served) -> None:
    assert [answer.status for answer in exchange(plain, numbered(post(), new_id()))] == [200]


def test_half_closed_while_the_answer_waits(held: tuple[Served, Held]) -> None:
    served, queue = held
    with connected(served) as peer:
        peer.send(numbered(post(), new_id()) + head(line=b"GET / HTTP/1.1"))
        queue.wait_for_one()
        peer.half_close()
        served.settle()
        queue.answer_one()
        assert [answer.status for answer in parse_all(peer.rest())] == [200, 404]


@pytest.mark.parametrize("sent", [b"POST /web", head(), post()[:-1], head(CHUNKED) + b"5\r\nab"], ids=str)
def test_half_closed_in_a_request(sent: bytes, plain: Served) -> None:
    sent = sent.replace(b"\r\n\r\n", b"\r\nContent-Length: 9\r\n\r\n") if sent == head() else sent
    before = counter(plain, "disconnects")
    assert exchange(plain, numbered(sent, new_id())) == []
    wait_for_count(plain, "disconnects", before + 1)


@pytest.mark.parametrize("sent", [b"POST /web", post()[:-1], head(CHUNKED) + b"5\r\nab"], ids=str)
def test_gone_in_a_request(sent: bytes, served: Served) -> None:
    before = counter(served, "disconnects")
    with connected(served) as peer:
        peer.send(numbered(sent, new_id()))
        served.settle()
        peer.reset()
    wait_for_count(served, "disconnects", before + 1)


@pytest.mark.parametrize("half", [b"POST /web", post()[:-1]], ids=str)
def test_half_closed_in_a_request_behind_another(held: tuple[Served, Held], half: bytes) -> None:
    served, queue = held
    with connected(served) as peer:
        peer.send(numbered(post(), new_id()) + half)
        queue.wait_for_one()
        peer.half_close()
        served.settle()
        queue.answer_one()
        assert [answer.status for answer in parse_all(peer.rest())] == [200]
    wait_for_count(served, "connections", 0)
    assert counter(served, "disconnects") == 1


def test_gone_between_requests_is_no_disconnect(plain: Served) -> None:
    opened, before = counter(plain, "connections"), counter(plain, "disconnects")
    with connected(plain) as silent, connected(plain) as peer:
        peer.send(numbered(post(), new_id()))
        assert peer.read().status == 200
        wait_for_count(plain, "connections", opened + 2)
        silent.reset()
    wait_for_count(plain, "connections", opened)
    assert counter(plain, "disconnects") == before


def test_gone_behind_a_whole_request(served: Served) -> None:
    update_id = new_id()
    request = numbered(post(), update_id)
    before = counter(served, "received_bytes")
    with connected(served) as peer:
        peer.send(request)
        end = time.monotonic() + PATIENCE
        while counter(served, "received_bytes") < before + len(request):
            assert time.monotonic() < end
            served.settle()
        peer.reset()  # what is on its way when that comes, the kernel may throw away
    assert served.seen.wait_for(update_id) == numbered(BODY, update_id)


def test_gone_while_the_answer_waits(held: tuple[Served, Held]) -> None:
    served, queue = held
    update_id = new_id()
    with connected(served) as peer:
        peer.send(numbered(post(), update_id))
        queue.wait_for_one()
        peer.reset()
    wait_for_count(served, "connections", 0)
    queue.answer_one()
    assert served.seen.wait_for(update_id) == numbered(BODY, update_id)


# ---------------------------------------------------------------- an answer that can be read

LARGE = b"x" * 1024 * 1024
LINGER = 0.25  # seconds that a TLS connection is kept behind its last answer; without TLS it is 2
EARLY = {
    "too large": (head(b"Content-Length: 1099511627776"), 413),
    "bad request": (head(b"Content-Length: 1048576", b"X : y"), 400),
    "another expectation": (head(b"Expect: x", b"Content-Length: 1048576"), 417),
    "expected, wrong secret": (
        head(b"Expect: 100-continue", b"Content-Length: 1048576").replace(SECRET.encode(), b"wrong"),
        401,
    ),
    "a method that there is not": (b"FROB / HTTP/1.1\r\n", 400),
}


@pytest.mark.parametrize(("sent", "status"), EARLY.values(), ids=EARLY.keys())
def test_an_answer_reaches_a_peer_that_goes_on_sending(sent: bytes, status: int, served: Served) -> None:
    def attempt() -> None:
        with connected(served) as peer, allowed(LINGER):
            peer.send(sent + LARGE)
            assert peer.read().status == status
            assert peer.rest() == b""

    again_if_held_up(attempt)


def test_a_refused_body_is_not_kept(plain: Served) -> None:
    """A body that nobody wants is read to its end, and the connection goes on."""
    body = b" " * 500_000
    for sent, status in {
        post(body=body, line=b"POST /other HTTP/1.1"): 404,
        post(body=body).replace(SECRET.encode(), b"wrong"): 401,
        post(b"Content-Encoding: gzip", body=body): 415,
        head(CHUNKED, line=b"PUT /webhook HTTP/1.1") + chunked(body): 405,
    }.items():
        with connected(plain) as peer:
            peer.send(sent)
            assert peer.read().status == status
            still_open(peer)


def test_a_refused_body_may_not_be_endless(plain: Served) -> None:
    """One that goes on past max-body ends the connection."""
    piece = b"ffff\r\n" + b"x" * 0xFFFF + b"\r\n"
    with connected(plain) as peer:
        peer.send(head(CHUNKED, line=b"POST /other HTTP/1.1"))
        assert peer.read().status == 404
        peer.send(piece * 32)
        assert peer.rest() == b""


# ---------------------------------------------------------------- as soon as it is known

NO_VERSION = [b"GET /webhook\r\n", b"POST /webhook\r\nHost: a\r\n", b"\r\nGET /\r\n", b"HEAD /webhook\r\n"]


@pytest.mark.parametrize("sent", NO_VERSION, ids=str)
def test_a_request_line_without_a_version_is_refused_with_its_end(sent: bytes, served: Served) -> None:
    with connected(served) as peer:
        peer.send(sent)
        answer = peer.read(sent.split()[0])
        assert (answer.status, answer.closes) == (400, True)
        assert peer.end() == b""


@pytest.mark.parametrize(
    ("sent", "status"), {b"GET / HTTP/2.0\r\n": 505, b"PRI * HTTP/2.0\r\n": 505, b"GET /  HTTP/1.1\r\n": 400}.items()
)
def test_a_wrong_request_line_is_refused_with_its_end(sent: bytes, status: int, served: Served) -> None:
    with connected(served) as peer:
        peer.send(sent)
        assert peer.read().status == status
        assert peer.end() == b""


HEADS = {
    "a space before the colon": (b"HEAD /webhook HTTP/1.1\r\nX : y\r\n", 400),
    "two spaces": (b"HEAD  /webhook HTTP/1.1\r\n", 400),
    "a NUL in the target": (b"HEAD /\x00", 400),
    "another version": (b"HEAD / HTTP/3.0\r\n", 505),
    "no Host": (b"HEAD / HTTP/1.1\r\n\r\n", 400),
    "a target that is too long": (b"HEAD /" + b"x" * 9000 + b" HTTP/1.1\r\n\r\n", 414),
    "behind an empty line": (b"\r\nHEAD / HTTP/3.0\r\n", 505),
}


@pytest.mark.parametrize(("sent", "status"), HEADS.values(), ids=HEADS.keys())
def test_a_refused_head_request_gets_no_body(sent: bytes, status: int, served: Served) -> None:
    """RFC 9110, section 9.3.2."""
    with connected(served) as peer:
        peer.send(sent, [3] if len(sent) < 100 else [])
        answer = peer.read(b"HEAD")
        assert (answer.status, answer.closes) == (status, True)
        assert answer.header(b"content-length") != b"0"
        assert peer.end() == b""


@pytest.mark.parametrize("sent", [b"HEAR / HTTP/1.1\r\n", b"HEADS / HTTP/1.1\r\n", b"HEAD\x00"], ids=str)
def test_another_method_is_not_taken_for_head(sent: bytes, served: Served) -> None:
    with connected(served) as peer:
        peer.send(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n" + sent)
        assert peer.read(b"HEAD").status == 404
        answer = peer.read()
        assert (answer.status, answer.closes) == (400, True)


MARK = b"marked-by-the-peer"


@pytest.mark.parametrize(
    "sent",
    [
        post(b"X-Forwarded-For: " + MARK, b"Cookie: " + MARK, b"Origin: " + MARK),
        head(b"Expect: " + MARK),
        head(b"Connection: " + MARK, line=b"GET /" + MARK + b"?" + MARK + b" HTTP/1.1"),
        head(line=b"PUT http://" + MARK + b"/webhook HTTP/1.1", host=b"Host: " + MARK),
        head(b"Host: " + MARK),
        MARK + b"\r\n\r\n",
        post(body=MARK),
        post(line=b"POST /webhook HTTP/1.1").replace(SECRET.encode(), MARK),
    ],
)
def test_nothing_that_a_peer_sends_is_in_an_answer(sent: bytes, plain: Served) -> None:
    with connected(plain) as peer:
        peer.send(numbered(sent, new_id()))
        peer.half_close()
        answered = peer.rest()
    assert answered.startswith(b"HTTP/1.1 ")
    assert MARK not in answered


# ---------------------------------------------------------------- 100 Continue


@pytest.mark.parametrize("framing", [b"Content-Length: %d" % len(BODY), CHUNKED], ids=["length", "chunked"])
def test_continue_comes_before_the_body(framing: bytes, served: Served) -> None:
    body = BODY if framing != CHUNKED else chunked(BODY)
    with connected(served) as peer:
        peer.send(head(b"Expect: 100-continue", framing))
        interim = peer.socket.recv(1000)
        assert interim == b"HTTP/1.1 100 Continue\r\n\r\n"
        peer.send(numbered(body, new_id()))
        answer = peer.read()
        assert (answer.status, answer.interim) == (200, ())
        still_open(peer)


# ---------------------------------------------------------------- what is counted


def test_requests_bytes_and_latency_are_counted(serve: Serve, loop_name: str) -> None:
    served = serve(loop=loop_name)
    update_id = new_id()
    one, wrong_path = numbered(post(), update_id), head(line=b"GET / HTTP/1.1")
    requests = {
        "accepted": one,
        "duplicate": one,
        "not_found": wrong_path,
        "unauthorized": wrong(),
        "bad_request": b"?",
    }
    with connected(served) as peer:
        peer.send(one)
        served.seen.wait_for(update_id)
        served.settle()
        peer.send(b"".join(requests.values())[len(one) :])
        answers = peer.rest()
    assert [answer.status for answer in parse_all(answers)] == [200, 200, 404, 401, 400]
    stats = served.hook.receiver.gate.stats
    of_path = {"accepted": 1, "duplicate": 1, "unauthorized": 1}
    assert {name: stats.counter(counters(1, name)) for name in of_path} == of_path
    of_none = {"not_found": 1, "bad_request": 1}
    assert {name: stats.counter(counters(0, name)) for name in of_none} == of_none
    assert counter(served, "received_bytes") == sum(map(len, requests.values()))
    assert counter(served, "sent_bytes") == len(answers)
    assert sum(count for _, count in stats.histogram(0)[1]) == len(requests)


def counters(row: int, verdict: str) -> int:
    """The place of a verdict's counter in the row of a path, or in row 0 for none."""
    return row * Gate.counters(0) + [name for name, *_ in VERDICTS].index(verdict)


# ---------------------------------------------------------------- many chunks


@pytest.mark.parametrize("count", [100_000, 1_000_000])
def test_chunks_of_one_byte(count: int, plain: Served) -> None:
    update_id = new_id()
    body = numbered(BODY[:-1], update_id).ljust(count - 1) + b"}"
    sent = head(CHUNKED) + b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    with connected(plain) as peer:
        peer.send(sent)
        assert peer.read().status == 200
        still_open(peer)
    assert plain.seen.wait_for(update_id) == body


# ---------------------------------------------------------------- how many, and from where


def test_too_many_connections(serve: Serve, loop_name: str) -> None:
    served = serve(loop=loop_name, max_connections=2)
    with connected(served) as first, connected(served) as second:
        still_open(first)
        still_open(second)
        with connected(served) as third:
            answer = third.read()
            assert (answer.status, answer.header(b"retry-after"), answer.closes) == (503, b"1", True)
            assert third.rest() == b""
        still_open(first)
    wait_for_count(served, "connections", 0)
    with connected(served) as again:
        still_open(again)


def test_too_many_connections_while_the_refused_one_sends(serve: Serve) -> None:
    served = serve(max_connections=1)
    with connected(served) as first:
        still_open(first)

        def attempt() -> None:
            with connected(served) as second, allowed(LINGER):
                second.send(numbered(post(), new_id()) + LARGE)
                assert second.read().status == 503
                assert second.rest() == b""

        again_if_held_up(attempt)


def test_allowed_addresses(serve: Serve, loop_name: str) -> None:
    with connected(serve(loop=loop_name, allow_ip="127.0.0.0/8, ::1")) as peer:
        still_open(peer)
    for others in ("telegram", "10.0.0.0/8,2001:db8::/32"):
        served = serve(loop=loop_name, allow_ip=others)
        with connected(served) as peer:
            answer = peer.read()  # before anything was sent
            assert (answer.status, answer.closes) == (403, True)
            assert peer.rest() == b""


def forwarded(*values: bytes) -> bytes:
    return numbered(post(*[b"X-Forwarded-For: " + value for value in values]), new_id())


FORWARDED = {
    (b"149.154.160.1",): 200,
    (b"8.8.8.8, 149.154.160.1",): 200,
    (b"8.8.8.8", b"149.154.160.1"): 200,
    (b"149.154.160.1, 127.0.0.1",): 200,
    (b"149.154.160.1,127.0.0.2 , 127.0.0.1",): 200,
    (b"8.8.8.8",): 403,
    (b"149.154.160.1, 8.8.8.8",): 403,
    (b"149.154.160.1", b"8.8.8.8"): 403,
    (b"149.154.160.1, nonsense",): 403,
    (b"nonsense",): 403,
    (): 403,
}


@pytest.mark.parametrize(("values", "status"), FORWARDED.items(), ids=str)
def test_allowed_addresses_behind_a_proxy(values: tuple[bytes, ...], status: int, behind_proxy: Served) -> None:
    with connected(behind_proxy) as peer:
        peer.send(forwarded(*values))
        answer = peer.read()
        assert answer.status == status
        assert answer.closes == (status == 403)


LONG_TARGET = b"POST /" + b"x" * 9000 + b" HTTP/1.1"


@pytest.mark.parametrize("cut", [[], [3], [8800], [9040]], ids=str)
@pytest.mark.parametrize(
    "what", [{"host": b"Host: a b"}, {"host": None}, {"line": LONG_TARGET}, {"line": b"CONNECT a:1 HTTP/1.1"}], ids=str
)
@pytest.mark.parametrize(("source", "forbidden"), [(b"8.8.8.8", True), (b"149.154.160.1", False)], ids=str)
def test_a_forbidden_client_behind_a_proxy_is_told_nothing_else(
    what: dict[str, Any], cut: list[int], source: bytes, forbidden: bool, behind_proxy: Served
) -> None:
    with connected(behind_proxy) as peer:
        peer.send(post(b"X-Forwarded-For: " + source, **what), cut)
        answer = peer.read()
    assert (answer.status == 403) == forbidden
    assert answer.closes


@pytest.fixture(scope="module")
def behind_proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    state = tmp_path_factory.mktemp("proxy") / "state"
    served = Served(state, allow_ip="telegram", trusted_proxy="127.0.0.0/8")
    yield served
    served.stop()


def test_an_address_with_a_zone_is_not_believed(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    """A zone is any text (RFC 4007, section 11): it would forge a line of the access log."""
    served = serve(trusted_proxy="127.0.0.1", access_log=True)
    with caplog.at_level(logging.INFO, "fasthook.access"):
        exchange(served, forwarded(b"fe80::1%x POST /webhook 200 accepted"))
        exchange(served, forwarded(b"fe80::1"))
    assert [record.getMessage() for record in caplog.records if record.name == "fasthook.access"] == [
        "127.0.0.1 POST /webhook 200 accepted",
        "fe80::1 POST /webhook 200 accepted",
    ]


def test_an_address_is_forged_in_vain(serve: Serve) -> None:
    served = serve(allow_ip="telegram", trusted_proxy="10.0.0.1")
    with connected(served) as peer:
        assert peer.read().status == 403


def wrong(*headers: bytes) -> bytes:
    return post(*headers).replace(SECRET.encode(), b"wrong")


def test_wrong_secrets_are_charged_to_the_client_of_a_proxy(serve: Serve) -> None:
    served = serve(trusted_proxy="127.0.0.1", auth_rate="1/h")
    asked = [b"192.0.2.1", b"192.0.2.1", b"192.0.2.2", b"9.9.9.9, 192.0.2.2", b"192.0.2.3"]
    statuses = [exchange(served, wrong(b"X-Forwarded-For: " + address))[0].status for address in asked]
    assert statuses == [401, 429, 401, 429, 401]
    assert exchange(served, numbered(post(b"X-Forwarded-For: 192.0.2.1"), new_id()))[0].status == 200


def test_a_header_does_not_hide_who_guesses(serve: Serve) -> None:
    served = serve(auth_rate="1/h")
    statuses = [exchange(served, wrong(b"X-Forwarded-For: 192.0.2.%d" % n))[0] for n in range(2)]
    assert [answer.status for answer in statuses] == [401, 429]
    assert statuses[1].closes
    assert statuses[1].header(b"retry-after") is not None
