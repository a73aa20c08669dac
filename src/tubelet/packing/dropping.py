"""Token dropping with a rate of its own for each sample (NaViT, arXiv:2307.06304, sections 2.2 and 3.3).

A *law* says what share of a sample's tokens is dropped: any callable ``law(tokens, rng) -> rate`` in [0, 1). Here are
NaViT's, as frozen values: a constant rate, a Beta-distributed one, one that grows with the number of tokens, and one
that follows the progress of training. :func:`drop_tokens` turns a law into the places of the tokens that stay:

    kept = drop_tokens(layout, law, seeds)
    x, layout = x[kept], layout.keep(kept)

A sample's kept tokens depend on its own seed and number of tokens alone, not on what it is packed with.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from tubelet.layout import TokenLayout
from tubelet.packing.sizes import truncated_normal

__all__ = ["BetaDrop", "ConstantDrop", "DropLaw", "LengthDrop", "ScheduledDrop", "drop_tokens"]

DropLaw = Callable[[int, "np.random.Generator"], float]
"""A share of tokens to drop from the number of tokens and a generator. Example: ``ConstantDrop(0.5)``."""

_STREAM = 0x64726F70
"""Keeps the draws of dropping apart from other uses of a sample's seed."""


@dataclass(frozen=True)
class ConstantDrop:
    """The same rate for every sample.

    Raises:
        ValueError: ``rate`` is outside [0, 1).

    Example:
        >>> ConstantDrop(0.5)(100, np.random.default_rng(0))
        0.5
    """

    rate: float

    def __post_init__(self) -> None:
        _check_rates(rate=self.rate)

    def __call__(self, tokens: int, rng: "np.random.Generator") -> float:
        """The rate."""
        return self.rate


@dataclass(frozen=True)
class BetaDrop:
    """A Beta-distributed rate for each sample: ``d = u · most`` with ``u ~ Beta`` of mean ``μ = mean/most``.

    The variance of ``u`` is ``spread · μ(1 - μ)``, so that ``u ~ Beta(cμ, c(1 - μ))`` with ``c = 1/spread - 1``; the
    rates have the mean ``mean`` and the variance ``most² · spread · μ(1 - μ)``, and none is above ``most``.

    Args:
        mean: of the rates.
        most: the largest rate, ``d_max`` in the paper.
        spread: from 0 (nearly constant) to 1 (nothing or ``most``); 0.3 is the paper's.

    Raises:
        ValueError: not ``0 < mean < most < 1``, or ``spread`` outside (0, 1).

    Example:
        >>> rates = [BetaDrop(0.5)(100, np.random.default_rng(seed)) for seed in range(1000)]
        >>> round(float(np.mean(rates)), 1), max(rates) <= 0.95
        (0.5, True)
    """

    mean: float
    most: float = 0.95
    spread: float = 0.3

    def __post_init__(self) -> None:
        if not 0 < self.mean < self.most < 1:
            raise ValueError(f"rates must be ordered 0 < mean < most < 1, got mean={self.mean}, most={self.most}")
        if not 0 < self.spread < 1:
            raise ValueError(f"spread must lie between 0 and 1, got {self.spread}")

    def __call__(self, tokens: int, rng: "np.random.Generator") -> float:
        """A rate, whatever the number of tokens."""
        share, total = self.mean / self.most, 1 / self.spread - 1
        return float(rng.beta(total * share, total * (1 - share))) * self.most


@dataclass(frozen=True)
class LengthDrop:
    """A rate that grows with the number of tokens, so that large samples cost less: linear, with a little noise.

    From ``least`` at ``short`` tokens (or fewer) to ``most`` at ``long`` (or more), plus a normal deviate that is
    truncated at two deviations; the sum is clamped to [0, 1).

    Args:
        short, long: numbers of tokens.
        least, most: the rates there.
        deviation: of the noise before it is truncated; 0 for none.

    Raises:
        ValueError: ``short`` is not below ``long``, a rate is outside [0, 1), or ``deviation`` is negative.

    Example:
        >>> law = LengthDrop(short=16, long=576, least=0.2, most=0.8, deviation=0.0)
        >>> [round(law(n, np.random.default_rng(0)), 2) for n in (4, 16, 296, 576, 1000)]
        [0.2, 0.2, 0.5, 0.8, 0.8]
    """

    short: int
    long: int
    least: float
    most: float
    deviation: float = 0.02

    def __post_init__(self) -> None:
        _check_rates(least=self.least, most=self.most)
        if not self.short < self.long:
            raise ValueError(f"short must be below long, got {self.short} and {self.long}")
        if self.deviation < 0:
            raise ValueError(f"deviation must not be negative, got {self.deviation}")

    def __call__(self, tokens: int, rng: "np.random.Generator") -> float:
        """A rate for a sample of ``tokens``."""
        place = min(max((tokens - self.short) / (self.long - self.short), 0.0), 1.0)
        mean = self.least + place * (self.most - self.least)
        noise = truncated_normal(rng, 0.0, self.deviation, -2 * self.deviation, 2 * self.deviation)
        return min(max(mean + noise, 0.0), math.nextafter(1.0, 0.0))


