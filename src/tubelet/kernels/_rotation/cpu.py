"""QK-norm + RoPE on the CPU, a block of tokens at a time: queries or keys are kept as they are, with their angles."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tubelet.kernels import _blocks
from tubelet.kernels._rotation.reference import HeadNorm, reference
from tubelet.positions import Rotary, apply_rope

__all__ = ["by_blocks"]


def by_blocks(
    x: Float[Tensor, "*lead heads head_dim"],
    rotary: Rotary | None = None,
    weight: Float[Tensor, " width"] | None = None,
    bias: Float[Tensor, " width"] | None = None,
    *,
    norm: HeadNorm = "rms",
    across_heads: bool = False,
    eps: float = 1e-6,
) -> Float[Tensor, "*lead heads head_dim"]:
    """As the reference, every layout of a rotation and gradients of its angles included.

    Example:
        >>> quarter = Rotary(torch.tensor([[0.0]]), torch.tensor([[1.0]]))
        >>> by_blocks(torch.tensor([[[3.0, 3.0]]]), quarter).round(decimals=3).tolist()
        [[[-1.0, 1.0]]]
    """
    cos, sin, *rest = (None, None) if rotary is None else rotary
    out: Tensor = _NormRope.apply(x, cos, sin, weight, bias, rest, norm, across_heads, eps)  # type: ignore[no-untyped-call]
    return out


class _NormRope(torch.autograd.Function):
    """The norm of each head of ``x (*lead, n, h, d)``, or of all its heads, and the rotation, in the dtype of ``x``."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        cos: Tensor | None,
        sin: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        rest: Sequence[Any],
        norm: HeadNorm,
        across_heads: bool,
        eps: float,
    ) -> Tensor:
        """``rest`` are the fields of the rotation behind cosine and sine."""
        ctx.save_for_backward(x, cos, sin, weight, bias)
        ctx.rest, ctx.norm = rest, (norm, across_heads, eps)
        out = x.new_empty(x.shape)
        for block in _tokens(x):
            value = _affine(_normed(x[..., block, :, :].float(), *ctx.norm)[0], weight, bias)
            out[..., block, :, :] = _turned(value.view(out[..., block, :, :].shape), _angles(cos, sin, rest, block))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the tensors, in their dtypes; those of the angles where they are asked for."""
        inputs, (norm, across_heads, eps) = ctx.saved_tensors, ctx.norm
        if torch.is_grad_enabled():
            run = partial(_whole, ctx.rest, norm=norm, across_heads=across_heads, eps=eps)
            return *_blocks.again(run, inputs, grad), None, None, None, None
        x, cos, sin, weight, bias = inputs
        sums = [
            torch.zeros(each.shape) if asked and each is not None else None
            for each, asked in zip(inputs[1:], ctx.needs_input_grad[1:5], strict=True)
        ]
        dx = torch.empty_like(x)
        for block in _tokens(x):
            part, g = x[..., block, :, :].float(), grad[..., block, :, :].float()
            normed, rstd = _normed(part, *ctx.norm)
            rotary = _angles(cos, sin, ctx.rest, block)
            if rotary is not None:
                if any(ctx.needs_input_grad[1:3]):
                    _add_by_angles(sums[:2], _affine(normed, weight, bias).view(part.shape), rotary, g, block)
                g = _turned(g, rotary._replace(sin=-rotary.sin))
            g = g.reshape(normed.shape)
            product = g * normed
            for total, each in ((sums[2], product), (sums[3], g)):
                if total is not None:
                    total += each.flatten(0, -2).sum(0)
            if weight is not None:
                g, product = g * weight, product.mul_(weight)
            g = g if rstd is None else _blocks.through_norm(g, product, normed, rstd, norm == "layer")
            dx[..., block, :, :] = g.view(part.shape)
        grads = [None if total is None else total.to(each.dtype) for each, total in zip(inputs[1:], sums, strict=True)]
        return dx, *grads, None, None, None, None


def _whole(
    rest: Sequence[Any],
    x: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    **options: Any,
) -> Tensor:
    rotary = None if cos is None or sin is None else Rotary(cos, sin, *rest)
    return reference(x, rotary, weight, bias, **options)


def _tokens(x: Tensor) -> list[slice]:
    n = x.shape[-3]
    piece = _blocks.Piece(0, n, 0)
    return [block for block, _ in _blocks.blocks([piece], x.numel() // n)] if x.numel() else []


def _normed(x: Tensor, norm: str, across_heads: bool, eps: float) -> tuple[Tensor, Tensor | None]:
    """Normed heads, end to end where the norm is one, and 1/deviation; ``x`` itself without a norm."""
    x = x.flatten(-2) if across_heads else x
    if norm == "none":
        return x, None
    if norm == "layer":
        normed, _, rstd = torch.native_layer_norm(x, x.shape[-1:], None, None, eps)
        return normed, rstd
    rstd = x.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
    return x * rstd, rstd


def _affine(normed: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    normed = normed if weight is None else normed * weight
    return normed if bias is None else normed + bias


def _angles(cos: Tensor | None, sin: Tensor | None, rest: Sequence[Any], block: slice) -> Rotary | None:
    """Those of a block of tokens."""
    if cos is None or sin is None:
        return None
    places = _places(Rotary(cos, sin, *rest), block)
    return Rotary(cos[places], sin[places], *rest)


def _places(rotary: Rotary, block: slice) -> tuple[Any, ...]:
    return (..., block, slice(None), slice(None)) if rotary.per_head else (..., block, slice(None))


def _turned(x: Tensor, rotary: Rotary | None) -> Tensor:
    """As :func:`tubelet.positions.apply_rope`; neighbours that are a pair turn as one complex number, in one pass."""
    if rotary is None or rotary.layout != "interleaved":
        return x if rotary is None else apply_rope(x, rotary)
    turns = torch.complex(rotary.cos.float(), rotary.sin.float())
    turns = turns if rotary.per_head else turns.unsqueeze(-2)
    pairs = torch.view_as_complex(x.contiguous().view(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turns).flatten(-2)


def _add_by_angles(sums: Sequence[Tensor | None], value: Tensor, rotary: Rotary, grad: Tensor, block: slice) -> None:
    """The gradients of a block's cosines and sines, where they are asked for."""
    cos, sin = (side.detach().float().requires_grad_() for side in rotary[:2])
    with torch.enable_grad():
        found = torch.autograd.grad(apply_rope(value, rotary._replace(cos=cos, sin=sin)), (cos, sin), grad)
    for total, each in zip(sums, found, strict=True):
        if total is not None:
            total[_places(rotary, block)] += each
