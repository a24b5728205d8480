"""The head that repeats: what a connection remembers of a head changes no answer, only the work."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httptools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fasthook._protocol
from edge.client import BODY, LINE, chunked, head, numbered, parse_all, post
from edge.rows import CHUNKED, OLD, TOKEN
from edge.serving import SECRET
from edge.wire import Rig, cut

PATH = b"/webhook"
NEW_SECRET = "another-secret"
SMALL = 2048


@dataclass(frozen=True)
class Rigs:
    """The same hook with the memory and without it."""

    on: Rig
    off: Rig

    @property
    def both(self) -> tuple[Rig, Rig]:
        return self.on, self.off


@pytest.fixture(scope="module")
def rigs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rigs]:
    with asyncio.Runner() as runner:
        on, off = (
            Rig(
                runner.get_loop(),
                tmp_path_factory.mktemp("repeat") / "state",
                remember=remember,
                max_body=SMALL,
                **LIMITS,
            )
            for remember in (True, False)
        )
        yield Rigs(on, off)
        on.close()
        off.close()


LIMITS = {"max_head": 1024, "max_headers": 8}

# ---------------------------------------------------------------- requests that are alike


def near_the_limit(length: bytes, spare: int) -> bytes:
    """A head of the largest size, less `spare`, if its length has three digits."""
    room = LIMITS["max_head"] - len(head(b"X: ", b"Content-Length: 999")) - spare
    return head(b"X: " + b"x" * room, b"Content-Length: " + length)


USUAL = (b"Content-Type: application/json", b"Connection: keep-alive", b"Accept-Encoding: gzip, deflate")
BODIES = st.sampled_from([b"", b"{}", BODY, BODY + b" ", BODY + b" " * 9, BODY + b" " * 907, BODY + b" " * SMALL])
HEADS: list[Callable[[bytes], bytes]] = [
    lambda length: head(b"Content-Length: " + length, *USUAL),
    lambda length: head(b"Content-Length: " + length, *USUAL),
    lambda length: head(b"content-length:" + length),
    lambda length: head(b"Content-Length: \t" + length + b" "),
    lambda length: head(b"X: Content-Length: 5", b"Content-Length: " + length),
    lambda length: head(b"X-Content-Length: 5", b"Content-Length: " + length),
    lambda length: head(b"Content-Length: " + length, line=LINE.replace(PATH, PATH + b"?a=b")),
    lambda length: head(b"Content-Length: " + length, b"Connection: close"),
    lambda length: head(b"Content-Length: " + length, b"Expect: 100-continue"),
    lambda length: head(b"Content-Length: " + length, b"Upgrade: h2c", b"Connection: upgrade"),
    lambda length: head(b"Content-Length: " + length, b"Content-Encoding: gzip"),
    *[lambda length, spare=spare: near_the_limit(length, spare) for spare in range(4)],  # type: ignore[misc]
    lambda length: head(b"Content-Length: " + length, b"Connection: keep-alive", line=OLD),
    lambda length: head(b"Content-Length: " + length, b"Content-Length: " + length),
    lambda length: head(b"Content-Length: " + length, line=b"PUT /webhook HTTP/1.1"),
    lambda length: head(b"Content-Length: " + length).replace(SECRET.encode(), NEW_SECRET.encode()),
    lambda length: head(b"Content-Length: " + length).replace(TOKEN, b"X-Nothing"),
]
LENGTHS: list[Callable[[bytes], bytes]] = [
    *[lambda body: b"%d" % len(body)] * 8,
    lambda body: b"0%d" % len(body),
    lambda body: b"00000%d" % len(body),
    lambda body: b"000000000%d" % len(body),
    lambda body: b"+%d" % len(body),
    lambda body: b"%d " % len(body),
    lambda body: b"%d," % len(body),
    lambda body: b"%d\n" % len(body),
    lambda body: b"%d\r\nX: y" % len(body),
    lambda body: b"%da" % len(body),
    lambda body: b"",
    lambda body: b"9999999",
    lambda body: b"99999999",
]
OTHER = st.sampled_from(
    [
        b"\r\n",
        head(line=b"GET / HTTP/1.1"),
        head(CHUNKED) + chunked(BODY),
        head(*USUAL),
        post(b"X: " + b"y" * 1100),
        b"nonsense\r\n\r\n",
    ]
)


@st.composite
def alike(draw: st.DrawFn) -> bytes:
    """Requests of which many have the same head but for the digits of its length, and some are not quite the same."""
    kinds = draw(st.lists(st.sampled_from(HEADS), min_size=1, max_size=2))
    requests = []
    for _ in range(draw(st.integers(2, 6))):
        body = draw(BODIES)
        length = draw(st.sampled_from(LENGTHS))(body)
        requests.append(draw(st.sampled_from(kinds))(length) + body)
        if draw(st.integers(0, 9)) == 0:
            requests.append(draw(OTHER))
    data = b"".join(requests)
    if draw(st.integers(0, 3)) == 0:
        at = draw(st.integers(0, len(data) - 1))
        data = data[:at] + bytes([draw(st.integers(0, 255))]) + data[at + 1 :]
    return numbered(data, 1_000_000_000)


PLACES = st.lists(st.integers(0, 1 << 16), max_size=5)


def talk(rig: Rig, pieces: list[bytes], between: Callable[[Rig, int], None]) -> tuple[bytes, list[bytes]]:
    """What is answered to these pieces, and the bodies that were taken."""
    rig.taken.clear()
    return rig.talk(pieces, between=lambda number: between(rig, number)), list(rig.taken)


def nothing(rig: Rig, number: int) -> None:
    pass


@settings(deadline=None, max_examples=1200)
@given(data=alike(), places=PLACES, later=st.booleans())
def test_the_same_answers(rigs: Rigs, data: bytes, places: list[int], later: bool) -> None:
    for rig in rigs.both:
        rig.later = later
    pieces = cut(data, places)
    assert talk(rigs.on, pieces, nothing) == talk(rigs.off, pieces, nothing)


SECRETS = {
    "old": (SECRET.encode(),),
    "new": (NEW_SECRET.encode(),),
    "both": (NEW_SECRET.encode(), SECRET.encode()),
}


@settings(deadline=None, max_examples=600)
@given(
    data=alike(),
    places=PLACES,
    later=st.booleans(),
    changes=st.dictionaries(st.integers(0, 5), st.sampled_from(sorted(SECRETS)), max_size=3),
)
def test_the_same_answers_while_secrets_change(
    rigs: Rigs, data: bytes, places: list[int], later: bool, changes: dict[int, str]
) -> None:
    def change(rig: Rig, number: int) -> None:
        if number in changes:
            rig.receiver.gate.rotate(PATH, SECRETS[changes[number]])

    for rig in rigs.both:
        rig.later = later
    pieces = cut(data, places)
    try:
        assert talk(rigs.on, pieces, change) == talk(rigs.off, pieces, change)
    finally:
        for rig in rigs.both:
            rig.receiver.gate.rotate(PATH, SECRETS["old"])


# ---------------------------------------------------------------- that there is a memory, and what is in it


@pytest.fixture
def fed(rigs: Rigs, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What was given to llhttp; answers come at once."""
    for rig in rigs.both:
        monkeypatch.setattr(rig, "later", False)
    pieces: list[bytes] = []

    class Parser(httptools.HttpRequestParser):  # type: ignore[misc]
        def feed_data(self, data: bytes | memoryview) -> None:
            pieces.append(bytes(data))
            super().feed_data(data)

    monkeypatch.setattr(fasthook._protocol, "_Parser", Parser)
    return pieces


