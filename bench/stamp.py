"""What a measurement is of. It is asked for when the measuring begins, and goes into the file with the figures."""

from __future__ import annotations

import platform
import subprocess
from datetime import UTC, datetime
from typing import Any

from bench.builds import ROOT


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:  # no git: figures of a tree without a history can be had all the same
        return ""
    return done.stdout.strip()


def stamp(revision: str | None = None) -> dict[str, Any]:
    """The commit (of the working tree, if none is named), whether it is as committed, the moment and the machine.

    `commit` is 12 hex digits, or "unknown" where there is no repository.
    """
    return {
        "commit": _git("rev-parse", "--short=12", f"{revision or 'HEAD'}^{{commit}}") or "unknown",
        "clean": revision is not None or not _git("status", "--porcelain", "--untracked-files=no"),
        "subject": _git("log", "-1", "--format=%s", revision or "HEAD"),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
    }
