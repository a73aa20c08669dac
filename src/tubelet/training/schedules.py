r"""Learning rates as pure functions of the step, so that a resumed run needs no scheduler state.

Each gives the factor on the base rate at optimiser step ``s`` of ``S``, after a linear warm-up over ``W`` steps,
``(s + 1)/W``:

.. math:: \text{cosine:}\quad f + (1 - f)\,\tfrac12\left(1 + \cos \pi \tfrac{s - W}{S - W}\right) \qquad
          \text{constant, then linear over the last } D:\quad f + (1 - f)\,\min\left(1, \tfrac{S - s}{D}\right)

(Loshchilov & Hutter, arXiv:1608.03983; Hägele et al., arXiv:2405.18392). ``f`` is the floor.
"""

import math

import torch

__all__ = ["set_lr", "warmup_cosine", "warmup_linear_decay"]


def warmup_cosine(step: int, steps: int, *, warmup: int = 0, floor: float = 0.0) -> float:
    """Linear warm-up, then half a cosine down to ``floor``.

    Args:
        step: optimiser steps done so far, from 0.
        steps: length of the run; later steps stay at ``floor``.
        warmup: steps of warm-up.
        floor: factor at the end.

    Returns:
        The factor on the base learning rate.

    Raises:
        ValueError: a negative step, ``warmup`` outside ``[0, steps]``, or ``floor`` outside [0, 1].

    Example:
        >>> [round(warmup_cosine(s, 12, warmup=2), 3) for s in (0, 1, 2, 7, 12)]
        [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    _check(step, steps, "warmup", warmup, floor)
    if step < warmup:
        return (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, steps - warmup))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))


def warmup_linear_decay(step: int, steps: int, *, warmup: int = 0, decay: int = 0, floor: float = 0.0) -> float:
    """Linear warm-up, a constant rate, then a straight line down to ``floor`` over the last ``decay`` steps.

    Args:
        step: optimiser steps done so far, from 0.
        steps: length of the run; later steps stay at ``floor`` (at 1 where ``decay`` is 0).
        warmup: steps of warm-up.
        decay: steps of decay at the end.
        floor: factor at the end.

    Returns:
        The factor on the base learning rate.

    Raises:
        ValueError: a negative step, ``warmup + decay`` outside ``[0, steps]``, or ``floor`` outside [0, 1].

    Example:
        >>> [warmup_linear_decay(s, 10, warmup=2, decay=4) for s in (0, 1, 5, 6, 8, 10)]
        [0.5, 1.0, 1.0, 1.0, 0.5, 0.0]
    """
    _check(step, steps, "warmup", warmup, floor)
    _check(step, steps, "decay", decay, floor)
    _check(step, steps, "warmup + decay", warmup + decay, floor)
    if step < warmup:
        return (step + 1) / warmup
    left = 1.0 if decay == 0 else min(1.0, max(0.0, (steps - step) / decay))
    return floor + (1 - floor) * left


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's rate to ``factor`` times its base rate.

    The base rate is what the group had at the first call; it is kept in the group as ``initial_lr``, as torch's own
    schedulers do, and so survives the optimiser's state dict.

    Args:
        optimizer: its ``param_groups`` are changed in place.
        factor: for instance from :func:`warmup_cosine`.

    Raises:
        ValueError: a factor that is negative or not finite.

    Example:
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
        >>> for step in (0, 5, 10):
        ...     set_lr(optimizer, warmup_cosine(step, 10))
        ...     print(round(optimizer.param_groups[0]["lr"], 6))
        0.1
        0.05
        0.0
    """
    if not 0 <= factor < math.inf:
        raise ValueError(f"factor must be at least 0 and finite, got {factor}")
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor


def _check(step: int, steps: int, name: str, length: int, floor: float) -> None:
    if not 0 <= floor <= 1:
        raise ValueError(f"floor must be in [0, 1], got {floor}")
    if step < 0:
        raise ValueError(f"step must not be negative, got {step}")
    if not 0 <= length <= steps:
        raise ValueError(f"{name}={length} must be between 0 and steps={steps}")
