"""Taking apart the archives that are made here, on every Python 3.11: tarfile's own filters came with 3.11.4."""

from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path, PurePosixPath


class UnpackError(Exception):
    """An archive with something in it that is neither a file nor a directory below it."""


def unpack(archive: tarfile.TarFile, into: Path) -> None:
    """Write the files of an archive, with their ages and whether they can be run.

    Raises:
        UnpackError: a member is a link or a device, or would lie elsewhere; those before it are written.
    """
    for member in archive:
        name = PurePosixPath(member.name)
        if name.is_absolute() or ".." in name.parts or not (member.isdir() or member.isfile()):
            raise UnpackError(f"{member.name} is not a file or a directory below the archive")
        target = into / name
        if member.isdir():
            target.mkdir(parents=True, exist_ok=True)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        content = archive.extractfile(member)
        assert content is not None
        with content, target.open("wb") as file:
            shutil.copyfileobj(content, file)
        target.chmod(0o755 if member.mode & 0o100 else 0o644)
        os.utime(target, (member.mtime, member.mtime))
