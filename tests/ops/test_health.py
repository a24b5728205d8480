"""/healthz and /readyz: they answer when nothing else does, and readiness falls before anything else."""

from __future__ import annotations

import os
import signal
import socket
import stat
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from e2e.bot import Bot
from e2e.process import PATIENCE, SECRET, Response, Server, answer, fasthook, reserved_port
from e2e.steady import worker_pids
from fasthook.testing import samples
from ops.conftest import Serve
from ops.scrape import Ops, Page

BLOCKING = """
import threading, time

def end():
    return not __import__("pathlib").Path("go").exists()

async def sleeping(update):
    while end():
        time.sleep(0.5)

async def spinning(update):
    while end():
        for _ in range(1_000_000):
            pass
"""


def test_alive_and_ready(serve: Serve) -> None:
    _, ops = serve()
    assert (ops.ask("/healthz").status, ops.ask("/healthz").body) == (200, b"alive\n")
    assert ops.ready() == (200, [])
    assert ops.ask("/").status == 404


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
def test_methods(serve: Serve, path: str) -> None:
    _, ops = serve()
    head = ops.ask(path, "HEAD")
    assert (head.status, head.body) == (200, b"")
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        refused = ops.ask(path, method)
        assert refused.status == 405
        assert set(refused.headers["allow"].split(", ")) == {"GET", "HEAD"}


@pytest.mark.parametrize("options", [("--workers", "2"), ()])
def test_it_answers_before_the_bot_has_started(bot: Bot, options: tuple[str, ...]) -> None:
    source = "\n\nasync def lifespan(app):\n    while not os.path.exists('go'):\n        await asyncio.sleep(0.01)\n"
    with (bot.directory / "bot.py").open("a") as file:
        file.write(source + "    yield\n\nlifespan = __import__('contextlib').asynccontextmanager(lifespan)\n")
    with reserved_port() as port, ThreadPoolExecutor() as pool:
        ops, where = Ops("127.0.0.1", port), f"127.0.0.1:{port}"
        starting = pool.submit(
            Server, bot.directory, "bot:handler", "--port", "0", "--secret", SECRET, "--ops", where, *options
        )
        while not listens(ops):
            assert not starting.done()
        try:
            assert (ops.ask("/healthz").status, ops.ask("/healthz").body) == (200, b"alive\n")
            assert ops.ready() == (503, ["starting"])
            page = ops.metrics()
            assert page.by("fasthook_unready", "reason") == {"starting": 1}
            assert page.by("fasthook_process_resident_memory_bytes", "process")["door"] > 0
            assert not starting.done()
        finally:
            (bot.directory / "go").touch()
            server = starting.result()
    try:
        assert ops.ready() == (200, [])
        assert server.post(samples.update(1)).status == 200
        assert server.stop() == 0
    finally:
        server.kill()


def listens(ops: Ops) -> bool:
    try:
        socket.create_connection(ops.address, PATIENCE).close()
    except ConnectionRefusedError:
        return False
    return True


def blocked(page: Page) -> set[str]:
    """The processes whose event loops have not come round in time."""
    return set(page.by("fasthook_event_loop_blocked_seconds", "process"))


def until_ready(ops: Ops, *codes: str) -> None:
    """Ask until these are the reasons for which it is not ready."""
    end = time.monotonic() + PATIENCE
    while (now := ops.ready()) != (503 if codes else 200, list(codes)):
        assert time.monotonic() < end, now


@pytest.mark.parametrize("how", ["sleeping", "spinning"])
def test_it_answers_while_handlers_block_all_workers(serve: Serve, bot: Bot, how: str) -> None:
    (bot.directory / "blocking.py").write_text(BLOCKING)
    server, ops = serve("--workers", "2", target=f"blocking:{how}")
    for chat in (1, 2):
        assert server.post(samples.update(chat, chat_id=chat)).status == 200
    ops.until(lambda page: page["fasthook_in_flight"] == 2 and blocked(page) == {"worker-1", "worker-2"})
    assert ops.ask("/healthz").status == 200
    until_ready(ops, "no_worker")
    assert server.post(samples.update(3)).status == 200
    (bot.directory / "go").touch()
    until_ready(ops)


