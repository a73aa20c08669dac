"""Norm + modulate in plain PyTorch: what the kernel is compared with, and what runs where there is no GPU."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from tubelet.layout import Rows

__all__ = ["Norm", "reference"]

Norm = Literal["layer", "rms"]
"""Which norm stands before the modulation. Example: ``"layer"``."""


def reference(
    x: Float[Tensor, "*lead d"],
    shift: Rows,
    scale: Rows,
    norm: Norm = "layer",
    weight: Float[Tensor, " d"] | None = None,
    bias: Float[Tensor, " d"] | None = None,
    eps: float = 1e-6,
) -> Float[Tensor, "*lead d"]:
    """``norm(x)·(1 + scale) + shift`` in float32 or better, rounded once.

    Example:
        >>> one = Rows(torch.ones(1, 2))
        >>> reference(torch.tensor([[3.0, 3.0]]), one, one, norm="rms").round(decimals=3).tolist()
        [[3.0, 3.0]]
    """
    wide = torch.promote_types(torch.promote_types(x.dtype, shift.values.dtype), torch.float32)
    whole = F.layer_norm if norm == "layer" else F.rms_norm
    normed = whole(x.to(wide), x.shape[-1:], eps=eps)
    if weight is not None:
        normed = normed * weight
    if bias is not None:
        normed = normed + bias
    rows = (shift.map(lambda row: row.to(wide)), scale.map(lambda row: row.to(wide)))
    out = torch.addcmul(rows[0].expand(), normed, 1 + rows[1].expand())
    return out.to(torch.promote_types(x.dtype, shift.values.dtype))
