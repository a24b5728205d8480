"""The rows of the edge's HTTP rules as bytes: what is sent, and what must come back.

Where the rules leave a choice, `status` has several values. `ID` in the bytes stands for a new update_id.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from edge.client import BODY, ID, LINE, chunked, head, post
from edge.serving import SECRET

MAX_BODY = 1 << 20
KIB = 1024

TOKEN = b"X-Telegram-Bot-Api-Secret-Token"
CHUNKED = b"Transfer-Encoding: chunked"


@dataclass(frozen=True)
class Row:
    """A request and its answer. `body`: what the handler must get, None for nothing. `method`: of the request."""

    name: str
    sent: bytes
    status: frozenset[int]
    close: bool | None
    body: bytes | None = None
    headers: dict[bytes, bytes] = field(default_factory=dict)
    method: bytes = b"POST"
    interim: frozenset[tuple[int, ...]] = frozenset({()})

    @property
    def short(self) -> bool:
        """Cut at every byte; a long one only at some."""
        return len(self.sent) < 1000


def refused(group: str, cases: dict[str, bytes], *status: int, close: bool | None = True) -> list[Row]:
    return [Row(f"{group}: {name}", sent, frozenset(status), close) for name, sent in cases.items()]


def taken(group: str, cases: dict[str, bytes], *, close: bool = False, body: bytes = BODY) -> list[Row]:
    return [Row(f"{group}: {name}", sent, frozenset({200}), close, body) for name, sent in cases.items()]


def line(text: bytes) -> bytes:
    """A whole request with this request line."""
    return post(line=text)


def target(text: bytes, *headers: bytes, host: bytes | None = b"Host: a") -> bytes:
    return post(*headers, line=b"POST " + text + b" HTTP/1.1", host=host)


def raw_head(*lines: bytes) -> bytes:
    """A whole request whose head is these lines, each with its own line end, then the end of the head."""
    return b"".join(lines) + b"\r\n" + BODY


def with_line(text: bytes) -> bytes:
    """A whole request with one more line, as it is, behind the Host."""
    length = b"Content-Length: %d\r\n" % len(BODY)
    return raw_head(LINE + b"\r\n", b"Host: a\r\n", text, TOKEN + b": " + SECRET.encode() + b"\r\n", length)


# ---------------------------------------------------------------- the request line


GARBAGE = refused(
    "refused by llhttp",
    {
        "words": b"hello\r\n\r\n",
        "a TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40) + b"\r\n\r\n",
        "lower-case method": line(b"post /webhook HTTP/1.1"),
        "unknown method": line(b"FROB /webhook HTTP/1.1"),
        "method with a NUL": line(b"PO\x00ST /webhook HTTP/1.1"),
        "two spaces before the target": line(b"POST  /webhook HTTP/1.1"),
        "two spaces behind the target": line(b"POST /webhook  HTTP/1.1"),
        "space behind the version": line(b"POST /webhook HTTP/1.1 "),
        "tab for a space": line(b"POST\t/webhook HTTP/1.1"),
        "tab before the version": line(b"POST /webhook\tHTTP/1.1"),
        "space before the method": line(b" POST /webhook HTTP/1.1"),
        "no target": line(b"POST HTTP/1.1"),
        "a word behind the target": line(b"POST /webhook x HTTP/1.1"),
        "header without a colon": with_line(b"nonsense\r\n"),
    },
    400,
)

VERSION = [
    *refused(
        "version",
        {
            "HTTP/1.2": line(b"POST /webhook HTTP/1.2"),
            "HTTP/2.0": line(b"POST /webhook HTTP/2.0"),
            "HTTP/3.0": line(b"POST /webhook HTTP/3.0"),
            "HTTP/9.9": line(b"POST /webhook HTTP/9.9"),
        },
        505,
    ),
    *refused(
        "version",
        {
            "none, as in HTTP/0.9": b"GET /webhook\r\n\r\n",
            "HTTP/0.9": line(b"POST /webhook HTTP/0.9"),
            "http/1.1": line(b"POST /webhook http/1.1"),
            "HTTP/1": line(b"POST /webhook HTTP/1"),
            "HTTP/1.": line(b"POST /webhook HTTP/1."),
            "HTTP/.1": line(b"POST /webhook HTTP/.1"),
            "HTTP/1.1x": line(b"POST /webhook HTTP/1.1x"),
            "HTTP/1,1": line(b"POST /webhook HTTP/1,1"),
            "HTTP/A.B": line(b"POST /webhook HTTP/A.B"),
            "HTTPS/1.1": line(b"POST /webhook HTTPS/1.1"),
            "RTSP/1.0": line(b"POST /webhook RTSP/1.0"),
            "ICE/1.0": line(b"SOURCE /webhook ICE/1.0"),
        },
        400,
    ),
    *refused(
        "version",
        {
            "HTTP/1.10": line(b"POST /webhook HTTP/1.10"),
            "HTTP/11.1": line(b"POST /webhook HTTP/11.1"),
            "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            "half the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\n",
        },
        400,
        505,
    ),
]

TARGET = [
    *refused(
        "target",
        {
            "*": target(b"*"),
            "* of OPTIONS": line(b"OPTIONS * HTTP/1.1"),
            "authority form": target(b"a:80"),
            "no slash": target(b"webhook"),
            "only a query": target(b"?x=1"),
            "absolute, another authority": target(b"http://b/webhook"),
            "absolute, another port": target(b"http://a:81/webhook", host=b"Host: a:82"),
            "absolute, user info": target(b"http://u@a/webhook"),
            "absolute, user info in both": target(b"http://u@a/webhook", host=b"Host: u@a"),
            "absolute, no authority": target(b"http:///webhook"),
            "absolute, no Host": target(b"http://a/webhook", host=None),
            "NUL": target(b"/web\x00hook"),
            "control character": target(b"/webhook?\x01"),
            "DEL": target(b"/webhook?\x7f"),
            "tab": target(b"/webhook?\t"),
            "form feed": target(b"/webhook?\x0c"),
            "byte over 127": target(b"/webhook?\xc3\xa4"),
            "bare CR": target(b"/webhook?\rx"),
            "bare LF": target(b"/webhook?\nx"),
        },
        400,
    ),
    *refused("target", {"fragment": target(b"/webhook#x")}, 400, 404, close=None),
    *taken(
        "target",
        {
            "query": target(b"/webhook?x=1&y=%20"),
            "empty query": target(b"/webhook?"),
            "query with slashes": target(b"/webhook?http://b/c"),
            "absolute": target(b"http://a/webhook"),
            "absolute with a query": target(b"http://a/webhook?x"),
            "absolute with a port": target(b"http://a:8443/webhook", host=b"Host: a:8443"),
            "absolute, https": target(b"https://a/webhook"),
            "8 KiB": target(b"/webhook?".ljust(8 * KIB, b"x")),
        },
    ),
    *refused(
        "target over 8 KiB",
        {
            "by one": target(b"/webhook?".ljust(8 * KIB + 1, b"x")),
            "unknown path": target(b"/".ljust(9 * KIB, b"x")),
            "without an end": b"POST /webhook?" + b"x" * 9 * KIB,
            "HTTP/1.0": line(b"POST /webhook?" + b"x" * 9 * KIB + b" HTTP/1.0"),
        },
        414,
    ),
]

# ---------------------------------------------------------------- headers

HOST = [
    *refused(
        "Host",
        {
            "none": post(host=None),
            "two": post(b"Host: b"),
            "two that are the same": post(b"Host: a"),
            "empty": post(host=b"Host:"),
            "a space": post(host=b"Host: "),
            "a list": post(host=b"Host: a, b"),
            "a list without a space": post(host=b"Host: a,b"),
            "user info": post(host=b"Host: u@a"),
            "user info and password": post(host=b"Host: u:p@a"),
            "a path": post(host=b"Host: a/b"),
            "a URL": post(host=b"Host: http://a"),
            "a space inside": post(host=b"Host: a b"),
            "a tab inside": post(host=b"Host: a\tb"),
            "a query": post(host=b"Host: a?b"),
            "a fragment": post(host=b"Host: a#b"),
            "a port of letters": post(host=b"Host: a:b"),
            "two ports": post(host=b"Host: a:1:2"),
            "half a bracket": post(host=b"Host: [::1"),
            "IPv6 without brackets": post(host=b"Host: ::1"),
            "quotes": post(host=b'Host: "a"'),
            "angle brackets": post(host=b"Host: <a>"),
            "a backslash": post(host=b"Host: a\\b"),
            "a byte over 127": post(host=b"Host: \xe4"),
            "only a port": post(host=b"Host: :80"),
        },
        400,
    ),
    *taken(
        "Host",
        {
            "a name": post(host=b"Host: bot.example.com"),
            "a port": post(host=b"Host: bot.example.com:8443"),
            "IPv4": post(host=b"Host: 127.0.0.1:80"),
            "IPv6": post(host=b"Host: [::1]"),
            "IPv6 and port": post(host=b"Host: [2001:db8::1]:443"),
            "underscore": post(host=b"Host: fasthook_edge"),
            "lower case, spaces around": post(host=b"host: \t a \t"),
        },
    ),
    *taken("Host", {"none in HTTP/1.0": post(line=b"POST /webhook HTTP/1.0", host=None)}, close=True),
]

SYNTAX = refused(
    "header syntax",
    {
        "obs-fold": with_line(b"X: a\r\n b\r\n"),
        "obs-fold with a tab": with_line(b"X: a\r\n\tb\r\n"),
        "obs-fold of the length": raw_head(LINE, b"\r\nHost: a\r\n", b"Content-Length:\r\n %d\r\n" % len(BODY)),
        "obs-fold of the last header": with_line(b"")[: -len(BODY) - 2] + b" \r\n\r\n" + BODY,
        "first header begins with a space": raw_head(LINE, b"\r\n Host: a\r\n", b"Content-Length: 3\r\n"),
        "space before the colon": with_line(b"X : a\r\n"),
        "tab before the colon": with_line(b"X\t: a\r\n"),
        "space before the colon of the length": post(b"Content-Length : 3"),
        "space in the name": with_line(b"X Y: a\r\n"),
        "empty name": with_line(b": a\r\n"),
        "parenthesis in the name": with_line(b"X(: a\r\n"),
        "at in the name": with_line(b"X@Y: a\r\n"),
        "quotes in the name": with_line(b'"X": a\r\n'),
        "slash in the name": with_line(b"X/Y: a\r\n"),
        "byte over 127 in the name": with_line(b"X\xe4: a\r\n"),
        "NUL in the name": with_line(b"X\x00Y: a\r\n"),
        "vertical tab in the name": with_line(b"\x0bX: a\r\n"),
        "NUL in the value": with_line(b"X: a\x00b\r\n"),
        "control character in the value": with_line(b"X: a\x01b\r\n"),
        "vertical tab in the value": with_line(b"X: a\x0bb\r\n"),
        "form feed in the value": with_line(b"X: a\x0cb\r\n"),
        "escape in the value": with_line(b"X: a\x1bb\r\n"),
        "DEL in the value": with_line(b"X: a\x7fb\r\n"),
        "bare CR in the value": with_line(b"X: a\rb\r\n"),
        "bare CR before the line end": with_line(b"X: a\r\r\n"),
        "bare LF in the value": with_line(b"X: a\nY: b\r\n"),
        "bare LF in the request line": raw_head(LINE, b"\nHost: a\r\n", b"Content-Length: %d\r\n" % len(BODY)),
        "bare LF everywhere": head(b"Content-Length: %d" % len(BODY)).replace(b"\r\n", b"\n") + BODY,
        "bare LF ends the head": head(b"Content-Length: %d" % len(BODY))[:-2] + b"\n" + BODY,
        "bare CR ends the head": head(b"Content-Length: %d" % len(BODY))[:-1] + BODY,
    },
    400,
) + taken(
    "header syntax",
    {
        "no space behind the colon": with_line(b"X:a\r\n"),
        "empty value": with_line(b"X:\r\n"),
        "only spaces": with_line(b"X: \t \r\n"),
        "tab in the value": with_line(b"X: a\tb\r\n"),
        "bytes over 127 in the value": with_line(b"X: \xc3\xa4\xff\r\n"),
        "all characters of a token": with_line(b"!#$%&'*+-.^_`|~09aZ: a\r\n"),
        "names in another case": post().replace(b"Content-Length", b"cOnTeNt-LeNgTh").replace(TOKEN, TOKEN.upper()),
        "spaces around the secret": post().replace(SECRET.encode(), b" \t" + SECRET.encode() + b"\t "),
        "spaces around the length": head(b"Content-Length: \t %d \t" % len(BODY)) + BODY,
    },
)


def padding(size: int) -> bytes:
    return b"X: " + b"x" * (size - 5)  # with its line end


def fillers(count: int) -> list[bytes]:
    return [b"X-%d: x" % n for n in range(count)]


def extended(pieces: int, extension: bytes) -> bytes:
    """The body in chunks of one byte, so many of them with an extension, and the rest in one."""
    assert pieces <= BODY.index(ID)
    one_by_one = b"".join(b"1;%b\r\n%c\r\n" % (extension, byte) for byte in BODY[:pieces])
    return one_by_one + chunked(BODY[pieces:])


# Host, secret, length: three headers are there without fillers
LIMITS = [
    *taken(
        "head limits",
        {
            "64 headers": post(*fillers(61)),
            "15 KiB": post(padding(15 * KIB)),
            "chunk extensions": head(CHUNKED) + extended(9, b"a=b"),
            "chunk extension in quotes": head(CHUNKED) + extended(5, b'a="b c"'),
            "extension of the last chunk": head(CHUNKED) + chunked(BODY).replace(b"\r\n0\r\n", b"\r\n0;a=b\r\n"),
            "trailers": head(CHUNKED) + chunked(BODY, trailer=b"X: a\r\nY: b\r\n"),
            "9 KiB of chunk extensions": head(CHUNKED) + extended(9, b"a" * KIB),
        },
    ),
    *refused(
        "head limits",
        {
            "65 headers": post(*fillers(62)),
            "17 KiB in one header": post(padding(17 * KIB)),
            "17 KiB in many": post(*[padding(KIB)] * 17),
            "a name of 17 KiB": post(b"x" * 17 * KIB + b": x"),
            "a value without an end": head(b"X: ")[:-4] + b"x" * 17 * KIB,
            "headers without an end": head(*[padding(KIB)] * 17)[:-2],
            "one chunk extension of 17 KiB": head(CHUNKED) + extended(1, b"x" * 17 * KIB),
            "17 KiB of chunk extensions": head(CHUNKED) + extended(9, b"x" * 2 * KIB),
            "17 KiB of the last chunk's extension": head(CHUNKED)
            + chunked(BODY).replace(b"\r\n0\r\n", b"\r\n0;" + b"x" * 17 * KIB + b"\r\n"),
            "an extension without an end": head(CHUNKED) + b"5;" + b"x" * 17 * KIB,
            "one trailer of 17 KiB": head(CHUNKED) + chunked(BODY, trailer=b"X: " + b"x" * 17 * KIB + b"\r\n"),
            "17 KiB of trailers": head(CHUNKED) + chunked(BODY, trailer=(padding(512) + b"\r\n") * 34),
            "65 trailers": head(CHUNKED) + chunked(BODY, trailer=b"X: x\r\n" * 65),
            "head and trailers together 17 KiB": head(padding(9 * KIB), CHUNKED)
            + chunked(BODY, trailer=(padding(KIB) + b"\r\n") * 8),
            "a trailer without an end": head(CHUNKED) + chunked(BODY)[:-2] + b"X: " + b"x" * 17 * KIB,
        },
        431,
    ),
]

# ---------------------------------------------------------------- the length of a body

FRAMING = [
    *refused(
        "framing",
        {
            "length and coding": head(b"Content-Length: 3", CHUNKED) + chunked(BODY),
            "coding and length": head(CHUNKED, b"Content-Length: %d" % len(chunked(BODY))) + chunked(BODY),
            "two lengths": post(b"Content-Length: 3"),
            "two lengths that are the same": post(b"Content-Length: %d" % len(BODY)),
            "a list of lengths": head(b"Content-Length: %d, %d" % (len(BODY), len(BODY))) + BODY,
            "an empty length": head(b"Content-Length:") + BODY,
            "plus": head(b"Content-Length: +%d" % len(BODY)) + BODY,
            "minus": head(b"Content-Length: -1") + BODY,
            "hexadecimal": head(b"Content-Length: 0x5c") + BODY,
            "digits and a space": head(b"Content-Length: 9 2") + BODY,
            "digits and a letter": head(b"Content-Length: 92a") + BODY,
            "a fraction": head(b"Content-Length: 92.0") + BODY,
            "an underscore": head(b"Content-Length: 9_2") + BODY,
            "a vertical tab": head(b"Content-Length: \x0b92") + BODY,
            "digits that aren't ASCII": head("Content-Length: \u0669\u0662".encode()) + BODY,
            "two codings": head(CHUNKED, CHUNKED) + chunked(BODY),
            "chunked twice": head(b"Transfer-Encoding: chunked, chunked") + chunked(BODY),
            "chunked not last": head(b"Transfer-Encoding: chunked, gzip") + chunked(BODY),
            "chunked not alone": head(b"Transfer-Encoding: gzip, chunked") + chunked(BODY),
            "chunked not alone, two headers": head(b"Transfer-Encoding: gzip", CHUNKED) + chunked(BODY),
            "chunked before another header": head(CHUNKED, b"Transfer-Encoding: identity") + chunked(BODY),
            "identity": head(b"Transfer-Encoding: identity") + chunked(BODY),
            "identity and a length": post(b"Transfer-Encoding: identity"),
            "gzip": head(b"Transfer-Encoding: gzip") + chunked(BODY),
            "an unknown coding": head(b"Transfer-Encoding: xchunked") + chunked(BODY),
            "chunked and a letter": head(b"Transfer-Encoding: chunkedx") + chunked(BODY),
            "a parameter": head(b"Transfer-Encoding: chunked;q=1") + chunked(BODY),
            "a comma": head(b"Transfer-Encoding: chunked,") + chunked(BODY),
            "a comma before": head(b"Transfer-Encoding: ,chunked") + chunked(BODY),
            "quotes": head(b'Transfer-Encoding: "chunked"') + chunked(BODY),
            "an empty coding": head(b"Transfer-Encoding:") + chunked(BODY),
            "an empty coding and a length": post(b"Transfer-Encoding:"),
            "a vertical tab in the coding": head(b"Transfer-Encoding: \x0bchunked") + chunked(BODY),
            "a coding in HTTP/1.0": head(CHUNKED, line=b"POST /webhook HTTP/1.0") + chunked(BODY),
        },
        400,
    ),
    *refused(
        "framing",
        {
            "20 digits": head(b"Content-Length: 99999999999999999999") + BODY,
            "2**64 and 92": head(b"Content-Length: 18446744073709551708") + BODY,
        },
        400,
        413,
    ),
    *taken(
        "framing",
        {
            "zeros in front": head(b"Content-Length: 000%d" % len(BODY)) + BODY,
            "chunked in another case": head(b"transfer-encoding: ChUnKeD") + chunked(BODY),
            "spaces before chunked": head(b"Transfer-Encoding: \t chunked") + chunked(BODY),
        },
    ),
]

BEFORE, _, BEHIND = BODY.partition(ID)
ONE_BY_ONE = [*(b"%c" % byte for byte in BEFORE), ID, *(b"%c" % byte for byte in BEHIND)]

CHUNKS = [
    *taken(
        "chunked",
        {
            "one": head(CHUNKED) + chunked(BODY),
            "two": head(CHUNKED) + chunked(BODY[:7], BODY[7:]),
            "one byte each": head(CHUNKED) + chunked(*ONE_BY_ONE),
            "capital digits": head(CHUNKED) + b"%X\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY),
            "16 digits": head(CHUNKED) + b"%016x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY),
            "many zeros at the end": head(CHUNKED) + b"%x\r\n%b\r\n0000000\r\n\r\n" % (len(BODY), BODY),
        },
    ),
    *refused(
        "chunked",
        {
            "17 digits": head(CHUNKED) + b"%017x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY),
            "17 digits that overflow": head(CHUNKED) + b"10000000000000003\r\nabc\r\n0\r\n\r\n",
            "17 zeros at the end": head(CHUNKED) + chunked(BODY)[:-5] + b"0" * 17 + b"\r\n\r\n",
            "no digits": head(CHUNKED) + b"\r\n" + BODY,
            "only an extension": head(CHUNKED) + b";a=b\r\n" + BODY,
            "letters": head(CHUNKED) + b"xyz\r\n" + BODY,
            "plus": head(CHUNKED) + b"+%x\r\n" % len(BODY) + BODY + b"\r\n0\r\n\r\n",
            "minus": head(CHUNKED) + b"-1\r\n" + BODY + b"\r\n0\r\n\r\n",
            "0x": head(CHUNKED) + b"0x%x\r\n" % len(BODY) + BODY + b"\r\n0\r\n\r\n",
            "a space before": head(CHUNKED) + b" %x\r\n" % len(BODY) + BODY + b"\r\n0\r\n\r\n",
            "a space behind": head(CHUNKED) + b"%x \r\n" % len(BODY) + BODY + b"\r\n0\r\n\r\n",
            "bare LF behind the size": head(CHUNKED) + chunked(BODY).replace(b"\r\n", b"\n", 1),
            "bare CR behind the size": head(CHUNKED) + chunked(BODY).replace(b"\r\n", b"\r", 1),
            "bare LF in an extension": head(CHUNKED) + chunked(BODY).replace(b"\r\n", b";a\nb\r\n", 1),
            "bare CR in an extension": head(CHUNKED) + chunked(BODY).replace(b"\r\n", b";a\rb\r\n", 1),
            "NUL in an extension": head(CHUNKED) + chunked(BODY).replace(b"\r\n", b";a\x00b\r\n", 1),
            "longer than its size": head(CHUNKED) + b"3\r\nabcd\r\n0\r\n\r\n",
            "no line end behind the data": head(CHUNKED) + b"3\r\nabc0\r\n\r\n",
            "bare LF behind the data": head(CHUNKED) + b"3\r\nabc\n0\r\n\r\n",
            "bare LF at the end": head(CHUNKED) + chunked(BODY)[:-2] + b"\nGET",
            "trailer without a colon": head(CHUNKED) + chunked(BODY, trailer=b"nonsense\r\n"),
            "trailer with a fold": head(CHUNKED) + chunked(BODY, trailer=b"X: a\r\n b\r\n"),
            "trailer with a space before the colon": head(CHUNKED) + chunked(BODY, trailer=b"X : a\r\n"),
            "trailer with a NUL": head(CHUNKED) + chunked(BODY, trailer=b"X: \x00\r\n"),
            "trailer with a bare LF": head(CHUNKED) + chunked(BODY, trailer=b"X: a\n"),
        },
        400,
    ),
]

UNFRAMED = head(CHUNKED).replace(TOKEN, b"X-Nothing")
LARGE = BODY[:-1].ljust(MAX_BODY - 1) + BODY[-1:]

SIZE = [
    *taken("max-body", {"just so": post(body=LARGE), "chunked, just so": head(CHUNKED) + chunked(LARGE)}, body=LARGE),
    *refused(
        "max-body",
        {
            "over by one": head(b"Content-Length: %d" % (MAX_BODY + 1)) + BODY,
            "over by one, all of it sent": head(b"Content-Length: %d" % (MAX_BODY + 1)) + bytes(MAX_BODY + 1),
            "a terabyte": head(b"Content-Length: 1099511627776") + BODY,
            "19 digits": head(b"Content-Length: 9223372036854775807") + BODY,
            "chunked, over by one": head(CHUNKED) + chunked(LARGE, b" "),
            "one chunk, over by one": head(CHUNKED) + chunked(LARGE + b" "),
            "expected, over by one": head(b"Expect: 100-continue", b"Content-Length: %d" % (MAX_BODY + 1)),
        },
        413,
    ),
]

# ---------------------------------------------------------------- what is asked for

METHODS = [
    Row(
        f"method: {name.decode()}{', a body' if body else ''}",
        post(body=body, line=name + b" /webhook HTTP/1.1") if body else head(line=name + b" /webhook HTTP/1.1"),
        frozenset({405}),
        close=False,
        headers={b"allow": b"POST"},
        method=name,
    )
    for name in (b"GET", b"HEAD", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"TRACE", b"PROPFIND")
    for body in (b"", BODY)
] + [
    Row(
        f"CONNECT: {name}",
        head(line=b"CONNECT a:80 HTTP/1.1") + after,
        frozenset({405}),
        close=True,
        method=b"GET",  # what h11 makes of an answer to CONNECT is the same but for a 2xx
    )
    for name, after in {"alone": b"", "with bytes behind it": b"\x16\x03\x01\x02"}.items()
]

PATHS = [
    *refused(
        "unknown path",
        {
            "POST": target(b"/other"),
            "GET": head(line=b"GET / HTTP/1.1"),
            "chunked": head(CHUNKED, line=b"POST /other HTTP/1.1") + chunked(BODY),
            "a slash more": target(b"/webhook/"),
            "two slashes": target(b"//webhook"),
            "a prefix": target(b"/web"),
            "longer": target(b"/webhooks"),
            "capital": target(b"/Webhook"),
            "in the query": target(b"/?/webhook"),
            "absolute": target(b"http://a/other"),
            "absolute without a path": target(b"http://a"),
            "no secret": post(line=b"POST /other HTTP/1.1").replace(TOKEN, b"X-Nothing"),
        },
        404,
        close=False,
    ),
    Row("unknown path: HEAD", head(line=b"HEAD /x HTTP/1.1"), frozenset({404}), close=False, method=b"HEAD"),
]

SECRETS = refused(
    "secret",
    {
        "none": post().replace(TOKEN, b"X-Nothing"),
        "none, chunked": UNFRAMED + chunked(BODY),
        "wrong": post().replace(SECRET.encode(), b"edge-secreT"),
        "shorter": post().replace(SECRET.encode(), b"edge-secre"),
        "longer": post().replace(SECRET.encode(), b"edge-secret1"),
        "empty": post().replace(SECRET.encode(), b""),
        "in a trailer": UNFRAMED + chunked(BODY, trailer=TOKEN + b": " + SECRET.encode() + b"\r\n"),
        "in the query": target(b"/webhook?" + TOKEN + b"=x").replace(TOKEN + b": ", b"X-Nothing: "),
    },
    401,
    close=False,
)

CODINGS = [
    *refused(
        "Content-Encoding",
        {
            "gzip": post(b"Content-Encoding: gzip"),
            "br": post(b"content-encoding: br"),
            "deflate, chunked": head(b"Content-Encoding: deflate", CHUNKED) + chunked(BODY),
            "identity and gzip": post(b"Content-Encoding: identity, gzip"),
            "two headers": post(b"Content-Encoding: identity", b"Content-Encoding: gzip"),
        },
        415,
        close=False,
    ),
    *taken(
        "Content-Encoding",
        {"identity": post(b"Content-Encoding: identity"), "Identity": post(b"Content-Encoding: Identity")},
    ),
]

EXPECT = b"Expect: 100-continue"
OLD = b"POST /webhook HTTP/1.0"
# A server that has the body already may leave the 100 out (RFC 9110, section 10.1.1).
EXPECTED = [
    Row(row.name, row.sent, row.status, row.close, row.body, interim=frozenset({(), (100,)}))
    for row in taken(
        "Expect",
        {
            "100-continue": post(EXPECT),
            "in another case": post(b"expect: 100-Continue"),
            "chunked": head(EXPECT, CHUNKED) + chunked(BODY),
        },
    )
] + [
    *taken("Expect", {"HTTP/1.0, to be ignored": post(EXPECT, line=OLD)}, close=True),
    *refused("Expect", {"wrong path": post(EXPECT, line=b"POST /other HTTP/1.1")}, 404),
    *refused("Expect", {"wrong method": post(EXPECT, line=b"PUT /webhook HTTP/1.1")}, 405),
    *refused("Expect", {"wrong secret": post(EXPECT).replace(SECRET.encode(), b"wrong")}, 401),
    *refused(
        "Expect",
        {
            "another": post(b"Expect: something"),
            "a list": post(b"Expect: 100-continue, something"),
            "two headers": post(EXPECT, b"Expect: something"),
            "a parameter": post(b"Expect: 100-continue;a=b"),
        },
        417,
    ),
]

UPGRADES = [
    *taken(
        "Upgrade",
        {
            "websocket": post(b"Connection: Upgrade", b"Upgrade: websocket"),
            "h2c": post(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQAAP__"),
            "chunked": head(b"Connection: upgrade", b"Upgrade: websocket", CHUNKED) + chunked(BODY),
        },
    ),
    *refused(
        "Upgrade",
        {"GET": head(b"Connection: Upgrade", b"Upgrade: websocket", line=b"GET /webhook HTTP/1.1")},
        405,
        close=False,
    ),
]

CONNECTIONS = [
    *taken(
        "connection",
        {
            "HTTP/1.0": post(line=OLD),
            "HTTP/1.0, another option": post(b"Connection: foo", line=OLD),
            "close": post(b"Connection: close"),
            "Close": post(b"connection: Close"),
            "close in a list": post(b"Connection: foo, close"),
            "close in a second header": post(b"Connection: foo", b"Connection: close"),
            "keep-alive and close": post(b"Connection: keep-alive, close"),
            "close and Upgrade": post(b"Connection: close, Upgrade", b"Upgrade: websocket"),
            "HTTP/1.0, keep-alive and close": post(b"Connection: keep-alive, close", line=OLD),
        },
        close=True,
    ),
    *taken(
        "connection",
        {
            "HTTP/1.0, keep-alive": post(b"Connection: keep-alive", line=OLD),
            "HTTP/1.0, Keep-Alive": post(b"connection: Keep-Alive", line=OLD),
            "HTTP/1.1, keep-alive": post(b"Connection: keep-alive"),
            "a name that begins with close": post(b"Connection: closet"),
        },
    ),
    *refused("connection", {"HTTP/1.0 GET": head(line=b"GET /webhook HTTP/1.0")}, 405),
    *refused("connection", {"HTTP/1.0 unknown path": head(line=b"GET / HTTP/1.0")}, 404),
    *refused("connection", {"404 and close": head(b"Connection: close", line=b"GET / HTTP/1.1")}, 404),
    *refused("connection", {"401 and close": post(b"Connection: close").replace(SECRET.encode(), b"wrong")}, 401),
]

ROWS: list[Row] = [
    *GARBAGE,
    *VERSION,
    *TARGET,
    *HOST,
    *SYNTAX,
    *LIMITS,
    *FRAMING,
    *CHUNKS,
    *SIZE,
    *METHODS,
    *PATHS,
    *SECRETS,
    *CODINGS,
    *EXPECTED,
    *UPGRADES,
    *CONNECTIONS,
]

assert ID in BODY
