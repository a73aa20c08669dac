"""Conditioning: embeddings of noise levels and labels, and the sources of modulation.

The timestep embedding is DiT's (Peebles & Xie, 2022, arXiv:2212.09748, section 3.2; sinusoid of Vaswani et al. in
``[cos, sin]`` order, then a two-layer MLP); adaLN-Zero is its zero-initialised shift, scale and gate. All modules act
on rows, ``(r, ...)``: once per distinct noise level, never once per token.
"""

import math
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from tubelet.layout import Rows

__all__ = ["AdaLNZero", "LabelEmbedding", "TimestepEmbedding", "timestep_sinusoid"]


def timestep_sinusoid(t: Float[Tensor, " r"], dim: int, max_period: float = 10000.0) -> Float[Tensor, "r dim"]:
    """``[cos(t·f), sin(t·f)]`` with ``f_i = max_period^(-i / (dim/2))``, in float32 or better.

    Args:
        t: model times, one per row; in whatever unit the network was trained with (DiT: 0..1000).
        dim: even number of features.

    Raises:
        ValueError: ``dim`` is odd.

    Example:
        >>> timestep_sinusoid(torch.tensor([0.0]), 4).tolist()
        [[1.0, 1.0, 0.0, 0.0]]
    """
    if dim % 2:
        raise ValueError(f"dim must be even, got {dim}")
    wide = torch.promote_types(t.dtype, torch.float32)
    frequencies = torch.exp(torch.arange(dim // 2, device=t.device, dtype=wide) * (-2 * math.log(max_period) / dim))
    angles = t.to(wide)[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimestepEmbedding(nn.Module):
    """Model times to conditioning vectors: sinusoid, Linear, SiLU, Linear (DiT, section 3.2).

    Args:
        dim: width of the result.
        frequencies: width of the sinusoid.

    Example:
        >>> TimestepEmbedding(32)(torch.tensor([0.0, 500.0])).shape
        torch.Size([2, 32])
    """

    def __init__(
        self,
        dim: int,
        frequencies: int = 256,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.up = nn.Linear(frequencies, dim, device=device, dtype=dtype)
        self.down = nn.Linear(dim, dim, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal weights of standard deviation 0.02, zero biases."""
        for linear in (self.up, self.down):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, t: Float[Tensor, " r"]) -> Float[Tensor, "r d"]:
        """``(r,)`` model times to ``(r, dim)``."""
        features = timestep_sinusoid(t, self.frequencies).to(self.up.weight.dtype)
        out: Tensor = self.down(F.silu(self.up(features)))
        return out

    if TYPE_CHECKING:

        def __call__(self, t: Float[Tensor, " r"]) -> Float[Tensor, "r d"]: ...


class LabelEmbedding(nn.Module):
    """A table of class vectors with one more row, the last, for the null condition of classifier-free guidance.

    Args:
        classes: number of labels; label ``classes`` is the null one (arXiv:2207.12598, section 3).
        dim: width of the vectors.

    Example:
        >>> table = LabelEmbedding(10, 8)
        >>> table(torch.tensor([3, table.null])).shape
        torch.Size([2, 8])
    """

    def __init__(
        self, classes: int, dim: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.null = classes
        self.table = nn.Embedding(classes + 1, dim, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal rows of standard deviation 0.02."""
        nn.init.normal_(self.table.weight, std=0.02)

    def forward(self, labels: Int[Tensor, " r"]) -> Float[Tensor, "r d"]:
        """``(r,)`` labels to ``(r, dim)``."""
        out: Tensor = self.table(labels)
        return out

    if TYPE_CHECKING:

        def __call__(self, labels: Int[Tensor, " r"]) -> Float[Tensor, "r d"]: ...


class AdaLNZero(nn.Module):
    """Rows of conditioning to rows of shift, scale and gate: ``Linear(SiLU(c))``, zero-initialised (DiT, section 3.2).

    Args:
        dim: width of the tokens it modulates.
        cond_dim: width of the conditioning.
        parts: 3 for a branch (shift, scale, gate), 2 for a final layer (shift, scale).

    Example:
        >>> AdaLNZero(8, 16)(Rows(torch.randn(2, 16))).values.abs().max().item()
        0.0
    """

    def __init__(
        self,
        dim: int,
        cond_dim: int,
        parts: int = 3,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.proj = nn.Linear(cond_dim, parts * dim, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """All zeros: at the start every branch is closed and every block the identity."""
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(self, cond: Rows) -> Rows:
        """Rows ``(r, cond_dim)`` to rows ``(r, parts·dim)``, same index."""
        return cond.map(lambda c: self.proj(F.silu(c)))

    if TYPE_CHECKING:

        def __call__(self, cond: Rows) -> Rows: ...
