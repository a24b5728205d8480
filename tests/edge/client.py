"""A client made of a socket: it sends bytes, in the pieces it is told to, and reads what comes back."""

from __future__ import annotations

import contextlib
import itertools
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import h11

from edge.serving import PATIENCE, SECRET, Certificate

ID = b"@@@@@@@@@@"  # stands for a new update_id in a request, which is as long
BODY = b'{"update_id":@@@@@@@@@@,"message":{"message_id":1,"date":0,"chat":{"id":1,"type":"private"}}}'
LINE = b"POST /webhook HTTP/1.1"
_ids = itertools.count(1_000_000_000)


def new_id() -> int:
    """An update_id of ten digits that no test has had."""
    return next(_ids)


def numbered(data: bytes, update_id: int) -> bytes:
    """The bytes with an update_id where `ID` stands."""
    return data.replace(ID, b"%d" % update_id)


def head(*headers: bytes, line: bytes = LINE, host: bytes | None = b"Host: a") -> bytes:
    """A head with the right secret, these headers last."""
    lines = [line, *([host] if host else []), b"X-Telegram-Bot-Api-Secret-Token: " + SECRET.encode(), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def post(*headers: bytes, body: bytes = BODY, line: bytes = LINE, host: bytes | None = b"Host: a") -> bytes:
    """A whole request with a `Content-Length`, these headers before it."""
    return head(*headers, b"Content-Length: %d" % len(body), line=line, host=host) + body


def chunked(*pieces: bytes, trailer: bytes = b"") -> bytes:
    """A chunked body."""
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n" + trailer + b"\r\n"


@dataclass(frozen=True)
class Response:
    """An answer. `interim`: the statuses of the 1xx before it."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    interim: tuple[int, ...] = ()

    def header(self, name: bytes) -> bytes | None:
        """The value of a header, None if there is none. AssertionError: there are several."""
        values = [value for key, value in self.headers if key.lower() == name]
        assert len(values) <= 1, f"{name!r} stands {len(values)} times in {self.headers}"
        return values[0] if values else None

    @property
    def closes(self) -> bool:
        return self.header(b"connection") == b"close"

    def check(self) -> None:
        """What holds for every answer of the edge."""
        assert self.header(b"content-length") is not None, f"no content-length: {self}"
        assert self.header(b"date") is None, f"a date: {self}"
        assert self.header(b"server") is None, f"a server header: {self}"
        if self.status == 405:
            assert self.header(b"allow") == b"POST", f"405 without Allow (RFC 9110, section 15.5.6): {self}"


def parse(data: bytes, method: bytes = b"POST", *, ended: bool = False) -> tuple[Response, bytes] | None:
    """The first answer in the bytes and what follows it, None if it isn't whole yet.

    `method`: of the request it answers. `ended`: no more bytes will come. h11.RemoteProtocolError: it is not HTTP.
    """
    parser = h11.Connection(h11.CLIENT)
    parser.send(h11.Request(method=method, target="/", headers=[("host", "a")]))
    parser.send(h11.EndOfMessage())
    parser.receive_data(data)
    if ended:
        parser.receive_data(b"")
    interim: list[int] = []
    final: h11.Response | None = None
    body = b""
    while True:
        event = parser.next_event()
        if isinstance(event, h11.InformationalResponse):
            interim.append(event.status_code)
        elif isinstance(event, h11.Response):
            final = event
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            assert final is not None
            response = Response(final.status_code, tuple(final.headers.raw_items()), body, tuple(interim))
            return response, bytes(parser.trailing_data[0])
        elif event is h11.NEED_DATA:
            return None
        else:
            raise AssertionError(f"{event!r} in an answer: {data!r}")


def parse_all(data: bytes) -> list[Response]:
    """All answers in the bytes, none of them to HEAD, with nothing left over."""
    found = []
    while data:
        one = parse(data)
        assert one is not None, f"an answer is cut off: {data!r}"
        found.append(one[0])
        data = one[1]
    return found


class Server(Protocol):
    """Where a peer connects to: `edge.serving.Served`, or a process."""

    address: tuple[str, int] | str
    family: int


class Peer:
    """A connection to the server, seen from its other end."""

    def __init__(self, server: Server, *, certificate: Certificate | None = None, receive_buffer: int = 0) -> None:
        self.server = server
        plain = socket.socket(server.family, socket.SOCK_STREAM)
        if receive_buffer:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        plain.settimeout(PATIENCE)
        try:
            plain.connect(server.address)
            if server.family != socket.AF_UNIX:
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            trusted = certificate or getattr(server, "certificate", None)
            self.socket: socket.socket = plain
            if trusted:
                self.socket = trusted.client.wrap_socket(plain, server_hostname="localhost")
        except BaseException:
            plain.close()
            raise
        self._read = b""

    def send(self, data: bytes, cuts: Iterable[int] = ()) -> None:
        """Send the bytes; the server has read what stands before a cut when what stands behind it is sent."""
        start = 0
        for cut in (*sorted(set(cuts)), len(data)):
            self.socket.sendall(data[start:cut])
            if cut < len(data):
                self.server.settle()  # type: ignore[attr-defined]
            start = cut

    def read(self, method: bytes = b"POST") -> Response:
        """The next answer. AssertionError: the connection ended before it was whole."""
        while True:
            found = parse(self._read, method) if self._read else None
            if found:
                found[0].check()
                self._read = found[1]
                return found[0]
            data = self.socket.recv(65536)
            assert data, f"the connection ended after {self._read!r}"
            self._read += data

    def rest(self) -> bytes:
        """All that comes until the server closes. ConnectionResetError: it did not close in order."""
        with contextlib.suppress(ssl.SSLEOFError):
            while data := self.socket.recv(65536):
                self._read += data
        left, self._read = self._read, b""
        return left

    def end(self) -> bytes:
        """What is left until the server closes, behind an answer that says so.

        TLS has no half close: there we say that we are done too, which spares the time that the server gives us.
        """
        if isinstance(self.socket, ssl.SSLSocket) and not self._read:
            with contextlib.suppress(ssl.SSLEOFError):
                self.socket = self.socket.unwrap()
        return self.rest()

    @property
    def pending(self) -> bytes:
        """What came and was not asked for yet."""
        self.socket.settimeout(0)
        with contextlib.suppress(BlockingIOError, ssl.SSLWantReadError):
            while data := self.socket.recv(65536):
                self._read += data
        self.socket.settimeout(PATIENCE)
        return self._read

    def half_close(self) -> None:
        """Say that nothing more will be sent."""
        self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Go away without a word: the server gets a reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        self.socket.close()

    def close(self) -> None:
        self.socket.close()


class HeldUpError(Exception):
    """What failed took longer than the server allows for it: it shows nothing."""


@contextlib.contextmanager
def allowed(seconds: float) -> Iterator[None]:
    """Inside is what the server allows so long for. HeldUpError: it failed, and this machine took longer."""
    begun = time.monotonic()
    try:
        yield
    except (AssertionError, OSError) as error:
        if time.monotonic() - begun <= seconds:
            raise
        raise HeldUpError from error


def again_if_held_up(attempt: Callable[[], None]) -> None:
    """Try it up to five times, until the machine lets it end in time."""
    for _ in range(4):
        with contextlib.suppress(HeldUpError):
            return attempt()
    return attempt()


@contextlib.contextmanager
def connected(server: Server, **options: object) -> Iterator[Peer]:
    """A connection that is closed at the end."""
    peer = Peer(server, **options)  # type: ignore[arg-type]
    try:
        yield peer
    finally:
        peer.close()


def still_open(peer: Peer) -> None:
    """The connection goes on to work, and nothing is left of what went before."""
    peer.send(b"GET /is-it-open HTTP/1.1\r\nHost: a\r\n\r\n")
    assert peer.read().status == 404
    assert peer.pending == b""


def exchange(server: Server, data: bytes, cuts: Sequence[int] = (), method: bytes = b"POST") -> list[Response]:
    """Send bytes, say that there are no more, and read all answers until the server closes."""
    with connected(server) as peer:
        peer.send(data, cuts)
        peer.half_close()
        rest = peer.rest()
    return parse_all(rest)
