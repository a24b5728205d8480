"""What the guard runs: `python -m bench.workloads NAME N` does NAME's work N times, after as much as makes it warm.

Run with another tree's `src` as PYTHONPATH it measures that tree, so nothing here but `fasthook` comes from one. Under
callgrind an import is dear: each workload imports what it alone needs.
With --seconds it prints the process's CPU time for the N, without what it took to get there.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio

BOT, PATH, SECRET = 42, "/webhook", "correct-horse_battery-staple"
FIRST_ID = 100_000_000
CHATS = 1000
WARM = 500
CONNECTIONS = 8
TEXT = "The engine might compose elaborate and scientific pieces of music of any degree of complexity or extent. "

Work = Callable[[int, int], None]  # of the first id, and how many


def body(update_id: int, size: int = 500) -> bytes:
    """A message update of so many bytes, as Telegram writes it."""
    chat = 700_000_000 + update_id % CHATS
    ada = '"first_name":"Ada","last_name":"Lovelace","username":"ada_lovelace"'
    head = (
        f'{{"update_id":{update_id},\n"message":{{"message_id":{update_id},'
        f'"from":{{"id":{chat},"is_bot":false,{ada},"language_code":"en"}},'
        f'"chat":{{"id":{chat},{ada},"type":"private"}},"date":1760000000,"text":"'
    )
    room = size - len(head) - 3
    return (head + (TEXT * (room // len(TEXT) + 1))[:room] + '"}}').encode()


def request(update_id: int) -> bytes:
    """Telegram's request: its headers in its order."""
    raw = body(update_id)
    head = (
        f"POST {PATH} HTTP/1.1",
        "Host: bot.example",
        f"X-Telegram-Bot-Api-Secret-Token: {SECRET}",
        "Content-Type: application/json",
        f"Content-Length: {len(raw)}",
        "Connection: keep-alive",
        "Accept-Encoding: gzip, deflate",
    )
    return "\r\n".join(head).encode() + b"\r\n\r\n" + raw


@contextmanager
def scan(size: int = 500) -> Iterator[Work]:
    from fasthook._scan import scan as find

    raw = [body(FIRST_ID + number, size) for number in range(64)]

    def work(first: int, count: int) -> None:
        for number in range(count):
            find(raw[number & 63])

    yield work


@contextmanager
def ring() -> Iterator[Work]:
    from fasthook import DedupRing

    made = DedupRing(1024)

    def work(first: int, count: int) -> None:
        for number in range(first, first + count):
            made.claim(BOT, number)
            made.settle(BOT, number)

    yield work


@contextmanager
def buckets() -> Iterator[Work]:
    from fasthook import TokenBuckets

    made = TokenBuckets(1024, 10**9, 1000)

    def work(first: int, count: int) -> None:
        for number in range(first, first + count):
            made.take(number % 1500, number)

    yield work


@contextmanager
def gate() -> Iterator[Work]:
    from fasthook import DedupRing, Gate, Stats, Update

    made: Any = Gate(DedupRing(4096, 1000), Stats(Gate.counters(1), 1), update=Update)
    secret, path = SECRET.encode(), PATH.encode()
    made.add(path, BOT, (secret,))
    tail = body(FIRST_ID).partition(b",")[2]

    def work(first: int, count: int) -> None:
        head, admit, settle = made.head, made.body, made.settle
        for number in range(first, first + count):
            raw = b'{"update_id":%d,%s' % (number, tail)
            settle(admit(head(path, True, len(raw), secret, "149.154.167.197", 0), raw, 1.5, 0))

    yield work


class Wire:
    """A connection without a socket: as much of asyncio's Transport as is called."""

    def __init__(self, protocol: Any) -> None:
        self._known = {"peername": ("192.0.2.1", 1234), "sockname": ("192.0.2.2", 80)}
        self.protocol = protocol
        self.answers = 0
        protocol.connection_made(self)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._known.get(name, default)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.answers += bytes(data[:12]) == b"HTTP/1.1 200"

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def close(self) -> None:
        pass


