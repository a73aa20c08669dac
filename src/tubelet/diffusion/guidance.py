"""Guidance: functions from denoisers to a denoiser. Shapes: those of the denoisers, ``(*lead, c)``.

Classifier-free guidance (Ho and Salimans, 2022, arXiv:2207.12598) in the convention ``u + scale·(c - u)``: 1 is the
conditional prediction, 0 the unconditional one. (U-ViT writes ``c + s·(c - u)``; its ``s`` is ``scale - 1``.) What a
model predicts beyond the width of its input, a learned variance, is never guided, and DiT (Peebles and Xie, 2022,
arXiv:2212.09748) guides three of its four latent channels alone.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tubelet.diffusion.predictions import level
from tubelet.layout import Rows
from tubelet.protocols import Denoiser

__all__ = ["cfg", "interval"]


def cfg(
    conditional: Denoiser,
    unconditional: Denoiser,
    scale: float | Callable[[Tensor], Tensor],
    *,
    channels: tuple[int, int] | None = None,
) -> Denoiser:
    """Classifier-free guidance: ``u + scale·(c - u)``, the two denoisers called one after the other.

    Args:
        conditional: the denoiser with its condition.
        unconditional: the denoiser without.
        scale: the guidance scale, or a function from noise levels ``(r,)`` to scales ``(r,)``: :func:`interval`.
        channels: ``(k, c)`` guides the first ``k`` of the ``c`` channels of each cell of a patch ``(pt ph pw c)``, and
            leaves the others as the conditional denoiser has them: (3, 4) for the published DiT. None: all.

    Raises:
        ValueError: ``scale`` is a number that is not finite, or ``channels`` are not ``0 < k <= c``; at the call, the
            two predictions differ in shape, or ``x`` is not made of ``c`` channels.

    Example:
        >>> guided = cfg(lambda x, t: x, lambda x, t: 0 * x, 3.0)
        >>> guided(torch.ones(2, 1), Rows(torch.tensor([0.5]))).tolist()
        [[3.0], [3.0]]
        >>> cfg(lambda x, t: x, lambda x, t: 0 * x, 3.0, channels=(1, 2))(torch.ones(1, 4), Rows(torch.tensor([0.5])))
        tensor([[3., 1., 3., 1.]])
    """
    if channels is not None and not 0 < channels[0] <= channels[1]:
        raise ValueError(f"channels must be (k, c) with 0 < k <= c, got {channels}")
    if not callable(scale) and not math.isfinite(scale):
        raise ValueError(f"scale must be finite, got {scale}")

    def guided(x: Float[Tensor, "*lead c"], t: Rows) -> Float[Tensor, "*lead e"]:
        with_condition, without = conditional(x, t), unconditional(x, t)
        if with_condition.shape != without.shape:
            raise ValueError(
                f"conditional gives shape {tuple(with_condition.shape)}, but unconditional {tuple(without.shape)}"
            )
        difference = with_condition - without
        factor = level(t.map(scale), difference).to(difference.dtype) if callable(scale) else scale
        moved = without + factor * difference
        if channels is None and moved.shape[-1] == x.shape[-1]:
            return moved
        return torch.where(_guided(moved, x.shape[-1], channels), moved, with_condition)

    return guided


def interval(scale: float, low: float, high: float) -> Callable[[Tensor], Tensor]:
    """``scale`` where the noise level lies in [low, high], 1 elsewhere (Kynkäänniemi et al., 2024, arXiv:2404.07724).

    Raises:
        ValueError: ``low`` is above ``high``, or ``scale`` is not finite.

    Example:
        >>> interval(4.0, 0.2, 0.8)(torch.tensor([0.1, 0.5, 0.9]))
        tensor([1., 4., 1.])
    """
    if not low <= high:
        raise ValueError(f"low must not be above high, got {low} and {high}")
    if not math.isfinite(scale):
        raise ValueError(f"scale must be finite, got {scale}")
    return partial(_inside, scale=scale, low=low, high=high)


def _guided(prediction: Tensor, width: int, channels: tuple[int, int] | None) -> Bool[Tensor, " e"]:
    """Which numbers of a prediction from so wide an input are those of guided channels."""
    k, c = (width, width) if channels is None else channels
    if width % c:
        raise ValueError(f"x is {width} wide, which are no cells of channels={channels}")
    place = torch.arange(prediction.shape[-1], device=prediction.device)
    return (place < width) & (place % c < k)


def _inside(t: Tensor, scale: float, low: float, high: float) -> Tensor:
    return torch.where((t >= low) & (t <= high), scale, 1.0).to(t.dtype)
