"""Argument types: every good spelling gives its value, every bad one argparse's error with the text that was typed."""

import argparse

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tubelet.cli.arguments import count, existing, folder, number, positive, rate, sides, video_file, video_size
from tubelet.data import write_video


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
        *((count, text) for text in ("", "0", "-1", "1.5", "one", "\N{SUPERSCRIPT TWO}", "1000001")),
        *((number, text) for text in ("", "-1", "0.0", "x", str(2**62 + 1), str(2**63), str(2**64))),
        *((positive, text) for text in ("", "0", "-1", "nan", "inf", "x", "1e30")),
        *((rate, text) for text in ("", "0", "0.001", "1001", "nan", "x")),
        *((video_file, text) for text in ("", "a", "a.xyz", "mp4")),
    ],
)
def test_anything_else_is_refused_with_what_was_typed(kind, text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError) as caught:
        kind(text)
    assert repr(text) in str(caught.value)


def test_zero_is_a_number_but_no_count() -> None:
    assert number("0") == 0
    assert positive("0.5") == rate("0.5") == 0.5
    assert number(str(2**62)) == 2**62


def test_a_folder_may_be_missing_but_not_a_file(tmp_path) -> None:
    assert folder(str(tmp_path / "new")) == tmp_path / "new"
    assert folder(str(tmp_path)) == tmp_path
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "new" / "folder"):
        with pytest.raises(argparse.ArgumentTypeError, match="file is a file"):
            folder(str(path))


def test_a_folder_that_may_not_be_written_is_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(argparse.ArgumentTypeError, match=f"{tmp_path} may not be written to"):
        folder(str(tmp_path / "new" / "run"))
    with pytest.raises(argparse.ArgumentTypeError, match="may not be written to"):
        video_file(str(tmp_path / "a.gif"))


def test_a_video_file_is_no_folder_and_an_input_is_there(tmp_path) -> None:
    (tmp_path / "a folder.gif").mkdir()
    with pytest.raises(argparse.ArgumentTypeError, match="is a folder"):
        video_file(str(tmp_path / "a folder.gif"))
    for suffix in ("mp4", "GIF", "webp", "png"):
        path = tmp_path / "new" / f"a b.{suffix}"
        assert video_file(str(path)) == path
        write_video(path, torch.zeros(1, 1, 8, 8))  # the library takes the same suffixes
    assert existing(str(tmp_path)) == tmp_path
    with pytest.raises(argparse.ArgumentTypeError, match="there is no .*none"):
        existing(str(tmp_path / "none"))
