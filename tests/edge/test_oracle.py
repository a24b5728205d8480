"""The edge against h11: what h11 refuses is refused, and what both accept means the same."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edge.client import BODY, ID, Response, chunked, head, numbered, post
from edge.reading import check, read
from edge.rows import CHUNKED, ROWS, TOKEN, Row
from edge.serving import SECRET
from edge.wire import Rig, cut

SMALL = 4096  # a limit here, so that small inputs can go beyond it


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with asyncio.Runner() as runner:
        rig = Rig(runner.get_loop(), tmp_path_factory.mktemp("oracle") / "state", max_body=SMALL)
        yield rig
        rig.close()


# ---------------------------------------------------------------- requests, and what may be done to them

METHODS = [b"POST", b"POST", b"POST", b"GET", b"HEAD", b"PUT", b"CONNECT", b"post", b"FROB", b"POS T", b""]
TARGETS = [
    b"/webhook", b"/webhook", b"/webhook?a=b", b"/", b"/other", b"http://a/webhook", b"http://b/webhook", b"*", b"a:80",
    b"webhook", b"/web\x00hook", b"/webhook\xff", b"/webhook\t", b"/webhook#x", b"//webhook", b"",
]  # fmt: skip
VERSIONS = [b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/1.2", b"HTTP/2.0", b"HTTP/0.9", b"http/1.1", b""]
HEADERS = [
    b"Host: a", b"Host: b", b"Host:", b"Host : a", b"Host: a, b", b"Host: u@a",
    b"Content-Length: 3", b"Content-Length: +3", b"Content-Length: 3, 3", b"Content-Length: 03", b"Content-Length : 3",
    b"Content-Length:", b"Content-Length: 3\r\n 3", b"Content-Length: 0", b"Content-Length: 99999",
    b"Transfer-Encoding: chunked", b"Transfer-Encoding : chunked", b"Transfer-Encoding: CHUNKED",
    b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding: chunked, identity", b"Transfer-Encoding: \x0bchunked",
    b"Transfer-Encoding:\r\n chunked", b"Transfer-Encoding: xchunked", b"Transfer-Encoding:",
    b"Transfer_Encoding: chunked", b"Connection: close", b"Connection: keep-alive", b"Connection: keep-alive, close",
    b"Connection: upgrade\r\nUpgrade: h2c", b"Expect: 100-continue", b"Expect: other",
    b"Content-Encoding: gzip", b"Content-Encoding: identity", TOKEN + b": wrong", TOKEN + b": " + SECRET.encode(),
    b"X: a\r\n b", b"X: \x00", b"X: \x7f", b"X: a\rb", b"X: a\nb", b": x", b"X", b"X Y: z", b" X: y", b"X:\xff",
]  # fmt: skip
BODIES = [b"", b"abc", BODY, chunked(BODY), chunked(b"abc", b"de"), chunked(BODY, trailer=b"X: y\r\n"), b"0\r\n\r\n"]
SECOND = [
    b"",
    b"",
    post(),
    head(line=b"GET /second HTTP/1.1"),
    b"\r\n" + post(),
    b"\r\n" + head(line=b"GET / HTTP/1.1"),
]
INSERTED = [
    b"\r\n", b"\n", b"\r", b"\x00", b" ", b"\t", b":", b",", b";", b"0", b"f", b"\x0b", b"\x7f", b"\x80", b"\r\n ",
    b"\r\n\r\n", b";x=y", b"HTTP/1.0", b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"0\r\n\r\n",
    b"GET / HTTP/1.1\r\n",
]  # fmt: skip


@st.composite
def composed(draw: st.DrawFn) -> bytes:
    """A request put together from parts of which many are wrong."""
    line = b" ".join([draw(st.sampled_from(METHODS)), draw(st.sampled_from(TARGETS)), draw(st.sampled_from(VERSIONS))])
    headers = draw(st.lists(st.sampled_from(HEADERS), max_size=4))
    body = draw(st.sampled_from(BODIES))
    if draw(st.booleans()):
        headers.append(b"Content-Length: %d" % len(body))
    host = draw(st.sampled_from([b"Host: a", b"Host: a", b"Host: a", None]))
    return head(*draw(st.permutations(headers)), line=line, host=host) + body


@st.composite
def mutated(draw: st.DrawFn, start: st.SearchStrategy[bytes]) -> bytes:
    """The bytes of a request with a few of them changed."""
    data = draw(start)
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        how = draw(st.sampled_from(["insert", "flip", "remove", "repeat line"]))
        if how == "insert":
            data = data[:at] + draw(st.sampled_from(INSERTED)) + data[at:]
        elif how == "flip":
            data = data[:at] + bytes([draw(st.integers(0, 255))]) + data[at + 1 :]
        elif how == "remove":
            data = data[:at] + data[at + draw(st.integers(1, 8)) :]
        else:
            lines = data.split(b"\r\n")
            at %= len(lines)
            data = b"\r\n".join([*lines[:at], lines[at], *lines[at:]])
    return data


VALID = st.sampled_from(
    [
        post(),
        post(b"X: y", body=BODY + b" "),
        head(CHUNKED) + chunked(BODY[:9], BODY[9:]),
        head(CHUNKED) + chunked(BODY, trailer=b"X: y\r\n"),
        head(line=b"GET /webhook HTTP/1.1"),
        post(b"Connection: keep-alive", line=b"POST /webhook HTTP/1.0"),
    ]
)
REQUEST = mutated(VALID) | mutated(composed()) | composed()
PLACES = st.lists(st.integers(0, 1 << 16), max_size=6)


# ---------------------------------------------------------------- the comparison


def compare(rig: Rig, data: bytes, places: list[int]) -> list[Response]:
    """Give the bytes to both, and fail where the edge goes beyond h11; its answers."""
    rig.taken.clear()
    answered = rig.talk(cut(data, places))
    return check(read(data), answered, rig.taken, closed=rig.closed)


@settings(deadline=None, max_examples=1500)
@given(first=REQUEST, second=st.sampled_from(SECOND), places=PLACES)
def test_agrees_with_h11(rig: Rig, first: bytes, second: bytes, places: list[int]) -> None:
    compare(rig, numbered(first + second, 1_000_000_000), places)


@settings(deadline=None, max_examples=300)
@given(data=st.binary(max_size=200), places=PLACES)
@example(data=b"\n\n" + post(), places=[])
@example(data=b"\r" + post(), places=[])
def test_agrees_on_noise(rig: Rig, data: bytes, places: list[int]) -> None:
    compare(rig, data, places)


@pytest.mark.parametrize("row", [row for row in ROWS if row.short and row.method != b"HEAD"], ids=lambda row: row.name)
def test_agrees_on_the_rows(rig: Rig, row: Row) -> None:
    sent = numbered(row.sent, 1_000_000_000)
    answers = compare(rig, sent, [])
    assert answers[0].status in row.status


def test_the_oracle_accepts_what_is_valid(rig: Rig) -> None:
    data = numbered(post() + head(CHUNKED) + chunked(BODY) + post(b"Connection: close"), 1_000_000_000)
    assert [answer.status for answer in compare(rig, data, [])] == [200, 200, 200]
    assert rig.taken == [numbered(BODY, 1_000_000_000)] * 3
    assert ID not in data
