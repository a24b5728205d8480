"""Bytes for the scan: it must find what its slow twin finds."""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

from fasthook._scan import scan

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
with atheris.instrument_imports(include=["reference", "json.decoder", "json.scanner"]):
    import reference


def facts(update: object) -> tuple[object, ...] | None:
    """What is known of an update, None if it is not one."""
    if update is None:
        return None
    return tuple(getattr(update, name) for name in ("update_id", "kind", "kind_index", "chat_id", "user_id", "raw"))


def compare(data: bytes) -> None:
    found, expected = facts(scan(data)), facts(reference.scan(data))
    assert found == expected, f"{found} is not {expected}"


if __name__ == "__main__":
    atheris.Setup(sys.argv, compare)
    atheris.Fuzz()
