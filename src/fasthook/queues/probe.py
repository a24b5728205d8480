"""A process that we can spare reads an LMDB file first: LMDB ends the one that walks into a damaged page.

That is by an assertion, a bus error or a segmentation fault. `check` is for whoever opens the file next; `salvage` gets
out of a damaged file what can be read. Run as a program, this file is that process; it imports nothing of fasthook.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import lmdb

DAMAGE = (
    lmdb.InvalidError,
    lmdb.CorruptedError,
    lmdb.PageNotFoundError,
    lmdb.BadDbiError,  # a table that is another than it was when it was opened
    struct.error,
)

_DAMAGED, _NEWER = 9, 8  # exit codes
_FRAME = struct.Struct("<II")  # lengths of a key and a value
_TABLES = 16
_NT_ERROR = 0xC0000000  # Windows: exit codes from here on are exceptions that nobody caught
_FATAL = {getattr(signal, name) for name in ("SIGABRT", "SIGBUS", "SIGSEGV", "SIGFPE") if hasattr(signal, name)}


def check(file: Path, tables: Sequence[str], *, most: int | None = None, locked: bool = False) -> None:
    """Read an LMDB file. `tables`: their names, "" for the one without. `most`: records of the last table to read, None
    for all; of a file that is shorter than it says, all are read. `locked`: others may use it meanwhile.

    CorruptedError: it is damaged. VersionMismatchError: it is of a newer LMDB.
    """
    if not _can_run() or not file.exists() or file.stat().st_size == 0:
        return
    ended = _run("check", str(file), str(-1 if most is None else most), str(int(locked)), *tables)
    begun, _, words = ended.stdout.decode("utf-8", "replace").partition("\n")
    if not begun:
        return
    if ended.returncode == _NEWER:
        raise lmdb.VersionMismatchError(words.strip())
    if ended.returncode == _DAMAGED:
        raise lmdb.CorruptedError(words.strip())
    if _by_damage(ended.returncode):
        raise lmdb.CorruptedError(f"reading it ends in {_words(ended.returncode)}")


def salvage(file: Path, table: str) -> dict[bytes, bytes]:
    """What can be read of a table of a damaged file, from its beginning and from its end up to the damage.

    InterruptedError: something else ended that.
    """
    found: dict[bytes, bytes] = {}
    for way in ("forwards", "backwards") if _can_run() else ():
        ended = _run("salvage", str(file), way, table)
        if ended.returncode not in (0, _DAMAGED) and not _by_damage(ended.returncode):
            raise InterruptedError(errno.EINTR, f"who read it was ended by {_words(ended.returncode)}")
        found.update(_frames(ended.stdout))
    return found


def _by_damage(code: int) -> bool:
    """Whether a process ended as one does that walks into a damaged page."""
    return -code in _FATAL or code >= _NT_ERROR


def _words(code: int) -> str:
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"exit code {code}"


def _can_run() -> bool:
    return Path(sys.executable or "").name.startswith("python")  # not a server that has an interpreter inside


def _run(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-P", __file__, *arguments]
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # what a terminal sends to all of its processes is not for this one
        check=False,
    )


def _frames(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    while at + _FRAME.size <= len(data):
        key, value = _FRAME.unpack_from(data, at)
        at += _FRAME.size
        if at + key + value > len(data):
            return
        yield data[at : at + key], data[at + key : at + key + value]
        at += key + value


# ---------------------------------------------------------------- in the process that may end


def _open(file: str, *, locked: bool) -> lmdb.Environment:
    """The file, for reading and, where it may be written, for trying to write."""
    return lmdb.open(str(Path(file).parent), max_dbs=_TABLES, lock=locked, create=False)


def _check(file: str, most: int, locked: bool, tables: list[str]) -> None:
    with _open(file, locked=locked) as env:
        if not locked:
            env.set_mapsize(env.info()["map_size"] + (1 << 20))
        txn = env.begin(write=True)
        length = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
        whole = most < 0 or Path(file).stat().st_size < length
        for name in tables:
            try:
                table = env.open_db(name.encode() or None, txn=txn, create=False)
            except lmdb.NotFoundError:
                continue
            with txn.cursor(db=table) as cursor:
                for _ in itertools.islice(cursor, None if whole or name != tables[-1] else most):
                    pass
                cursor.last()
        first = env.open_db(tables[0].encode() or None, txn=txn)
        with contextlib.suppress(lmdb.MapFullError):
            txn.put(b"\0probe", bytes(1 << 16), db=first)  # takes free pages
        if not _writes_fail():
            txn.abort()
            return
        try:
            txn.commit()  # looks through the list of free pages
        except DAMAGE:
            raise
        except lmdb.Error:
            return  # nothing could be written
        with env.begin(write=True, db=first) as txn:
            txn.delete(b"\0probe")  # where that limit is none


def _writes_fail() -> bool:
    """From now on this process cannot write to a file: a commit ends before its first page and changes nothing.

    False where there is no such limit.
    """
    try:
        import resource
    except ImportError:  # Windows
        return False
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    return True


def _salvage(file: str, way: str, table: str) -> None:
    with (
        lmdb.open(file, subdir=False, max_dbs=_TABLES, lock=False, create=False, readonly=True) as env,
        env.begin() as txn,
        txn.cursor(db=env.open_db(table.encode() or None, txn=txn, create=False)) as cursor,
    ):
        if way == "forwards":
            records = cursor.iternext() if cursor.first() else iter(())
        else:
            records = cursor.iterprev() if cursor.last() else iter(())
        last = None
        for key, value in records:
            if last is not None and (key <= last) == (way == "forwards"):
                return  # a page that stands where it doesn't belong
            last = key
            sys.stdout.buffer.write(_FRAME.pack(len(key), len(value)) + key + value)
            sys.stdout.buffer.flush()  # the next step may be the last


def _main(what: str, file: str, *arguments: str) -> int:
    if what == "salvage":
        try:
            _salvage(file, *arguments)
        except lmdb.Error:
            return _DAMAGED
        return 0
    most, locked, *tables = arguments
    print("begun", flush=True)
    try:
        _check(file, int(most), locked == "1", tables)
    except DAMAGE as error:
        print(error)
        return _DAMAGED
    except (OSError, lmdb.Error) as error:
        print(error)
        newer = isinstance(error, lmdb.VersionMismatchError) or "data format v" in str(error)
        # that the file may not be written, for instance, is said by whoever opens it next
        return _NEWER if newer else 0
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
