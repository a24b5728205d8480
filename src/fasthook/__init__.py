"""fasthook: the front door of a Telegram bot.

`fasthook run bot:handler` serves a handler; `Hook(handler)` is the same as an ASGI application.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fasthook._core import DedupRing, Gate, Stats, TokenBuckets, Verdict
from fasthook.update import Update

if TYPE_CHECKING:
    from fasthook.asgi import Hook

    __version__: str

__all__ = ["DedupRing", "Gate", "Hook", "Stats", "TokenBuckets", "Update", "Verdict", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "Hook":  # a bot module that only wants Update doesn't load the server's parts
        from fasthook.asgi import Hook

        return Hook
    if name == "__version__":
        from importlib.metadata import version

        return version("fasthook")
    raise AttributeError(f"module 'fasthook' has no attribute {name!r}")
