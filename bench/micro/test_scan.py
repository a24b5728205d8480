"""The scan, beside orjson: what a receiver needs of an update before it can say anything about it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
import pytest

from fasthook._scan import scan
from fasthook.testing import samples

RUSSIAN = "Где моя посылка? Курьер обещал быть до полудня. "
FIRST_ID = 123_456_789


def any_order(update_id: int) -> bytes:
    """500 bytes with `update_id` last, as no Telegram sends them: the way round the fast path."""
    event = samples.update(update_id, size=500).split(b",\n", 1)[1]
    return b"{%s,%s}" % (event[:-1], b'"update_id":%d' % update_id)


MAKERS: dict[str, tuple[int, Callable[[int], bytes]]] = {
    "100 B": (2000, samples.small),
    "500 B": (2000, lambda update_id: samples.update(update_id, size=500)),
    "500 B, update_id last": (2000, any_order),
    "4 KiB": (500, lambda update_id: samples.update(update_id, size=4096)),
    "4 KiB, Cyrillic": (500, lambda update_id: samples.update(update_id, text=RUSSIAN * 14, size=4096)),
    "500 KiB": (8, lambda update_id: samples.update(update_id, size=500 * 1024)),
}
GOALS = {"500 B": "250 ns or 15 x"}


def lookups(raw: bytes) -> tuple[Any, ...]:
    data = orjson.loads(raw)
    kind = next(name for name in data if name != "update_id")
    event = data[kind]
    chat, user = event.get("chat"), event.get("from")
    return data["update_id"], kind, chat and chat["id"], user and user["id"]


def test_both_find_the_same() -> None:
    for _, maker in MAKERS.values():
        update = scan(maker(FIRST_ID))
        assert update is not None
        found = update.update_id, update.kind, update.chat_id, update.user_id
        assert found[:2] == lookups(maker(FIRST_ID))[:2]


def over(function: Callable[[bytes], object]) -> Callable[[list[bytes]], None]:
    def run(bodies: list[bytes]) -> None:
        for raw in bodies:
            function(raw)

    return run


@pytest.mark.parametrize("plain", [orjson.loads, lookups], ids=["loads", "lookups"])
@pytest.mark.parametrize("size", MAKERS)
def test_scan(beside: Any, size: str, plain: Callable[[bytes], object]) -> None:
    count, maker = MAKERS[size]
    beside(
        f"scan, {size}",
        over(scan),
        over(plain),
        prepare=lambda: [maker(FIRST_ID + n) for n in range(count)],
        items=count,
        than="orjson.loads" if plain is orjson.loads else "orjson.loads, lookups",
        goal=GOALS.get(size, ""),
    )
