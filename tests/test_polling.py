"""The end of polling, at a bad moment."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from fasthook import Hook, Update
from fasthook.telegram.api import BotAPI, BotAPIUnreachable
from fasthook.telegram.polling import Poller

PATIENCE = 20.0
TOKEN = "42:TEST-token-of-the-poller"


def test_a_stop_that_comes_as_a_call_fails_waits_for_no_pause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(update: Update) -> None:
        pass

    async def main() -> None:
        hook = Hook(handler, token=TOKEN, state_dir=tmp_path)
        api = BotAPI(TOKEN)
        poller = Poller(hook, api, lambda: None)

        async def fails(**_: Any) -> list[dict[str, Any]]:
            poller.stop()
            raise BotAPIUnreachable("getUpdates: no answer")

        monkeypatch.setattr(api, "updates", fails)
        monkeypatch.setattr("random.uniform", lambda low, high: 1e6)  # a long pause
        await poller.run()
        await api.close()

    asyncio.run(asyncio.wait_for(main(), PATIENCE))
    assert "no updates" not in caplog.text
