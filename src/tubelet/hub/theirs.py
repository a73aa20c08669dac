"""Configs of other classes: their keys over the defaults of the class, and values that make another model."""

from collections.abc import Mapping
from typing import Any

__all__ = ["check_own", "checked_config"]


def checked_config(
    config: Mapping[str, Any], defaults: Mapping[str, Any], fixed: Mapping[str, Any], peer: str
) -> dict[str, Any]:
    """Their config over the ``defaults`` of their class; what is ``fixed`` must have the value that it has there.

    Raises:
        ValueError: keys that the class does not have, or a fixed one with another value.

    Example:
        >>> checked_config({"heads": 2, "_class_name": "Peer"}, {"heads": 1, "bias": True}, {"bias": True}, "Peer")
        {'heads': 2, 'bias': True}
    """
    unknown = sorted(key for key in config if key not in defaults and not key.startswith("_"))
    if unknown:
        raise ValueError(f"config has keys {unknown}, which {peer} does not have")
    merged = {**defaults, **{key: value for key, value in config.items() if key in defaults}}
    for key, value in fixed.items():
        if merged[key] != value:
            raise ValueError(f"{key}={merged[key]!r}, but this model has {value!r}")
    return merged


def check_own(config: Any, only: Mapping[str, Any], peer: str) -> None:
    """Refuse a config of ours whose values their class cannot have.

    Raises:
        ValueError: a field has another value than the only one that theirs has.

    Example:
        >>> from tubelet.models import dit_xl
        >>> check_own(dit_xl(), {"frequencies": 128}, "Peer")
        Traceback (most recent call last):
        ValueError: frequencies=256, but Peer has 128
    """
    for name, value in only.items():
        if (found := getattr(config, name)) != value:
            raise ValueError(f"{name}={found!r}, but {peer} has {value!r}")
