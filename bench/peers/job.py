"""The job that every peer does: check the secret, drop duplicates, acknowledge, hand over to a no-op handler.

The servers in bench/peers/servers import this, in their own virtualenv: nothing here but the standard library.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path

PATH = "/webhook"
SECRET = "s3cret-token_for-benchmarks"
TOKEN = "42:TEST_TOKEN_for_benchmarks"
SECRET_HEADER = "X-Telegram-Bot-Api-Secret-Token"

# Where --check wants to see the ids that reached the handler; unset while measuring.
WITNESS = os.environ.get("BENCH_WITNESS")


class Seen:
    """The last ids seen, for the libraries that have no duplicate check of their own."""

    def __init__(self, size: int = 10_000) -> None:
        self._ids: OrderedDict[int, None] = OrderedDict()
        self._size = size

    def add(self, update_id: int) -> bool:
        """Whether the id is new; from now on it isn't."""
        if update_id in self._ids:
            return False
        self._ids[update_id] = None
        if len(self._ids) > self._size:
            self._ids.popitem(last=False)
        return True


def handled(update_id: int) -> None:
    """What every handler calls, with the id of its update: nothing, unless --check is looking."""
    if WITNESS:
        with Path(WITNESS).open("a") as file:
            file.write(f"{update_id}\n")
