"""docs/delivery.md names a test for each thing that Telegram does, and each test of the delivery stands there."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "delivery.md"
FILES = ("test_request.py", "test_connections.py", "test_order.py", "test_answers.py", "test_webhooks.py")


def test_the_page_and_the_tests_are_the_same() -> None:
    written = [name for file in FILES for name in re.findall(r"def (test_\w+)", (HERE / file).read_text("utf-8"))]
    named = re.findall(r"`(test_\w+)`", PAGE.read_text("utf-8"))
    assert sorted(named) == sorted(written)


def test_each_row_has_a_test() -> None:
    rows = [line for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| ")]
    said = [row for row in rows if not row.startswith(("| Telegram |", "| --- |"))]
    assert len(said) > 50
    assert all(re.search(r"\| `test_[^|]*` \|$", row) for row in said)
