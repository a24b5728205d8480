"""A great many updates wait: only a window of them is in memory."""

from __future__ import annotations

from pathlib import Path

from fasthook.queues.rows import ID, NUMBER
from fasthook.queues.store import pack_update
from fasthook.queues.tables import Journal
from queues.opened import BOT, SAFE, Run, made, opened

COUNT = 100_000
WINDOW = 500


def test_a_hundred_thousand(run: Run, journal: Path) -> None:
    files = Journal(journal)
    files.env.set_mapsize(1 << 30)
    with files.env.begin(write=True) as txn:
        for number in range(1, COUNT + 1):
            update = made(number, chat=number % 1000)
            txn.put(NUMBER.pack(number), pack_update(update), db=files.waiting, append=True)
            txn.put(ID.pack(BOT, number), NUMBER.pack(number), db=files.ids, append=True)
    files.close()

    async def main() -> None:
        one = await opened(journal, window=WINDOW, share=32)
        assert one.waited == one.queue.depth == COUNT
        assert one.ids == list(range(1, WINDOW + 1))
        assert await one.put(COUNT + 1) == [SAFE]
        handled = 0
        while handled < 2000:
            assert len(one.delivered) <= WINDOW
            handled += 1
            assert one.ids[0] == handled
            one.settle(handled)
        assert one.queue.depth == COUNT + 1 - handled
        await one.close()

    run(main())
