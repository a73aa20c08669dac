"""The check that formulas share: amounts are numbers, and none is negative."""

import math

__all__ = ["check_amounts"]


def check_amounts(least: int, **amounts: int | float) -> None:
    """Refuse amounts below ``least``, NaN and infinity, by their names.

    Raises:
        ValueError: there is one.

    Example:
        >>> check_amounts(1, devices=8, steps=0)
        Traceback (most recent call last):
        ValueError: steps must be at least 1, got 0
    """
    for name, amount in amounts.items():
        if not least <= amount < math.inf:
            raise ValueError(f"{name} must be {'finite' if amount == math.inf else f'at least {least}'}, got {amount}")
