"""Data order and noise as pure functions of ``(seed, step)``.

A resumed run asks for step ``k`` and gets what the unbroken run got: there is no loader state to save. Seeds are mixed
by numpy's ``SeedSequence``, so that neighbouring steps, and different streams of one step, are independent.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

__all__ = ["batch_indices", "interleave", "step_generator"]


def step_generator(
    seed: int, step: int, stream: int = 0, *, device: torch.device | str | None = None
) -> torch.Generator:
    """The random generator of one step.

    Args:
        seed: of the run, not negative.
        step: from 0.
        stream: tells apart independent uses within a step (data, noise levels, noise).
        device: of the generator.

    Returns:
        A fresh generator; equal arguments give equal draws.

    Raises:
        ValueError: a negative argument.

    Example:
        >>> first = torch.rand(3, generator=step_generator(0, 7))
        >>> torch.equal(first, torch.rand(3, generator=step_generator(0, 7)))
        True
        >>> torch.equal(first, torch.rand(3, generator=step_generator(0, 8)))
        False
    """
    if min(seed, step, stream) < 0:
        raise ValueError(f"seed, step and stream must not be negative, got {seed}, {step}, {stream}")
    mixed = np.random.SeedSequence([seed, step, stream]).generate_state(1, np.uint64)[0]
    return torch.Generator(device or "cpu").manual_seed(int(mixed >> np.uint64(1)))


def batch_indices(seed: int, step: int, batch: int, size: int) -> Int[Tensor, " batch"]:
    """Which of ``size`` examples make the batch of a step: epoch after epoch, each a new permutation.

    Batches run on over the end of an epoch, so every example is seen once an epoch and no batch is short.

    Args:
        seed: of the run.
        step: from 0.
        batch: examples a step.
        size: examples in the data set.

    Returns:
        Indices in ``[0, size)``, int64.

    Raises:
        ValueError: ``batch`` or ``size`` below 1, or a negative seed or step.

    Example:
        >>> torch.cat([batch_indices(0, step, 2, 6) for step in range(3)]).sort().values.tolist()
        [0, 1, 2, 3, 4, 5]
    """
    if batch < 1 or size < 1:
        raise ValueError(f"batch and size must be at least 1, got {batch} and {size}")
    if seed < 0 or step < 0:
        raise ValueError(f"seed and step must not be negative, got {seed} and {step}")
    first, last = step * batch, (step + 1) * batch
    epochs = range(first // size, (last - 1) // size + 1)
    order = torch.cat([_permutation(seed, epoch, size) for epoch in epochs])
    start = first - epochs[0] * size
    return order[start : start + batch].clone()


def interleave(seed: int, step: int, turns: Sequence[int]) -> tuple[int, int]:
    """Which of several sources, such as images and clips, makes the batch of a step, and for which time.

    Rounds of ``sum(turns)`` steps give each source its turns, in a new order each round. The count of a source's turns
    so far takes the place of the step in :func:`batch_indices`, so that its epochs are whole.

    Args:
        seed: of the run.
        step: from 0.
        turns: of each source in a round; (1, 4) is one batch of images to four of clips.

    Returns:
        The source's number, and how many batches it made before.

    Raises:
        ValueError: a negative number, or no turns at all.

    Example:
        >>> sorted(interleave(0, step, (1, 2)) for step in range(6))
        [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (1, 3)]
    """
    if min(turns, default=0) < 0 or sum(turns) < 1:
        raise ValueError(f"turns must not be negative and must hold at least one, got {tuple(turns)}")
    number, place = divmod(step, sum(turns))
    sources = [source for source, count in enumerate(turns) for _ in range(count)]
    order = torch.randperm(len(sources), generator=step_generator(seed, number, stream=6)).tolist()
    drawn = [sources[i] for i in order[: place + 1]]
    source = drawn[-1]
    return source, number * turns[source] + drawn[:-1].count(source)


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, size: int) -> Int[Tensor, " size"]:
    return torch.randperm(size, generator=step_generator(seed, epoch, stream=1))
