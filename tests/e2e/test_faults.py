"""Disks that fail under a server: no acknowledgement for what is not on disk, one line, and nothing is lost."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from e2e.bot import Bot
from e2e.faults import Disk, skip
from e2e.process import SECRET, Server, fasthook
from e2e.tools import until
from fasthook.queues.journal import Journal
from fasthook.queues.store import unpack_update
from fasthook.testing import samples
from ops.scrape import Ops

OPTIONS = ("bot:handler", "--port", "0", "--secret", SECRET, "--drain-timeout", "0")
HELD = {"HELD": "1"}  # nothing of chat 1 is handled
Start = Callable[..., Server]


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path / "faults")


@pytest.fixture
def serve(bot: Bot) -> Iterator[Start]:
    servers: list[Server] = []

    def served(*options: str, env: dict[str, str] | None = None, prefix: tuple[str, ...] = ()) -> Server:
        servers.append(Server(bot.directory, *OPTIONS, *options, env=env, prefix=prefix))
        return servers[-1]

    yield served
    for server in servers:
        server.kill()


def post(server: Server, *update_ids: int, size: int | None = None) -> list[int]:
    """Post these, of chat 1: the statuses."""
    return [server.post(samples.update(update_id, chat_id=1, size=size)).status for update_id in update_ids]


def waiting(bot: Bot, directory: str = ".fasthook/journal") -> list[int]:
    """What waits in the journal of a server that is gone."""
    journal = Journal(bot.directory / directory)
    try:
        return [unpack_update(record).update_id for _, record in journal.items()]
    finally:
        journal.close()


def errors(server: Server) -> list[str]:
    server.until(" ERROR ")  # a thread writes the log
    return [line for line in server.lines if " ERROR " in line]


def test_a_full_disk_and_room_again(serve: Start, bot: Bot, disk: Disk) -> None:
    server = serve(env=HELD | disk.env)
    assert post(server, 1, 2) == [200, 200]
    disk.fail("write", errno.ENOSPC)
    assert post(server, 3, 4, 3, 5) == [503] * 4
    disk.heal()
    assert post(server, 3, 4) == [200, 200]
    server.until("the journal .fasthook/journal can be written again")
    server.kill()
    assert waiting(bot) == [1, 2, 3, 4]
    [line] = errors(server)
    assert "the journal .fasthook/journal cannot be written: " in line
    assert line.endswith("No space left on device; new updates get 503 and stay with Telegram")
    assert not server.find("Traceback")


@pytest.mark.parametrize("what", ["sync", "write"])
def test_after_an_io_error_nothing_is_accepted_until_a_restart(serve: Start, bot: Bot, disk: Disk, what: str) -> None:
    """The kernel may have dropped what it could not write, and say nothing of it the next time."""
    server = serve(env=HELD | disk.env)
    assert post(server, 1, 2) == [200, 200]
    disk.fail(what, errno.EIO)
    assert post(server, 3) == [503]
    disk.heal()
    assert post(server, 3, 4) == [503, 503]
    [line] = errors(server)
    assert "Input/output error; what the disk has is uncertain now: nothing is accepted until a restart; " in line
    assert server.stop() == 0
    server = serve(env=HELD | disk.env)
    assert post(server, 3) == [200]
    server.kill()
    assert waiting(bot)[:2] == [1, 2]
    assert sorted(waiting(bot)) == [1, 2, 3]


def test_a_sync_that_finds_no_room(serve: Start, bot: Bot, disk: Disk) -> None:
    """What it was to write is written anew by the next commit, so that it may be tried again."""
    server = serve(env=HELD | disk.env)
    assert post(server, 1) == [200]
    disk.fail("sync", errno.ENOSPC)
    assert post(server, 2) == [503]
    disk.heal()
    assert post(server, 2, 3) == [200, 200]
    server.kill()
    assert waiting(bot) == [1, 2, 3]


@pytest.mark.parametrize("beside", [True, False], ids=["beside it", "nowhere"])
def test_a_stop_on_a_bad_disk(serve: Start, bot: Bot, disk: Disk, beside: bool) -> None:
    """What was handled cannot be taken out of the journal, but perhaps written down beside it for the next start."""
    with (bot.directory / "bot.py").open("a") as file:
        file.write(LATE)
    server = serve(env=disk.env)
    assert post(server, 1) == [200]
    disk.fail("write", errno.ENOSPC)
    (bot.directory / "go").touch()
    server.until("the journal .fasthook/journal cannot be written")
    if not beside:
        (bot.directory / ".fasthook/journal/settled.new").mkdir()
    assert server.stop() == (0 if beside else 1)
    assert [one.update_id for one in bot.handled] == [1]
    if beside:
        server.until("1 handled updates could not be taken out of the journal: they are in .fasthook/journal/settled")
    else:
        server.until(
            "1 updates were handled and cannot be taken out of the journal .fasthook/journal: they will be handled "
            "again after the next start: Is a directory"
        )
    disk.heal()
    server = serve()
    assert post(server, 2) == [200]
    assert server.stop() == 0
    assert [one.update_id for one in bot.handled if one.update_id == 1] == [1] * (1 if beside else 2)


def test_dead_letters_on_a_full_disk(serve: Start, bot: Bot, disk: Disk) -> None:
    server = serve(env=disk.env)
    assert server.post(b"not an update").status == 200
    disk.fail("write", errno.ENOSPC)
    assert server.post(b"nor this").status == 503
    disk.heal()
    assert server.post(b"nor this").status == 200
    assert server.stop() == 0
    assert [letter.raw for letter in bot.dead] == [b"not an update", b"nor this"]
    assert not server.find("Traceback")


@pytest.mark.skipif(sys.platform != "linux", reason="sets the limits of another process")
def test_the_largest_file(serve: Start, bot: Bot) -> None:
    """RLIMIT_FSIZE, which is lifted again."""
    server = serve("--dedup-size", "100", "--queue-size", "100", env=HELD)
    pid, limits = server.process.pid, resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (bot.directory / ".fasthook/journal/data.mdb").stat().st_size
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size + 1_300_000, limits[1]))
    safe, update_id = [], 1
    while (status := post(server, update_id, size=20_000)) == [200]:
        safe.append(update_id)
        update_id += 1
    assert status == [503]
    assert safe
    resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)
    assert post(server, update_id, size=20_000) == [200]
    server.kill()
    assert waiting(bot) == [*safe, update_id]
    [line] = errors(server)
    assert "File too large; new updates get 503" in line


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a disk of its own")
def test_a_small_disk(serve: Start, bot: Bot) -> None:
    """A real one: a tmpfs of the server's own."""
    if not shutil.which("unshare"):
        skip("unshare is not installed")
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("user and mount namespaces are not allowed here")
    (bot.directory / "small").mkdir()
    script = 'mount -t tmpfs -o size=2m tmpfs small && dd if=/dev/zero of=small/ballast bs=1k count=700 && exec "$@"'
    server = serve("--queue", "journal:small/journal", env=HELD, prefix=("unshare", "-rm", "sh", "-c", script, "sh"))
    inside = Path(f"/proc/{server.process.pid}/root{bot.directory}/small")
    if not (inside / "ballast").exists():
        pytest.skip("a process in another mount namespace cannot be looked into here")
    safe, update_id = [], 1
    while (status := post(server, update_id, size=20_000)) == [200]:
        safe.append(update_id)
        update_id += 1
    assert status == [503]
    assert len(safe) > 5
    (inside / "ballast").unlink()
    assert post(server, update_id, size=20_000) == [200]
    shutil.copytree(inside / "journal", bot.directory / "copy")
    server.signal(signal.SIGKILL)
    server.wait()
    assert waiting(bot, "copy") == [*safe, update_id]
    [line] = errors(server)
    assert "No space left on device; new updates get 503" in line


