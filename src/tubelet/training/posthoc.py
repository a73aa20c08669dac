r"""Averages of weights whose length is chosen after training (Karras et al., 2024, arXiv:2312.02696, section 3).

A power-function average after ``t`` updates weighs the weights at time :math:`\tau` by

.. math:: p_\gamma(\tau) = (\gamma + 1)\,\tau^\gamma / t^{\gamma + 1}, \qquad
          \beta_n = \left(1 - \tfrac1{n + 1}\right)^{\gamma + 1}

(section 3.1), so that it stretches with the run and soon forgets the random start. Its *width* is its standard
deviation divided by ``t``: 0.05 and 0.10 are what to keep in training. Snapshots of two such averages, taken now and
then, are combined to the average of any other width at any time before the last snapshot (section 3.2).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["posthoc_average", "posthoc_weights", "power_decay", "power_exponent", "power_width"]


def power_exponent(width: float) -> float:
    """The exponent γ of a width: the largest root of ``(γ + 1) = width²·(γ + 2)²·(γ + 3)`` (section 3.1).

    Raises:
        ValueError: ``width`` is outside (0, 12^-½]; the widest average, with γ = 0, is the plain mean.

    Example:
        >>> round(power_exponent(0.05), 2), round(power_exponent(0.10), 2)
        (16.97, 6.94)
    """
    widest = 12**-0.5
    if not 0 < width <= widest:
        raise ValueError(f"width must be above 0 and at most {widest:.4f}, got {width}")
    low, high = 0.0, 1 / width
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if power_width(middle) > width else (low, middle)
    return (low + high) / 2


def power_width(exponent: float) -> float:
    """The standard deviation of a power-function average, as a share of the run (section 3.1).

    Raises:
        ValueError: a negative exponent.

    Example:
        >>> round(power_width(6.94), 3), round(power_width(0.0) ** 2 * 12, 3)
        (0.1, 1.0)
    """
    if exponent < 0:
        raise ValueError(f"exponent must not be negative, got {exponent}")
    return math.sqrt(exponent + 1) / ((exponent + 2) * math.sqrt(exponent + 3))


def power_decay(width: float) -> Callable[[int], float]:
    """The decay of each update that makes a power-function average of this width; for :class:`EMA`.

    Raises:
        ValueError: as for :func:`power_exponent`.

    Example:
        >>> decay = power_decay(12**-0.5)
        >>> [round(decay(n), 3) for n in range(4)]
        [0.0, 0.5, 0.667, 0.75]
    """
    return partial(_decay, exponent=power_exponent(width))


def posthoc_weights(snapshots: Sequence[tuple[int, float]], target: tuple[int, float]) -> Float[Tensor, " k"]:
    """How to add snapshots of averages up to another average: least squares between their profiles (section 3.2).

    Args:
        snapshots: updates and width of each.
        target: updates, at most those of the last snapshot, and width of what is wanted.

    Returns:
        One factor a snapshot, in float64; their sum is near 1.

    Raises:
        ValueError: there are no snapshots, or one has fewer updates than 1, or the target comes after all.

    Example:
        >>> posthoc_weights([(100, 0.1), (200, 0.1)], (200, 0.1)).round(decimals=6).abs()
        tensor([0., 1.], dtype=torch.float64)
    """
    if not snapshots or min(updates for updates, _ in (*snapshots, target)) < 1:
        raise ValueError(f"snapshots and target must have updates, got {list(snapshots)} and {target}")
    if target[0] > (last := max(updates for updates, _ in snapshots)):
        raise ValueError(f"the target is at {target[0]} updates, but the last snapshot at {last}")
    times, exponents = _profiles(snapshots)
    gram = _overlap(times[:, None], exponents[:, None], times, exponents)
    wanted_times, wanted_exponents = _profiles([target])
    wanted = _overlap(times, exponents, wanted_times, wanted_exponents)
    # profiles have very different heights: scaled to length 1 the system is far better conditioned
    scale = gram.diagonal().rsqrt()
    gram, wanted = gram * scale * scale[:, None], wanted * scale
    solved: Tensor = torch.linalg.lstsq(gram, wanted[:, None], driver="gelsd").solution
    return solved[:, 0] * scale


def posthoc_average(
    snapshots: Sequence[Mapping[str, Any]], widths: Sequence[float], width: float, updates: int | None = None
) -> dict[str, Any]:
    """The state of an :class:`EMA` of another width, from states of power-function averages saved during training.

    Args:
        snapshots: ``ema.state_dict()`` at several times; copies, since an average changes in place.
        widths: the width of each snapshot's average.
        width: what is wanted.
        updates: when; None is at the last snapshot.

    Returns:
        A state for ``EMA.load_state_dict``; sums are in float64, the dtypes those of the snapshots.

    Raises:
        ValueError: there are not as many widths as snapshots, the snapshots are of other models, or as for
            :func:`posthoc_weights`.

    Example:
        >>> states = [{"updates": n, "average": {"w": torch.full((1,), float(n))}} for n in (100, 200)]
        >>> posthoc_average(states, [0.1, 0.1], 0.1)["average"]["w"].round(decimals=3)
        tensor([200.])
    """
    if len(snapshots) != len(widths):
        raise ValueError(f"there are {len(snapshots)} snapshots, but {len(widths)} widths")
    shapes = [{name: tuple(value.shape) for name, value in state["average"].items()} for state in snapshots]
    if odd := [number for number, found in enumerate(shapes) if found != shapes[0]]:
        names = sorted(name for name, _ in set(shapes[0].items()) ^ set(shapes[odd[0]].items()))
        raise ValueError(f"snapshots 0 and {odd[0]} differ in the names or shapes of {', '.join(dict.fromkeys(names))}")
    times = [int(state["updates"]) for state in snapshots]
    at = max(times, default=0) if updates is None else updates
    factors = posthoc_weights(list(zip(times, widths, strict=True)), (at, width)).tolist()
    average = {name: _sum(factors, [state["average"][name] for state in snapshots]) for name in snapshots[0]["average"]}
    return {"updates": at, "average": average}


def _decay(updates: int, exponent: float) -> float:
    return float((1 - 1 / (updates + 1)) ** (exponent + 1))


def _profiles(averages: Sequence[tuple[int, float]]) -> tuple[Tensor, Tensor]:
    times = torch.tensor([updates for updates, _ in averages], dtype=torch.float64)
    return times, torch.tensor([power_exponent(width) for _, width in averages], dtype=torch.float64)


def _overlap(time: Tensor, exponent: Tensor, time2: Tensor, exponent2: Tensor) -> Tensor:
    """The integral of the product of two profiles, up to the earlier of their times."""
    first = torch.minimum(time, time2)
    shared = (exponent + 1) * (exponent2 + 1) / (exponent + exponent2 + 1)
    return shared * (first / time) ** (exponent + 1) * (first / time2) ** (exponent2 + 1) / first


def _sum(factors: Sequence[float], tensors: Sequence[Tensor]) -> Tensor:
    if not tensors[0].is_floating_point():
        return tensors[-1].clone()  # flags and counts have no average
    total = torch.zeros_like(tensors[0], dtype=torch.float64)
    for factor, tensor in zip(factors, tensors, strict=True):
        total += factor * tensor.double()
    return total.to(tensors[0].dtype)
