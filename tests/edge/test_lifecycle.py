"""uvicorn's lifecycle: how the class starts, counts and stops, also in a configuration of the user's own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from edge.client import (
    BODY,
    Peer,
    again_if_held_up,
    allowed,
    connected,
    exchange,
    head,
    new_id,
    numbered,
    post,
    still_open,
)
from edge.conftest import Run, Serve
from edge.rows import CHUNKED
from edge.serving import PATIENCE, PROTOCOL, RUN, Certificate, Process, Served, bot_in
from edge.test_connection import Held
from fasthook._protocol import HookProtocol

TO_ASK = 1.0  # seconds that a server which stops waits for the request of who has just come


def one() -> bytes:
    return numbered(post(), new_id())


# ---------------------------------------------------------------- counting


def test_uvicorn_sees_connections_and_requests(serve: Serve, loop_name: str) -> None:
    served = serve(loop=loop_name)
    state = served.server.server_state
    with connected(served) as first, connected(served) as second:
        still_open(first)
        still_open(second)
        assert len(state.connections) == 2
        assert all(isinstance(connection, HookProtocol) for connection in state.connections)
        for peer in (first, second):
            peer.send(one() * 3 + b"nonsense\r\n\r\n")
            assert [peer.read().status for _ in range(4)] == [200, 200, 200, 400]
        assert state.total_requests == 10
    gone(served)


def gone(served: Served) -> None:
    """Wait until no connection is left."""
    end = time.monotonic() + PATIENCE
    while served.server.server_state.connections:
        assert time.monotonic() < end, "connections are left"
        served.settle()


def test_limit_max_requests(serve: Serve, loop_name: str) -> None:
    served = serve(loop=loop_name, options={"limit_max_requests": 5})
    with connected(served) as peer:
        for _ in range(5):
            peer.send(one())
            assert peer.read().status == 200
        assert peer.rest() == b""
    served.join()
    assert served.server.server_state.total_requests == 5
    assert not served.hook.receiver.running


# ---------------------------------------------------------------- stopping

UNDER_WAY = {
    "in the request line": 5,
    "in the headers": 60,
    "in the body": len(post()) - 10,
}


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_connection_that_asks_nothing_is_closed(
    serve: Serve, loop_name: str, certificate: Certificate, tls: bool
) -> None:
    served = serve(loop=loop_name, certificate=certificate if tls else None, keep_alive=60)
    with connected(served) as used, connected(served) as silent:
        used.send(one())
        assert used.read().status == 200
        served.settle()
        served.ask_to_stop()
        assert used.rest() == b""
        assert silent.rest() == b""
    served.join()


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_connection_that_has_just_come_may_ask(
    serve: Serve, loop_name: str, certificate: Certificate, tls: bool
) -> None:
    served = serve(loop=loop_name, certificate=certificate if tls else None)
    update_id = new_id()
    with connected(served) as used, connected(served) as fresh:
        used.send(one())
        assert used.read().status == 200
        served.settle()

        async def ask() -> None:
            """As soon as the stop has begun: there is a second for it."""
            while not hasattr(served.server.server_state, "fasthook_ends"):
                await asyncio.sleep(0)
            fresh.socket.sendall(numbered(post(), update_id))

        asking = asyncio.run_coroutine_threadsafe(ask(), served.loop)
        served.ask_to_stop()
        assert used.rest() == b""
        asking.result(PATIENCE)
        answer = fresh.read()
        assert (answer.status, answer.closes) == (200, True)
        assert fresh.rest() == b""
    served.join()
    assert served.seen.times(update_id) == 1


@pytest.mark.parametrize("sent", UNDER_WAY.values(), ids=UNDER_WAY.keys())
@pytest.mark.parametrize("used", [False, True], ids=["first", "second"])
def test_a_request_under_way_gets_its_answer(serve: Serve, loop_name: str, sent: int, used: bool) -> None:
    served = serve(loop=loop_name)
    update_id = new_id()
    request = numbered(post(), update_id)
    with connected(served) as peer, connected(served) as idle:
        still_open(idle)
        if used:
            still_open(peer)
        peer.send(request[:sent])
        served.settle()
        served.ask_to_stop()
        assert idle.rest() == b""  # the stop has begun
        peer.send(request[sent:])
        answer = peer.read()
        assert (answer.status, answer.closes) == (200, True)
        assert peer.rest() == b""
    assert served.seen.wait_for(update_id) == numbered(BODY, update_id)
    served.join()


def test_an_answer_that_waits_is_given(serve: Serve, loop_name: str) -> None:
    served = serve(loop=loop_name)
    queue = Held(served)
    later = new_id()
    with connected(served) as peer, connected(served) as idle:
        still_open(idle)
        peer.send(one() + numbered(post(), later))
        queue.wait_for_one()
        served.ask_to_stop()
        assert idle.rest() == b""
        queue.answer_one()
        answer = peer.read()
        assert (answer.status, answer.closes) == (200, True)
        assert peer.rest() == b""
    served.join()
    assert served.seen.times(later) == 0


def test_what_comes_behind_the_last_answer_is_not_taken(serve: Serve) -> None:
    served = serve()
    later = new_id()
    first = one()
    with connected(served) as peer, connected(served) as idle:
        still_open(idle)
        peer.send(first[:10])
        served.settle()
        served.ask_to_stop()
        assert idle.rest() == b""
        peer.send(first[10:] + numbered(post(), later))
        assert peer.read().closes
        assert peer.rest() == b""
    served.join()
    assert served.seen.times(later) == 0


def test_a_stop_ends_a_refused_body(serve: Serve) -> None:
    """A connection that is answered already and still sends its body is not kept for the rest of it."""
    served = serve(body_timeout=2)
    with connected(served) as peer:
        peer.send(head(CHUNKED, line=b"POST /other HTTP/1.1"))
        assert peer.read().status == 404
        served.ask_to_stop()
        assert peer.rest() == b""
    served.join()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_of_fasthook_run(run: Run, number: int) -> None:
    process = run()
    with connected(process) as idle, connected(process) as busy:
        for peer in (idle, busy):
            peer.send(one())
            assert peer.read().status == 200
        busy.send(post()[:60])
        process.process.send_signal(number)
        assert idle.rest() == b""
        busy.send(numbered(post()[60:], new_id()))
        answer = busy.read()
        assert (answer.status, answer.closes) == (200, True)
        assert busy.rest() == b""
    assert process.process.wait(PATIENCE) == 0


@pytest.mark.parametrize("http", ["compiled", "asgi"])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_fasthook_run_takes_who_has_just_come(run: Run, certificate: Certificate, tls: bool, http: str) -> None:
    """One that has connected, and not begun with TLS or its request, when the listener closes."""

    def attempt() -> None:
        process = run("--http", http, certificate=certificate if tls else None)
        with connected(process) as idle, socket.create_connection(process.address, PATIENCE) as raw:
            idle.send(one())
            assert idle.read().status == 200
            with allowed(TO_ASK):
                process.process.send_signal(signal.SIGTERM)
                assert idle.rest() == b""  # the listener is closed
                with certificate.client.wrap_socket(raw, server_hostname="localhost") if tls else raw as wrapped:
                    wrapped.sendall(one())
                    said = b"".join(iter(lambda: wrapped.recv(4096), b"")).lower()
                    assert said.startswith(b"http/1.1 200 ")
                    assert said.count(b"\r\nconnection: close\r\n") == 1
        assert process.process.wait(PATIENCE) == 0

    again_if_held_up(attempt)


# ---------------------------------------------------------------- a configuration of the user's own


@pytest.fixture
def processes() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def uvicorn_cli(
    processes: contextlib.ExitStack, directory: Path, *options: str, certificate: Certificate | None = None
) -> Process:
    """`uvicorn bot:hook` with the class, on a Unix socket."""
    path = str(directory / "uvicorn.sock")
    tls = ["--ssl-certfile", str(certificate.chain)] if certificate else []
    command = ["-m", "uvicorn", "bot:hook", "--http", PROTOCOL, "--uds", path, *tls, *options]
    process = Process(command, bot_in(directory), address=path, family=socket.AF_UNIX, certificate=certificate)
    processes.callback(process.stop)
    process.wait_for("running on")
    return process


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_uvicorn_with_an_import_string(tmp_path: Path, processes: contextlib.ExitStack, loop: str) -> None:
    process = uvicorn_cli(processes, tmp_path, "--loop", loop)
    with connected(process) as peer:
        peer.send(one() + head(line=b"GET / HTTP/1.1") + one())
        assert [peer.read().status for _ in range(3)] == [200, 404, 200]  # read() sees that there is no date or server
        process.process.send_signal(signal.SIGTERM)
        assert peer.rest() == b""
    process.process.wait(PATIENCE)
    assert "Traceback" not in process.output


def test_uvicorn_stops_after_so_many_requests(tmp_path: Path, processes: contextlib.ExitStack) -> None:
    process = uvicorn_cli(processes, tmp_path, "--limit-max-requests", "3")
    with connected(process) as peer:
        for _ in range(3):
            peer.send(one())
            assert peer.read().status == 200
        assert peer.rest() == b""
    assert process.process.wait(PATIENCE) == 0


def test_uvicorn_with_tls(tmp_path: Path, processes: contextlib.ExitStack, certificate: Certificate) -> None:
    process = uvicorn_cli(processes, tmp_path, certificate=certificate)
    with connected(process) as peer:
        peer.send(one())
        assert peer.read().status == 200


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_hook_that_was_not_started(
    serve: Serve, loop_name: str, certificate: Certificate, tls: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "fasthook"):
        served = serve(loop=loop_name, certificate=certificate if tls else None, options={"lifespan": "off"})
        for _ in range(3):
            turned_away(served, 503)
    [line] = [record.getMessage() for record in caplog.records]
    assert line == "the hook is not started: leave uvicorn's lifespan on, or start it with hook.running()"


def turned_away(served: Served, status: int) -> None:
    """A peer that sends its request gets this status, and the end."""
    with connected(served) as peer:
        peer.send(one())
        answer = peer.read()
        assert (answer.status, answer.closes) == (status, True)
        assert peer.end() == b""
    gone(served)


def test_something_else_than_a_hook(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def application(scope: object, receive: object, send: object) -> None: ...

    served = serve()
    monkeypatch.setattr(served.server.config, "loaded_app", application)
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            turned_away(served, 500)
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith("HookProtocol serves a fasthook.Hook, not this application: ")


class Guard:
    """Middleware of a user: a framework's class around the hook."""

    def __init__(self, app: object) -> None:
        self.app = app

    async def __call__(self, scope: object, receive: object, send: object) -> None: ...


