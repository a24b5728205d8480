"""The map of the code in docs/internals.md: every file is on it, with what it guards, and what is on it is there."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src/fasthook"
NAME = re.compile(r"`([\w./]+(?:/|\.(?:py|pyx|h|json)))`")


@dataclass(frozen=True)
class Row:
    """A line of the table: the files in its first cell, and its last one."""

    files: list[Path]
    guards: str


def resolved(names: list[str]) -> list[Path]:
    """Where the names of a cell are: a name without a folder is in that of the first. A folder is its `__init__.py`."""
    folder = Path(names[0]).parent if not names[0].endswith("/") else Path(names[0])
    found = []
    for name in names:
        path = Path(name) if "/" in name else folder / name
        start = ROOT if path.parts[0] in ("bench", "release") else PACKAGE
        found.append(start / path / "__init__.py" if name.endswith("/") and start == PACKAGE else start / path)
    return found


def table() -> list[Row]:
    text = (ROOT / "docs/internals.md").read_text()
    lines = re.findall(r"^\| (.*?) \| .* \| ?(.*?) ?\|$", text.partition("\n## ")[0], re.MULTILINE)
    return [Row(resolved(names), guards) for cell, guards in lines if (names := NAME.findall(cell))]


def says_nothing(path: Path) -> bool:
    """Whether a module is only its docstring."""
    return path.name == "__init__.py" and len(ast.parse(path.read_text()).body) <= 1


def test_every_file_is_on_the_map() -> None:
    sources = {path for end in ("py", "pyx") for path in PACKAGE.rglob(f"*.{end}")}
    named = {path for row in table() for path in row.files}
    assert sorted(str(path.relative_to(PACKAGE)) for path in sources - named if not says_nothing(path)) == []


def test_every_file_on_the_map_is_there() -> None:
    assert [str(path) for row in table() for path in row.files if not path.exists()] == []


def test_every_line_of_the_map_names_what_is_guarded() -> None:
    assert len(table()) > 50
    assert [str(row.files[0].relative_to(ROOT)) for row in table() if not row.guards] == []


def test_no_file_is_on_it_twice_but_those_that_share_a_word() -> None:
    named = [path for row in table() for path in row.files]
    twice = {path.name for path in named if named.count(path) > 1}
    assert twice <= {"_core.pyx"}  # `Shares` in it stands with the turns that it gives
