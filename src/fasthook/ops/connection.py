"""Connections of the ops server: few, small and short, so that a stranger there takes nothing from the bot."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.h11_impl import H11Protocol

MOST = 32  # connections at once
LARGEST_HEAD = 16 << 10  # bytes
_SECONDS = 10.0  # for a request and its answer, from the beginning or from the answer to all that was asked before


class Connection(H11Protocol):
    """uvicorn's, with a deadline. One more than `MOST` takes the place of the one that is silent longest.

    If none is silent, of the one that was so last: who asks much and does not read has no place for ever.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._set_deadline()
        if len(self.connections) > MOST:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._deadline:
            self._deadline.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.is_idle:  # the next of several that were sent at once has no time of its own
            self._set_deadline()

    def _set_deadline(self) -> None:
        if self._deadline:
            self._deadline.cancel()
        self._deadline = self.loop.call_later(_SECONDS, self.transport.abort)

    def _make_room(self) -> None:
        others = [cast(Connection, one) for one in self.connections if one is not self]
        last = min([one for one in others if one.is_idle] or others, key=Connection.ends, default=self)
        self.connections.discard(last)  # the loop tells of its end later
        last.transport.abort()

    @property
    def is_idle(self) -> bool:
        """Nothing was asked that is not answered."""
        return self.cycle is None or self.cycle.response_complete

    def ends(self) -> float:
        """When its deadline is, by the loop's clock."""
        return self._deadline.when() if self._deadline else 0.0
