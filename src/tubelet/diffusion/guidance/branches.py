"""Several predictions of one state by one call: on a batch of more rows, or on one longer packed axis.

The branches are denoisers for any guidance, ``conditional, unconditional = batched(both)``, and share the one call.
They come copy by copy: all samples with the first condition, then all with the second.
"""

from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tubelet.diffusion.guidance.guided import Joint, Part
from tubelet.layout import LayoutIndex, Rows
from tubelet.protocols import Denoiser

__all__ = ["batched", "packed"]


def batched(denoiser: Denoiser, branches: int = 2) -> tuple[Denoiser, ...]:
    """Denoisers that share one call on ``branches·b`` rows.

    Args:
        denoiser: takes ``(branches·b, ...)``: the ``b`` rows under the first condition, then under the next.
        branches: how many conditions.

    Raises:
        ValueError: ``branches`` is smaller than 1; at the call, ``x`` has no batch axis.

    Example:
        >>> from tubelet.diffusion import cfg
        >>> strength = torch.tensor([1.0, 1.0, 0.0, 0.0])[:, None, None]  # two rows with a condition, two without
        >>> guided = cfg(*batched(lambda x, t: strength * x), 3.0)
        >>> guided(torch.ones(2, 4, 1), Rows(torch.tensor([0.5]))).shape
        torch.Size([2, 4, 1])
    """
    return _branches(partial(_in_rows, denoiser=denoiser, branches=branches), branches)


def packed(denoiser: Denoiser, layout: LayoutIndex, branches: int = 2) -> tuple[Denoiser, ...]:
    """Denoisers that share one call on one packed axis of ``branches`` times the samples.

    Each condition may have its own text lengths: to the model, the copies are samples as any other.

    Args:
        denoiser: takes the patches of ``layout.repeat(branches)`` (of the host layout): all samples under the first
            condition, then under the next.
        layout: where the samples lie in the state, on its device.
        branches: how many conditions.

    Raises:
        ValueError: ``branches`` is smaller than 1, or the layout is not packed, or on no device; at the call, ``x`` has
            other tokens.

    Example:
        >>> from tubelet.diffusion import cfg
        >>> from tubelet.layout import Grid, TokenLayout
        >>> layout = TokenLayout.packed([Grid(1, 2, 2), Grid(2, 1, 1)])
        >>> twice = layout.repeat(2).on("cpu")  # samples 0 and 1 with a condition, 2 and 3 without
        >>> both = lambda x, t: (twice.sample < 2)[:, None] * x
        >>> guided = cfg(*packed(both, layout.on("cpu")), 3.0)
        >>> guided(torch.ones(6, 1), layout.rows(torch.tensor([0.2, 0.5]), "sample")).shape
        torch.Size([6, 1])
    """
    if not isinstance(layout, LayoutIndex):
        raise ValueError(f"layout must be that of a device, layout.on(device), got {type(layout).__name__}")
    if len(layout.shape) != 1:
        raise ValueError(f"layout must be packed, (n,), but has tokens {layout.shape}: use batched")
    if branches < 1:
        raise ValueError(f"branches must be at least 1, got {branches}")
    return _branches(partial(_on_axis, denoiser=denoiser, copies=_copies(layout, branches)), branches)


class _Copies(NamedTuple):
    """The permutation from copies end to end to real tokens first, its inverse, and the sample of each copy."""

    order: Int[Tensor, "branches n"]
    back: Int[Tensor, "branches n"]
    samples: Int[Tensor, "branches s"]


def _copies(layout: LayoutIndex, branches: int) -> _Copies:
    order = torch.argsort((~layout.valid).repeat(branches).byte(), stable=True)
    own = torch.arange(layout.seqlens.shape[0], device=order.device)
    starts = torch.arange(branches, device=order.device)[:, None] * layout.samples
    samples = torch.where(own < layout.samples, own + starts, 0)
    return _Copies(order.view(branches, -1), torch.argsort(order).view(branches, -1), samples)


def _branches(joint: Joint, branches: int) -> tuple[Denoiser, ...]:
    if branches < 1:
        raise ValueError(f"branches must be at least 1, got {branches}")
    return tuple(Part(joint, number) for number in range(branches))


def _in_rows(
    x: Float[Tensor, "b *rest c"], t: Rows, *, denoiser: Denoiser, branches: int
) -> Float[Tensor, "branches b *rest p"]:
    if x.ndim < 3:
        raise ValueError(f"x has shape {tuple(x.shape)}, but batched needs rows (b, n, c): use packed")
    many = x.repeat(branches, *(1,) * (x.ndim - 1))
    samples = torch.arange(branches * x.shape[0], device=x.device).view(branches, -1)
    index = None if t.index is None else torch.cat([t.index + i * t.values.shape[0] for i in range(branches)])
    out = denoiser(many, _repeated(t, index, samples))
    return out.reshape(branches, x.shape[0], *out.shape[1:])


def _on_axis(x: Float[Tensor, "n c"], t: Rows, *, denoiser: Denoiser, copies: _Copies) -> Float[Tensor, "branches n p"]:
    n = copies.order.shape[1]
    if x.shape[0] != n:
        raise ValueError(f"x has {x.shape[0]} tokens, but the layout of packed has {n}")
    order = copies.order.flatten()
    many = x[order % n]
    index = None if t.index is None else t.index[order % n] + order // n * t.values.shape[0]
    return denoiser(many, _repeated(t, index, copies.samples))[copies.back]


def _repeated(t: Rows, index: Tensor | None, samples: Int[Tensor, "branches s"]) -> Rows:
    """The rows of every copy, behind each other; one row for all stays one."""
    if index is None and t.owner is None and t.values.shape[0] == 1:
        return t
    owner = None if t.owner is None else samples[:, t.owner].flatten()
    return Rows(t.values.repeat(samples.shape[0], *(1,) * (t.values.ndim - 1)), index, owner)
