"""What a run was asked for, kept beside it, so that a resumed run is asked for the same."""

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["check_kept"]


def check_kept(begun: Mapping[str, Any], asked: Mapping[str, Any], names: Sequence[str]) -> None:
    """Whether a resumed run is asked for what it was begun with.

    Args:
        begun: options by name, as JSON gives them back.
        asked: those of now.
        names: which must be equal.

    Raises:
        ValueError: one is not; both are named as they are typed.

    Example:
        >>> check_kept({"size": [16, 24]}, {"size": [16, 16]}, ("size",))
        Traceback (most recent call last):
        ValueError: --resume: the run was begun with --size 16,24, got --size 16,16
    """
    if changed := [name for name in names if begun[name] != asked[name]]:
        then, now = (_spelled(changed[0], options[changed[0]]) for options in (begun, asked))
        raise ValueError(f"--resume: the run was begun with {then}, got {now}")


def _spelled(name: str, value: Any) -> str:
    """An option as it is typed."""
    option = f"--{name.replace('_', '-')}"
    if value is None or value is False:
        return f"no {option}"
    if value is True:
        return option
    return f"{option} {','.join(map(str, value)) if isinstance(value, list) else value}"
