"""Gate + residual + norm + modulate in plain PyTorch: what the kernels are compared with, and what runs elsewhere."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from tubelet.kernels._modulation.reference import Norm
from tubelet.layout import Rows

__all__ = ["added", "normed"]


def added(x: Float[Tensor, "*lead d"], update: Float[Tensor, "*lead d"], gate: Rows | None) -> Float[Tensor, "*lead d"]:
    """``x + gate · update`` in float32 or better, rounded once to the dtype of ``x``.

    Example:
        >>> added(torch.ones(1, 2), torch.ones(1, 2), Rows(torch.tensor([[0.0, 2.0]]))).tolist()
        [[1.0, 3.0]]
    """
    wide = _wide(x, update, gate)
    if gate is None:
        return (x.to(wide) + update.to(wide)).to(x.dtype)
    return torch.addcmul(x.to(wide), gate.map(lambda row: row.to(wide)).expand(), update.to(wide)).to(x.dtype)


def normed(
    y: Float[Tensor, "*lead d"],
    shift: Rows | None,
    scale: Rows | None,
    norm: Norm,
    weight: Float[Tensor, " d"] | None,
    bias: Float[Tensor, " d"] | None,
    eps: float,
) -> Float[Tensor, "*lead d"]:
    """``norm(y)·(1 + scale) + shift`` in float32 or better, rounded once to the dtype of ``y``.

    Example:
        >>> one = Rows(torch.ones(1, 2))
        >>> normed(torch.tensor([[3.0, 3.0]]), one, one, "rms", None, None, 1e-6).round(decimals=3).tolist()
        [[3.0, 3.0]]
    """
    wide = _wide(y, y, scale if shift is None else shift)
    out = (F.layer_norm if norm == "layer" else F.rms_norm)(y.to(wide), y.shape[-1:], eps=eps)
    out = out if weight is None else out * weight
    out = out if bias is None else out + bias
    out = out if scale is None else out * (1 + scale.map(lambda row: row.to(wide)).expand())
    return (out if shift is None else out + shift.map(lambda row: row.to(wide)).expand()).to(y.dtype)


def _wide(x: Tensor, update: Tensor, rows: Rows | None) -> torch.dtype:
    dtype = torch.promote_types(torch.promote_types(x.dtype, update.dtype), torch.float32)
    return dtype if rows is None else torch.promote_types(dtype, rows.values.dtype)
