"""A damaged journal is rebuilt from what can be read of it, whatever ends that half-way."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fasthook.queues import QueueError, probe
from fasthook.queues.rebuilding import is_gone
from fasthook.queues.rows import NUMBER
from fasthook.queues.settled_file import SettledFile
from fasthook.queues.store import unpack_update
from fasthook.queues.tables import Journal
from queues.opened import PATIENCE, opened

COUNT = 1500  # more than one commit of the new file
PAGE = os.sysconf("SC_PAGE_SIZE")
HANDLED = range(0, COUNT, 100)  # as was seen after the damage
REST = [number for number in range(COUNT) if number not in HANDLED]

KILLED = """
import os, signal, sys
from pathlib import Path
from fasthook.queues.tables import Journal

directory, left = sys.argv[1], int(sys.argv[2])


def step():
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)


def hook(event, arguments):
    if event.startswith(("os.", "open")) and isinstance(arguments[0], (str, Path)) and directory in str(arguments[0]):
        step()


def remember(self, txn, handled, whole=Journal.remember):
    step()
    whole(self, txn, handled)
    step()


Journal.remember = remember
sys.addaudithook(hook)
Journal(Path(directory)).close()
"""


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """The directory of a journal that was seen to be damaged, by a process that handled some updates then."""
    directory = tmp_path / "damaged"

    async def main() -> None:
        one = await opened(directory, window=2 * COUNT)
        await one.put(*range(COUNT), size=4000)
        one.queue._journal.suspect(number + 1 for number in HANDLED)  # numbers are counted from 1
        await one.close()

    asyncio.run(main())
    return directory


def waiting(directory: Path, limit: int = 1 << 30) -> list[int]:
    journal = Journal(directory, limit)
    try:
        return [unpack_update(record).update_id for _, record in journal.items()]
    finally:
        journal.close()


def started(directory: Path, steps: int) -> tuple[int, list[str]]:
    """Open it in a process that is killed after so many steps: its exit code, and what it said."""
    command = [sys.executable, "-c", KILLED, str(directory), str(steps)]
    ended = subprocess.run(command, timeout=PATIENCE, stderr=subprocess.PIPE, text=True, check=False)
    assert ended.returncode in (0, -signal.SIGKILL), ended.stderr
    return ended.returncode, ended.stderr.splitlines()


def check_all_there(directory: Path, image: bytes) -> None:
    assert waiting(directory) == REST
    kept = {path.read_bytes()[: len(image)] for path in directory.glob("data.mdb.damaged-*")}
    assert kept == {image}
    assert {path.name for path in directory.iterdir() if "damaged" not in path.name} == {"data.mdb", "owner"}


def test_killed_at_each_step(damaged: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The next start has all of it, tells where the damaged file is, and leaves nothing half-made."""
    image = (damaged / "data.mdb").read_bytes()
    directory, halfway = tmp_path / "journal", tmp_path / "halfway"
    code, steps, without_name = -signal.SIGKILL, 0, 0
    while code:
        shutil.copytree(damaged, directory)
        code, said = started(directory, steps)
        if not (directory / "data.mdb").exists():
            without_name += 1
            assert not is_gone(directory)
            shutil.copytree(directory, halfway)
        caplog.clear()
        check_all_there(directory, image)
        said += [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
        assert 1 <= len(said) <= 2, (steps, said)
        shutil.rmtree(directory)
        if halfway.exists():
            kill_again(halfway, directory, image)
            shutil.rmtree(halfway)
        steps += 1
    assert steps > 10
    assert without_name > 0


def kill_again(halfway: Path, directory: Path, image: bytes) -> None:
    """Kill the start that finds this, at each of its steps."""
    code, steps = -signal.SIGKILL, 0
    while code:
        shutil.copytree(halfway, directory)
        code, _ = started(directory, steps)
        check_all_there(directory, image)
        shutil.rmtree(directory)
        steps += 1


def test_who_reads_the_damaged_file_is_ended(damaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what ends all processes of a service, or for want of memory: what it read until then is not all there is."""
    run = probe._run

    def ended(*arguments: str) -> subprocess.CompletedProcess[bytes]:
        whole = run(*arguments)
        if arguments[0] == "check":
            return whole
        return subprocess.CompletedProcess(whole.args, -signal.SIGTERM, whole.stdout[: len(whole.stdout) // 2])

    with monkeypatch.context() as patch:
        patch.setattr(probe, "_run", ended)
        with pytest.raises(QueueError, match=r"is damaged .* who read it was ended by SIGTERM; nothing of it is lost"):
            waiting(damaged)
    assert not list(damaged.glob("*damaged-*"))
    assert waiting(damaged) == REST


def test_no_room_for_a_new_file(damaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = (damaged / "data.mdb").read_bytes()

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.posix_fallocate", full, raising=False)
        with pytest.raises(QueueError, match=r"new one: No space left on device; nothing of it is lost: start again"):
            waiting(damaged)
    assert {path.name for path in damaged.iterdir()} == {"data.mdb", "owner", "suspect"}
    assert (damaged / "data.mdb").read_bytes() == image
    assert waiting(damaged) == REST


@pytest.mark.parametrize("limit", [100_000, 6_500_000])
def test_a_limit_does_not_keep_out_what_was_acknowledged(damaged: Path, limit: int) -> None:
    assert waiting(damaged, limit) == REST
    assert (damaged / "data.mdb").stat().st_size < 1.3 * sum(path.stat().st_size for path in damaged.glob("*damaged-*"))


def test_another_file_in_its_place(damaged: Path) -> None:
    """A person took the damaged one away: what was said of it is not said of the next."""
    (damaged / "data.mdb").rename(damaged / "away")
    assert waiting(damaged) == []

    async def main() -> None:
        one = await opened(damaged)
        await one.put(*range(10))
        await one.close()

    asyncio.run(main())
    assert waiting(damaged) == list(range(10))
    assert not list(damaged.glob("*damaged-*"))


def test_a_copy_in_its_place(damaged: Path) -> None:
    """It may be of another time: none of its numbers is left out."""
    image = (damaged / "data.mdb").read_bytes()
    (damaged / "data.mdb").unlink()
    (damaged / "data.mdb").write_bytes(image)
    assert waiting(damaged) == list(range(COUNT))


def test_a_list_of_what_was_handled_that_is_cut_off(damaged: Path, tmp_path: Path) -> None:
    """Half of a number is another number."""
    for length in range(0, (damaged / "suspect").stat().st_size, 20):
        directory = tmp_path / f"cut-{length}"
        shutil.copytree(damaged, directory)
        os.truncate(directory / "suspect", length)
        assert waiting(directory) == list(range(COUNT))


@pytest.mark.parametrize("how", ["zeros", "random", "random, and nobody looked before"])
def test_what_was_handled_is_behind_the_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Far behind what a start reads of a long queue: the list of what is to be taken out leads there."""
    directory, count = tmp_path / "long", 12_000

    async def main() -> None:
        one = await opened(directory, window=2 * count)
        for first in range(0, count, 1000):
            await one.put(*range(first, first + 1000))
        await one.close()

    asyncio.run(main())
    image = bytearray((directory / "data.mdb").read_bytes())
    start = image.index(b'"text":"%d"' % (count - 100)) // PAGE * PAGE
    image[start : start + PAGE] = bytes(PAGE) if how == "zeros" else os.urandom(PAGE)
    (directory / "data.mdb").write_bytes(image)
    SettledFile(directory).write([(count - 100, False, None, None), (5, False, None, None)])
    if "nobody" in how:
        monkeypatch.setattr("fasthook.queues.tables.check", lambda *arguments, **options: None)
    left = waiting(directory)
    assert len(left) > count - 200
    assert 4 not in left  # number 5
    assert list(directory.glob("data.mdb.damaged-*"))
    assert not (directory / "settled").exists()


def test_the_new_file_is_no_larger(tmp_path: Path) -> None:
    """A journal near its limit would not go into it."""

    async def main() -> None:
        one = await opened(tmp_path, window=5000)
        await one.put(*range(1000), size=1000)
        await one.put(*range(1000, 3000), size=1000)
        one.queue._journal.suspect()
        await one.close()

    asyncio.run(main())
    assert waiting(tmp_path) == list(range(3000))
    [aside] = tmp_path.glob("data.mdb.damaged-*")
    assert (tmp_path / "data.mdb").stat().st_size < 0.9 * aside.stat().st_size


@pytest.mark.parametrize(
    "row", [b"[-1,false,null,null]", b"[true,false,null,null]", b'[1,false,"soon",null]', b"[1,false,null,5]", b"[1]"]
)
def test_a_list_of_what_was_handled_that_is_none(damaged: Path, row: bytes) -> None:
    """It is set aside, and the journal is none the worse for it."""
    (damaged / "suspect").unlink()
    (damaged / "settled").write_bytes(row)
    assert waiting(damaged) == list(range(COUNT))
    assert [path.name.partition(".damaged-")[0] for path in damaged.glob("*.damaged-*")] == ["settled"]


def test_what_was_handled_cannot_be_read(damaged: Path) -> None:
    (damaged / "suspect").unlink()
    journal = Journal(damaged)
    with journal.env.begin(write=True, db=journal.waiting) as txn:
        txn.put(NUMBER.pack(1), b"no update")
    journal.close()
    SettledFile(damaged).write([(1, False, None, None), (2, False, None, None)])
    assert waiting(damaged) == list(range(2, COUNT))


def test_the_list_is_no_file(damaged: Path) -> None:
    """After the rebuilding, too."""
    (damaged / "settled").mkdir()
    with pytest.raises(QueueError, match=r"cannot be opened: Is a directory"):
        waiting(damaged)
    (damaged / "settled").rmdir()
    assert waiting(damaged) == REST


def test_a_file_system_that_does_not_tell_its_room(damaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*arguments: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    with monkeypatch.context() as patch:
        patch.setattr("os.posix_fallocate", unknown, raising=False)
        assert waiting(damaged) == REST
