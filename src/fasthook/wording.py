"""Words for people: on one line, and safe on a terminal whatever a stranger wrote into them."""

from __future__ import annotations

import contextlib
import importlib
import os
from pathlib import Path
from types import TracebackType

_LONGEST = 300  # characters of an error's own text
_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def printable(text: str, *, keep: str = "") -> str:
    """The text with everything that isn't printable escaped as in Python and JSON, but for the characters in `keep`.

    So nothing in it moves the cursor, colours, rings, or turns the reading direction of a terminal.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    return "".join(f"\\u{unit:04x}" for unit in _utf16(character))


def _utf16(character: str) -> list[int]:
    pairs = character.encode("utf-16-be", "surrogatepass")
    return [pairs[n] << 8 | pairs[n + 1] for n in range(0, len(pairs), 2)]


def one_line(error: BaseException | None) -> str:
    """The name of an error and its text, on one line."""
    name = type(error).__name__
    try:
        words = " ".join(str(error).split())
    except Exception:
        words = "(its text cannot be made)"
    text = printable(f"{name}: {words}" if words else name)
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"


def with_article(noun: str) -> str:
    """`an int`, `a str`."""
    return f"{'an' if noun[:1].lower() in tuple('aeiou') else 'a'} {noun}"


def below(trace: str) -> str:
    """A traceback, if there is one, as it stands below a line of the log."""
    return f"\n{trace.rstrip()}" if trace else ""


def bots_frames(error: BaseException) -> BaseException:
    """The error with only the bot's frames in its traceback, and in those of its causes.

    Ours, importlib's and contextlib's say nothing to the bot's author. An error that has no other frames keeps them.
    """
    folders = (Path(__file__).parent, Path(importlib.__file__).parent)
    hidden = (*(f"{folder}{os.sep}" for folder in folders), contextlib.__file__, "<frozen importlib")
    seen: set[int] = set()
    rest: list[BaseException | None] = [error]
    while rest:
        one = rest.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        one.__traceback__ = _without(one.__traceback__, hidden) or _theirs(one)
        rest += [one.__cause__, one.__context__]
        if isinstance(one, BaseExceptionGroup):
            rest += one.exceptions
    return error


def _theirs(error: BaseException) -> TracebackType | None:
    # a SyntaxError, or a module that is missing, is nobody's frame but names the bot's file or module
    return None if isinstance(error, (SyntaxError, ImportError)) else error.__traceback__


def _without(trace: TracebackType | None, hidden: tuple[str, ...]) -> TracebackType | None:
    kept = []
    while trace is not None:
        if not trace.tb_frame.f_code.co_filename.startswith(hidden):
            kept.append(trace)
        trace = trace.tb_next
    made: TracebackType | None = None
    for one in reversed(kept):
        made = TracebackType(made, one.tb_frame, one.tb_lasti, one.tb_lineno)
    return made
