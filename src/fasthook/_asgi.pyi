from collections.abc import Callable
from typing import Any

from fasthook._core import Gate, Route, Verdict
from fasthook._scan import Admitted

def asgi_head(
    gate: Gate, scope: Any, addresses: Callable[[str | None, str], tuple[str | None, bool]] | None
) -> Verdict | Route: ...
def asgi_body(gate: Gate, route: Route, raw: bytes) -> Verdict | Admitted: ...