def heads(fed: list[bytes]) -> int:
    """How many heads llhttp was given."""
    return len(re.findall(rb"HTTP/1\.[01]\r\n", b"".join(fed)))


def parsed(rig: Rig, fed: list[bytes], *requests: bytes) -> int:
    """Send requests in a piece each, all of which are accepted; how many heads llhttp saw."""
    fed.clear()
    sent = [numbered(request, 1_000_000_000) for request in requests]
    assert {answer.status for answer in parse_all(rig.talk(sent))} == {200}
    return heads(fed)


ONE, TWO = post(*USUAL), post(*USUAL, body=BODY + b" " * 9)


def test_a_head_that_repeats_is_not_parsed(rigs: Rigs, fed: list[bytes]) -> None:
    assert parsed(rigs.on, fed, ONE, TWO, ONE, ONE + TWO + ONE, TWO) == 1
    assert parsed(rigs.off, fed, ONE, TWO, ONE, ONE + TWO + ONE, TWO) == 7


def test_the_last_accepted_head_is_remembered(rigs: Rigs, fed: list[bytes]) -> None:
    other = post(b"X: y")
    assert parsed(rigs.on, fed, ONE, other, other, other, ONE, ONE) == 3


def test_a_connection_remembers_only_its_own(rigs: Rigs, fed: list[bytes]) -> None:
    assert parsed(rigs.on, fed, ONE, ONE) == 1
    assert parsed(rigs.on, fed, ONE, ONE) == 1


