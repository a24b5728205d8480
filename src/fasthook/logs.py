"""What the server writes to standard error: lines for people or JSON, without secrets, thinned, and never waited for.

A line is made where it is logged, and written by a thread: a reader of the pipe who stops reading would otherwise stop
the loop with it. What the thread cannot get rid of is dropped and counted, beyond `_ROOM`.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import queue
import re
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol

import orjson

if TYPE_CHECKING:
    from fasthook.settings import Settings

_ROOM = 4 << 20  # characters that wait for the writer
_PATIENCE = 1.0  # seconds that the end of the program waits for it
_OFTEN = 10  # lines of a kind in `_WINDOW` that are written
_WINDOW = 60.0  # seconds
_KINDS = 1000  # kinds of lines that are told apart

#: What a record may carry beside its message, and a JSON line then has.
FIELDS = ("update_id", "bot", "kind", "duration", "verdict", "server")

# As @BotFather gives them, or of any length in an address of the Bot API; `%3A` is the colon in an address.
_TOKEN = re.compile(r"(?<!\d)\d{5,16}(?::|%3A|%3a)[A-Za-z0-9_-]{30,}|(?<=/bot)\d+(?::|%3A|%3a)[A-Za-z0-9_-]+")
_SHORTEST = 4  # a shorter secret is in every other word, and none
_COLOURS = {"WARNING": "\33[33m", "ERROR": "\33[31m", "CRITICAL": "\33[31m"}


def set_up(settings: Settings, process: str = "", hidden: Iterable[str] = ()) -> Redaction:
    """From now on all loggers write to standard error as the settings say, and nothing of what is hidden.

    What takes secrets out of other texts. `process`: which of several this is, if it is not the front door.
    """
    secrets = [secret.decode() for secret in settings.valid_secrets]
    redact = Redaction([settings.token or "", (settings.token or "").partition(":")[2], *secrets, *hidden])
    colour = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    formatter = JsonLines(process) if settings.log_format == "json" else TextLines(colour, process)
    often = None if settings.log_level == "debug" else _OFTEN
    turns = _Turns(sys.stderr.fileno()) if settings.in_processes else contextlib.nullcontext()
    handler = Lines(_Descriptor(sys.stderr.fileno()), formatter, redact, often=often, turns=turns)
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
    logging.getLogger("uvicorn").setLevel("WARNING")
    if settings.log_level != "debug":
        logging.getLogger("httpx").setLevel("WARNING")  # else a line for each call of the Bot API
    return redact


def is_set_up() -> bool:
    """Whether `set_up` was called in this process; in an application of somebody else's it is not."""
    return any(isinstance(handler, Lines) for handler in logging.getLogger().handlers)


def flush() -> None:
    """Wait until what was logged is written, not for long: what is printed now stands behind it."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, Lines):
            handler.flush()


class Redaction:
    """Takes secrets, and whatever looks like a bot's token, out of a text."""

    def __init__(self, secrets: Iterable[str]) -> None:
        self._secrets: set[str] = set()
        self._known: re.Pattern[str] | None = None
        self.hide(secrets)

    def hide(self, secrets: Iterable[str]) -> None:
        """Take out these, too, from now on."""
        self._secrets |= {secret for secret in secrets if len(secret) >= _SHORTEST}
        known = sorted(self._secrets, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, known))) if known else None

    def __call__(self, text: str) -> str:
        if self._known:
            text = self._known.sub("***", text)
        return _TOKEN.sub("***", text)


class TextLines(logging.Formatter):
    """Time, level, which process if that is said, logger, message; then the traceback, if there is one."""

    def __init__(self, colour: bool = False, process: str = "") -> None:
        super().__init__(f"%(asctime)s %(levelname)-7s {process and process + ' '}%(name)s: %(message)s")
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        colour = _COLOURS.get(record.levelname) if self._colour else None
        return f"{colour}{line}\33[0m" if colour else line


class JsonLines(logging.Formatter):
    """An object a line: time (RFC 3339), level, logger, message, process if that is said, `FIELDS`, traceback.

    `server` is an object itself: where a server is that has just started.
    """

    def __init__(self, process: str = "") -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if self._process:
            line["process"] = self._process
        trace = getattr(record, "traceback", None)  # of a worker, below the message
        if trace:
            line["message"] = record.getMessage().partition("\n")[0]
        line |= {name: value for name in FIELDS if (value := getattr(record, name, None)) is not None}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        elif trace or record.exc_text:
            line["traceback"] = trace or record.exc_text
        return orjson.dumps({name: _clean(value) for name, value in line.items()}, default=str).decode()