LATE = """
at_once = handler

async def handler(update):
    while not os.path.exists("go"):
        await asyncio.sleep(0.02)
    await at_once(update)
"""


@pytest.mark.parametrize("size", [600, 20_000])
def test_a_disk_that_the_journal_itself_fills(serve: Start, bot: Bot, ext4: Path, size: int) -> None:
    """What waits is handled all the same, once, and its room is there for what comes then."""
    with (bot.directory / "bot.py").open("a") as file:
        file.write(LATE)
    (ext4 / "ballast").write_bytes(bytes(9 << 20))
    server = serve("--queue", f"journal:{ext4}/journal", "--ops", "127.0.0.1:0", "--drain-timeout", "10")
    ops = Ops.of(server)
    connection = server.connect()
    safe: list[int] = []
    while (status := server.post(samples.update(len(safe), chat_id=len(safe), size=size), connection).status) == 200:
        safe.append(len(safe))
    connection.close()
    assert status == 503
    assert len(safe) > 50
    assert ops.ready()[0] == 503
    (bot.directory / "go").touch()
    ops.until(lambda page: page["fasthook_queue_depth"] == 0)
    assert sorted(one.update_id for one in bot.handled) == safe
    until(lambda: post(server, len(safe), size=size) == [200])
    assert ops.ready() == (200, [])
    assert server.stop() == 0
    assert [one.update_id for one in bot.handled][len(safe) :] == [len(safe)]
    [line] = errors(server)
    assert "No space left on device; new updates get 503" in line