def test_no_worker_is_there(serve: Serve, bot: Bot) -> None:
    """All have died, and their successors are slow to start."""
    with (bot.directory / "bot.py").open("a") as file:
        file.write("\nimport time\nwhile os.path.exists('slow'):\n    time.sleep(0.01)\n")
    server, ops = serve("--workers", "2")
    assert ops.ready() == (200, [])
    (bot.directory / "slow").touch()
    os.kill(worker_pids(server)[0], signal.SIGKILL)
    server.until("died: SIGKILL")
    assert ops.ready() == (200, [])
    os.kill(worker_pids(server)[1], signal.SIGKILL)
    until_ready(ops, "no_worker")
    assert ops.metrics().by("fasthook_unready", "reason") == {"no_worker": 1}
    assert server.post(samples.update(1)).status == 200
    (bot.directory / "slow").unlink()
    until_ready(ops)


def test_new_code_and_recycled_workers_leave_it_ready(serve: Serve, bot: Bot) -> None:
    server, ops = serve("--workers", "2", "--max-requests", "30")
    for times in (1, 2):
        server.signal(signal.SIGHUP)
        end = time.monotonic() + PATIENCE
        while len(server.find("reloaded: workers")) < times:
            assert ops.ready() == (200, [])
            assert time.monotonic() < end, "\n".join(server.lines)
    for update_id in range(120):
        assert server.post(samples.update(update_id, chat_id=update_id)).status == 200
        assert ops.ready() == (200, [])
    server.until(r"worker \d+ .process \d+. is ready$", 3)
    assert ops.ready() == (200, [])


@pytest.mark.parametrize("how", ["sleeping", "spinning"])
def test_it_answers_while_a_handler_blocks_the_loop(serve: Serve, bot: Bot, how: str) -> None:
    (bot.directory / "blocking.py").write_text(BLOCKING)
    server, ops = serve(target=f"blocking:{how}")
    assert server.post(samples.update(1)).status == 200
    ops.until(lambda page: page["fasthook_in_flight"] == 1 and blocked(page) == {"door"})
    assert ops.ask("/healthz").status == 200
    end = time.monotonic() + PATIENCE
    while ops.ready() != (503, ["loop_blocked"]):
        assert time.monotonic() < end
    (bot.directory / "go").touch()
    ops.until(lambda page: page["fasthook_in_flight"] == 0)
    end = time.monotonic() + PATIENCE
    while ops.ready() != (200, []):
        assert time.monotonic() < end


def test_a_full_queue_is_not_ready_and_heals(serve: Serve, bot: Bot) -> None:
    (bot.directory / "held.py").write_text(
        "import asyncio, pathlib\nasync def handler(update):\n"
        "    while not pathlib.Path('go').exists():\n        await asyncio.sleep(0.01)\n"
    )
    server, ops = serve("--queue", "memory:", "--queue-size", "10", target="held:handler")
    for update_id in range(8):
        assert server.post(samples.update(update_id)).status == 200
    assert ops.ready() == (200, [])
    server.post(samples.update(8))
    assert ops.ready() == (503, ["queue_high"])
    (bot.directory / "go").touch()
    ops.until(lambda page: page["fasthook_queue_depth"] == 0)
    assert ops.ready() == (200, [])


def test_readiness_falls_before_the_drain(serve: Serve, bot: Bot) -> None:
    """With --drain-delay the hook still takes updates while a load balancer looks away."""
    server, ops = serve("--drain-delay", "6s")
    server.signal(signal.SIGTERM)
    server.until("SIGTERM: not ready any more; stopping in 6 s")
    assert ops.ready() == (503, ["stopping"])
    assert server.post(samples.update(1)).status == 200
    assert ops.ask("/healthz").status == 200
    assert server.wait() == 0
    assert [one.update_id for one in bot.handled] == [1]


