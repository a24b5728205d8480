"""Words that are safe on a terminal."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fasthook.wording import bots_frames, one_line, printable, with_article

any_text = st.text(st.characters(codec=None, exclude_categories=[]))


@given(any_text)
def test_what_is_printable_is(text: str) -> None:
    assert printable(text).isprintable()
    assert printable(text, keep="\n").replace("\n", "").isprintable()


@given(any_text)
def test_json_means_the_same_when_it_is_printable(text: str) -> None:
    assert json.loads(printable(json.dumps(text, ensure_ascii=False))) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain [bold]", "plain [bold]"),
        ("\x1b[31m\n", r"\u001b[31m\n"),
        ("\x9b\u202e\x7f", r"\u009b\u202e\u007f"),
        ("\U000e0001 \U0001f600", "\\udb40\\udc01 \N{GRINNING FACE}"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_one_line() -> None:
    class Silent(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert one_line(ValueError("a\n  b\x1b")) == r"ValueError: a b\u001b"
    assert one_line(KeyError()) == "KeyError"
    assert one_line(Silent()) == "Silent: (its text cannot be made)"
    assert len(one_line(ValueError("x" * 1000))) == 301


def test_articles() -> None:
    assert [with_article(noun) for noun in ("int", "str", "edited_message", "NoneType")] == [
        "an int",
        "a str",
        "an edited_message",
        "a NoneType",
    ]


def raised() -> BaseException:
    """An error of ours, in a frame of ours behind one of this file."""
    with pytest.raises(AttributeError) as caught:
        printable(5)  # type: ignore[arg-type]
    return caught.value


def test_only_the_frames_of_others_are_kept() -> None:
    error = raised()
    kept = bots_frames(error).__traceback__
    assert kept is not None
    assert (kept.tb_frame.f_code.co_filename, kept.tb_next) == (__file__, None)


def test_an_error_of_ours_alone_keeps_its_frames() -> None:
    error = raised()
    assert error.__traceback__ is not None
    error.__traceback__ = error.__traceback__.tb_next
    assert bots_frames(error).__traceback__ is not None