@pytest.fixture
def ext4(tmp_path: Path) -> Iterator[Path]:
    """A disk of 16 MiB: unlike a tmpfs's, its files have holes until something is in them."""
    if os.geteuid() or not shutil.which("mkfs.ext4"):
        pytest.skip("only root, with mkfs.ext4, can make a small disk")
    image, place = tmp_path / "image", tmp_path / "ext4"
    place.mkdir()
    image.write_bytes(bytes(16 << 20))
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True, timeout=60)
    made = subprocess.run(["mount", "-o", "loop", str(image), str(place)], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"a file cannot be mounted here: {made.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True, timeout=60)


def fill(disk: Path) -> Path:
    """Leave no room; the file that takes it."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1024))
    return ballast


@pytest.mark.parametrize("queue", ["memory:", "journal"])
def test_a_disk_that_is_full(serve: Start, bot: Bot, ext4: Path, queue: str) -> None:
    """Nothing that is mapped asks for room that is not there, and a start without room ends in a line."""
    queue = queue if queue == "memory:" else f"journal:{ext4}/journal"
    where = ("--queue", queue, "--state-dir", str(ext4 / "state"))
    server = serve(*where, env=HELD)
    assert post(server, 1) == [200]
    ballast = fill(ext4)
    connection = server.connect()
    statuses = {server.post(samples.update(n, chat_id=1), connection).status for n in range(2, 2000)}
    connection.close()
    assert statuses <= {200, 503}
    assert server.post(b"not an update").status == 503  # the first dead letter: there is no room for its files
    ballast.unlink()
    assert post(server, 5000) == [200]
    assert server.post(b"not an update").status == 200
    assert server.stop() == 0

    (ext4 / "state/ring").unlink()
    fill(ext4)
    ended = fasthook(bot.directory, "run", *OPTIONS, *where)
    assert (ended.code, ended.lines) == (1, (ended.line,))
    assert ended.line.endswith(": cannot be used: No space left on device; set --state-dir")


# ---------------------------------------------------------------- files that cannot be used


def filled(serve: Start) -> None:
    server = serve(env=HELD)
    assert post(server, 1, 2, 3) == [200] * 3
    server.kill()


def newer(file: Path) -> None:
    """As a newer LMDB would write it: its version stands behind the magic number of both meta pages."""
    image = bytearray(file.read_bytes())
    for page in (0, os.sysconf("SC_PAGE_SIZE")):
        assert int.from_bytes(image[page + 16 : page + 20], "little") == 0xBEEFC0DE
        image[page + 20] += 9
    file.write_bytes(image)


def test_a_journal_of_a_newer_lmdb(serve: Start, bot: Bot) -> None:
    filled(serve)
    file = bot.directory / ".fasthook/journal/data.mdb"
    newer(file)
    image = file.read_bytes()
    ended = fasthook(bot.directory, "run", *OPTIONS)
    assert ended.code == 1
    assert ended.line == (
        "fasthook: the journal .fasthook/journal is of a newer LMDB: use that one, or set another --queue"
    )
    assert ended.lines == (ended.line,)
    assert file.read_bytes() == image
    assert not list(file.parent.glob("*damaged*"))


def test_dead_letters_of_a_newer_lmdb(serve: Start, bot: Bot) -> None:
    server = serve()
    assert server.post(b"not an update").status == 200
    assert server.stop() == 0
    newer(bot.directory / ".fasthook/dead/data.mdb")
    server = serve()
    server.until("ERROR .*.fasthook/dead: is of a newer LMDB: use the program that wrote it$")
    assert server.post(b"not an update").status == 503
    assert post(server, 1) == [200]
    assert server.stop() == 0
    assert not server.find("Traceback")


def cut_off(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def overwritten(file: Path) -> None:
    file.write_bytes(b"\xff" * file.stat().st_size)


@pytest.mark.parametrize("damage", [cut_off, overwritten])
def test_damaged_dead_letters_are_set_aside(serve: Start, bot: Bot, damage: Callable[[Path], None]) -> None:
    server = serve()
    for _ in range(5):
        assert server.post(b"not an update" * 1000).status == 200
    assert server.stop() == 0
    damage(bot.directory / ".fasthook/dead/data.mdb")
    server = serve()
    server.until(
        r"ERROR +fasthook.dead: the dead letters are damaged .*: they are kept as .fasthook/dead.damaged-\w+, "
        "and begun anew$"
    )
    assert server.post(b"another").status == 200
    assert server.stop() == 0
    assert [letter.raw for letter in bot.dead] == [b"another"]
    assert not server.find("Traceback")


def test_a_damaged_journal_is_set_aside(serve: Start, bot: Bot) -> None:
    filled(serve)
    file = bot.directory / ".fasthook/journal/data.mdb"
    overwritten(file)
    size = file.stat().st_size
    server = serve()
    server.until(
        rf"ERROR +fasthook.queue: the journal .fasthook/journal is damaged .*: its {size} bytes are "
        r"kept as .fasthook/journal/data.mdb.damaged-\w+; 0 waiting updates could be read, and are in the new one$"
    )
    assert post(server, 1) == [200]
    assert server.stop() == 0
