"""Files that are whole or absent, damaged ones that are named, and optional packages that are named when missing.

Files are written beside the target and renamed onto it.

POSIX renames within one folder are atomic, so a reader sees the old file or the new one, and a crash at any moment
leaves the old one. The data reach the disk (fsync) before the rename does.
"""

import importlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

__all__ = ["parsing", "replacing", "require", "write_json"]


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary name beside ``path`` to write to; leaving the block puts it in the place of ``path``.

    The temporary name keeps the suffix, for writers that go by it. The file gets the mode of the one it replaces, or
    that of any new file. If the block raises, the temporary file goes and ``path`` stays as it was.

    Args:
        path: the file to make or replace; missing parent folders are made.

    Returns:
        A context manager over the temporary path.

    Raises:
        OSError: the folder cannot be written.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "metrics.json"
        >>> with replacing(file) as temporary:
        ...     _ = temporary.write_text("{}")
        ...     file.exists()
        False
        >>> file.read_text()
        '{}'
    """
    target = Path(path).resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".tmp-{uuid4().hex[:8]}-{target.name}")
    try:
        temporary.touch()
        mode = (target if target.exists() else temporary).stat().st_mode
        yield temporary
        temporary.chmod(mode)
        _flush(temporary)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write a value as JSON, indented, whole or not at all.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "metrics.json"
        >>> write_json(file, {"psnr": 30.0})
        >>> json.loads(file.read_text())
        {'psnr': 30.0}
    """
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n")


@contextmanager
def parsing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Whatever a reader stumbles over in a damaged file becomes one error that names the file and the cause.

    Args:
        path: the file that the block reads.

    Raises:
        ValueError: the block met broken safetensors, JSON or text, or values of other names or types than it expects.

    Example:
        >>> with parsing("config.json"):
        ...     {}["step"]
        Traceback (most recent call last):
        ...
        ValueError: config.json is damaged or of another format: it lacks 'step'
    """
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise ValueError(f"{os.fspath(path)} is no safetensors file: {error}") from error
    except KeyError as error:
        raise ValueError(f"{os.fspath(path)} is damaged or of another format: it lacks {error}") from error
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{os.fspath(path)} is damaged or of another format: {error}") from error


def require(name: str, extra: str = "video", use: str = "reading and writing videos") -> ModuleType:
    """Import ``name``, an optional package.

    Args:
        name: the package, or a module in it.
        extra: of tubelet, which brings it.
        use: what needs it.

    Raises:
        ImportError: it is not installed; the message says what for, and names the extra.

    Example:
        >>> require("PIL.Image").__name__
        'PIL.Image'
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"{use} needs the package {name.split('.')[0]!r}: pip install 'tubelet[{extra}]'") from error


def _flush(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
