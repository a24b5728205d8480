"""Recordings: each update, each answer and each call as a line of JSON; and recorded updates sent again."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from fasthook.testing.account import Account
from fasthook.testing.calls import Call
from fasthook.testing.clock import Clock
from fasthook.testing.delivery import Attempt
from fasthook.testing.samples import KINDS
from fasthook.testing.updates import DAY, LIVES, Event, Pending


class RecordingError(ValueError):
    """A recording that cannot be read. The message is one line: the file, the line, what is wrong."""


class Recording:
    """Writes what happens to a file. No token is in it.

    Lines have `at` (seconds on the clock), `type` and `bot` (the bot's id). `update`: `update_id`, `kind`, `attempt`,
    `body` (or `body_base64`, where it is not UTF-8). `answer`: `update_id`, `attempt`, `status` (0: none), `seconds`,
    `error` and `reply`, if there are any. `call`: `method`, `params`, `files` (their sizes), `via`, `status`.
    OSError: the file cannot be written.
    """

    def __init__(self, path: Path, clock: Clock) -> None:
        self._clock = clock
        self._file: IO[str] = path.open("w", encoding="utf-8")

    def close(self) -> None:
        self._file.close()

    def sent(self, account: Account, update: Pending) -> None:
        self._write(
            self._clock.now(),
            "update",
            account,
            update_id=update.update_id,
            kind=update.kind,
            attempt=update.attempts,
            **_text(update.body),
        )

    def attempted(self, account: Account, attempt: Attempt) -> None:
        more = {name: value for name, value in (("error", attempt.error), ("reply", attempt.reply)) if value}
        self._write(
            attempt.ended_at,
            "answer",
            account,
            update_id=attempt.update_id,
            attempt=attempt.number,
            status=attempt.status,
            seconds=round(attempt.ended_at - attempt.sent_at, 6),
            **more,
        )

    def called(self, account: Account, call: Call) -> None:
        files = {"files": {name: len(data) for name, data in call.files.items()}} if call.files else {}
        more = {"description": call.description} if call.description else {}
        self._write(
            call.at, "call", account, method=call.method, params=call.params, via=call.via, status=call.status,
            **files, **more,
        )  # fmt: skip

    def _write(self, at: float, what: str, account: Account, **fields: Any) -> None:
        if self._file.closed:
            return  # the last calls end with the simulator, after the recording
        line = {"at": round(at, 6), "type": what, "bot": account.id, **fields}
        self._file.write(json.dumps(line, ensure_ascii=False, separators=(",", ":"), default=str) + "\n")


def _text(body: bytes) -> dict[str, str]:
    try:
        return {"body": body.decode()}
    except UnicodeDecodeError:
        return {"body_base64": base64.b64encode(body).decode()}


# ---------------------------------------------------------------- replay


@dataclass(frozen=True, slots=True)
class Recorded:
    """A recorded update: when it came, to which bot if that is known, and the bytes of its event."""

    at: float
    bot: int | None
    kind: str
    event: Event
    raw: bytes


def read(path: Path) -> list[Recorded]:
    """The updates in a recording, first attempts only, or in a file with an update as JSON on each line.

    RecordingError: there is none, or a line that is neither.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise RecordingError(f"{path}: cannot be read: {error.strerror}") from None
    found = list(_updates(path, lines))
    if not found:
        raise RecordingError(f"{path}: there is no update in it")
    return found


def _updates(path: Path, lines: list[bytes]) -> Iterator[Recorded]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line.decode("utf-8", "replace"))
            recorded = _recorded(entry, line)
        except (ValueError, KeyError, TypeError):
            raise RecordingError(f"{path}: line {number} is neither a recorded line nor an update") from None
        if recorded is not None:
            yield recorded


def _recorded(entry: dict[str, Any], line: bytes) -> Recorded | None:
    if "type" not in entry:
        return _update(0.0, None, line.strip())
    if entry["type"] != "update" or entry["attempt"] != 1:
        return None
    body = base64.b64decode(entry["body_base64"]) if "body_base64" in entry else entry["body"].encode()
    return _update(float(entry["at"]), entry.get("bot"), body)


def _update(at: float, bot: int | None, body: bytes) -> Recorded:
    update = json.loads(body.decode("utf-8", "replace"))
    [kind] = update.keys() & set(KINDS)
    raw = body[body.index(b"{", body.index(b'"%s"' % kind.encode())) : body.rindex(b"}")]
    if int(update["update_id"]) < 0 or not isinstance(update[kind], dict):
        raise ValueError("not an update")
    return Recorded(at, bot, kind, update[kind], raw)


async def replay(account: Account, clock: Clock, recorded: list[Recorded], since: float | None = None) -> None:
    """Send recorded updates again, with the pauses between them, and with numbers and lives of their own.

    `since`: what counts as the beginning, if not the first of them.
    """
    if not recorded:
        return
    start = clock.now() - (recorded[0].at if since is None else since)
    for one in recorded:
        await clock.until(start + one.at)
        account.add(one.kind, one.event, raw=one.raw, seconds=LIVES.get(one.kind, DAY))