@pytest.mark.parametrize(
    "request_",
    [
        head(CHUNKED) + chunked(BODY),
        post(b"Expect: 100-continue"),
        post(b"Upgrade: h2c", b"Connection: upgrade"),
        post(b"Upgrade: h2c"),
        post(b"Connection: keep-alive", line=OLD),
        head(b"Content-Length: 0000000%d" % len(BODY)) + BODY,
    ],
    ids=["chunked", "Expect", "Upgrade", "Upgrade alone", "HTTP/1.0", "ten digits"],
)
def test_a_head_that_is_not_remembered(request_: bytes, rigs: Rigs, fed: list[bytes]) -> None:
    assert parsed(rigs.on, fed, request_, request_, request_) >= 3


@pytest.mark.parametrize("spare", [0, 1, 2])
def test_a_head_that_grows_past_its_limit(rigs: Rigs, spare: int) -> None:
    """Its digits count too."""
    short, long = BODY[:-1] + b" }", BODY[:-1] + b" " * 1000 + b"}"
    room = LIMITS["max_head"] - (len(post(b"X: ", body=short)) - len(short)) - spare
    sent = [numbered(post(b"X: " + b"x" * room, body=body), 1_000_000_000) for body in (short, short, long, short)]
    statuses = [[answer.status for answer in parse_all(rig.talk(sent))] for rig in rigs.both]
    assert statuses[0] == statuses[1] == [200, 200, *([200, 200] if spare == 2 else [431])]


def test_a_cut_head_is_parsed(rigs: Rigs, fed: list[bytes]) -> None:
    for place in range(1, len(ONE) - len(BODY)):
        assert parsed(rigs.on, fed, ONE, ONE, ONE[:place], ONE[place:]) == 2


@pytest.mark.parametrize(("secret", "status"), [("new", 401), ("both", 200), ("old", 200)])
def test_a_change_of_secrets_is_obeyed_at_once(rigs: Rigs, fed: list[bytes], secret: str, status: int) -> None:
    gate = rigs.on.receiver.gate
    sent = [numbered(ONE, 1_000_000_000)] * 3
    answered = rigs.on.talk(sent, between=lambda number: gate.rotate(PATH, SECRETS[secret if number == 2 else "old"]))
    gate.rotate(PATH, SECRETS["old"])
    assert [answer.status for answer in parse_all(answered)] == [200, 200, status]
    assert heads(fed) == 3  # each change forgets, also one that changes nothing


def test_a_path_that_is_closed_is_forgotten(tmp_path: Path) -> None:
    with asyncio.Runner() as runner:
        rig = Rig(runner.get_loop(), tmp_path / "state")
        sent = [numbered(ONE, 1_000_000_000)] * 3
        answered = rig.talk(sent, between=lambda number: rig.receiver.gate.remove(PATH) if number == 2 else None)
        assert [answer.status for answer in parse_all(answered)] == [200, 200, 404]
        rig.close()