def test_a_second_signal_ends_the_delay(serve: Serve) -> None:
    server, _ = serve("--drain-delay", "1h")
    server.signal(signal.SIGTERM)
    server.until("SIGTERM: not ready any more")
    server.signal(signal.SIGTERM)
    assert server.wait() == 130


def test_not_ready_while_it_drains(serve: Serve, bot: Bot) -> None:
    server, ops = serve("--drain-timeout", "1h", env={"HELD": "1"})
    server.post(samples.update(1, chat_id=1))
    ops.until(lambda page: page["fasthook_in_flight"] == 1)
    server.signal(signal.SIGTERM)
    server.until("SIGTERM: stopping")
    assert ops.ready() == (503, ["stopping"])
    assert ops.metrics().by("fasthook_unready", "reason") == {"stopping": 1}
    server.signal(signal.SIGTERM)
    assert server.wait() == 130


def test_a_signal_is_seen_while_a_handler_blocks(serve: Serve, bot: Bot) -> None:
    (bot.directory / "blocking.py").write_text(BLOCKING)
    server, ops = serve(target="blocking:sleeping")
    server.post(samples.update(1))
    ops.until(lambda page: page["fasthook_in_flight"] == 1)
    server.signal(signal.SIGTERM)
    end = time.monotonic() + PATIENCE
    while "stopping" not in ops.ready()[1]:
        assert time.monotonic() < end
    (bot.directory / "go").touch()
    assert server.wait() == 0


def test_an_address_in_use(bot: Bot) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        ended = fasthook(bot.directory, "run", "bot:handler", "--port", "0", "--ops", where)
    assert ended.line == f"fasthook: --ops: cannot listen on {where}: Address already in use"
    assert (ended.code, len(ended.lines)) == (1, 1)


def test_the_default_address_in_use_is_told_and_done_without(start: Callable[..., Server]) -> None:
    taken = socket.socket()
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of an earlier one that have just ended
    try:
        taken.bind(("127.0.0.1", 9090))
        taken.listen()
    except OSError:
        pass  # by somebody else: all the better
    with taken:
        server = start("--secret", SECRET, env={"FASTHOOK_OPS": ""})
        server.until(r"WARNING +fasthook: no ops server: cannot listen on 127.0.0.1:9090: Address already in use; set")
        assert server.post(samples.update(1)).status == 200
        assert not server.find("^  ops")


def test_no_ops(start: Callable[..., Server]) -> None:
    server = start("--secret", SECRET, "--no-ops", env={"FASTHOOK_OPS": "127.0.0.1:0"})
    assert server.post(samples.update(1)).status == 200
    assert server.stop() == 0
    assert not server.find("ops")


def test_a_unix_socket(start: Callable[..., Server], bot: Bot) -> None:
    server = start("--secret", SECRET, "--ops", "unix:ops.sock")
    server.until("^  ops     unix:ops.sock$")
    assert stat.S_ISSOCK((bot.directory / "ops.sock").stat().st_mode)
    assert ask_unix(bot.directory / "ops.sock", "/readyz").status == 200
    assert server.stop() == 0


def ask_unix(path: Path, target: str) -> Response:
    import http.client

    connection = http.client.HTTPConnection("localhost", timeout=PATIENCE)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(PATIENCE)
    connection.sock.connect(str(path))
    try:
        connection.request("GET", target)
        return answer(connection)
    finally:
        connection.close()


def test_many_scrapes_at_once(serve: Serve) -> None:
    server, ops = serve()
    server.post(samples.update(1))
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: ops.ask("/metrics"), range(40)))
    assert [answer.status for answer in answers] == [200] * 40
