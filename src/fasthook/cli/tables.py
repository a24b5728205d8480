"""What people see of updates and dead letters. Strangers wrote parts of them: those are escaped."""

from __future__ import annotations

import base64
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fasthook.wording import printable

Row = dict[str, Any]

#: What an update is: the heads of columns, and where a row has it.
_UPDATE = {"number": "number", "update": "update_id", "bot": "bot_id", "kind": "kind", "chat": "chat_id"}
_WORDS = ("kind", "state", "reason")  # columns that are no numbers
_UNBOUNDED = 4000  # columns where the output is no terminal: no line is cut off
_UNITS = (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1))
_SIZES = ("bytes", "KiB", "MiB", "GiB")


def show_waiting(rows: Sequence[Row]) -> None:
    now = time.time()
    _table(
        rows,
        ("age", lambda row: None if row["received_at"] is None else duration(now - row["received_at"])),
        ("attempt", lambda row: row["attempt"]),
        ("state", lambda row: row["state"]),
    )


def show_dead(rows: Sequence[Row]) -> None:
    now = time.time()
    _table(
        rows,
        ("died", lambda row: None if row["died_at"] is None else f"{duration(now - row['died_at'])} ago"),
        ("attempts", lambda row: row["attempts"]),
        ("reason", lambda row: row["reason"]),
    )


def _table(rows: Iterable[Row], *columns: tuple[str, Callable[[Row], Any]]) -> None:
    """A row each: what an update is, then these columns."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in (*_UPDATE, *(name for name, _ in columns)):
        table.add_column(Text(name), justify="left" if name in _WORDS else "right", no_wrap=True)
    for row in rows:
        values = [*(row[key] for key in _UPDATE.values()), *(value(row) for _, value in columns)]
        table.add_row(*map(_cell, values))
    _console().print(table)


def _cell(value: Any) -> Text:
    return Text("-" if value is None else printable(str(value)))


def _console() -> Console:
    width = None if sys.stdout.isatty() else _UNBOUNDED
    return Console(width=width, highlight=False, markup=False, emoji=False)


def show_stats(stats: Row) -> None:
    oldest = stats["oldest_age"]
    server = f"runs, process {stats['pid']}" if stats["pid"] else "doesn't run"
    facts: list[tuple[str, Any]] = [
        ("queue", stats["queue"]),
        ("server", server),
        ("waiting", stats["depth"] - stats["in_flight"]),
        ("in hand", stats["in_flight"]),
        ("oldest", None if oldest is None else f"{duration(oldest)} old"),
        ("on disk", size(stats["bytes"])),
        ("handled and kept", stats["handled_kept"]),
        ("trouble", stats["trouble"] or "none"),
    ]
    facts += [(f"kind {kind}", count) for kind, count in stats["by_kind"].items()]
    facts += [(f"bot {bot}", count) for bot, count in stats["by_bot"].items()]
    _facts(facts)


def show_update(row: Row, raw: bytes) -> None:
    """One update, or dead letter, with all there is to it."""
    facts: list[tuple[str, Any]] = [(name, row[key]) for name, key in _UPDATE.items()]
    facts += [("user", row["user_id"]), ("received", moment(row["received_at"]))]
    if "reason" in row:
        facts += [("died", moment(row["died_at"])), ("reason", row["reason"]), ("attempts", row["attempts"])]
    else:
        facts += [("state", row["state"]), ("attempt", row["attempt"])]
    if "handled_at" in row:
        facts.append(("handled", moment(row["handled_at"])))
    _facts([*facts, ("size", size(row["bytes"]))])
    print()
    print(pretty(raw))
    if row.get("traceback"):
        print()
        print(printable(row["traceback"].rstrip(), keep="\n"))


def _facts(facts: Iterable[tuple[str, Any]]) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts:
        table.add_row(_cell(name), _cell(value))
    _console().print(table)


def as_object(row: Row) -> Row:
    """A row of `show` for programs: the update parsed, or its bytes in base64 if it isn't JSON that Python reads."""
    made = dict(row)
    raw = base64.b64decode(made.pop("raw"))
    update = parsed(raw)
    return made | ({"update": update} if update is not None else {"update": None, "base64": row["raw"]})


def pretty(raw: bytes) -> str:
    """JSON in lines, or the bytes as text where they aren't JSON, with all that isn't printable escaped."""
    update = parsed(raw)
    if update is None:
        return printable(raw.decode("utf-8", "backslashreplace"), keep="\n")
    return printable(json.dumps(update, indent=2, ensure_ascii=False), keep="\n")


def parsed(raw: bytes) -> Any:
    """The JSON in these bytes; None if Python cannot read it, or not write it again."""

    def unusable(word: str) -> Any:
        raise ValueError(word)

    try:
        found = json.loads(raw.decode("utf-8", "replace"), parse_constant=unusable)
        json.dumps(found, allow_nan=False)
    except (ValueError, RecursionError):
        return None
    return found


def moment(seconds: float) -> str:
    """Local time, ISO 8601."""
    try:
        return datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):
        return str(seconds)


def duration(seconds: float) -> str:
    """About how long: `3s`, `5m`, `2h`, `4d`."""
    for unit, length in _UNITS:
        if seconds >= length:
            return f"{int(seconds // length)}{unit}"
    return "0s"


def size(count: int) -> str:
    number = float(count)
    for unit in _SIZES:
        if number < 1024 or unit == _SIZES[-1]:
            return f"{number:.0f} {unit}" if unit == "bytes" else f"{number:.1f} {unit}"
        number /= 1024
    raise AssertionError
