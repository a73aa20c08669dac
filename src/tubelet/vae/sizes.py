"""Checks that the configs of autoencoders share."""

import math
from typing import Any

__all__ = ["check_counts", "check_flags", "check_statistics", "check_widths"]


def check_counts(config: Any, *names: str) -> None:
    """Whether these fields hold positive whole numbers.

    Raises:
        ValueError: one does not.

    Example:
        >>> from tubelet.vae.families import kl_f8
        >>> check_counts(kl_f8(), "depth")
    """
    for name in names:
        value = getattr(config, name)
        if type(value) is not int or value < 1:
            raise ValueError(f"{name} must be a positive whole number, not {value!r}")


def check_flags(config: Any, *names: str) -> None:
    """Whether these fields are True or False, or tuples of such.

    Raises:
        ValueError: one holds something else.

    Example:
        >>> from tubelet.vae.families import wan_vae_2_1
        >>> check_flags(wan_vae_2_1(), "shortcuts", "halve_time")
    """
    for name in names:
        value = getattr(config, name)
        flags = value if type(value) is tuple else (value,)
        if not all(type(flag) is bool for flag in flags):
            raise ValueError(f"{name} must hold True and False in a tuple, or be one of them, not {value!r}")


def check_widths(config: Any, name: str, *, groups: int = 1, scales: int | None = None) -> None:
    """Whether a field holds channels for each scale, which the groups of a norm divide.

    Raises:
        ValueError: no scale or another number than ``scales``, a width that is no positive whole number, or groups that
            do not divide.

    Example:
        >>> from tubelet.vae.families import kl_f8
        >>> check_widths(kl_f8(), "widths", groups=32)
    """
    widths = getattr(config, name)
    if type(widths) is not tuple:
        raise ValueError(f"{name} must be a tuple, not {widths!r}")
    count = len(widths) if scales is None else scales
    if not widths or len(widths) != count or not all(type(width) is int and width > 0 for width in widths):
        raise ValueError(f"{name} {widths} must be a positive whole number for each of {count or 'the'} scales")
    if any(width % groups for width in widths):
        raise ValueError(f"{name} {widths} must be multiples of groups {groups}")


def check_statistics(config: Any) -> None:
    """Whether ``latent_mean`` and ``latent_std`` hold a number for each latent channel, or for its frames, or nothing.

    Raises:
        ValueError: another number of them, something else than finite numbers in a tuple, or a standard deviation that
            is not positive.

    Example:
        >>> from tubelet.vae.families import kl_f8
        >>> check_statistics(kl_f8())
    """
    for name, values in (("latent_mean", config.latent_mean), ("latent_std", config.latent_std)):
        if type(values) is not tuple or not all(type(x) in (int, float) and math.isfinite(x) for x in values):
            raise ValueError(f"{name} must be finite numbers in a tuple, not {values!r}")
        if len(values) % config.latent_channels:
            raise ValueError(f"{name} has {len(values)} values for {config.latent_channels} latent channels")
    if not all(std > 0 for std in config.latent_std):
        raise ValueError(f"latent_std must be positive, not {min(config.latent_std)}")
