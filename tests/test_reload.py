"""The reload of a crew, where no worker starts."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from fasthook.crew import Crew
from fasthook.reload import Reload


class NoCrew:
    """One that cannot start a process, for a reason that nobody has thought of."""

    serves = True
    is_stopping = False
    size = 2
    members = ()

    def spawn(self, **_: Any) -> None:
        raise ValueError("5 of these in 2 places")


def test_it_ends_whatever_keeps_a_worker_from_being_started(caplog: pytest.LogCaptureFixture) -> None:
    reload, ended = Reload(cast(Crew, NoCrew())), []

    async def main() -> None:
        for turn in range(2):
            reload.begin(lambda: ended.append(True))
            assert len(ended) == turn + 1
            assert not await reload.renew({})

    asyncio.run(main())
    assert caplog.text.count("the old workers go on: ValueError: 5 of these in 2 places") == 4
    assert not reload.is_under_way
