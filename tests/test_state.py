"""The state directory: the ring that outlives the process, and the lock."""

from __future__ import annotations

import fcntl
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fasthook import DedupRing
from fasthook.state import InUseError, StateDir, StateError

BOT = 5
NEW, IN_FLIGHT, DONE, FULL = range(4)


@contextmanager
def ring(directory: Path, capacity: int = 100, limit: int = 10) -> Iterator[DedupRing]:
    state = StateDir(directory)
    try:
        yield state.ring(capacity, limit)
    finally:
        state.close()


def settle(made: DedupRing, *ids: int) -> None:
    for update_id in ids:
        assert made.claim(BOT, update_id) == NEW
        assert made.settle(BOT, update_id)


def done(made: DedupRing) -> list[int]:
    return [update_id for _, update_id, settled in made.items() if settled]


def test_the_ring_outlives_a_restart(tmp_path: Path) -> None:
    with ring(tmp_path) as made:
        settle(made, 1, 2, 3)
        assert made.claim(BOT, 4) == NEW
    with ring(tmp_path) as made:
        assert [made.claim(BOT, update_id) for update_id in (1, 2, 3, 4)] == [DONE, DONE, DONE, NEW]
        assert made.in_flight == 1


CRASH = """
import os, signal, sys
from pathlib import Path
from fasthook.state import StateDir
ring = StateDir(Path(sys.argv[1])).ring(100, 10)
for n in range(5):
    ring.claim(5, n)
    if n != 4:
        ring.settle(5, n)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_ring_outlives_a_crash_and_what_was_in_flight_is_released(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", CRASH, str(tmp_path)], timeout=20, check=False)
    with ring(tmp_path) as made:
        assert [made.claim(BOT, n) for n in range(5)] == [DONE, DONE, DONE, DONE, NEW]


@pytest.mark.parametrize(("capacity", "limit"), [(1000, 10), (100, 50), (100, 1), (1000, 1)])
def test_other_sizes_keep_the_ids(tmp_path: Path, capacity: int, limit: int) -> None:
    with ring(tmp_path) as made:
        settle(made, *range(20))
        made.claim(BOT, 20)
    with ring(tmp_path, capacity, limit) as made:
        assert (made.capacity, made.limit) == (capacity, limit)
        assert done(made) == list(range(20))
        assert made.claim(BOT, 20) == NEW


def test_a_smaller_ring_keeps_the_newest(tmp_path: Path) -> None:
    with ring(tmp_path) as made:
        settle(made, *range(50))
    with ring(tmp_path, 10, 1) as made:
        assert [made.claim(BOT, n) for n in range(40, 50)] == [DONE] * 10
        assert made.claim(BOT, 0) == NEW


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 8)


def cut_short(file: Path) -> None:
    os.truncate(file, 5)


def noise(file: Path) -> None:
    file.write_bytes(b"\xff" * file.stat().st_size)


def broken_entry(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[72:80] = b"\x03" + bytes(7)  # the second word of the first entry: there is no state 3
    file.write_bytes(data)


def another_file(file: Path) -> None:
    file.write_bytes(b"SQLite format 3\0" * 100)


@pytest.mark.parametrize("damage", [cut, cut_short, noise, broken_entry, another_file])
def test_a_damaged_ring_is_set_aside(tmp_path: Path, damage: Any, caplog: pytest.LogCaptureFixture) -> None:
    with ring(tmp_path) as made:
        settle(made, 1)
    damage(tmp_path / "ring")
    damaged = (tmp_path / "ring").read_bytes()
    with ring(tmp_path) as made:
        assert made.claim(BOT, 1) == NEW
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    [aside] = tmp_path.glob("ring.damaged-*")
    assert aside.read_bytes() == damaged
    assert record.getMessage().startswith(f"{tmp_path}/ring is damaged (")
    assert record.getMessage().endswith(f"duplicates from before this start are not known; kept as {aside}")


def test_an_empty_file_is_a_new_ring(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "ring").touch()
    with ring(tmp_path) as made:
        assert done(made) == []
    assert caplog.records == []


def has_room(file: Path) -> bool:
    """Whether all of it lies on the disk: a hole for which a full disk has no room is a bus error."""
    found = file.stat()
    return found.st_blocks * 512 >= found.st_size > 0


def test_a_ring_has_its_room_on_the_disk(tmp_path: Path) -> None:
    with ring(tmp_path, 100_000, 1000):
        assert has_room(tmp_path / "ring")
    with ring(tmp_path, 200_000, 1000):
        assert has_room(tmp_path / "ring")


def test_a_ring_with_holes_gets_its_room(tmp_path: Path) -> None:
    with ring(tmp_path, 100_000, 1000) as made:
        settle(made, 1)
    image = (tmp_path / "ring").read_bytes()
    with (tmp_path / "ring").open("wb") as file:
        file.write(image[:4096])
        file.truncate(len(image))
    assert not has_room(tmp_path / "ring")
    with ring(tmp_path, 100_000, 1000) as made:
        assert has_room(tmp_path / "ring")
        assert done(made) == [1]


NO_ROOM = """
import resource, signal, sys
from pathlib import Path
from fasthook.state import StateDir, StateError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
try:
    StateDir(Path(sys.argv[1])).ring(100_000, 1000)
except StateError as error:
    print(error)
"""


def test_no_room_for_a_ring(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", NO_ROOM, str(tmp_path)], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == f"{tmp_path}/ring: cannot be used: File too large; set --state-dir\n"
    with ring(tmp_path, 100_000, 1000) as made:  # what was begun is no damaged one
        settle(made, 1)
    assert not list(tmp_path.glob("*damaged*"))


def test_a_ring_in_whose_place_is_something_else(tmp_path: Path) -> None:
    (tmp_path / "ring").mkdir()
    words = rf"^{tmp_path}/ring: cannot be used: Is a directory; set --state-dir$"
    with pytest.raises(StateError, match=words), ring(tmp_path):
        pass


# ---------------------------------------------------------------- the lock


def test_one_process_at_a_time(tmp_path: Path) -> None:
    first = StateDir(tmp_path / "a" / "b")
    with pytest.raises(StateError) as raised:
        StateDir(tmp_path / "a" / "b")
    assert str(raised.value) == (
        f"the state directory {tmp_path}/a/b is in use by process {os.getpid()}; stop it, or set another --state-dir"
    )
    first.close()
    StateDir(tmp_path / "a" / "b").close()


def test_who_has_just_taken_it_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its number is not in the file yet; two processes of a server may start at the same instant."""
    lock = tmp_path / "lock"
    with lock.open("wb") as taken:
        fcntl.flock(taken, fcntl.LOCK_EX)
        monkeypatch.setattr("fasthook.state.time.sleep", lambda _: lock.write_text("12345\n"))
        with pytest.raises(InUseError, match="in use by process 12345;") as raised:
            StateDir(tmp_path)
    assert raised.value.owner == 12345


def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    StateDir(tmp_path / "state").close()
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(("name", "words"), [("file", "File exists"), ("file/state", "Not a directory")])
def test_a_directory_that_cannot_be_made(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StateError, match=rf"/{name} cannot be written: {words}; set --state-dir$"):
        StateDir(tmp_path / name)
