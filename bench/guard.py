"""The guard, all of its layers: `python -m bench.guard --base REV`.

A layer that is red stops none of the others, so that each says what it has seen. Exits with 1 if one is red, 2 if one
could not be run. A base that this clone has not, as after a first push or a forced one, is taken for HEAD^.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from bench import builds

BEFORE = "HEAD^"


@dataclass(frozen=True)
class Layer:
    """One way to see that a tree is slower; its command ends with 1 if it is."""

    name: str
    command: tuple[str, ...]


def base_of(revision: str) -> str | None:
    """What is compared with; None if there is nothing before HEAD.

    A whole hash that is not here comes from a push: all zeros for the first of a branch, or a commit that a forced push
    has left behind.

    Raises:
        BuildError: there is no such revision, and it is not a hash.
    """
    if revision not in ("", BEFORE):
        try:
            builds.name_of(revision)
        except builds.BuildError:
            if not re.fullmatch("[0-9a-f]{40}", revision):
                raise
            print(f"the base {revision} is not here: {BEFORE} instead", file=sys.stderr, flush=True)
        else:
            return revision
    try:
        builds.name_of(BEFORE)
    except builds.BuildError:
        return None
    return BEFORE


def layers(base: str | None) -> list[Layer]:
    """The three; without a base the one that compares with plain Python."""
    micro = (sys.executable, "-m", "pytest", "bench/micro", "-q", "--floors", "bench/floors.json")
    ratios = Layer("ratios to plain Python", micro)
    if base is None:
        return [ratios]
    return [
        Layer("instructions", (sys.executable, "-m", "bench.instructions", "--base", base)),
        ratios,
        Layer("rounds in turn", (sys.executable, "-m", "bench.paired", "--base", base)),
    ]


def run(guards: Sequence[Layer]) -> int:
    """Run each to its end, and then say which were red."""
    codes = {}
    for layer in guards:
        print(f"== {layer.name}", flush=True)
        codes[layer.name] = subprocess.run(layer.command, cwd=builds.ROOT, check=False).returncode
    words = {0: "green", 1: "RED"}
    print("guard:", ", ".join(f"{name} {words.get(code, 'could not be run')}" for name, code in codes.items()))
    found = set(codes.values())
    return 1 if 1 in found else 2 if found - {0} else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.guard", description="Is this tree slower than a revision?")
    parser.add_argument("--base", metavar="REV", default="", help=f"the revision to compare with ({BEFORE})")
    arguments = parser.parse_args()
    try:
        base = base_of(arguments.base)
    except builds.BuildError as error:
        print(error, file=sys.stderr)
        return 2
    if base is None:
        print("there is no commit before this one: only the ratios can be told", file=sys.stderr, flush=True)
    return run(layers(base))


if __name__ == "__main__":
    sys.exit(main())
