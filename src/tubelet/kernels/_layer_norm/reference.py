"""Layer norm in plain PyTorch: what the operation is compared with, and what runs elsewhere."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

__all__ = ["reference"]


def reference(
    x: Float[Tensor, "*lead d"],
    weight: Float[Tensor, " d"] | None = None,
    bias: Float[Tensor, " d"] | None = None,
    eps: float = 1e-6,
) -> Float[Tensor, "*lead d"]:
    """``(x - mean) / sqrt(var + eps) · weight + bias`` in float32 or better, rounded once to the dtype of ``x``.

    Example:
        >>> reference(torch.tensor([[1.0, 3.0]]), bias=torch.ones(2)).round(decimals=3).tolist()
        [[0.0, 2.0]]
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    weight, bias = (None if part is None else part.to(wide) for part in (weight, bias))
    return F.layer_norm(x.to(wide), x.shape[-1:], weight, bias, eps).to(x.dtype)
