"""Attention inside a frame whose cost grows with its positions, not their square (EfficientViT, arXiv:2205.14756).

With features ``φ = relu`` position i gets ``Σ_j v_j (φ(k_j)·φ(q_i)) / Σ_j φ(k_j)·φ(q_i)``. The sums over j are taken
once, ``V Kᵀ`` and ``Σ K``, and met by each query. Heads on several scales see keys and values that a depthwise
convolution has mixed with their neighbours.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["MultiscaleLinearAttention"]


class MultiscaleLinearAttention(nn.Module):
    """Linear attention inside each frame, over plain heads and over heads of convolved queries, keys and values.

    The heads lie on the channels of ``qkv`` one after the other, each with its queries, keys and values. Sums are taken
    in at least float32.

    Args:
        channels: in and out.
        head_dim: of each head; ``channels // head_dim`` heads on each scale.
        kernels: odd sides of the depthwise convolutions, one for each further scale.

    Raises:
        ValueError: fewer channels than ``head_dim``, or an even kernel.

    Example:
        >>> MultiscaleLinearAttention(16, head_dim=4)(torch.zeros(2, 16, 3, 5, 6)).shape
        torch.Size([2, 16, 3, 5, 6])
    """

    def __init__(
        self,
        channels: int,
        head_dim: int,
        kernels: Sequence[int] = (5,),
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        heads = channels // head_dim
        if heads < 1:
            raise ValueError(f"channels {channels} must be at least the head_dim {head_dim}")
        if any(kernel < 1 or kernel % 2 == 0 for kernel in kernels):
            raise ValueError(f"kernels must be positive and odd, not {tuple(kernels)}")
        inner, wide = heads * head_dim, 3 * heads * head_dim
        self.head_dim = head_dim
        self.qkv = nn.Conv3d(channels, wide, 1, bias=False, device=device, dtype=dtype)
        self.scales = nn.ModuleList()
        for kernel in kernels:
            pads, sides = (0, kernel // 2, kernel // 2), (1, kernel, kernel)
            near = nn.Conv3d(wide, wide, sides, padding=pads, groups=wide, bias=False, device=device, dtype=dtype)
            mixed = nn.Conv3d(wide, wide, 1, groups=3 * heads, bias=False, device=device, dtype=dtype)
            self.scales.append(nn.Sequential(near, mixed))
        self.out = nn.Conv3d(inner * (1 + len(kernels)), channels, 1, bias=False, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Draw all weights anew."""
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                module.reset_parameters()

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t h w"]:
        """Attend inside each frame."""
        qkv = self.qkv(x)
        heads = torch.cat([qkv, *(scale(qkv) for scale in self.scales)], 1)
        heads = heads.to(torch.promote_types(heads.dtype, torch.float32))
        q, k, v = rearrange(heads, "b (n three d) t h w -> three b t n d (h w)", three=3, d=self.head_dim)
        q, k = torch.relu(q), torch.relu(k)
        found = (v @ k.mT) @ q / (k.sum(-1, keepdim=True).mT @ q + 1e-15)
        y: Tensor = self.out(rearrange(found, "b t n d (h w) -> b (n d) t h w", h=x.shape[3]).to(x.dtype))
        return y

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor: ...
