"""Caption files: rows in order, and every mistake with its file and line."""

import json
from pathlib import Path

import pytest

from tubelet.data import Caption, read_captions


def test_rows_in_order_with_segments_and_empty_lines(tmp_path: Path) -> None:
    rows = [
        {"file": "b/a.mp4", "caption": "a “dog” runs", "start": 1, "end": 2.5},
        {"file": "./b/a.mp4", "caption": ""},
        {"caption": "first", "file": "a.mp4", "start": 0.5},
    ]
    text = "\r\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n  \n"
    (tmp_path / "c.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_captions(tmp_path / "c.jsonl") == (
        Caption("b/a.mp4", "a “dog” runs", 1, 2.5),
        Caption("b/a.mp4", ""),
        Caption("a.mp4", "first", 0.5, None),
    )


def test_line_separators_inside_a_caption_do_not_cut_it(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text('{"file": "a.mp4", "caption": "one\u2028two"}', encoding="utf-8")
    assert read_captions(tmp_path / "c.jsonl")[0].caption == "one\u2028two"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{nonsense", "not JSON: .* at column 2"),
        ("[1, 2]", r"expected a JSON object, got \[1, 2\]"),
        ('{"caption": "x"}', r"missing 'file' in \['caption'\]"),
        ("{}", r"missing 'file' and 'caption'"),
        ('{"file": "a.mp4", "caption": "x", "stat": 1}', "unknown key 'stat'; known: file, caption, start, end"),
        ('{"file": 3, "caption": "x"}', "'file' must be text, got 3"),
        ('{"file": "a.mp4", "caption": null}', "'caption' must be text, got None"),
        ('{"file": "a.mp4", "caption": "x", "start": "0"}', "'start' must be a number, got '0'"),
        ('{"file": "a.mp4", "caption": "x", "end": true}', "'end' must be a number, got True"),
        ('{"file": "a.mp4", "caption": "x", "start": 2, "end": 2}', "0 <= start < end, got start=2, end=2"),
        ('{"file": "a.mp4", "caption": "x", "start": -1}', "got start=-1, end=None"),
        ('{"file": "a.mp4", "caption": "x", "start": NaN}', "got start=nan"),
        ('{"file": "", "caption": "x"}', "file must name a file"),
    ],
)
def test_a_bad_line_is_an_error_with_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "c.jsonl").write_text('{"file": "a.mp4", "caption": "fine"}\n\n' + line + "\n")
    with pytest.raises(ValueError, match=r"c\.jsonl:3: .*" + message):
        read_captions(tmp_path / "c.jsonl")


def test_bad_files(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"c\.jsonl is not UTF-8 text"):
        read_captions(tmp_path / "c.jsonl")
    with pytest.raises(FileNotFoundError):
        read_captions(tmp_path / "nothing.jsonl")
