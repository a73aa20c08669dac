"""Argument types: every good spelling gives its value, every bad one argparse's error with the text that was typed."""

import argparse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tubelet.cli.arguments import count, folder, number, positive, sides, video_size


@given(st.lists(st.integers(1, 10**6), min_size=3, max_size=3))
def test_sizes_come_back_as_typed(values: list[int]) -> None:
    t, h, w = values
    assert video_size(f"{t},{h},{w}") == (t, h, w)
    assert video_size(f" {t}, {h} ,{w}") == (t, h, w)
    assert sides(f"{h},{w}") == (h, w)
    assert count(str(t)) == number(str(t)) == positive(str(t)) == t


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        *(
            (video_size, text)
            for text in ("", "9", "9,24", "9,24,32,1", "0,8,8", "9,-8,8", "9,8.5,8", "9x8x8", "a,b,c")
        ),
        *((sides, text) for text in ("", "8", "8,8,8", "0,8", "8,-8", "8,b")),
        *((count, text) for text in ("", "0", "-1", "1.5", "one", "\N{SUPERSCRIPT TWO}")),
        *((number, text) for text in ("", "-1", "0.0", "x")),
        *((positive, text) for text in ("", "0", "-1", "nan", "inf", "x")),
    ],
)
def test_anything_else_is_refused_with_what_was_typed(kind, text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError) as caught:
        kind(text)
    assert repr(text) in str(caught.value)


def test_zero_is_a_number_but_no_count() -> None:
    assert number("0") == 0
    assert positive("0.5") == 0.5


def test_a_folder_may_be_missing_but_not_a_file(tmp_path) -> None:
    assert folder(str(tmp_path / "new")) == tmp_path / "new"
    assert folder(str(tmp_path)) == tmp_path
    (tmp_path / "file").write_text("")
    with pytest.raises(argparse.ArgumentTypeError, match="is a file"):
        folder(str(tmp_path / "file"))
