"""What the tools for queues and dead letters do on the files while no server runs; `running.py` is the other half."""

from __future__ import annotations

import contextlib
import itertools
import logging
import shlex
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from fasthook.control import ControlError, Refused, owner
from fasthook.queues import QueueError
from fasthook.queues.deadletter import UNREADABLE, DeadLetters
from fasthook.queues.memory import take_over
from fasthook.queues.probe import DAMAGE
from fasthook.queues.running import fresh, no_letter, no_update, packed, readable, require, stats_row, to_retry
from fasthook.queues.selection import HANDLED, WAITING, Row, Selection, dead_row, unreadable_row, waiting_row
from fasthook.queues.store import REPLAYED, Store, StoreError, pack_update
from fasthook.settings import Settings
from fasthook.state import Lock, StateError, is_gone, remember
from fasthook.update import Update

log = logging.getLogger("fasthook.queue")

Arguments = Mapping[str, Any]
Answer = Generator[Row, None, Row]  # yields rows, returns the result, as `control.ask` does


class Files(Protocol):
    """The files of a queue."""

    def waiting(self, behind: int = 0) -> Iterator[tuple[int, bytes]]: ...

    def handled(self, behind: int = 0) -> Iterator[tuple[int, float, bytes]]: ...

    def purge(self, numbers: Iterable[int]) -> int: ...

    def requeue(self, numbers: Iterable[int]) -> int: ...

    def again(self, updates: Iterable[Update]) -> None:
        """Let those wait that don't, although their ids are known."""
        ...

    @property
    def bytes(self) -> int: ...

    def close(self) -> None: ...


