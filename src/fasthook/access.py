"""The access log: a line for each request, the same from both doors."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from urllib.parse import unquote

from fasthook._core import Verdict
from fasthook._scan import Admitted

log = logging.getLogger("fasthook.access")


class AccessLog:
    """Writes `ADDRESS METHOD PATH STATUS VERDICT`, with `-` for what is not known.

    The path comes without its query, and with `***` where it holds what `hidden` says: secrets and tokens.
    """

    def __init__(self, hidden: Callable[[], Sequence[str]]) -> None:
        self._hidden = hidden

    def __call__(
        self,
        address: str | None,
        method: str | None,
        path: bytes | None,
        verdict: Verdict,
        bot: int | None,
        update: Admitted | None,
        took: int,
    ) -> None:
        """`bot`: whose hook it was for. `update`: what was admitted. `took`: ns."""
        extra: dict[str, object] = {"verdict": verdict.name, "duration": took / 1e9, "bot": bot}
        if update is not None:
            extra |= {"update_id": update.update_id, "kind": update.kind}
        shown = self._shown(path)
        log.info("%s %s %s %d %s", address or "-", method or "-", shown, verdict.status, verdict.name, extra=extra)

    def _shown(self, path: bytes | None) -> str:
        shown = (path or b"-").partition(b"?")[0].decode("latin-1")
        hidden = self._hidden()
        for part in hidden:
            shown = shown.replace(part, "***")
        plain = unquote(shown)
        return "***" if any(part in plain for part in hidden) else shown
