import asyncio
from typing import Any, final

from fasthook._core import Gate, Route, Verdict
from fasthook._scan import Admitted
from fasthook.settings import Settings

@final
class Door:
    def __init__(self, settings: Settings) -> None: ...
    def head(self, gate: Gate, scope: Any) -> Verdict | Route: ...
    def body(self, gate: Gate, route: Route, raw: bytes) -> Verdict | Admitted: ...

@final
class Waiter:
    @property
    def future(self) -> asyncio.Future[Verdict]: ...
    def answer(self, verdict: Verdict) -> None: ...
