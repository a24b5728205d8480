"""What door and worker say to each other, cut anywhere."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fasthook.frames import FROM_DOOR, FROM_WORKER, HEAD, LARGEST_OUTCOME, FrameError, Kind, Reader, frame, pack, unpack

ANY = dict.fromkeys(Kind, (HEAD.size, 1000))
FAILED = {"line": "a lone \ud800 surrogate, \x1b[31m and ü", "reason": "failed", "final": False, "trace": ""}
FRAMES = st.lists(st.tuples(st.sampled_from(Kind), st.integers(0, 2**64 - 1), st.binary(max_size=300)), max_size=12)


@given(FRAMES, st.lists(st.integers(0, 4000)))
def test_frames_come_whole_however_they_are_cut(frames: list[tuple[Kind, int, bytes]], cuts: list[int]) -> None:
    stream = b"".join(frame(kind, number, payload) for kind, number, payload in frames)
    found: list[tuple[int, int, bytes]] = []
    reader = Reader(lambda *one: found.append(one), ANY)
    at = 0
    for cut in [*sorted(cut for cut in cuts if cut < len(stream)), len(stream)]:
        reader.feed(stream[at:cut])
        at = cut
    assert found == frames


def test_byte_by_byte() -> None:
    found: list[tuple[int, int, bytes]] = []
    reader = Reader(lambda *one: found.append(one), ANY)
    for byte in frame(Kind.DONE, 7, b"reply") + frame(Kind.PONG):
        reader.feed(bytes([byte]))
    assert found == [(Kind.DONE, 7, b"reply"), (Kind.PONG, 0, b"")]


@pytest.mark.parametrize(
    ("kind", "length"),
    [
        *((Kind.DONE, length) for length in (0, HEAD.size - 1, LARGEST_OUTCOME + 1, 2**32 - 1)),
        (Kind.PONG, HEAD.size + 1),
        (Kind.FAILED, HEAD.size),
        (Kind.DELIVER, HEAD.size + 100),  # the door's
        (0, HEAD.size),
        (max(Kind) + 1, HEAD.size),
    ],
)
def test_what_is_no_frame(kind: int, length: int) -> None:
    """It is seen before what it announces has come."""
    reader = Reader(lambda *one: None, FROM_WORKER)
    with pytest.raises(FrameError, match=f"a frame of kind {kind} and {length} bytes"):
        reader.feed(HEAD.pack(length, kind, 1))


def test_each_frame_has_one_side() -> None:
    assert set(FROM_DOOR) | set(FROM_WORKER) | {Kind.SET_UP} == set(Kind)
    assert not set(FROM_DOOR) & set(FROM_WORKER)


def test_any_text_is_kept() -> None:
    assert unpack(Kind.FAILED, pack(FAILED)) == FAILED


@pytest.mark.parametrize(
    "payload",
    [
        b"bad",
        b"\xff",
        b"[" * 100_000,
        b"[]",
        b"{}",
        pack({**FAILED, "line": 1}),
        pack({**FAILED, "final": "no"}),
        pack({**FAILED, "more": ""}),
        pack({name: FAILED[name] for name in ("line", "reason", "final")}),
    ],
)
def test_what_tells_nothing(payload: bytes) -> None:
    with pytest.raises(FrameError, match="a frame of kind 8 that tells nothing"):
        unpack(Kind.FAILED, payload)


@pytest.mark.parametrize("kinds", [None, ["message"], {"42": "message"}, {"42": [1]}, {"42": {}}])
def test_kinds_are_lists_of_texts_by_bot(kinds: object) -> None:
    said = {"files": [], "token": None, "kinds": {"42": ["message"], "43": None}}
    assert unpack(Kind.READY, pack(said)) == said
    with pytest.raises(FrameError):
        unpack(Kind.READY, pack({**said, "kinds": kinds}))


@pytest.mark.parametrize("files", ["a.py", [1], None])
def test_a_list_is_one_of_texts(files: object) -> None:
    assert unpack(Kind.SOURCES, pack({"files": ["a.py"]})) == {"files": ["a.py"]}
    with pytest.raises(FrameError):
        unpack(Kind.SOURCES, pack({"files": files}))
