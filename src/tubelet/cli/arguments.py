"""Types of command-line arguments: each raises argparse's own error, so that a mistake is one line."""

import argparse
from pathlib import Path

__all__ = ["count", "folder", "number", "positive", "sides", "video_size"]


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
    """A whole number of at least 1.

    Raises:
        argparse.ArgumentTypeError: anything else.

    Example:
        >>> count("3")
        3
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def number(text: str) -> int:
    """A whole number of at least 0, such as a seed.

    Raises:
        argparse.ArgumentTypeError: anything else.

    Example:
        >>> number("0")
        0
    """
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 0, got {text!r}")
    return int(text)


def positive(text: str) -> float:
    """A finite number above 0.

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
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def folder(text: str) -> Path:
    """A folder that exists or can be made: no file stands in its place.

    Raises:
        argparse.ArgumentTypeError: the path is a file.

    Example:
        >>> folder("runs/demo").name
        'demo'
    """
    path = Path(text)
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a file, not a folder")
    return path
