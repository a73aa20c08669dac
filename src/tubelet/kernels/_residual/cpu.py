"""Gate + residual on the CPU, a block of tokens at a time: the update is kept as it is, and no row is spread."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from tubelet.kernels import _blocks
from tubelet.kernels._residual.reference import added
from tubelet.layout import Rows

__all__ = ["GateResidual"]


class GateResidual(torch.autograd.Function):
    """``x + gate·update`` on ``(n, d)`` and rows ``(r, d)``; without an index rows have equal shares of the tokens.

    Example:
        >>> GateResidual.apply(torch.ones(1, 2), torch.ones(1, 2), torch.tensor([[0.0, 2.0]]), None)
        tensor([[1., 3.]])
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, update: Tensor, gate: Tensor, index: Tensor | None) -> Tensor:
        """The sum, in the dtype of ``x``."""
        out, ctx.pieces = torch.empty_like(x), _blocks.pieces_by_row(index, len(x), len(gate))
        for block, row in _blocks.blocks(ctx.pieces, x.shape[-1]):
            out[block] = torch.addcmul(x[block].float(), gate[row].float(), update[block].float())
        ctx.save_for_backward(update, gate, index)
        ctx.dtype = x.dtype
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """That of x is the gradient itself."""
        update, gate, _ = inputs = ctx.saved_tensors
        if torch.is_grad_enabled():
            return grad, *_blocks.again(partial(_moved, ctx.dtype), inputs, grad)
        of_update, sums = torch.empty_like(update), torch.zeros(gate.shape)
        for block, row in _blocks.blocks(ctx.pieces, update.shape[-1]):
            part = grad[block].float()
            of_update[block] = part * gate[row].float()
            _blocks.add_by_row(sums, row, part.mul(update[block]))
        return grad, of_update, sums.to(gate.dtype), None


def _moved(dtype: torch.dtype, update: Tensor, gate: Tensor, index: Tensor | None) -> Tensor:
    """The operation on x of zeros."""
    index = _blocks.shares(len(update), len(gate)) if index is None else index
    return added(torch.zeros_like(update, dtype=dtype), update, Rows(gate, index))
