"""The handlers that the fasthook rows run. Only --check lets them leave a trace."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.peers import job

if TYPE_CHECKING:
    from fasthook import Update


async def _noop(update: Update) -> None:
    """Does nothing."""


async def _data(update: Update) -> None:
    """Reads the update as a dict, and one thing in it."""
    update.data["message"]


async def _witnessed(update: Update) -> None:
    job.handled(update.data["update_id"])


noop = _witnessed if job.WITNESS else _noop
data = _witnessed if job.WITNESS else _data
