"""What door and worker say to each other, cut anywhere."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fasthook.frames import HEAD, FrameError, Kind, Reader, frame, pack, unpack

FRAMES = st.lists(st.tuples(st.sampled_from(Kind), st.integers(0, 2**64 - 1), st.binary(max_size=300)), max_size=12)


@given(FRAMES, st.lists(st.integers(0, 4000)))
def test_frames_come_whole_however_they_are_cut(frames: list[tuple[Kind, int, bytes]], cuts: list[int]) -> None:
    stream = b"".join(frame(kind, number, payload) for kind, number, payload in frames)
    found: list[tuple[int, int, bytes]] = []
    reader = Reader(lambda *one: found.append(one), 1000)
    at = 0
    for cut in [*sorted(cut for cut in cuts if cut < len(stream)), len(stream)]:
        reader.feed(stream[at:cut])
        at = cut
    assert found == frames


def test_byte_by_byte() -> None:
    found: list[tuple[int, int, bytes]] = []
    reader = Reader(lambda *one: found.append(one), 1000)
    for byte in frame(Kind.DONE, 7, b"reply") + frame(Kind.PONG):
        reader.feed(bytes([byte]))
    assert found == [(Kind.DONE, 7, b"reply"), (Kind.PONG, 0, b"")]


@pytest.mark.parametrize("length", [0, HEAD.size - 1, 101, 2**32 - 1])
def test_what_is_no_frame(length: int) -> None:
    reader = Reader(lambda *one: None, 100)
    with pytest.raises(FrameError, match=f"a frame of {length} bytes"):
        reader.feed(HEAD.pack(length, Kind.DONE, 1))


def test_any_text_is_kept() -> None:
    told = {"line": "a lone \ud800 surrogate, \x1b[31m and ü"}
    assert unpack(pack(told)) == told
