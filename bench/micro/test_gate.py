"""The whole gate, beside what a careful bot author writes in Python: orjson, hmac and an OrderedDict."""

from __future__ import annotations

import hmac
from collections import OrderedDict
from collections.abc import Callable
from itertools import count
from typing import Any

import orjson

from fasthook import DedupRing, Gate, Stats, TokenBuckets, Update
from fasthook.testing import samples

BOT, PATH = 42, b"/webhook"
SECRET = b"correct-horse_battery-staple-0123456789-0123456789"
CALLER = "149.154.167.197"
CAPACITY = 65_536
ITEMS = 2000
TAIL = samples.update(1_000_000_000, size=500).split(b",", 1)[1]

Ask = Callable[[list[bytes]], None]


class PlainGate:
    """The same steps and the same promises, but for the statistics and the memory that outlives the process."""

    def __init__(self) -> None:
        self.hooks = {PATH: (BOT, SECRET)}
        self.seen: OrderedDict[tuple[int, int], bool] = OrderedDict()
        self.ok = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"

    def head(self, path: bytes, post: bool, length: int, secret: bytes | None) -> int:
        hook = self.hooks.get(path)
        if hook is None:
            return 404
        if not post:
            return 405
        if length > 1_048_576:
            return 413
        if secret is None or not hmac.compare_digest(secret, hook[1]):
            return 401
        return 0

    def body(self, raw: bytes) -> dict[str, Any] | bytes:
        try:
            data = orjson.loads(raw)
            update_id = data["update_id"]
        except (ValueError, KeyError, TypeError):
            return self.ok
        key = BOT, update_id
        if key in self.seen:
            return self.ok
        self.seen[key] = False
        if len(self.seen) > CAPACITY:
            self.seen.popitem(last=False)
        kind = next(name for name in data if name != "update_id")
        chat, user = data[kind].get("chat"), data[kind].get("from")
        return {"id": update_id, "kind": kind, "chat": chat and chat["id"], "user": user and user["id"], "data": data}

    def settle(self, update: dict[str, Any]) -> None:
        self.seen[BOT, update["id"]] = True


def gate_of(**options: Any) -> Gate:
    gate = Gate(DedupRing(CAPACITY, 10_000), Stats(Gate.counters(1), 1), update=Update, **options)
    gate.add(PATH, BOT, (SECRET,))
    return gate


def head_of(gate: Gate) -> Ask:
    head = gate.head

    def ask(bodies: list[bytes]) -> None:
        for raw in bodies:
            head(PATH, True, len(raw), SECRET, CALLER, 0)

    return ask


def whole_of(gate: Any, settled: bool = True) -> Ask:
    head, body, settle = gate.head, gate.body, gate.settle

    def ask(bodies: list[bytes]) -> None:
        for raw in bodies:
            update = body(head(PATH, True, len(raw), SECRET, CALLER, 0), raw, 1.5, 0)
            if settled:
                settle(update)

    return ask


def plain_head_of(gate: PlainGate) -> Ask:
    head = gate.head

    def ask(bodies: list[bytes]) -> None:
        for raw in bodies:
            head(PATH, True, len(raw), SECRET)

    return ask


def plain_whole_of(gate: Any, settled: bool = True) -> Ask:
    head, body, settle = gate.head, gate.body, gate.settle

    def ask(bodies: list[bytes]) -> None:
        for raw in bodies:
            if head(PATH, True, len(raw), SECRET) == 0:
                update = body(raw)
                if settled:
                    settle(update)

    return ask


def bodies_of() -> Callable[[], list[bytes]]:
    """500 bytes each, every id once."""
    firsts = count(1_000_000_000, ITEMS)

    def make() -> list[bytes]:
        first = next(firsts)
        return [b'{"update_id":%d,%s' % (first + number, TAIL) for number in range(ITEMS)]

    return make


def warm(ours: Ask, plain: Ask, make: Callable[[], list[bytes]]) -> None:
    """Fill both to the brim, so that each new id pushes an old one out."""
    for _ in range(CAPACITY // ITEMS * 2):
        bodies = make()
        ours(bodies)
        plain(bodies)


def test_head(beside: Any) -> None:
    beside(
        "gate, head",
        head_of(gate_of()),
        plain_head_of(PlainGate()),
        prepare=bodies_of(),
        items=ITEMS,
        than="hmac.compare_digest",
    )


def test_admit(beside: Any) -> None:
    make, ours, plain = bodies_of(), whole_of(gate_of()), plain_whole_of(PlainGate())
    warm(ours, plain, make)
    beside(
        "gate: head, body, settle, 500 B",
        ours,
        plain,
        prepare=make,
        items=ITEMS,
        than="orjson, hmac, OrderedDict",
        goal="600 ns",
    )


def test_admit_with_a_chat_limit(beside: Any) -> None:
    make, plain = bodies_of(), plain_whole_of(PlainGate())
    ours = whole_of(gate_of(chats=TokenBuckets(4096, 1, 1_000_000_000)))
    warm(ours, plain, make)
    beside(
        "gate: the same, with --chat-rate",
        ours,
        plain,
        prepare=make,
        items=ITEMS,
        than="orjson, hmac, OrderedDict (no rate)",
        goal="600 ns",
    )


def test_duplicate(beside: Any) -> None:
    make = bodies_of()
    bodies = make()
    gate, plain_gate = gate_of(), PlainGate()
    whole_of(gate)(bodies)
    plain_whole_of(plain_gate)(bodies)
    beside(
        "gate: head, body of a duplicate",
        whole_of(gate, settled=False),
        plain_whole_of(plain_gate, settled=False),
        prepare=lambda: bodies,
        items=ITEMS,
        than="orjson, hmac, OrderedDict",
    )
