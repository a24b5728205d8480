"""Bytes for the compiled edge, in pieces: a crash, a hang, a wrong verdict, a broken answer, a leak are failures.

An input is a byte of flags (1: the answers come later), a byte n, n places to cut at of two bytes each, then what is
sent. The verdicts are those that h11 allows, with the memory of heads and without it.
"""

from __future__ import annotations

import asyncio
import gc
import shutil
import struct
import sys
import tempfile
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
with atheris.instrument_imports(include=["h11", "edge.reading"]):
    from edge.reading import check, read

from edge.wire import Rig, cut

LATER = 1
REPEATS = 64  # runs of one input whose memory is compared
EVERY = 2000  # inputs between two such comparisons


def rig(loop: asyncio.AbstractEventLoop, *, remember: bool) -> Rig:
    """A hook whose state directory has no name any more: libFuzzer ends the process without a farewell."""
    directory = Path(tempfile.mkdtemp())
    made = Rig(loop, directory / "state", remember=remember, max_body=4096, max_head=2048, max_headers=16)
    shutil.rmtree(directory)
    return made


class Target:
    """What libFuzzer calls."""

    def __init__(self) -> None:
        loop = asyncio.new_event_loop()
        self._rigs = [rig(loop, remember=True), rig(loop, remember=False)]
        self._inputs = 0

    def __call__(self, data: bytes) -> None:
        if len(data) < 2:
            return
        places = data[2 : 2 + 2 * data[1]]
        sent = data[2 + 2 * data[1] :]
        pieces = cut(sent, [place for (place,) in struct.iter_unpack(">H", places[: len(places) & ~1])])
        first, second = (self._talk(rig, pieces, later=bool(data[0] & LATER)) for rig in self._rigs)
        assert first == second, f"with the memory {first!r}, without it {second!r}"
        check(read(sent), *first[:2], closed=first[2])
        self._inputs += 1
        if self._inputs % EVERY == 0:
            self._look_for_leaks(pieces)

    def _talk(self, rig: Rig, pieces: list[bytes], *, later: bool) -> tuple[bytes, list[bytes], bool]:
        rig.taken.clear()
        rig.later = later
        answered = rig.talk(pieces)
        assert not rig.server_state.connections, "the connection is left in uvicorn's set"
        return answered, list(rig.taken), rig.closed

    def _look_for_leaks(self, pieces: list[bytes]) -> None:
        for _ in range(2):
            before = _blocks()
            for _ in range(REPEATS):
                for rig in self._rigs:
                    self._talk(rig, pieces, later=False)
            grown = _blocks() - before
            if grown < REPEATS:
                return
        raise AssertionError(f"{grown} blocks of memory are left of {2 * REPEATS} connections")


def _blocks() -> int:
    gc.collect()
    return sys.getallocatedblocks()


if __name__ == "__main__":
    atheris.Setup(sys.argv, Target())
    atheris.Fuzz()
