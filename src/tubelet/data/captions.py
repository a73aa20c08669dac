"""Captions of video files as JSON lines: ``{"file": "walks/a.mp4", "caption": "a dog runs", "start": 2, "end": 5.5}``.

``file`` is relative to the folder of clips; ``start`` and ``end`` (seconds) are optional and cut a segment out of the
file. A file may have several lines: several segments, or several captions.
"""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

__all__ = ["Caption", "read_captions"]


@dataclass(frozen=True)
class Caption:
    """What happens in one file, or in one segment of it.

    Args:
        file: path relative to the folder of clips, with forward slashes.
        caption: the text; "" is allowed.
        start: where the segment begins, seconds.
        end: where it ends, seconds; None is the end of the file.

    Raises:
        ValueError: no file name, or a segment that is not ``0 <= start < end``.

    Example:
        >>> Caption("./walks/a.mp4", "a dog runs", end=2.0).file
        'walks/a.mp4'
    """

    file: str
    caption: str
    start: float | int = 0.0
    end: float | int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "file", str(PurePosixPath(self.file)))
        if self.file == ".":
            raise ValueError("file must name a file, got ''")
        end = math.inf if self.end is None else self.end
        if not (0 <= self.start < end):
            raise ValueError(f"a segment needs 0 <= start < end, got start={self.start}, end={self.end}")


def read_captions(path: str | os.PathLike[str]) -> tuple[Caption, ...]:
    """Read a file of JSON lines; empty lines are passed over, anything else wrong is an error with its line number.

    Args:
        path: the file, UTF-8.

    Returns:
        One :class:`Caption` per line, in order.

    Raises:
        ValueError: a line that is not a JSON object, misses ``file`` or ``caption``, has another key, a value of the
            wrong type, or an impossible segment; the message starts with ``file:line``.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "captions.jsonl"
        ...     _ = path.write_text('{"file": "a.mp4", "caption": "a dog runs"}')
        ...     read_captions(path)
        (Caption(file='a.mp4', caption='a dog runs', start=0.0, end=None),)
    """
    captions = []
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{os.fspath(path)} is not UTF-8 text: {error}") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                captions.append(_parse(line))
            except ValueError as error:
                raise ValueError(f"{os.fspath(path)}:{number}: {error}") from error
    return tuple(captions)


def _parse(line: str) -> Caption:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from error
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, got {line.strip()}")
    kinds = {"file": str, "caption": str, "start": (int, float), "end": (int, float)}
    if missing := [key for key in ("file", "caption") if key not in row]:
        raise ValueError(f"missing {' and '.join(map(repr, missing))} in {sorted(row)}")
    for key, value in row.items():
        if key not in kinds:
            raise ValueError(f"unknown key {key!r}; known: {', '.join(kinds)}")
        if not isinstance(value, kinds[key]) or isinstance(value, bool):  # type: ignore[arg-type]
            raise ValueError(f"{key!r} must be {'text' if kinds[key] is str else 'a number'}, got {value!r}")
    return Caption(**row)
