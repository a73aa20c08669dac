"""Measured launch sizes, kept in a file per device; without one, the fixed sizes of each operation serve.

Nothing is ever measured inside a call: a first call is as fast as any, ranks cannot disagree, and CUDA graphs may be
captured at once. ``tubelet kernels tune`` measures (:mod:`tubelet.kernels._measuring`) and writes
``~/.cache/tubelet/kernels/<device>.json``; a process reads that file once, at the first launch.
"""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch

from tubelet.files import write_json

__all__ = ["VERSION", "choose", "key", "read", "tuned_file", "write"]

Choice = TypeVar("Choice", bound=tuple[int, ...])
"""Numbers of a launch: tokens and warps, or the sides of tiles."""
VERSION = 1
"""Of the file's schema; a file of another version is not read."""


def key(kernel: str, width: int, dtype: torch.dtype) -> str:
    """The name of a measured choice.

    Example:
        >>> key("rotation_forward", 128, torch.bfloat16)
        'rotation_forward/128/bfloat16'
    """
    return f"{kernel}/{width}/{str(dtype).removeprefix('torch.')}"


def choose(kernel: str, device: torch.device, width: int, dtype: torch.dtype, fixed: Choice) -> Choice:
    """The measured sizes of a kernel on a device, else ``fixed``.

    Example:
        >>> from tubelet.kernels._launching import Sizes
        >>> choose("rotation_forward", torch.device("cpu"), 128, torch.float32, Sizes(16, 4))
        Sizes(tokens=16, warps=4)
    """
    if device.type != "cuda":
        return fixed
    found = _measured(torch.cuda.get_device_name(device)).get(key(kernel, width, dtype))
    return fixed if found is None else type(fixed)(*found)  # type: ignore[arg-type]


def tuned_file(device_name: str) -> Path:
    """Where the measured sizes of a device lie.

    Example:
        >>> tuned_file("NVIDIA H100").name
        'NVIDIA-H100.json'
    """
    return Path.home() / ".cache" / "tubelet" / "kernels" / f"{'-'.join(device_name.split())}.json"


def write(path: Path, choices: Mapping[str, tuple[int, ...]]) -> None:
    """Add choices to a file of measured sizes; running processes keep what they have read.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "device.json"
        >>> write(path, {"rotation_forward/128/bfloat16": (8, 2)})
        >>> read(path)
        {'rotation_forward/128/bfloat16': (8, 2)}
    """
    merged = {**read(path), **choices}
    write_json(path, {"schema": VERSION, "sizes": {name: list(sizes) for name, sizes in sorted(merged.items())}})


def read(path: Path) -> dict[str, tuple[int, ...]]:
    """The choices in a file; none where it is missing or of another version.

    Raises:
        ValueError: the file is not what :func:`write` writes.

    Example:
        >>> read(Path("nowhere.json"))
        {}
    """
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    if content["schema"] != VERSION:
        return {}
    return {name: tuple(sizes) for name, sizes in content["sizes"].items()}


@functools.cache
def _measured(device_name: str) -> dict[str, tuple[int, ...]]:
    return read(tuned_file(device_name))