def _clean(value: object) -> object:
    """A lone surrogate, which an update or the name of a file may hold, is no text that JSON could carry."""
    if isinstance(value, dict):
        return {name: _clean(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_clean(one) for one in value]
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


class _Turns:
    """Processes that write to the same file, pipe or terminal take turns, each for whole lines.

    A pipe takes no more than PIPE_BUF bytes (4,096) in one piece, and a traceback has more. The lock is on what they
    all write to, and the kernel frees it when its owner dies. Where there is no such lock, there are no turns.
    """

    def __init__(self, descriptor: int) -> None:
        import fcntl

        self._take = functools.partial(fcntl.lockf, descriptor, fcntl.LOCK_EX)
        self._leave = functools.partial(fcntl.lockf, descriptor, fcntl.LOCK_UN)

    def __enter__(self) -> None:
        with contextlib.suppress(OSError):
            self._take()

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._leave()


@dataclass(slots=True)
class _Kind:
    """Lines of one logger, level and template."""

    first: logging.LogRecord
    began: float
    count: int = 0
    held: int = 0


class _Written(Protocol):
    def write(self, text: str, /) -> int: ...


class _Descriptor:
    """A file without a buffer: the interpreter, which flushes those it has when it ends, would wait for its lock."""

    def __init__(self, number: int) -> None:
        self._number = number

    def write(self, text: str, /) -> int:
        data = memoryview(text.encode(errors="backslashreplace"))
        while data:
            data = data[os.write(self._number, data) :]
        return len(text)


class Lines(logging.Handler):
    """Writes records through a thread.

    `often`: so many lines of a kind in a minute, from WARNING up; None: all. `turns`: entered for each write.
    """

    def __init__(
        self,
        stream: _Written,
        formatter: logging.Formatter,
        redact: Callable[[str], str],
        *,
        often: int | None,
        window: float = _WINDOW,
        turns: AbstractContextManager[object] = contextlib.nullcontext(),  # noqa: B008 has no state
    ) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self._stream = stream
        self._redact = redact
        self._often = often
        self._window = window
        self._turns = turns
        self._kinds: dict[tuple[str, int, str], _Kind] = {}
        self._timer: threading.Timer | None = None
        self._queue: queue.SimpleQueue[str | threading.Event] = queue.SimpleQueue()
        self._given = self._taken = 0  # characters; the first is only written under the lock, the second by the writer
        self._lost = self._unwritten = self._told = 0  # lines; likewise
        self._writer = threading.Thread(target=self._write, name="fasthook-log", daemon=True)
        self._writer.start()

    def emit(self, record: logging.LogRecord) -> None:
        # under the handler's lock
        if self._often is not None and record.levelno >= logging.WARNING and not self._is_wanted(record, self._often):
            return
        self._put(record)

    def _put(self, record: logging.LogRecord) -> None:
        if self._given - self._taken >= _ROOM:
            self._lost += 1
            return
        try:
            line = self.format(record)
        except Exception as error:  # a wrong call of a logger; logging's own way would print its arguments as they are
            line = f"{record.levelname} {record.name}: {record.msg!r} cannot be logged: {error}"
        line = self._redact(line)
        self._given += len(line)
        self._queue.put(line)

    # ------------------------------------------------------------ thinning

    def _is_wanted(self, record: logging.LogRecord, often: int) -> bool:
        name = (record.name, record.levelno, str(record.msg))
        kind = self._kinds.get(name)
        if kind is not None and record.created - kind.began >= self._window:
            self._tell(self._kinds.pop(name))
            kind = None
        if kind is None:
            if len(self._kinds) >= _KINDS:
                self._tell(self._kinds.pop(next(iter(self._kinds))))
            kind = self._kinds[name] = _Kind(record, record.created)
        kind.count += 1
        if kind.count <= often:
            return True
        kind.held += 1
        if self._timer is None:
            self._timer = threading.Timer(self._window, self._tell_all)
            self._timer.daemon = True
            self._timer.start()
        return False

    def _tell(self, kind: _Kind) -> None:
        """The line for those that were held back."""
        if kind.held:
            first = kind.first
            message = f"… and {kind.held} more like it: {first.msg}"
            self._put(logging.LogRecord(first.name, first.levelno, first.pathname, first.lineno, message, None, None))
            kind.held = 0

    def _tell_all(self) -> None:
        with self.lock or threading.RLock():
            self._timer = None
            kinds, self._kinds = self._kinds, {}
            for kind in kinds.values():
                self._tell(kind)

    # ------------------------------------------------------------ writing

    def _write(self) -> None:
        while True:
            lines, events = [], []
            found = self._queue.get()
            while True:
                if isinstance(found, str):
                    lines.append(found)
                    self._taken += len(found)
                else:
                    events.append(found)
                if len(lines) >= 100 or self._queue.empty():
                    break
                found = self._queue.get()
            count, lost = len(lines), self._lost + self._unwritten - self._told
            if lost:
                words = f"{lost} lines of the log are lost: nobody read standard error"
                record = logging.LogRecord("fasthook", logging.ERROR, __file__, 0, words, None, None)
                lines.append(self.format(record))
            try:
                if lines:
                    with self._turns:
                        self._stream.write("\n".join(lines) + "\n")
                self._told += lost
            except (OSError, ValueError):
                self._unwritten += count  # the reader is gone; it may come back
            for event in events:
                event.set()

    def flush(self) -> None:
        """Wait until what was logged is written, not for long."""
        written = threading.Event()
        self._queue.put(written)
        written.wait(_PATIENCE)

    def close(self) -> None:
        if self._timer:
            self._timer.cancel()
        self._tell_all()
        self.flush()
        super().close()