class _Spill:
    """What `memory:` left at its last stop."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        take_over(directory)
        self._store: Store | None = Store(directory) if directory.exists() else None

    def waiting(self, behind: int = 0) -> Iterator[tuple[int, bytes]]:
        if self._store is not None:
            yield from self._store.items(behind)

    def handled(self, behind: int = 0) -> Iterator[tuple[int, float, bytes]]:
        return iter(())

    def purge(self, numbers: Iterable[int]) -> int:
        """Their ids stay known, as those of updates that were handled."""
        if self._store is None:
            return 0
        wanted = list(numbers)
        records = (self._store.get(number) for number in wanted)
        updates = [update for record in records if record is not None and (update := readable(record))]
        remember(self._directory.parent, ((update.bot_id, update.update_id) for update in updates))
        return self._store.delete(wanted)

    def requeue(self, numbers: Iterable[int]) -> int:
        return 0

    def again(self, updates: Iterable[Update]) -> None:
        if self._store is None:
            self._store = Store(self._directory)
        waiting = (readable(record) for _, record in self._store.items())
        known = {(one.bot_id, one.update_id) for one in waiting if one}
        new = (update for update in updates if (update.bot_id, update.update_id) not in known)
        self._store.append(pack_update(update, REPLAYED) for update in new)

    @property
    def bytes(self) -> int:
        return _size(self._directory)

    def close(self) -> None:
        if self._store is not None:
            self._store.close()


class _Journal:
    """A journal that no server has."""

    def __init__(self, directory: Path, limit: int) -> None:
        from fasthook.queues.tables import Journal

        self._directory = directory
        self._open: Callable[[], Journal] = lambda: Journal(directory, limit)
        self._journal: Journal | None = None if is_gone(f"journal:{directory}") else self._open()

    def waiting(self, behind: int = 0) -> Iterator[tuple[int, bytes]]:
        if self._journal:
            yield from self._journal.items(behind)

    def handled(self, behind: int = 0) -> Iterator[tuple[int, float, bytes]]:
        if self._journal:
            yield from self._journal.handled_items(behind)

    def purge(self, numbers: Iterable[int]) -> int:
        return self._journal.purge(numbers) if self._journal else 0

    def requeue(self, numbers: Iterable[int]) -> int:
        return self._journal.requeue(numbers) if self._journal else 0

    def again(self, updates: Iterable[Update]) -> None:
        self._journal = self._journal or self._open()
        self._journal.again(updates)

    @property
    def bytes(self) -> int:
        return _size(self._directory)

    def close(self) -> None:
        if self._journal:
            self._journal.close()


class RestingTools:
    """The commands by their names, each a generator. Refused, ControlError: one line.

    `noted`: the queue is that of the last server, which nobody has named now: it is there, or else is not made.
    """

    def __init__(self, settings: Settings, *, noted: bool = False) -> None:
        self._settings = settings
        self._noted = noted

    def ask(self, command: str, arguments: Arguments) -> Answer:
        """Do what a server would do, with the state directory locked against one that starts meanwhile."""
        directory = self._settings.state_dir
        if not directory.is_dir():
            raise ControlError(f"there is no state directory {directory}: go to where the bot runs, or set --state-dir")
        try:
            lock = Lock(directory / "lock", "")
        except StateError:
            raise ControlError(
                f"process {owner(directory)} has the state directory {directory} and no control socket that answers: "
                "it is starting or stopping, so try again; or stop it"
            ) from None
        except OSError as error:
            raise ControlError(f"the state directory {directory} cannot be used: {error.strerror}") from None
        try:
            return (yield from self._commands[command](arguments))
        except QueueError as error:
            raise Refused(_in_use(str(error))) from None
        except (StoreError, StateError) as error:
            raise Refused(str(error)) from None
        finally:
            lock.close()

    @property
    def _commands(self) -> dict[str, Callable[[Arguments], Answer]]:
        return {
            "queue.stats": self.stats,
            "queue.list": self.list_queue,
            "queue.show": self.show,
            "queue.replay": self.replay,
            "queue.purge": self.purge,
            "dead.list": self.list_dead,
            "dead.show": self.show_dead,
            "dead.retry": self.retry,
            "dead.drop": self.drop,
        }

    def _files(self) -> contextlib.closing[Files]:
        queue = self._settings.queue
        if self._noted and is_gone(queue):
            place = queue.partition(":")[2]
            raise Refused(f"the last server's journal {place} is gone: set --queue to where it is now")
        return contextlib.closing(_files(queue, self._settings))

    @contextlib.contextmanager
    def _letters(self) -> Iterator[DeadLetters]:
        letters = DeadLetters(self._settings.state_dir / "dead")
        try:
            yield letters
        finally:
            letters.close()

    # ------------------------------------------------------------ the queue

    def stats(self, arguments: Arguments) -> Answer:
        yield from ()
        now = oldest = time.time()
        kinds: Counter[str] = Counter()
        bots: Counter[int] = Counter()
        with self._files() as files:
            for row, _ in _waiting(files):
                if row["state"] == UNREADABLE:
                    kinds[UNREADABLE] += 1
                    continue
                kinds[row["kind"]] += 1
                bots[row["bot_id"]] += 1
                oldest = min(oldest, row["received_at"])
            return stats_row(
                self._settings.queue, kinds, bots, oldest_age=now - oldest, in_flight=0, size=files.bytes,
                handled=sum(1 for _ in files.handled()), trouble=None, pid=None,
            )  # fmt: skip

    def list_queue(self, arguments: Arguments) -> Answer:
        with self._files() as files:
            rows = _handled(files) if arguments["handled"] else _waiting(files)
            return (yield from _some((row for row, _ in rows), arguments))

    def show(self, arguments: Arguments) -> Answer:
        yield from ()
        number = arguments["number"]
        with self._files() as files:
            for rows in (_waiting(files, number - 1), _handled(files, number - 1)):
                for row, raw in itertools.islice(rows, 1):
                    if row["number"] == number:
                        if row["state"] == UNREADABLE:
                            raise Refused(
                                f"update number {number} cannot be read: fasthook queue purge {number} throws it away"
                            )
                        return row | {"raw": packed(raw)}
        raise no_update(number)

    def replay(self, arguments: Arguments) -> Answer:
        yield from ()
        wanted = Selection.of(arguments["selection"])
        with self._files() as files:
            numbers = [row["number"] for row, _ in _handled(files) if wanted.has(row)]
            require(wanted.numbers, numbers, "no handled update that is kept")
            return {"count": len(numbers) if arguments["count_only"] else files.requeue(numbers)}

    def purge(self, arguments: Arguments) -> Answer:
        yield from ()
        wanted = Selection.of(arguments["selection"])
        with self._files() as files:
            numbers = [row["number"] for row, _ in _waiting(files) if wanted.has(row)]
            require(wanted.numbers, numbers, "no waiting update")
            return {"count": len(numbers) if arguments["count_only"] else files.purge(numbers), "in_hand": 0}

    # ------------------------------------------------------------ dead letters

    def list_dead(self, arguments: Arguments) -> Answer:
        with self._letters() as letters:
            return (yield from _some((dead_row(*one) for one in letters.items()), arguments))

    def show_dead(self, arguments: Arguments) -> Answer:
        yield from ()
        number = arguments["number"]
        with self._letters() as letters:
            try:
                letter = letters.get(number)
            except ValueError as error:
                raise Refused(f"dead letter {number} cannot be read: {error}") from None
            if letter is None:
                raise no_letter(number)
            return dead_row(number, letter) | {"raw": packed(letter.raw), "traceback": letter.traceback}

    def retry(self, arguments: Arguments) -> Answer:
        yield from ()
        wanted = Selection.of(arguments["selection"])
        with self._letters() as letters:
            found = [row for one in letters.items() if wanted.has(row := dead_row(*one))]
            numbers = to_retry(wanted, found)
            if numbers and not arguments["count_only"]:
                with self._files() as files:
                    files.again(fresh(letter) for number in numbers if (letter := letters.get(number)) is not None)
                letters.delete(numbers)
        return {"count": len(numbers), "invalid": len(found) - len(numbers), "later": True}

    def drop(self, arguments: Arguments) -> Answer:
        yield from ()
        wanted = Selection.of(arguments["selection"])
        with self._letters() as letters:
            numbers = [one[0] for one in letters.items() if wanted.has(dead_row(*one))]
            require(wanted.numbers, numbers, "no dead letter")
            return {"count": len(numbers) if arguments["count_only"] else letters.delete(numbers)}


def refuse_to_leave(last: str, settings: Settings) -> None:
    """Don't let a server start with another queue than the last one's while updates wait in that one.

    The state directory is ours. One that is gone, or cannot be looked at, is told of in the log. QueueError: so many
    wait, and how to go on.
    """
    if is_gone(last):
        log.warning("%s, the queue of the last server, is gone: what waited there is handled only if it is in %s now",
                    last, settings.queue)  # fmt: skip
        return
    try:
        with contextlib.closing(_files(last, settings)) as files:
            count = sum(row["state"] != UNREADABLE for row, _ in _waiting(files))
    except (QueueError, StoreError, *DAMAGE) as error:
        log.error("%s, the queue of the last server, cannot be looked at, and what waits there is not handled: %s",
                  last, _in_use(str(error)))  # fmt: skip
        return
    if count:
        wait, named = "update waits" if count == 1 else "updates wait", f"--queue {shlex.quote(last)}"
        state = settings.state_dir
        place = named if state == Settings.state_dir else f"{named} --state-dir {shlex.quote(str(state))}"
        raise QueueError(
            f"{count} {wait} in {last}, the queue of the last server: start once with {named} to handle what waits, or "
            f"throw it away with fasthook queue purge --all {place}"
        )


def _files(queue: str, settings: Settings) -> Files:
    kind, _, place = queue.partition(":")
    if kind == "journal":
        return _Journal(Path(place), settings.journal_max)
    if kind == "memory":
        return _Spill(settings.state_dir / "spill")
    raise QueueError(f"the queue {kind}: can be looked at only through a server that runs")


def _waiting(files: Files, behind: int = 0) -> Iterator[tuple[Row, bytes]]:
    for number, record in files.waiting(behind):
        if (update := readable(record)) is not None:
            yield waiting_row(number, update, WAITING), update.raw
        else:
            yield unreadable_row(number, record), record


def _handled(files: Files, behind: int = 0) -> Iterator[tuple[Row, bytes]]:
    for number, handled_at, record in files.handled(behind):
        if (update := readable(record)) is not None:
            yield waiting_row(number, update, HANDLED, handled_at), update.raw


def _some(rows: Iterable[Row], arguments: Arguments) -> Answer:
    wanted, limit = Selection.of(arguments["selection"]), arguments["limit"]
    sent = 0
    for row in rows:
        if wanted.has(row):
            if limit and sent == limit:
                return {"more": True}
            yield row
            sent += 1
    return {"more": False}


def _size(directory: Path) -> int:
    file = directory / "data.mdb"
    return file.stat().st_size if file.exists() else 0


def _in_use(line: str) -> str:
    return line.replace("; stop it, or set another --queue", ", which has no control socket here: see its --state-dir")
