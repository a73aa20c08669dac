"""What the losses and penalties of autoencoders ask of their arguments."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

__all__ = ["check_alike", "check_all", "check_count", "check_names", "check_number"]


def check_number(name: str, value: Any, least: float = 0.0, most: float = math.inf, *, below: bool = False) -> None:
    """Whether a value is a finite number of a range; ``below``: ``most`` is not part of it.

    Raises:
        ValueError: it is not.

    Example:
        >>> check_number("decay", 1.5, most=1.0)
        Traceback (most recent call last):
        ValueError: decay must be a finite number in [0, 1], got 1.5
    """
    fits = isinstance(value, int | float) and least <= value <= most and math.isfinite(value)
    if not fits or (below and value == most):
        end = f", {most:g}{')' if below else ']'}"
        inside = f"in [{least:g}{end}" if math.isfinite(most) else f"of at least {least:g}"
        raise ValueError(f"{name} must be a finite number {inside}, got {value!r}")


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Whether a value is a whole number of at least ``least``.

    Raises:
        ValueError: it is not.

    Example:
        >>> check_count("frames", 1.5)
        Traceback (most recent call last):
        ValueError: frames must be a whole number of at least 1, got 1.5
    """
    if not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")


def check_all(name: str, values: Any, kind: type) -> None:
    """Whether a value is a sequence of things of one kind.

    Raises:
        ValueError: it is one such thing itself, or holds something else.

    Example:
        >>> check_all("balance_at", ("a.b",), Tensor)
        Traceback (most recent call last):
        ValueError: balance_at must be a sequence of Tensor, got ('a.b',)
    """
    if isinstance(values, kind) or not isinstance(values, Sequence) or not all(isinstance(x, kind) for x in values):
        found = type(values).__name__ if isinstance(values, kind) else repr(values)
        raise ValueError(f"{name} must be a sequence of {kind.__name__}, got {found}")


def check_names(kind: str, named: Mapping[Any, Any], taken: Collection[str] = ()) -> None:
    """Whether names can stand in front of a dot in reports and, of modules, in a ``nn.ModuleDict``.

    Raises:
        ValueError: an empty name, one with a dot, one that is taken or an attribute of ``nn.ModuleDict``.

    Example:
        >>> check_names("penalties", {"a.b": None})
        Traceback (most recent call last):
        ValueError: penalties must have names without a dot, got 'a.b'
    """
    for name, value in named.items():
        if not isinstance(name, str) or not name or "." in name:
            raise ValueError(f"{kind} must have names without a dot, got {name!r}")
        if name in taken or (isinstance(value, nn.Module) and hasattr(nn.ModuleDict, name)):
            raise ValueError(f"{kind} cannot have the name {name!r}, which stands for something else")


def check_alike(decoded: Tensor, video: Tensor) -> None:
    """Whether two videos ``(b, c, t, h, w)`` have one shape.

    Raises:
        ValueError: another rank or two shapes.

    Example:
        >>> import torch
        >>> check_alike(torch.zeros(1, 3, 5, 8, 8), torch.zeros(1, 3, 4, 8, 8))
        Traceback (most recent call last):
        ValueError: decoded has shape (1, 3, 5, 8, 8), but video has (1, 3, 4, 8, 8)
    """
    if decoded.shape != video.shape:
        raise ValueError(f"decoded has shape {tuple(decoded.shape)}, but video has {tuple(video.shape)}")
    if video.ndim != 5:
        raise ValueError(f"video must be (b, c, t, h, w), got shape {tuple(video.shape)}")
