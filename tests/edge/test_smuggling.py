"""Requests whose end two readers may see at different places, each with a second request in the same bytes.

The tricks are those that the literature on request smuggling lists: a length against a coding, two of either, odd
spellings of both, and line ends that only some take for one. Each gets exactly one answer, and a closed connection.
"""

from __future__ import annotations

import random

import pytest

from edge.client import BODY, chunked, connected, head, new_id, numbered, post
from edge.rows import CHUNKED
from edge.serving import Served

SECOND = post()
LENGTH = b"Content-Length: %d" % len(BODY)
ENDED = b"0\r\n\r\n"

CODINGS = {
    "space before the colon": b"Transfer-Encoding : chunked",
    "tab before the colon": b"Transfer-Encoding\t: chunked",
    "x before chunked": b"Transfer-Encoding: xchunked",
    "x behind chunked": b"Transfer-Encoding: chunkedx",
    "NUL before chunked": b"Transfer-Encoding: \x00chunked",
    "vertical tab before chunked": b"Transfer-Encoding: \x0bchunked",
    "form feed before chunked": b"Transfer-Encoding: \x0cchunked",
    "CR before chunked": b"Transfer-Encoding: \rchunked",
    "CR in the name": b"Transfer-Encoding\r: chunked",
    "LF before chunked": b"Transfer-Encoding: \nchunked",
    "fold before chunked": b"Transfer-Encoding:\r\n chunked",
    "fold behind chunked": b"Transfer-Encoding: chunked\r\n x",
    "the header behind a fold": b"X: y\r\n Transfer-Encoding: chunked\r\nContent-Length: 3",
    "the header behind a bare LF": b"X: y\nTransfer-Encoding: chunked",
    "the header behind a bare CR": b"X: y\rTransfer-Encoding: chunked",
    "space before the name": b" Transfer-Encoding: chunked",
    "quotes": b'Transfer-Encoding: "chunked"',
    "single quotes": b"Transfer-Encoding: 'chunked'",
    "a comma": b"Transfer-Encoding: chunked,",
    "chunked and identity": b"Transfer-Encoding: chunked, identity",
    "identity and chunked": b"Transfer-Encoding: identity, chunked",
    "two headers": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x",
    "two headers, cow": b"Transfer-Encoding: cow\r\nTransfer-Encoding: chunked",
    "two that are the same": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    "a parameter": b"Transfer-Encoding: chunked;x=y",
    "a byte over 127": b"Transfer-Encoding: chunked\xff",
    "a soft hyphen in the name": b"Transfer\xadEncoding: chunked",
    "no space and CR": b"Transfer-Encoding:chunked\r\r",
    "NUL in the name": b"Transfer-Encoding\x00: chunked",
    "empty": b"Transfer-Encoding:",
}
LENGTHS = {
    "two": b"Content-Length: 3\r\n" + LENGTH,
    "two that are the same": LENGTH + b"\r\n" + LENGTH,
    "a list": b"Content-Length: 3, %d" % len(BODY),
    "a list of the same": b"Content-Length: %d,%d" % (len(BODY), len(BODY)),
    "plus": b"Content-Length: +%d" % len(BODY),
    "minus": b"Content-Length: -%d" % len(BODY),
    "hexadecimal": b"Content-Length: 0x%x" % len(BODY),
    "space inside": b"Content-Length: 9 2",
    "NUL behind": b"Content-Length: %d\x00" % len(BODY),
    "space before the colon": b"Content-Length : %d" % len(BODY),
    "a fold": b"Content-Length:\r\n %d" % len(BODY),
    "empty and one": b"Content-Length:\r\n" + LENGTH,
    "bare LF behind": LENGTH + b"\nX: y",
    "bare CR behind": LENGTH + b"\rX: y",
    "letters behind": b"Content-Length: %dabc" % len(BODY),
    "wide digits": "Content-Length: \uff19\uff12".encode(),
}
WRONG_CHUNKS = {
    "size over 16 digits": b"0" * 20 + b"%x\r\n" % len(BODY) + BODY + b"\r\n" + ENDED,
    "size that overflows to nothing": b"10000000000000000\r\n\r\n",
    "bare LF behind the size": b"%x\n" % len(BODY) + BODY + b"\r\n" + ENDED,
    "bare CR behind the size": b"%x\r" % len(BODY) + BODY + b"\r\n" + ENDED,
    "space behind the size": b"%x \r\n" % len(BODY) + BODY + b"\r\n" + ENDED,
    "0x": b"0x%x\r\n" % len(BODY) + BODY + b"\r\n" + ENDED,
    "bare LF in an extension": b"%x;\n\r\n" % len(BODY) + BODY + b"\r\n" + ENDED,
    "LF ends an extension": b"2;\nxx\r\n" + ENDED,
    "CR in an extension": b"2;\rxx\r\n" + ENDED,
    "two bytes that are no line end": b"%x\r\n" % len(BODY) + BODY + b"xx" + ENDED,
    "no line end behind the data": b"%x\r\n" % len(BODY) + BODY + ENDED,
    "LF behind the data": b"%x\r\n" % len(BODY) + BODY + b"\n" + ENDED,
    "LF behind the last chunk": b"%x\r\n" % len(BODY) + BODY + b"\r\n0\n\r\n",
    "LF at the end": b"%x\r\n" % len(BODY) + BODY + b"\r\n0\r\n\n",
    "plus": b"+%x\r\n" % len(BODY) + BODY + b"\r\n" + ENDED,
    "minus": b"-1\r\n" + BODY + b"\r\n" + ENDED,
    "trailer with a space before the colon": chunked(BODY, trailer=b"Content-Length : 3\r\n"),
    "trailer with a bare LF": chunked(BODY, trailer=b"X: y\nZ: a\r\n"),
    "trailer with a fold": chunked(BODY, trailer=b"X: y\r\n z\r\n"),
}
OTHERS = {
    "length, then coding": head(b"Content-Length: 6", CHUNKED) + ENDED + b"G",
    "length, then coding, whole": head(LENGTH, CHUNKED) + chunked(BODY),
    "coding, then length": head(CHUNKED, b"Content-Length: 4") + b"5c\r\n" + BODY + b"\r\n" + ENDED,
    "length 0, then coding": head(b"Content-Length: 0", CHUNKED) + chunked(BODY),
    "coding in HTTP/1.0": head(CHUNKED, line=b"POST /webhook HTTP/1.0") + chunked(BODY),
    "coding in HTTP/1.0, kept": head(CHUNKED, b"Connection: keep-alive", line=b"POST /webhook HTTP/1.0")
    + chunked(BODY),
    "two codings, the first is chunked": head(CHUNKED, b"Transfer-encoding: x") + chunked(BODY),
    "head that bare LFs end": head(LENGTH).replace(b"\r\n", b"\n") + BODY,
    "head that LF CR LF ends": head(LENGTH)[:-4] + b"\n\r\n" + BODY,
    "head that CR LF LF ends": head(LENGTH)[:-2] + b"\n" + BODY,
    "head that CR CR LF ends": head(LENGTH)[:-2] + b"\r\r\n" + BODY,
    "a request in the target": post(line=b"POST /webhook HTTP/1.1\nGET /x HTTP/1.1"),
    "space before the first header": head(LENGTH).replace(b"Host", b" Host") + BODY,
    "an expectation that fails": post(b"Expect: 100-continue").replace(b"edge-secret", b"wrong"),
    "CONNECT with a body": post(line=b"CONNECT a:80 HTTP/1.1"),
}
TRICKS = (
    {f"length and coding, {name}": head(LENGTH, line) + chunked(BODY) for name, line in CODINGS.items()}
    | {f"coding, {name}": head(line) + chunked(BODY) for name, line in CODINGS.items()}
    | {f"length, {name}": head(line) + BODY for name, line in LENGTHS.items()}
    | {f"length, {name}, and coding": head(line, CHUNKED) + chunked(BODY) for name, line in LENGTHS.items()}
    | {f"chunked, {name}": head(CHUNKED) + body for name, body in WRONG_CHUNKS.items()}
    | OTHERS
)


@pytest.mark.parametrize("trick", TRICKS.values(), ids=TRICKS.keys())
def test_one_answer_and_the_end(trick: bytes, served: Served) -> None:
    update_id = new_id()
    sent = numbered(trick, new_id()) + numbered(SECOND, update_id)
    places = random.Random(trick).sample(range(1, len(sent)), 8)
    for cuts in ([], [len(trick)], places):
        with connected(served) as peer:
            peer.send(sent, cuts)
            answer = peer.read()
            assert 400 <= answer.status < 500
            assert answer.closes
            assert peer.end() == b""
    assert served.seen.times(update_id) == 0
