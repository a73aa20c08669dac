"""QK-norm + RoPE in plain PyTorch: what the kernel is compared with, and what runs where there is no GPU."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from tubelet.positions import Rotary, apply_rope

__all__ = ["reference"]


def reference(
    x: Float[Tensor, "*lead heads head_dim"],
    rotary: Rotary,
    weight: Float[Tensor, " head_dim"] | None = None,
    eps: float = 1e-6,
) -> Float[Tensor, "*lead heads head_dim"]:
    """The RMS norm of each head, then its rotation, in float32 or better, rounded once.

    Example:
        >>> quarter = Rotary(torch.tensor([[0.0]]), torch.tensor([[1.0]]))
        >>> reference(torch.tensor([[[3.0, 3.0]]]), quarter).round(decimals=3).tolist()
        [[[-1.0, 1.0]]]
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    normed = F.rms_norm(x.to(wide), x.shape[-1:], eps=eps)
    return apply_rope(normed if weight is None else normed * weight, rotary).to(x.dtype)
