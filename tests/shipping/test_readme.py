"""The README's first screen: how one gets it, and a figure with the command that measured it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCREEN = (ROOT / "README.md").read_text().partition("\n## ")[0]


def in_a_line(text: str) -> str:
    return " ".join(text.split())


def figures(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w.])\d+\.\d+", text))


def test_it_is_installed_before_it_is_run() -> None:
    before, _, _ = SCREEN.partition("\nfasthook run bot:handler")
    assert before.endswith("\npip install fasthook")


def test_its_figures_are_those_of_its_command() -> None:
    """As the paragraph of docs/cost.md tells them that names the same command."""
    [command] = re.findall(r"`\.venv/bin/(python -m bench\.peers[^`]*)`", in_a_line(SCREEN))
    paragraphs = [in_a_line(text) for text in (ROOT / "docs/cost.md").read_text().split("\n\n")]
    [told] = [text for text in paragraphs if f"`{command}`" in text]
    [claim] = [in_a_line(text) for text in SCREEN.split("\n\n") if text.startswith("**")]
    assert figures(claim)
    assert figures(claim) <= figures(told)


@pytest.mark.skipif(sys.platform != "linux", reason="the peers are measured on Linux")
def test_its_command_names_peers() -> None:
    from bench.peers.catalog import chosen

    only = re.search(r'--only "([^"]*)"', in_a_line(SCREEN))
    assert only
    words = only[1].split(",")
    assert len(chosen(only[1])) == len(words) + 1
