"""Types of command-line arguments: each raises argparse's own error, so that a mistake is one line."""

import argparse
import os
import re
from pathlib import Path

import torch

__all__ = [
    "count",
    "dtype",
    "existing",
    "folder",
    "names",
    "new",
    "number",
    "positive",
    "rate",
    "share",
    "sides",
    "size",
    "video_file",
    "video_size",
]

_MOST = 1_000_000
_MOST_SEED = 2**62  # seeds of single samples count on from here, within the 64 bits that PyTorch takes
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
_VIDEO_SUFFIXES = (".mp4", ".gif", ".webp", ".png")


def video_size(text: str) -> tuple[int, int, int]:
    """Frames, height and width from ``T,H,W``.

    Raises:
        argparse.ArgumentTypeError: not three positive whole numbers.

    Example:
        >>> video_size("9,24,32")
        (9, 24, 32)
    """
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"a size is frames,height,width such as 9,24,32, got {text!r}")
    t, h, w = map(int, parts)
    return t, h, w


def sides(text: str) -> tuple[int, int]:
    """Height and width from ``H,W``.

    Raises:
        argparse.ArgumentTypeError: not two positive whole numbers.

    Example:
        >>> sides("24,32")
        (24, 32)
    """
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"a size is height,width such as 24,32, got {text!r}")
    h, w = map(int, parts)
    return h, w


def count(text: str) -> int:
    """A whole number from 1 to a million.

    Raises:
        argparse.ArgumentTypeError: anything else.

    Example:
        >>> count("3")
        3
    """
    if not text.isdecimal() or not 1 <= int(text) <= _MOST:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1 and at most {_MOST}, got {text!r}")
    return int(text)


def number(text: str) -> int:
    """A whole number from 0 to 2^62: a seed.

    Raises:
        argparse.ArgumentTypeError: anything else.

    Example:
        >>> number("0")
        0
    """
    if not text.isdecimal() or int(text) > _MOST_SEED:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 0 and at most 2^62, got {text!r}")
    return int(text)


def positive(text: str) -> float:
    """A number above 0, at most a million.

    Raises:
        argparse.ArgumentTypeError: anything else.

    Example:
        >>> positive("0.5")
        0.5
    """
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= _MOST:
        raise argparse.ArgumentTypeError(f"expected a number above 0 and at most {_MOST}, got {text!r}")
    return value


def share(text: str) -> float:
    """A number from 0 to 1.

    Raises:
        argparse.ArgumentTypeError: anything else.

    Example:
        >>> share("0.7")
        0.7
    """
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text!r}")
    return value


def rate(text: str) -> float:
    """Frames a second, from 0.01 to 1000.

    Raises:
        argparse.ArgumentTypeError: anything else.

    Example:
        >>> rate("12.5")
        12.5
    """
    value = positive(text)
    if not 0.01 <= value <= 1000:
        raise argparse.ArgumentTypeError(f"expected frames a second from 0.01 to 1000, got {text!r}")
    return value


def names(text: str) -> tuple[str, ...]:
    """Names with commas between them.

    Raises:
        argparse.ArgumentTypeError: a name is empty.

    Example:
        >>> names("sdpa, flex")
        ('sdpa', 'flex')
    """
    found = tuple(name.strip() for name in text.split(","))
    if "" in found:
        raise argparse.ArgumentTypeError(f"expected names with commas between them, got {text!r}")
    return found


def dtype(text: str) -> torch.dtype:
    """A floating-point type by name.

    Raises:
        argparse.ArgumentTypeError: anything else.

    Example:
        >>> dtype("bfloat16")
        torch.bfloat16
    """
    if text not in _DTYPES:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(_DTYPES)}, got {text!r}")
    return _DTYPES[text]


def size(text: str) -> str:
    """Bytes with a unit: KB, MB, GB or TB.

    Raises:
        argparse.ArgumentTypeError: anything else.

    Example:
        >>> size("500MB")
        '500MB'
    """
    if not re.fullmatch(r"[1-9]\d*[KMGT]B", text):
        raise argparse.ArgumentTypeError(f"expected a size such as 500MB or 2GB, got {text!r}")
    return text


def new(text: str) -> Path:
    """A folder that does not exist and can be made.

    Raises:
        argparse.ArgumentTypeError: something is there, or the folder above may not be written.

    Example:
        >>> new("runs/wan").name
        'wan'
    """
    path = Path(text)
    if path.exists():
        raise argparse.ArgumentTypeError(f"{text} exists already, and nothing is overwritten")
    _check_writable(path)
    return path


def folder(text: str) -> Path:
    """A folder to write to, which exists or can be made.

    Raises:
        argparse.ArgumentTypeError: a file stands in its place or above it, or it may not be written.

    Example:
        >>> folder("runs/demo").name
        'demo'
    """
    path = Path(text)
    _check_writable(path)
    return path


def video_file(text: str) -> Path:
    """A file to write a video to: MP4, GIF, WebP or PNG, in a folder that exists or can be made.

    Raises:
        argparse.ArgumentTypeError: another suffix, a folder, or a folder that may not be written.

    Example:
        >>> video_file("videos/seven.gif").suffix
        '.gif'
    """
    path = Path(text)
    if path.suffix.lower() not in _VIDEO_SUFFIXES:
        raise argparse.ArgumentTypeError(f"a file must end in {', '.join(_VIDEO_SUFFIXES)}, got {text!r}")
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder, not a file")
    _check_writable(path.parent)
    return path


def existing(text: str) -> Path:
    """A file or folder that is there.

    Raises:
        argparse.ArgumentTypeError: there is nothing of that name.

    Example:
        >>> existing(".").is_dir()
        True
    """
    path = Path(text)
    if not path.exists():
        raise argparse.ArgumentTypeError(f"there is no {text or 'file of an empty name'}")
    return path


def _check_writable(path: Path) -> None:
    """That the folder, or the nearest one above it that exists, is a folder and may be written."""
    above = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    shown = path if above == path.absolute() else above
    if not above.is_dir():
        raise argparse.ArgumentTypeError(f"{shown} is a file, not a folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise argparse.ArgumentTypeError(f"{shown} may not be written to")
