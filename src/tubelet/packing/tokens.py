"""Tokens of several samples on one axis and back: ``[(n_0, ...), (n_1, ...)] <-> (n, ...)``."""

from collections.abc import Sequence

import torch
from jaxtyping import Shaped
from torch import Tensor

from tubelet.layout import TokenLayout

__all__ = ["pack", "unpack"]


def pack(samples: Sequence[Shaped[Tensor, "_ ..."]], capacity: int | None = None) -> Shaped[Tensor, "n ..."]:
    """Lay the tokens of several samples on one axis, one sample after another.

    Args:
        samples: per sample ``(tokens, ...)``; trailing shape, dtype and device must agree.
        capacity: length of the result; zeros fill what the samples leave. Default: no padding.

    Returns:
        ``(n, ...)`` with ``n = capacity`` or the number of tokens in all.

    Raises:
        ValueError: no samples, different trailing shapes, or more tokens than ``capacity``.

    Example:
        >>> pack([torch.ones(2, 3), torch.zeros(1, 3)]).shape
        torch.Size([3, 3])
        >>> pack([torch.ones(2), 2 * torch.ones(1)], capacity=5)
        tensor([1., 1., 2., 0., 0.])
    """
    if not samples:
        raise ValueError("samples is empty: there is nothing to pack")
    trailing = samples[0].shape[1:]
    for index, sample in enumerate(samples):
        if sample.shape[1:] != trailing:
            raise ValueError(
                f"samples must agree beyond the token axis: sample 0 has {tuple(trailing)}, "
                f"sample {index} has {tuple(sample.shape[1:])}"
            )
    tokens = torch.cat(list(samples))
    if capacity is None:
        return tokens
    if len(tokens) > capacity:
        raise ValueError(f"the samples have {len(tokens)} tokens, more than the capacity of {capacity}")
    return torch.cat([tokens, tokens.new_zeros(capacity - len(tokens), *trailing)])


def unpack(tokens: Shaped[Tensor, "..."], layout: TokenLayout) -> list[Shaped[Tensor, "_ ..."]]:
    """Cut a ragged batch into its samples; padding is left behind. The inverse of :func:`pack`.

    Args:
        tokens: ``(n, ...)`` for a packed layout, ``(b, n, ...)`` for a dense or padded one.
        layout: says how the samples lie.

    Returns:
        Per sample a view ``(layout.lengths[i], ...)``.

    Raises:
        ValueError: the leading shape of ``tokens`` is not ``layout.shape``.

    Example:
        >>> from tubelet.layout import Grid
        >>> layout = TokenLayout.packed([Grid(1, 1, 2), Grid(1, 1, 1)], capacity=4)
        >>> [sample.tolist() for sample in unpack(torch.arange(4), layout)]
        [[0, 1], [2]]
    """
    lead = tuple(tokens.shape[: len(layout.shape)])
    if lead != layout.shape:
        raise ValueError(f"tokens of shape {tuple(tokens.shape)} do not start with the layout's {layout.shape}")
    if len(lead) == 2:
        return [row[:length] for row, length in zip(tokens, layout.lengths, strict=True)]
    used = tokens[: sum(layout.lengths)]
    return list(torch.split(used, list(layout.lengths)))
