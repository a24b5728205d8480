"""Every row of the gate gets its answer over a real socket."""

from __future__ import annotations

import http.client
import signal
from collections.abc import Callable, Iterator

import pytest

from e2e.bot import Bot
from e2e.process import SECRET, Server, answer, reserved_port
from fasthook.testing import samples

Start = Callable[..., Server]
GENUINE = {"X-Telegram-Bot-Api-Secret-Token": SECRET}
MIB = 1 << 20


@pytest.fixture(scope="module", params=["compiled", "asgi"])
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Bot]]:
    """A server for all tests that send it nothing to handle."""
    bot = Bot(tmp_path_factory.mktemp("shared"))
    options = ["--secret", f"{SECRET},old-secret", "--auth-rate", "off"]
    server = Server(bot.directory, "bot:handler", "--port", "0", "--http", request.param, *options)
    yield server, bot
    assert server.stop() == 0
    assert not server.find("Traceback")
    assert bot.handled == []
    server.kill()


@pytest.fixture
def refuses(shared: tuple[Server, Bot]) -> Server:
    return shared[0]


@pytest.fixture
def server(start: Start, door: str) -> Server:
    return start("--http", door, "--secret", f"{SECRET},old-secret")


@pytest.fixture
def port() -> Iterator[int]:
    with reserved_port() as one:
        yield one


def is_closed(connection: http.client.HTTPConnection) -> bool:
    """Whether the server closed it, in order."""
    return connection.sock is None or connection.sock.recv(1) == b""


def test_an_update_is_accepted(server: Server, bot: Bot) -> None:
    response = server.post(samples.update(1))
    assert (response.status, response.body) == (200, b"")
    assert response.headers == {"content-length": "0"}
    assert server.stop() == 0
    assert [one.update_id for one in bot.handled] == [1]


def test_an_unknown_path(refuses: Server) -> None:
    response = refuses.ask("POST", "/other", samples.update(1), GENUINE)
    assert (response.status, response.body) == (404, b"no hook is at this path\n")


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_another_method(refuses: Server, method: str) -> None:
    response = refuses.ask(method, "/webhook", headers=GENUINE)
    assert response.status == 405
    assert response.headers["allow"] == "POST"
    assert response.body == (b"" if method == "HEAD" else b"updates come by POST\n")


def test_a_declared_size_that_is_too_large(refuses: Server) -> None:
    """It is answered before the body is there."""
    connection = refuses.connect()
    connection.putrequest("POST", "/webhook")
    connection.putheader("X-Telegram-Bot-Api-Secret-Token", SECRET)
    connection.putheader("Content-Length", str(MIB + 1))
    connection.endheaders()
    response = answer(connection)
    assert response.status == 413
    assert response.headers["connection"] == "close"
    assert is_closed(connection)


def test_a_counted_size_that_is_too_large(refuses: Server) -> None:
    """A chunked body is counted as it comes: the answer doesn't wait for its end."""
    connection = refuses.connect()
    connection.putrequest("POST", "/webhook")
    connection.putheader("X-Telegram-Bot-Api-Secret-Token", SECRET)
    connection.putheader("Transfer-Encoding", "chunked")
    connection.endheaders()
    connection.send(b"%x\r\n%b" % (MIB + 1, bytes(MIB + 1)))
    response = answer(connection)
    assert response.status == 413
    assert response.headers["connection"] == "close"
    connection.close()


def test_large_bodies_and_bodies_in_pieces(server: Server, bot: Bot) -> None:
    connection = server.connect()
    for update_id, size in enumerate([5000, MIB - 1, MIB]):
        assert server.post(samples.update(update_id, size=size), connection).status == 200
        raw = samples.update(10 + update_id, size=size)
        pieces = iter([raw[:1], raw[1:4000], raw[4000:]])
        connection.request("POST", "/webhook", pieces, GENUINE, encode_chunked=True)
        assert answer(connection).status == 200
    connection.close()
    assert server.stop() == 0
    assert [one.update_id for one in bot.handled] == [0, 10, 1, 11, 2, 12]


@pytest.mark.parametrize(
    "given", [None, "", "wrong", SECRET + "x", SECRET[:-1], SECRET.upper(), f"{SECRET},old-secret"]
)
def test_a_wrong_secret(refuses: Server, given: str | None) -> None:
    headers = {} if given is None else {"X-Telegram-Bot-Api-Secret-Token": given}
    response = refuses.ask("POST", "/webhook", samples.update(1), headers)
    assert response.status == 401
    assert b"X-Telegram-Bot-Api-Secret-Token is missing or wrong" in response.body


def test_either_secret_is_valid_during_a_rotation(server: Server) -> None:
    for update_id, secret in enumerate([SECRET, "old-secret"]):
        headers = {"x-telegram-bot-api-secret-token": secret}
        assert server.ask("POST", "/webhook", samples.update(update_id), headers).status == 200


