"""Layer norm (arXiv:1607.06450) as one operation: on the CPU PyTorch's kernel of two precisions.

It reads and writes bfloat16 and computes in float32 with a float32 weight and bias: no tokens in float32 are made, and
what is kept for the backward is x as it is and two numbers a token. Its own backward sums the gradients of weight and
bias in bfloat16 (3 % off for 1,024 tokens), so the backward here is that in float32, a block of tokens at a time.
"""

from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from tubelet.kernels import _blocks
from tubelet.kernels._checks import check_vectors
from tubelet.kernels._layer_norm.reference import reference

__all__ = ["LayerNormBackend", "layer_norm"]

LayerNormBackend = Literal["auto", "reference", "native"]
"""``auto`` is PyTorch's mixed kernel for what it serves, else the reference. Example: ``"native"``."""


def layer_norm(
    x: Float[Tensor, "*lead d"],
    weight: Float[Tensor, " d"] | None = None,
    bias: Float[Tensor, " d"] | None = None,
    *,
    eps: float = 1e-6,
    backend: LayerNormBackend = "auto",
) -> Float[Tensor, "*lead d"]:
    """``(x - mean) / sqrt(var + eps) · weight + bias`` in float32 or better, rounded once.

    Args:
        x: tokens, of any strides.
        weight, bias: of any precision; None for ones and zeros.
        eps: added to the variance.
        backend: ``"auto"``, ``"reference"`` or ``"native"``.

    Returns:
        The normalised tokens, in the dtype of ``x``.

    Raises:
        ValueError: ``backend`` is unknown, the shapes do not fit, or ``native`` was asked for and cannot serve, with
            the reason.

    Example:
        >>> layer_norm(torch.tensor([[1.0, 3.0]], dtype=torch.bfloat16), torch.full((2,), 2.0)).tolist()
        [[-2.0, 2.0]]
    """
    if backend not in get_args(LayerNormBackend):
        raise ValueError(f"backend must be one of {', '.join(get_args(LayerNormBackend))}, got {backend!r}")
    check_vectors(x.shape[-1], weight=weight, bias=bias)
    if backend == "reference" or torch.compiler.is_compiling():
        return reference(x, weight, bias, eps)
    if (reason := _blocks.refusal([x, weight, bias])) is not None:
        if backend == "native":
            raise ValueError(f"backend='native' cannot serve this layer_norm: {reason}; backend='reference' can")
        return reference(x, weight, bias, eps)
    out: Tensor = _LayerNorm.apply(x, weight, bias, eps)  # type: ignore[no-untyped-call]
    return out


class _LayerNorm(torch.autograd.Function):
    """A norm of one row; its backward keeps no tokens in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
        flat, pieces, affine = _one(x, weight, bias)
        out, stats = _blocks.forward(flat, affine, pieces, eps, False, x.dtype)
        ctx.save_for_backward(x, weight, bias, stats)
        ctx.eps = eps
        return out.view(x.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, stats = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *_blocks.again(lambda x, weight, bias: reference(x, weight, bias, ctx.eps), inputs, grad), None
        x, weight, bias = inputs
        flat, pieces, affine = _one(x, weight, bias)
        dx, sums = _blocks.backward(grad.reshape(flat.shape), flat, stats, affine, pieces, 1)
        by_bias, by_weight = (total[0] for total in sums)
        dweight = None if weight is None else by_weight.to(weight.dtype)
        return dx.view(x.shape), dweight, None if bias is None else by_bias.to(bias.dtype), None


def _one(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, list[_blocks.Piece], _blocks.Affine]:
    """All tokens as one piece of ``(n, d)``."""
    flat = x.reshape(-1 if x.numel() else 0, x.shape[-1])
    row = (None if weight is None else weight.float(), None if bias is None else bias.float())
    return flat, [_blocks.Piece(0, len(flat), 0)], lambda _: row
