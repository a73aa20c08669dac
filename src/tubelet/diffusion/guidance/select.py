"""Where guidance acts: on some channels, at some noise levels. Elsewhere the plain prediction stands, to the bit."""

from functools import partial

import torch
from torch import Tensor

from tubelet.diffusion.guidance.guided import Guided
from tubelet.diffusion.guidance.scales import check_interval
from tubelet.diffusion.predictions import level
from tubelet.layout import Rows
from tubelet.protocols import Denoiser

__all__ = ["only_channels", "within"]


def only_channels(guided: Denoiser, plain: Denoiser, count: int, channels: int) -> Denoiser:
    """The guided prediction on the first channels of each latent cell, the plain one on the others.

    DiT's code guides three of its four latent channels (Peebles and Xie, 2023, arXiv:2212.09748):
    ``only_channels(cfg(c, u, 4.0), c, 3, 4)``. The variance, behind the noise, is not guided anyway.

    Args:
        guided: gives the first ``count`` channels.
        plain: gives the rest, such as the conditional denoiser.
        count: how many channels are guided.
        channels: how many channels a cell of the state has; patches have them last (``pt ph pw c``).

    Raises:
        ValueError: ``count`` is not in [0, channels]; at the call, the state is no whole number of cells.

    Example:
        >>> guided = only_channels(lambda x, t: 5 * x, lambda x, t: x, 1, 2)
        >>> guided(torch.ones(1, 4), Rows(torch.tensor([0.5]))).tolist()
        [[5.0, 1.0, 5.0, 1.0]]
    """
    if not 0 <= count <= channels or channels < 1:
        raise ValueError(f"count must lie in [0, channels], got count={count} and channels={channels}")
    return Guided(partial(_on_channels, count=count, channels=channels), guided=guided, plain=plain)


def within(guided: Denoiser, plain: Denoiser, low: float, high: float) -> Denoiser:
    """The guided prediction at noise levels in [low, high], the plain one elsewhere (arXiv:2404.07724).

    For any guidance; where a scale says it, :func:`interval` is the same.

    Raises:
        ValueError: ``low`` is above ``high``.

    Example:
        >>> guided = within(lambda x, t: 5 * x, lambda x, t: x, 0.2, 0.8)
        >>> guided(torch.ones(2, 1), Rows(torch.tensor([0.1, 0.5]), torch.tensor([0, 1]))).tolist()
        [[1.0], [5.0]]
    """
    check_interval(low, high)
    return Guided(partial(_at_levels, low=low, high=high), guided=guided, plain=plain)


def _on_channels(predictions: tuple[Tensor, ...], x: Tensor, t: Rows, *, count: int, channels: int) -> Tensor:
    guided, plain = predictions
    if guided.shape[-1] % channels:
        raise ValueError(f"x has {guided.shape[-1]} numbers a patch, no multiple of channels={channels}")
    place = torch.arange(guided.shape[-1], device=guided.device) % channels
    return torch.where(place < count, guided, plain)


def _at_levels(predictions: tuple[Tensor, ...], x: Tensor, t: Rows, *, low: float, high: float) -> Tensor:
    guided, plain = predictions
    return torch.where(level(t.map(lambda values: (values >= low) & (values <= high)), guided), guided, plain)
