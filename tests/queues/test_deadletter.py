"""Dead letters on disk."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import lmdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fasthook.queues import Delivery
from fasthook.queues.deadletter import DeadLetter, DeadLetters
from fasthook.queues.memory import MemoryQueue
from fasthook.queues.store import Store, StoreError
from queues.opened import PATIENCE, made

letters = st.builds(
    DeadLetter,
    reason=st.text(st.characters(exclude_categories=["Cs"])),
    bot_id=st.integers(0, 2**53),
    raw=st.binary(),
    attempts=st.integers(0, 101),
    received_at=st.floats(0, 1e11),
    died_at=st.floats(0, 1e11),
    traceback=st.text(st.characters(exclude_categories=["Cs"])),
)


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, PATIENCE))


def letter(raw: bytes = b"{}", error: BaseException | None = None) -> DeadLetter:
    return DeadLetter.of("failed", 5, raw, attempts=4, received_at=1.5, error=error)


@given(letters)
def test_packed_and_unpacked(letter: DeadLetter) -> None:
    assert DeadLetter.unpack(letter.pack()) == letter


@pytest.mark.parametrize("record", [b"", b"\n", b"{", b"[]\n", b"{}\nraw", b'{"a":1}\n', b"\xff\n"])
def test_not_a_dead_letter(record: bytes) -> None:
    with pytest.raises(ValueError):
        DeadLetter.unpack(record)


def test_it_has_the_traceback() -> None:
    def break_it() -> None:
        raise ValueError("lone \ud800 surrogate")

    try:
        break_it()
    except ValueError as error:
        made = letter(error=error)
    found = DeadLetter.unpack(made.pack())
    assert "in break_it" in found.traceback
    assert found.traceback.rstrip().endswith("ValueError: lone ? surrogate")
    assert letter().traceback == ""


def test_they_are_kept_in_order(tmp_path: Path) -> None:
    async def add(*numbers: int) -> None:
        dead = DeadLetters(tmp_path / "dead")
        await asyncio.gather(*(dead.add(letter(b"%d" % n)) for n in numbers))
        dead.close()

    run(add(1, 2, 3))
    run(add(4))
    dead = DeadLetters(tmp_path / "dead")
    assert [(number, found.raw) for number, found in dead.items()] == [(n, b"%d" % n) for n in (1, 2, 3, 4)]
    dead.close()


def test_a_number_means_one_letter_for_ever(tmp_path: Path) -> None:
    """Even if the highest is dropped, and the files are opened anew."""

    def numbers(*drop: int) -> list[int]:
        dead = DeadLetters(tmp_path / "dead")
        try:
            run(dead.add(letter()))
            dead.delete(drop)
            return [number for number, _ in dead.items()]
        finally:
            dead.close()

    assert numbers() == [1]
    assert numbers(2) == [1]
    assert numbers() == [1, 3]
    assert numbers(1, 3, 4) == []
    assert numbers() == [5]
    store = Store(tmp_path / "dead")
    assert len(store) == 1
    store.append([b"a", b"b"], replace=True)
    assert [number for number, _ in store.items()] == [6, 7]
    store.append([], replace=True)
    assert (len(store), list(store.items())) == (0, [])
    store.close()


def test_none_makes_no_directory(tmp_path: Path) -> None:
    dead = DeadLetters(tmp_path / "dead")
    assert list(dead.items()) == []
    dead.close()
    assert not (tmp_path / "dead").exists()


def test_where_none_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "dead").write_text("in the way")

    async def main() -> None:
        dead = DeadLetters(tmp_path / "dead")
        with pytest.raises(StoreError, match=r"dead: cannot be opened: File exists$"):
            await dead.add(letter())
        (tmp_path / "dead").unlink()
        await dead.add(letter())  # the cause is gone
        dead.close()

    run(main())


READER = """
import sys
from pathlib import Path
from fasthook.queues.store import Store
store = Store(Path(sys.argv[1]))
for _ in sys.stdin:
    print(len(store), sum(len(record) for _, record in store.items()), flush=True)
