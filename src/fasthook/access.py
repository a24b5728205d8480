"""The access log: a line for each request, the same from both doors."""

from __future__ import annotations

import logging
from urllib.parse import unquote

from fasthook._core import Verdict
from fasthook.settings import Settings

log = logging.getLogger("fasthook.access")


class AccessLog:
    """Writes `ADDRESS METHOD PATH STATUS VERDICT`, with `-` for what is not known.

    The path comes without its query, and with `***` where it holds a secret or the token.
    """

    def __init__(self, settings: Settings) -> None:
        token = (settings.token or "").partition(":")[2]
        self._hidden = [part for part in (token, *(secret.decode() for secret in settings.valid_secrets)) if part]

    def __call__(self, address: str | None, method: str | None, path: bytes | None, verdict: Verdict) -> None:
        log.info("%s %s %s %d %s", address or "-", method or "-", self._shown(path), verdict.status, verdict.name)

    def _shown(self, path: bytes | None) -> str:
        shown = (path or b"-").partition(b"?")[0].decode("latin-1")
        for part in self._hidden:
            shown = shown.replace(part, "***")
        plain = unquote(shown)
        return "***" if any(part in plain for part in self._hidden) else shown