@contextmanager
def hooked() -> Iterator[tuple[asyncio.AbstractEventLoop, Any, list[int]]]:
    """A started hook with `memory:`, its loop, and a list with the number of updates that its handler had."""
    import asyncio
    import tempfile

    from fasthook import Hook, Update

    handled = [0]

    async def handler(update: Update) -> None:
        handled[0] += 1

    with asyncio.Runner() as runner, tempfile.TemporaryDirectory() as state:
        hook = Hook(handler, state_dir=state, queue="memory:", secret=SECRET)
        runner.run(hook.receiver.start())
        yield runner.get_loop(), hook, handled
        runner.run(hook.receiver.stop())


async def turns(handled: list[int], count: int) -> None:
    import asyncio

    while handled[0] < count:  # noqa: ASYNC110  an event would be work of its own
        await asyncio.sleep(0)


@contextmanager
def protocol() -> Iterator[Work]:
    """Requests through the compiled edge to the handler and back."""
    import asyncio

    import uvicorn
    from uvicorn.server import ServerState

    with hooked() as (loop, hook, handled):
        config = uvicorn.Config(hook, http="fasthook._protocol:HookProtocol", log_config=None)
        config.load()
        state = ServerState()
        wires = [Wire(config.http_protocol_class(config, state, {}, loop)) for _ in range(CONNECTIONS)]  # type: ignore

        async def feed(first: int, count: int) -> None:
            for number in range(first, first + count):
                wires[number % CONNECTIONS].protocol.data_received(request(number))
                if number % CONNECTIONS == 0:
                    await asyncio.sleep(0)

        def work(first: int, count: int) -> None:
            goal, answered = handled[0] + count, sum(wire.answers for wire in wires) + count
            loop.run_until_complete(feed(first, count))
            assert sum(wire.answers for wire in wires) == answered, "a request was not answered with 200"
            loop.run_until_complete(turns(handled, goal))

        yield work
        for wire in wires:
            wire.protocol.connection_lost(None)


@contextmanager
def asgi() -> Iterator[Work]:
    """Requests through the ASGI door to the handler and back."""
    import asyncio

    with hooked() as (loop, hook, handled):
        headers = [
            tuple(line.split(b": ", 1)) for line in request(FIRST_ID).partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]
        ]
        headers = [(name.lower(), value) for name, value in headers]
        base = {"type": "http", "method": "POST", "path": PATH, "raw_path": PATH.encode(), "headers": headers}
        base |= {"client": ("192.0.2.1", 1234), "root_path": "", "query_string": b"", "http_version": "1.1"}
        statuses: list[int] = []

        async def send(event: dict[str, Any]) -> None:
            if event["type"] == "http.response.start":
                statuses.append(event["status"])

        async def ask(first: int, count: int) -> None:
            for number in range(first, first + count):
                raw = body(number)

                async def receive(raw: bytes = raw) -> dict[str, Any]:
                    return {"type": "http.request", "body": raw, "more_body": False}

                await hook(dict(base), receive, send)
                if number % CONNECTIONS == 0:
                    await asyncio.sleep(0)

        def work(first: int, count: int) -> None:
            goal = handled[0] + count
            statuses.clear()
            loop.run_until_complete(ask(first, count))
            assert statuses == [200] * count, "a request was not answered with 200"
            loop.run_until_complete(turns(handled, goal))

        yield work


WORKLOADS = {
    "scan": scan,
    "scan-4k": lambda: scan(4096),
    "ring": ring,
    "buckets": buckets,
    "gate": gate,
    "protocol": protocol,
    "asgi": asgi,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.workloads", description=__doc__)
    parser.add_argument("name", choices=WORKLOADS)
    parser.add_argument("count", type=int)
    parser.add_argument("--seconds", action="store_true", help="print the CPU seconds that the N took")
    arguments = parser.parse_args()
    with WORKLOADS[arguments.name]() as work:
        work(FIRST_ID, WARM)
        gc.collect()
        gc.freeze()
        start = time.process_time()
        work(FIRST_ID + WARM, arguments.count)
        if arguments.seconds:
            print(time.process_time() - start)
    return 0


if __name__ == "__main__":
    sys.exit(main())
