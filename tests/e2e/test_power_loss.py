"""The power goes out: whatever of the writes since the last sync is on the disk, what was acknowledged is there.

The server's writes and syncs are written down, and the file is made anew as it may have been at random moments: all
that was synced, and of what was not, any sectors.
"""

from __future__ import annotations

import random
import shutil
import threading
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from e2e.bot import Bot
from e2e.faults import Disk, Step
from e2e.process import SECRET, Server
from fasthook.queues.journal import Journal
from fasthook.queues.probe import check
from fasthook.queues.rows import HANDLED, ID, NUMBER
from fasthook.testing import samples

SECTOR = 512
SENDERS = 8
EACH = 30  # updates of each sender
CRASHES = 120
PROBED = 0.3  # of these


@dataclass(frozen=True)
class Acknowledged:
    update_id: int
    at: int  # bytes of the log when the answer was there


def load(server: Server, disk: Disk) -> list[Acknowledged]:
    """Send updates over some connections at once."""
    found: list[Acknowledged] = []

    def send(chat: int) -> None:
        connection = server.connect()
        for n in range(EACH):
            update_id = chat * 1000 + n
            size = 500 if n % 7 else 9000
            if server.post(samples.update(update_id, chat_id=chat, size=size), connection).status == 200:
                found.append(Acknowledged(update_id, disk.logged))
        connection.close()

    threads = [threading.Thread(target=send, args=(chat,)) for chat in range(1, SENDERS + 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def applied(image: bytearray, offset: int, data: bytes) -> None:
    if len(image) < offset + len(data):
        image.extend(bytes(offset + len(data) - len(image)))
    image[offset : offset + len(data)] = data


def torn(image: bytearray, writes: list[Step], chosen: random.Random) -> bytearray:
    """Some sectors of these writes have reached the disk, in any order."""
    result = bytearray(image)
    share = chosen.choice([0.0, 0.1, 0.5, 0.9, 1.0])
    for step in writes:
        for start in range(0, len(step.data), SECTOR):
            if chosen.random() < share:
                applied(result, step.offset + start, step.data[start : start + SECTOR])
    return result


def crashed(steps: list[Step], moments: set[int], chosen: random.Random) -> list[tuple[int, bytes]]:
    """The file after a crash behind each of these steps, and how much of the log was written then."""
    images: list[tuple[int, bytes]] = []
    synced, open_writes = bytearray(), list[Step]()
    for n, step in enumerate(steps):
        if step.is_sync or step.synced:
            for earlier in open_writes:
                applied(synced, earlier.offset, earlier.data)
            open_writes = []
            if not step.is_sync:
                applied(synced, step.offset, step.data)
        else:
            open_writes.append(step)
        if n in moments:
            images.append((step.at, bytes(torn(synced, open_writes, chosen))))
    return images


def known(directory: Path) -> set[int]:
    """The ids that a journal knows, each of an update that waits there or is done."""
    journal = Journal(directory)
    try:
        with journal.env.begin() as txn:
            ids = {bytes(name) for name, _ in txn.cursor(db=journal.ids)}
            rows = [bytes(row) for _, row in txn.cursor(db=journal.done)]
            done = {row[at + NUMBER.size : at + HANDLED] for row in rows for at in range(0, len(row), HANDLED)}
            numbers = {bytes(number) for number, _ in txn.cursor(db=journal.waiting)}
            safe = {name for name in ids if name in done or txn.get(name, db=journal.ids) in numbers}
        assert safe == ids
        return {ID.unpack(name)[1] for name in ids}
    finally:
        journal.close()


class Probe:
    """The look at a file before it is opened, at some of them: it costs 50 ms each."""

    def __init__(self, chosen: random.Random) -> None:
        self.probed = 0
        self._chosen = chosen

    def __call__(self, *arguments: Any, **options: Any) -> None:
        if self._chosen.random() < PROBED:
            self.probed += 1
            check(*arguments, **options)


@pytest.mark.parametrize("ack", ["queued", "handled"])
@pytest.mark.parametrize("held", ["1", ""], ids=["one chat waits", "all are handled"])
def test_power_loss(bot: Bot, tmp_path: Path, held: str, ack: str, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(tmp_path / "faults")
    disk.log()
    options = ["bot:handler", "--port", "0", "--secret", SECRET, "--drain-timeout", "0"]
    options += ["--ack", ack, "--ack-deadline", "50ms"]  # at which what the chat that waits has is acknowledged
    server = Server(bot.directory, *options, env=disk.env | {"HELD": held})
    try:
        acknowledged = load(server, disk)
        assert server.stop() == 0
    finally:
        server.kill()
    assert len(acknowledged) == SENDERS * EACH

    steps = list(disk.steps())
    begun = next(n for n, step in enumerate(steps) if step.at >= acknowledged[0].at)
    chosen = random.Random()
    syncs = [n for n in range(begun, len(steps)) if steps[n].is_sync or steps[n].synced]
    assert len(syncs) > 20
    boundaries = chosen.sample(syncs, min(len(syncs), CRASHES // 2))
    moments = {*boundaries, *chosen.sample(range(begun, len(steps)), min(CRASHES // 2, len(steps) - begun))}
    probe = Probe(chosen)
    monkeypatch.setattr("fasthook.queues.tables.check", probe)
    acknowledged.sort(key=lambda one: one.at)
    times = [one.at for one in acknowledged]
    for at, image in crashed(steps, moments, chosen):
        shutil.rmtree(tmp_path / "crash", ignore_errors=True)
        (tmp_path / "crash").mkdir()
        (tmp_path / "crash" / "data.mdb").write_bytes(image)
        must = {one.update_id for one in acknowledged[: bisect_right(times, at)]}
        assert must <= known(tmp_path / "crash")
        assert not list((tmp_path / "crash").glob("*damaged*"))
    assert probe.probed >= 10
    assert (bot.directory / ".fasthook/journal/data.mdb").exists()
