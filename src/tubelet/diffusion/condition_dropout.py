"""Dropping conditions in training, for classifier-free guidance, each condition with its own share.

Guidance with several conditions needs a model that knows each combination that sampling asks for (Ho and Salimans,
2022, arXiv:2207.12598; Brooks et al., 2023, arXiv:2211.09800, section 3.2.1).
"""

import itertools
import math
from collections.abc import Mapping

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

__all__ = ["Drops", "draw_dropped", "independent_drops", "nulled"]

Drops = Mapping[tuple[str, ...], float]
"""Which conditions are dropped together, and how often. Example: ``{("text",): 0.05, ("text", "image"): 0.05}``."""


def draw_dropped(
    drops: Drops, samples: int, generator: torch.Generator | None = None
) -> dict[str, Bool[Tensor, " samples"]]:
    """For each condition whether each sample loses it; the events of ``drops`` exclude each other.

    One uniform number a sample chooses the event, in their order. InstructPix2Pix has ``{("text",): 0.05, ("text",
    "image"): 0.05, ("image",): 0.05}``; conditions that drop independently are :func:`independent_drops`.

    Args:
        drops: shares in [0, 1] that add up to 1 at most; the rest keeps everything.
        samples: how many.
        generator: draws, where it is.

    Raises:
        ValueError: a share is outside [0, 1], they add up to more than 1, or an event is a text instead of a tuple.

    Example:
        >>> dropped = draw_dropped({("text",): 0.25, ("text", "image"): 0.25}, 1000, torch.Generator().manual_seed(0))
        >>> [round(float(flags.float().mean()), 1) for flags in dropped.values()]
        [0.5, 0.2]
    """
    if bare := [event for event in drops if type(event) is not tuple]:
        raise ValueError(f"drops must name conditions in tuples, ({bare[0]!r},), got {bare[0]!r}")
    shares = list(drops.values())
    if not all(0 <= share <= 1 for share in shares) or math.fsum(shares) > 1 + 1e-9:
        raise ValueError(f"drops must be shares in [0, 1] that add up to 1 at most, got {shares}")
    device = torch.device("cpu") if generator is None else generator.device
    u = torch.rand(samples, generator=generator, device=device, dtype=torch.float64)
    names = dict.fromkeys(name for event in drops for name in event)
    dropped = {name: torch.zeros(samples, dtype=torch.bool, device=device) for name in names}
    for event, high, share in zip(drops, itertools.accumulate(shares), shares, strict=True):
        here = (u >= high - share) & (u < high)
        for name in event:
            dropped[name] = dropped[name] | here
    return dropped


def independent_drops(**shares: float) -> Drops:
    """The events of conditions that are dropped independently of each other.

    Raises:
        ValueError: a share is outside [0, 1].

    Example:
        >>> independent_drops(text=0.5, image=0.5)
        {('text',): 0.25, ('image',): 0.25, ('text', 'image'): 0.25}
    """
    if not all(0 <= share <= 1 for share in shares.values()):
        raise ValueError(f"shares must lie in [0, 1], got {shares}")
    events = [event for count in range(1, len(shares) + 1) for event in itertools.combinations(shares, count)]
    return {
        event: math.prod(share if name in event else 1 - share for name, share in shares.items()) for event in events
    }


def nulled(
    values: Shaped[Tensor, "samples ..."], dropped: Bool[Tensor, " samples"], null: Shaped[Tensor, "..."]
) -> Shaped[Tensor, "samples ..."]:
    """``values`` with ``null`` for the samples that lose the condition.

    Args:
        values: one condition a sample.
        dropped: True where it is lost.
        null: what stands for no condition: zeros, a learned vector.

    Raises:
        ValueError: there are not as many flags as values, or ``null`` is no condition of one sample.

    Example:
        >>> nulled(torch.ones(2, 3), torch.tensor([True, False]), torch.zeros(3))
        tensor([[0., 0., 0.],
                [1., 1., 1.]])
    """
    if dropped.shape != values.shape[:1]:
        raise ValueError(f"dropped has shape {tuple(dropped.shape)}, but there are {values.shape[0]} samples")
    sides = zip(reversed(null.shape), reversed(values.shape), strict=False)
    if null.ndim >= values.ndim or any(own not in (1, side) for own, side in sides):
        raise ValueError(f"null has shape {tuple(null.shape)}, but one condition has {tuple(values.shape[1:])}")
    if null.is_floating_point() and not values.is_floating_point():
        raise ValueError(f"null holds {null.dtype}, but values hold {values.dtype}")
    return torch.where(dropped.reshape(-1, *(1,) * (values.ndim - 1)), null.to(values), values)
