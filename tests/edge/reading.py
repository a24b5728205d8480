"""What bytes mean to h11, in the terms of a webhook: the strict reading that the edge must not go beyond."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import h11

from edge.client import Response, parse
from edge.serving import SECRET

STATUS_LINE = re.compile(rb"HTTP/1\.1 \d{3} ")
REFUSALS = {400, 405, 413, 414, 417, 431, 505}  # 405 is CONNECT's
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
HOOK_PATH = b"/webhook"
MAX_EVENT = 1 << 20

#: Where the edge and h11 differ on purpose, and why. Elsewhere it may refuse more than h11, never less.
DIFFERENCES = {
    "empty lines before a request line": "h11 refuses them; a server should ignore them (RFC 9112, section 2.2)",
    "HTTP/1.0 with keep-alive": "h11 always closes; a peer that asks for it is told that it is granted",
    "a Content-Length of more than 20 digits": "h11 refuses it unseen; zeros in front change no number",
}
h11._headers.CONTENT_LENGTH_MAX_DIGITS = 4000  # the third of DIFFERENCES


@dataclass(frozen=True)
class Reading:
    """A request as h11 reads it. `whole`: its body is there to its end; else it is cut off, or refused."""

    method: bytes
    target: bytes
    version: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    whole: bool
    refused: bool = False

    def values(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.headers if key == name]

    @property
    def path(self) -> bytes:
        """The path of an origin or absolute form."""
        target = self.target
        if not target.startswith(b"/") and b"://" in target:
            target = b"/" + target.partition(b"://")[2].partition(b"/")[2]
        return target.partition(b"?")[0]

    @property
    def last(self) -> bool:
        """Whether the connection ends behind it."""
        options = {word.strip().lower() for value in self.values(b"connection") for word in value.split(b",")}
        return b"close" in options or (self.version == b"1.0" and b"keep-alive" not in options)

    def allows(self, status: int) -> bool:
        """Whether this answer may be given to such a request, without a refusal of its form."""
        hooked, posted = self.path == HOOK_PATH, self.method == b"POST"
        genuine = set(self.values(b"x-telegram-bot-api-secret-token")) == {SECRET.encode()}
        encoded = any(value.lower() != b"identity" for value in self.values(b"content-encoding"))
        return {
            404: not hooked,
            405: hooked and not posted,
            401: hooked and posted and not genuine,
            415: hooked and posted and genuine and encoded,
            200: hooked and posted and genuine and not encoded and self.whole,
        }.get(status, False)


@dataclass(frozen=True)
class Readings:
    """The requests in some bytes. `refused`: what follows them is no request, or one with a wrong body."""

    requests: tuple[Reading, ...]
    refused: bool


def read(data: bytes) -> Readings:
    """All requests that h11 finds in the bytes of a connection, up to one that ends it."""
    requests: list[Reading] = []
    while True:
        while data.startswith(b"\r\n"):  # the first of DIFFERENCES
            data = data[2:]
        if not data:
            return Readings(tuple(requests), refused=False)
        one, data, refused = _read_one(data)
        if one:
            requests.append(one)
        if one is None or not one.whole or one.last:
            return Readings(tuple(requests), refused)


def _read_one(data: bytes) -> tuple[Reading | None, bytes, bool]:
    parser = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_EVENT)
    parser.receive_data(data)
    request: h11.Request | None = None
    body = b""
    whole = refused = False
    try:
        while not whole:
            event = parser.next_event()
            if isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                whole = True
            else:
                break
    except h11.RemoteProtocolError:
        refused = True
    if request is None:
        return None, b"", refused
    headers = tuple((bytes(name), bytes(value)) for name, value in request.headers)
    reading = Reading(request.method, request.target, request.http_version, headers, body, whole, refused)
    return reading, bytes(parser.trailing_data[0]), refused


# ---------------------------------------------------------------- the edge beside it


def check(readings: Readings, answered: bytes, taken: Sequence[bytes], *, closed: bool) -> list[Response]:
    """Fail where the edge went beyond h11; its answers.

    `taken`: the bodies that it admitted. `closed`: it closed by itself, as it does where it reads no further.
    """
    answers = parse_answers(answered)
    bodies = iter(taken)
    for number, answer in enumerate(answers):
        reading = readings.requests[number] if number < len(readings.requests) else None
        check_answer(answer, reading, bodies)
        if answer.closes or (reading and (reading.last or not reading.whole)):
            assert number == len(answers) - 1, "an answer behind the last request"
    assert next(bodies, None) is None, "an update that nobody was told of"
    whole = sum(reading.whole for reading in readings.requests)
    assert closed or len(answers) >= whole, "a whole request that is not answered"
    assert closed or not answers or not answers[-1].closes, "it says that it closes, and does not"
    return answers


def parse_answers(answered: bytes) -> list[Response]:
    """The answers in these bytes; one to HEAD has no body, and a 100 may be the last if no body followed it."""
    answers = []
    while answered and answered != CONTINUE:
        found = parse(answered, b"HEAD")
        if found and found[1] and not STATUS_LINE.match(found[1]):
            found = parse(answered)
        assert found is not None, f"an answer is cut off: {answered!r}"
        answer, answered = found
        answer.check()
        answers.append(answer)
    return answers


def check_answer(answer: Response, reading: Reading | None, bodies: Iterator[bytes]) -> None:
    if reading and not answer.closes:
        assert bool(answer.body) == (answer.header(b"content-length") != b"0" and reading.method != b"HEAD")
    if answer.closes and answer.status in REFUSALS:
        return  # the edge may refuse more
    assert reading is not None, f"{answer.status} to what h11 does not take for a request"
    assert reading.allows(answer.status), f"{answer.status} to {reading}"
    if answer.status == 200:
        assert next(bodies) == reading.body
    if reading.last:
        assert answer.closes
