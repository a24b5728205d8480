"""What `make wheel` and `make guard` unpack comes out as it went in, and nothing lies outside."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from release.unpack import UnpackError, unpack


def unpacked(into: Path, *members: tarfile.TarInfo, content: bytes = b"") -> Path:
    """Pack these, each with the same content, and take them apart."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for member in members:
            member.size = len(content) if member.isfile() else 0
            archive.addfile(member, io.BytesIO(content))
    packed.seek(0)
    with tarfile.open(fileobj=packed) as archive:
        unpack(archive, into)
    return into


def member(name: str, kind: bytes = tarfile.REGTYPE, linkname: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.mode, made.mtime = kind, linkname, mode, 1_700_000_000
    return made


def test_files_come_out_as_they_went_in(tmp_path: Path) -> None:
    folder = member("made/empty", tarfile.DIRTYPE, mode=0o755)
    files = member("made/src/one.py"), member("run.sh", mode=0o775)
    unpacked(tmp_path, folder, *files, content=b"some text")
    found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert found == {"made", "made/empty", "made/src", "made/src/one.py", "run.sh"}
    assert (tmp_path / "made/src/one.py").read_bytes() == b"some text"
    assert (tmp_path / "made/src/one.py").stat().st_mtime == 1_700_000_000
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("made/src/one.py", "run.sh")] == [0o644, 0o755]


@pytest.mark.parametrize(
    "bad",
    [
        member("../outside"),
        member("made/../../outside"),
        member("/outside"),
        member("made/link", tarfile.SYMTYPE, "../../outside"),
        member("made/link", tarfile.LNKTYPE, "/outside"),
        member("made/pipe", tarfile.FIFOTYPE),
    ],
    ids=lambda bad: f"{bad.name} {bad.type.decode()}",
)
def test_nothing_else_comes_out(tmp_path: Path, bad: tarfile.TarInfo) -> None:
    into = tmp_path / "a" / "b"
    with pytest.raises(UnpackError, match="is not a file or a directory below the archive"):
        unpacked(into, member("good"), bad)
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "b", "good"]