def test_too_many_wrong_secrets(start: Start, bot: Bot, door: str) -> None:
    server = start("--http", door, "--secret", SECRET, "--auth-rate", "2/h")
    connection = server.connect()
    for _ in range(2):
        assert server.ask("POST", "/webhook", b"{}", connection=connection).status == 401
    response = server.ask("POST", "/webhook", b"{}", connection=connection)
    assert response.status == 429
    assert 1 <= int(response.headers["retry-after"]) <= 60
    assert response.headers["connection"] == "close"
    assert is_closed(connection)
    assert server.post(samples.update(1)).status == 200  # genuine callers are never limited by address
    assert server.stop() == 0
    assert len(bot.handled) == 1


@pytest.mark.parametrize(
    "raw", [b"", b"hello", b"[]", b'{"update_id":"1"}', samples.update(1)[:-1], b'{"update_id":-1}']
)
def test_not_an_update(shared: tuple[Server, Bot], raw: bytes) -> None:
    server, bot = shared
    response = server.post(raw)
    assert (response.status, response.body) == (200, b"")
    letter = bot.dead[-1]  # it is on disk by now
    assert (letter.reason, letter.raw, letter.attempts, letter.traceback) == ("invalid", raw, 0, "")
    server.until(f"a body of {len(raw)} bytes is not an update: it is answered with 200 and kept as a dead letter")


def test_a_duplicate(server: Server, bot: Bot) -> None:
    connection = server.connect()
    for _ in range(3):
        response = server.post(samples.update(1), connection)
        assert (response.status, response.body) == (200, b"")
    assert server.post(samples.update(1, "poll")).status == 200
    connection.close()
    assert server.stop() == 0
    assert [one.update_id for one in bot.handled] == [1]


def test_a_flood_from_one_chat(start: Start, bot: Bot, door: str) -> None:
    server = start("--http", door, "--secret", SECRET, "--chat-rate", "3/h")
    for update_id in range(10):
        assert server.post(samples.update(update_id, chat_id=7)).status == 200
    for update_id in range(10, 13):
        assert server.post(samples.update(update_id, chat_id=update_id)).status == 200
    assert server.post(samples.update(13, "poll")).status == 200
    assert server.stop() == 0
    assert bot.by_chat == {7: [0, 1, 2], 10: [10], 11: [11], 12: [12], 0: [13]}


def test_a_full_queue(start: Start, bot: Bot, door: str) -> None:
    options = ["--http", door, "--secret", SECRET, "--queue", "memory:", "--drain-timeout", "0"]
    server = start(*options, "--queue-size", "2", env={"HELD": "1"})
    connection = server.connect()
    for update_id in range(2):
        assert server.post(samples.update(update_id, chat_id=1), connection).status == 200
    for kind, seconds in [("message", "3"), ("callback_query", "1"), ("inline_query", "1"), ("poll", "3")]:
        response = server.post(samples.update(9, kind), connection)
        assert (response.status, response.body) == (503, b"the queue is full\n")
        assert response.headers["retry-after"] == seconds
    assert server.post(samples.update(1, chat_id=1), connection).status == 200  # a duplicate needs no room
    connection.close()
    assert server.stop() == 0
    server = start(*options[:6])
    assert server.post(samples.update(9, chat_id=1)).status == 200  # it was not taken for a duplicate
    assert server.stop() == 0
    assert bot.by_chat == {1: [0, 1, 9]}


def test_a_server_that_is_stopping(start: Start, bot: Bot, door: str, port: int) -> None:
    """A request that is under way is taken; there is no other."""
    server = start("--http", door, "--secret", SECRET, "--drain-timeout", "10", "--port", str(port))
    raw = samples.update(2)
    connection = server.connect()
    assert server.post(samples.update(1, chat_id=2), connection).status == 200
    connection.putrequest("POST", "/webhook")
    connection.putheader("X-Telegram-Bot-Api-Secret-Token", SECRET)
    connection.putheader("Content-Length", str(len(raw)))
    connection.endheaders()
    connection.send(raw[:20])
    assert server.ask("GET", "/other").status == 404  # by now the half of it has been read
    server.signal(signal.SIGTERM)
    server.until("SIGTERM: stopping")
    connection.send(raw[20:])
    response = answer(connection)
    assert response.status == 200
    assert is_closed(connection)
    connection.close()
    assert server.wait() == 0
    with pytest.raises(ConnectionRefusedError):
        server.post(raw)
    assert [one.update_id for one in bot.handled] == [1, 2]


def test_clients_that_go_away(server: Server, bot: Bot) -> None:
    """In the middle of a request, and before they read the answer to a whole one."""
    raw = samples.update(1)
    connection = server.connect()
    connection.putrequest("POST", "/webhook")
    connection.putheader("X-Telegram-Bot-Api-Secret-Token", SECRET)
    connection.putheader("Content-Length", str(len(raw)))
    connection.endheaders()
    connection.send(raw[:20])
    connection.close()
    assert server.post(raw).status == 200
    connection = server.connect()
    connection.request("POST", "/webhook", samples.update(2), GENUINE)
    connection.close()
    assert server.post(samples.update(3)).status == 200
    assert server.stop() == 0
    assert sorted(one.update_id for one in bot.handled) == [1, 2, 3]
    assert not server.find("Traceback|ERROR")