"""


def test_another_process_may_read_while_we_write(tmp_path: Path) -> None:
    """Even when the file outgrows the size that the reader knows."""
    store = Store(tmp_path / "store")
    store.append([b"a"])
    command = [sys.executable, "-c", READER, str(tmp_path / "store")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdin
        assert reader.stdout

        def read() -> list[int]:
            assert reader.stdin
            assert reader.stdout
            print(file=reader.stdin, flush=True)
            return [int(word) for word in reader.stdout.readline().split()]

        assert read() == [1, 1]
        store.append([b"b", b"c"])
        assert read() == [3, 3]
        store.append([b"d" * (20 << 20)])
        assert read() == [4, 3 + (20 << 20)]
        store.delete([1, 4])
        assert read() == [2, 2]
        reader.stdin.close()
        assert reader.wait(20) == 0
    assert list(store.items()) == [(2, b"b"), (3, b"c")]
    store.append([b"e"], replace=True)
    assert list(store.items()) == [(5, b"e")]
    store.close()


# ---------------------------------------------------------------- a sync that fails

IO_ERROR = f"mdb_txn_commit: {os.strerror(errno.EIO)}"


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The syncs of the files in these directories fail, whatever the number of the try."""
    directories: list[Path] = []
    real = Store._write

    def write(store: Store, batch: list[bytes], replace: bool) -> None:
        if directories and (store._file.stat().st_ino in inodes()):
            raise lmdb.DiskError(IO_ERROR)
        real(store, batch, replace)

    def inodes() -> set[int]:
        return {int(directory.name) for directory in directories}

    monkeypatch.setattr(Store, "_write", write)
    return directories


def broken(directory: Path) -> Path:
    return Path(str((directory / "data.mdb").stat().st_ino))


def test_after_a_failed_sync_another_file_is_written(
    tmp_path: Path, failing: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        dead = DeadLetters(tmp_path / "dead")
        await dead.add(letter(b"1"))
        await dead.add(letter(b"2"))
        failing.append(broken(tmp_path / "dead"))
        await dead.add(letter(b"3"))
        await dead.add(letter(b"4"))
        assert [found.raw for _, found in await dead.aitems()] == [b"1", b"2", b"3", b"4"]
        dead.close()

    run(main())
    [aside] = tmp_path.glob("dead.damaged-*")
    [record] = caplog.records
    assert record.getMessage() == (
        f"{tmp_path / 'dead'}: cannot be written: {IO_ERROR}: it is kept as {aside}, and 2 letters of it are "
        "in a new file"
    )


def test_after_two_failed_syncs_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        dead = DeadLetters(tmp_path / "dead")
        await dead.add(letter(b"1"))
        tries = []

        def write(store: Store, batch: list[bytes], replace: bool) -> None:
            tries.append(store._file.stat().st_ino)
            raise lmdb.DiskError(IO_ERROR)

        with monkeypatch.context() as bad:
            bad.setattr(Store, "_write", write)
            for _ in range(3):
                with pytest.raises(StoreError, match="no dead letter is written until a restart: "):
                    await dead.add(letter(b"2"))
        with pytest.raises(StoreError, match="no dead letter is written until a restart: "):
            await dead.add(letter(b"2"))
        assert len(tries) == len(set(tries)) == 2
        dead.close()

    run(main())


def test_a_spill_whose_sync_fails_is_written_to_another_file(
    tmp_path: Path, failing: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        left = [Delivery(made(n)) for n in (1, 2, 3)]
        queue = MemoryQueue(tmp_path / "spill")
        await queue.open(left.append, lambda delivery: True, lambda update, outcome: None)
        await queue.close(left)
        failing.append(broken(tmp_path / "spill"))
        queue = MemoryQueue(tmp_path / "spill")
        found: list[Delivery] = []

        def take(delivery: Delivery) -> bool:
            found.append(delivery)
            return True

        await queue.open(found.append, take, lambda update, outcome: None)
        await queue.close(found[1:])
        found.clear()
        queue = MemoryQueue(tmp_path / "spill")
        await queue.open(found.append, take, lambda update, outcome: None)
        assert [delivery.update.update_id for delivery in found] == [2, 3]
        await queue.close(found)

    run(main())
    assert len(list(tmp_path.glob("spill.damaged-*"))) == 1
    assert "another is written" in caplog.text