def test_middleware_around_the_hook_is_not_passed_by(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    served = serve()
    monkeypatch.setattr(served.server.config, "loaded_app", ProxyHeadersMiddleware(Guard(served.hook)))
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            turned_away(served, 500)
    [line] = [record.getMessage() for record in caplog.records]
    assert line == (
        "HookProtocol would pass by Guard, which stands around the hook: take that away, "
        'or let uvicorn run it with --http auto (http="auto")'
    )
    assert len(served.seen) == 0


# ---------------------------------------------------------------- where it listens


def test_tls_of_fasthook_run(run: Run, certificate: Certificate) -> None:
    process = run(certificate=certificate)
    with connected(process) as peer:
        peer.send(one())
        assert peer.read().status == 200


def test_a_tls_handshake_has_the_time_of_a_head(run: Run, certificate: Certificate) -> None:
    process = run("--header-timeout", "1", certificate=certificate)
    process.certificate = None
    for sent in (b"", b"\x16\x03\x01\x02\x00\x01"):
        with connected(process) as peer:
            peer.socket.sendall(sent)
            peer.rest()  # fails if it takes longer than a test waits


def hello() -> bytes:
    """The first message of a TLS handshake."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
    return outgoing.read()


def test_handshakes_that_hang_are_connections_too(run: Run, certificate: Certificate) -> None:
    """Those above the limit, and a few to be told of it, are closed before their handshake has cost anything."""
    process = run("--max-connections", "4", "--header-timeout", "5", certificate=certificate)
    process.certificate = None
    first = hello()
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(connected(process)) for _ in range(60)]
        for peer in peers:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                peer.socket.sendall(first)
        answered = [begun(peer) for peer in peers]
        assert answered == [True] * 20 + [False] * 40
        for peer in peers[:20]:
            peer.close()
        process.certificate = certificate
        end = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(ssl.SSLError, ConnectionError), connected(process) as peer:
                peer.send(one())
                assert peer.read().status == 200
                break
            assert time.monotonic() < end, "their places are not free again"
    assert "Traceback" not in process.output


def begun(peer: Peer) -> bool:
    """Whether the server goes on with a handshake; False if it closes instead."""
    try:
        return peer.socket.recv(1) != b""
    except ConnectionResetError:
        return False


LIMITED = (
    "import os, resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[2]))); "
    "os.execv(sys.executable, [sys.executable, *sys.argv[3:]])"
)


def limited(
    tmp_path: Path,
    processes: contextlib.ExitStack,
    soft: int,
    hard: int,
    *options: str,
    target: str = "bot:handler",
) -> Process:
    """`fasthook run` where so many files may be open."""
    run = [target if part == "bot:handler" else part for part in RUN]
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        command = ["-c", LIMITED, str(soft), str(hard), *run, "--fd", str(listener.fileno()), *options]
        process = Process(command, bot_in(tmp_path), listener=listener)
    processes.callback(process.stop)
    process.wait_for("fasthook serves")
    return process


def test_few_descriptors(tmp_path: Path, processes: contextlib.ExitStack) -> None:
    """It is said; further connections are refused, and files can be opened all the same."""
    process = limited(tmp_path, processes, 128, 128)
    assert "the limit of open files is 128: at most 64 connections are taken, not the 10000 of --max" in process.output
    with contextlib.ExitStack() as stack:
        known = stack.enter_context(connected(process))
        known.send(one() + post(body=b"no update"))
        statuses = [known.read().status for _ in range(2)]
        for _ in range(200):
            stack.enter_context(connected(process))
        process.wait_for("64 connections are open, the most that are taken: further ones get 503")
        for _ in range(3):
            known.send(one() + post(body=b"another that is none"))
            assert [known.read().status for _ in range(2)] == statuses
    assert process.output.count("the most that are taken") == 1
    assert "Traceback" not in process.output


def test_the_soft_limit_of_descriptors_is_raised(tmp_path: Path, processes: contextlib.ExitStack) -> None:
    process = limited(tmp_path, processes, 128, 1024, "--max-connections", "500")
    assert "the limit of open files" not in process.output
    with contextlib.ExitStack() as stack:
        for _ in range(200):
            still_open(stack.enter_context(connected(process)))


GREEDY = """\
import os

kept = []

async def handler(update):
    try:
        while not kept or kept[0] is not None:
            kept.append(os.open(os.devnull, os.O_RDONLY)) if update.update_id % 2 else free()
    except OSError:
        pass

def free():
    for one in kept:
        os.close(one)
    kept[:] = [None]
"""


def test_no_descriptor_is_left(tmp_path: Path, processes: contextlib.ExitStack) -> None:
    """The bot has taken them: it is said."""
    (bot_in(tmp_path) / "greedy.py").write_text(GREEDY)
    process = limited(tmp_path, processes, 128, 128, "--no-ops", target="greedy:handler")
    odd = next(update_id for update_id in iter(new_id, 0) if update_id % 2)
    with connected(process) as peer:
        peer.send(numbered(post(), odd))
        assert peer.read().status == 200
        process.wait_for(r"no file can be opened and no connection taken \(Too many open files\): raise the limit")
        peer.send(numbered(post(), odd + 1))
        assert peer.read().status == 200


def test_what_the_asgi_door_does_not_keep_is_said(run: Run) -> None:
    process = run("--http", "asgi", "--max-connections", "2")
    process.wait_for("fasthook serves")
    assert "--http asgi: uvicorn's own HTTP keeps neither --header-timeout nor a limit of what" in process.output
    with connected(process) as first, connected(process) as second:
        for peer in (first, second):
            peer.send(one())
            assert read_asgi(peer) == 200
        with connected(process) as third:
            third.send(one())
            assert read_asgi(third) == 503


def read_asgi(peer: Peer) -> int:
    """The status of uvicorn's own answers, which don't keep all that ours do."""
    return int(peer.socket.recv(65536).split()[1])


def test_a_unix_socket(tmp_path: Path, processes: contextlib.ExitStack) -> None:
    path = str(tmp_path / "edge.sock")
    process = Process([*RUN, "--uds", path], bot_in(tmp_path), address=path, family=socket.AF_UNIX)
    processes.callback(process.stop)
    process.wait_for("fasthook serves")
    assert [answer.status for answer in exchange(process, one() + one())] == [200, 200]
    wrong = post().replace(b"edge-secret", b"wrong")
    assert [answer.status for answer in exchange(process, wrong)] == [401]


def test_an_inherited_descriptor(run: Run) -> None:
    process = run()
    assert "--fd" in process.process.args  # type: ignore[operator]
    assert [answer.status for answer in exchange(process, one() + one())] == [200, 200]


def test_ipv6(tmp_path: Path, processes: contextlib.ExitStack) -> None:
    if not has_ipv6():
        if os.environ.get("CI") == "true":
            pytest.fail("no IPv6 on this machine")
        pytest.skip("no IPv6 on this machine")
    process = Process([*RUN, "--host", "::1", "--port", "0"], bot_in(tmp_path), family=socket.AF_INET6)
    processes.callback(process.stop)
    process.address = ("::1", int(process.wait_for(r"http://\[::1\]:(\d+)")[1]))
    assert [answer.status for answer in exchange(process, numbered(post(host=b"Host: [::1]"), new_id()))] == [200]


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False