@dataclass(frozen=True)
class ScheduledDrop:
    """A rate that follows training along a sigmoid, exactly from ``start`` to ``end``; decreasing is NaViT's best.

    Args:
        steps: of the training.
        start, end: the rates before the first and after the last step.
        slope: how steep the middle is; the logistic function is taken from ``-slope/2`` to ``slope/2``.

    Raises:
        ValueError: ``steps`` below 1, a rate outside [0, 1), or ``slope`` that is not positive.

    Example:
        >>> schedule = ScheduledDrop(steps=1000)
        >>> [round(schedule.at(step).rate, 3) for step in (0, 250, 500, 1000)]
        [0.8, 0.758, 0.5, 0.2]
    """

    steps: int
    start: float = 0.8
    end: float = 0.2
    slope: float = 10.0

    def __post_init__(self) -> None:
        _check_rates(start=self.start, end=self.end)
        if self.steps < 1 or self.slope <= 0:
            raise ValueError(f"steps and slope must be positive, got {self.steps} and {self.slope}")

    def at(self, step: int) -> ConstantDrop:
        """The law of one step; beyond the last it stays.

        Raises:
            ValueError: ``step`` is negative.
        """
        if step < 0:
            raise ValueError(f"step must not be negative, got {step} of {self.steps}")
        place = min(step / self.steps, 1.0)
        risen = math.tanh(self.slope * (place - 0.5) / 2) / math.tanh(self.slope / 4)  # from -1 to 1
        return ConstantDrop(self.start + (self.end - self.start) * (1 + risen) / 2)


def drop_tokens(layout: TokenLayout, law: DropLaw, seeds: Sequence[int], *, text: bool = False) -> Int[Tensor, " kept"]:
    """Which tokens stay when each sample loses a share of its own, drawn uniformly without replacement.

    Args:
        layout: of the tokens; padding never stays.
        law: gives each sample's rate from its number of tokens that may go.
        seeds: one a sample, not negative: equal seeds and numbers of tokens give equal places.
        text: let text tokens go, too; else all of them stay and only the grid's tokens count.

    Returns:
        Places on the flattened token axis, ascending, for ``x.flatten(0, -2)[kept]`` and ``layout.keep(kept)``. Of
        ``n`` tokens that may go ``round(n · (1 - rate))`` stay, at least one.

    Raises:
        ValueError: another number of seeds than samples, a negative seed, or a rate outside [0, 1).

    Example:
        >>> from tubelet.layout import Grid
        >>> layout = TokenLayout.packed([Grid(1, 4, 4), Grid(1, 2, 2)], text_lengths=[1, 0])
        >>> kept = drop_tokens(layout, ConstantDrop(0.5), seeds=[3, 4])
        >>> layout.keep(kept).lengths, 0 in kept
        ((9, 2), True)
    """
    if len(seeds) != len(layout.lengths):
        raise ValueError(f"seeds has {len(seeds)} entries, but the layout has {len(layout.lengths)} samples")
    if min(seeds) < 0:
        raise ValueError(f"seeds must not be negative, got {min(seeds)}")
    kept = []
    for start, places, words, seed in zip(layout.starts, layout.positions(), layout.text_lengths, seeds, strict=True):
        stay = 0 if text else bisect_left(places, words)
        rng = np.random.default_rng([_STREAM, seed])
        chosen = _choose(len(places) - stay, law, rng)
        kept += [np.arange(start, start + stay), chosen + start + stay]
    return torch.from_numpy(np.concatenate(kept))


def _choose(tokens: int, law: DropLaw, rng: "np.random.Generator") -> Int[np.ndarray, " kept"]:
    if tokens == 0:
        return np.zeros(0, np.int64)
    rate = law(tokens, rng)
    _check_rates(rate=rate)
    count = max(round(tokens * (1 - rate)), 1)
    return np.sort(rng.permutation(tokens)[:count])


def _check_rates(**rates: float) -> None:
    for name, rate in rates.items():
        if not 0 <= rate < 1:
            raise ValueError(f"{name} must be at least 0 and below 1, got {rate}")
