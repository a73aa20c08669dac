"""Norm + modulate on the CPU: every run of tokens with one row is a norm whose weight and bias are that row's."""

from typing import Any

import torch
from torch import Tensor

from tubelet.kernels import _blocks
from tubelet.kernels._modulation.reference import Norm, reference
from tubelet.kernels._rows.sums import row_gradients
from tubelet.layout import Rows

__all__ = ["NormModulate"]


class NormModulate(torch.autograd.Function):
    """The operation on ``x (n, d)`` and rows ``(r, d)``; without an index the rows have equal shares of the tokens.

    Example:
        >>> x, row = torch.tensor([[1.0, 3.0]]), torch.ones(1, 2)
        >>> NormModulate.apply(x, row, row, None, None, None, False, 0.0, torch.float32)  # [-1, 1] · 2 + 1
        tensor([[-1.,  3.]])
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        shift: Tensor,
        scale: Tensor,
        index: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        rms: bool,
        eps: float,
        dtype: torch.dtype,
    ) -> Tensor:
        """``norm(x)·(1 + scale) + shift`` in ``dtype``."""
        pieces = _blocks.pieces_by_row(index, len(x), len(scale))
        out, stats = _blocks.forward(x, _affine(shift, scale, weight, bias), pieces, eps, rms, dtype)
        ctx.save_for_backward(x, shift, scale, index, weight, bias, stats)
        ctx.pieces, ctx.rest = pieces, (rms, eps, dtype)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the tensors, in their dtypes."""
        *inputs, stats = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *_blocks.again(lambda *tensors: _whole(*tensors, *ctx.rest), inputs, grad), None, None, None
        x, shift, scale, _, weight, bias = inputs
        affine = _affine(shift, scale, weight, bias)
        dx, sums = _blocks.backward(grad, x, stats, affine, ctx.pieces, len(scale))
        dshift, dscale, dweight, dbias = row_gradients(sums, shift.dtype, scale, weight, bias)
        return dx, dshift, dscale, None, dweight, dbias, None, None, None


def _affine(shift: Tensor, scale: Tensor, weight: Tensor | None, bias: Tensor | None) -> _blocks.Affine:
    def of(row: int | Tensor) -> tuple[Tensor, Tensor]:
        by, plus = 1 + scale[row].float(), shift[row].float()
        plus = plus if bias is None else plus + bias * by
        return by if weight is None else by * weight, plus

    return of


def _whole(
    x: Tensor,
    shift: Tensor,
    scale: Tensor,
    index: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    rms: bool,
    eps: float,
    dtype: torch.dtype,
) -> Tensor:
    index = _blocks.shares(len(x), len(scale)) if index is None else index
    norm: Norm = "rms" if rms else "layer"
    return reference(x, Rows(shift, index), Rows(scale, index), norm, weight, bias, eps).to(dtype)
