"""QK-norm + RoPE in plain PyTorch: what the kernel is compared with, and what runs where there is no GPU."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from tubelet.positions import Rotary, apply_rope

__all__ = ["HeadNorm", "reference"]

HeadNorm = Literal["rms", "layer", "none"]
"""The norm of queries and keys. Example: ``"layer"``."""


def reference(
    x: Float[Tensor, "*lead heads head_dim"],
    rotary: Rotary | None = None,
    weight: Float[Tensor, " width"] | None = None,
    bias: Float[Tensor, " width"] | None = None,
    *,
    norm: HeadNorm = "rms",
    across_heads: bool = False,
    eps: float = 1e-6,
) -> Float[Tensor, "*lead heads head_dim"]:
    """The norm of each head, or of all together, then the rotation, in float32 or better, rounded once.

    Example:
        >>> quarter = Rotary(torch.tensor([[0.0]]), torch.tensor([[1.0]]))
        >>> reference(torch.tensor([[[3.0, 3.0]]]), quarter).round(decimals=3).tolist()
        [[[-1.0, 1.0]]]
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    normed = x.to(wide).flatten(-2) if across_heads else x.to(wide)
    if norm == "rms":
        normed = F.rms_norm(normed, normed.shape[-1:], eps=eps)
    elif norm == "layer":
        normed = F.layer_norm(normed, normed.shape[-1:], eps=eps)
    normed = normed if weight is None else normed * weight
    normed = (normed if bias is None else normed + bias).view(x.shape)
    return (normed if rotary is None else apply_rope(normed, rotary)).to(x.dtype)
