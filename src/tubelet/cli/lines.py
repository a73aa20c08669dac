"""What a command says on standard error: one line for each mistake or warning, in a user's words."""

import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from safetensors import SafetensorError

__all__ = ["MISTAKES", "out_of_memory", "plain", "warnings_as_lines"]

MISTAKES = (ValueError, OSError, ImportError, FloatingPointError, MemoryError, SafetensorError)
"""What ends a command in one line: wrong input, a full disk, a missing extra, a loss that diverged, too little memory.

Example:
    >>> issubclass(FileNotFoundError, MISTAKES)
    True
"""

_NOISE = re.compile(r"\[Errno -?\d+\] | \(os error \d+\)|\.tmp-[0-9a-f]{8}-")


def plain(error: BaseException) -> str:
    """The text of an error on one line, without error numbers and the names of temporary files.

    Example:
        >>> plain(PermissionError(13, "Permission denied", "runs/.tmp-0a1b2c3d-loss.png"))
        'runs/loss.png: Permission denied'
    """
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, MemoryError) or out_of_memory(error):
        text = "that needs more memory than this machine has"
    return " ".join(_NOISE.sub("", text).split())


def out_of_memory(error: BaseException) -> bool:
    """Whether PyTorch says that memory is lacking; on the CPU its error is a plain ``RuntimeError``.

    Example:
        >>> out_of_memory(RuntimeError("shapes do not match"))
        False
    """
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Warnings inside the block are lines on standard error, each said once, without Python's file and line.

    Example:
        >>> with warnings_as_lines():
        ...     warnings.warn("skipped a.mp4: it is empty")
    """

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        print(f"tubelet: {plain(message) if isinstance(message, Warning) else message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = show
        yield
