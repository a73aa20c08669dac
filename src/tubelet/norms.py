"""Norms over the last axis that compute in float32 or better and hand back the dtype they were given.

``LayerNorm`` is Ba et al., 2016 (arXiv:1607.06450): ``y = (x - mean(x)) / sqrt(var(x) + eps) · weight + bias`` with the
biased variance. ``RMSNorm`` is Zhang & Sennrich, 2019 (arXiv:1910.07467): ``y = x / sqrt(mean(x²) + eps) · weight``.
``UnitNorm`` divides by the length, ``y = x / max(‖x‖, eps)``, so that attention compares directions (arXiv:2010.04245).
The statistics, the weight and the bias stay in float32 under autocast and for bfloat16 or float16 input (Wan keeps
such an island), and float64 input stays float64.

Shapes: ``(*lead, d)`` to ``(*lead, d)``; any leading axes, so queries and keys ``(*lead, heads, head_dim)`` too.
"""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["LayerNorm", "RMSNorm", "UnitNorm"]


class LayerNorm(nn.Module):
    """Mean and variance normalised over the last axis, in float32 or better.

    Args:
        dim: width of the last axis.
        eps: added to the variance (DiT: 1e-6).
        affine: learn a weight and a bias; modulated norms have neither.
        bias: learn the bias beside the weight (ViT-22B and NaViT have none).

    Raises:
        ValueError: at the call, the last axis is not ``dim`` wide.

    Example:
        >>> LayerNorm(2, affine=False)(torch.tensor([[1.0, 3.0]])).round(decimals=3).tolist()
        [[-1.0, 1.0]]
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        dim: int,
        eps: float = 1e-6,
        *,
        affine: bool = True,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.dim, self.eps = dim, eps
        self.register_parameter("weight", _parameter(dim, affine, device, dtype))
        self.register_parameter("bias", _parameter(dim, affine and bias, device, dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weight one, bias zero."""
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Float[Tensor, "*lead d"]) -> Float[Tensor, "*lead d"]:
        """Normalise ``x``; the result has its dtype."""
        _check_width(x, self.dim)
        wide = torch.promote_types(x.dtype, torch.float32)
        return F.layer_norm(x.to(wide), (self.dim,), _to(self.weight, wide), _to(self.bias, wide), self.eps).to(x.dtype)

    def extra_repr(self) -> str:
        """Sizes, for ``print``."""
        affine, bias = self.weight is not None, self.bias is not None
        return f"{self.dim}, eps={self.eps}, affine={affine}" + (", bias=False" if affine and not bias else "")

    if TYPE_CHECKING:

        def __call__(self, x: Float[Tensor, "*lead d"]) -> Float[Tensor, "*lead d"]: ...


class RMSNorm(nn.Module):
    """The root mean square normalised over the last axis, in float32 or better.

    Args:
        dim: width of the last axis: ``head_dim`` for per-head qk-norm, ``heads·head_dim`` for a norm across heads.
        eps: added to the mean square.
        affine: learn a weight.

    Raises:
        ValueError: at the call, the last axis is not ``dim`` wide.

    Example:
        >>> RMSNorm(2)(torch.tensor([[3.0, 3.0], [0.0, 4.0]]))
        tensor([[1.0000, 1.0000],
                [0.0000, 1.4142]], grad_fn=<MulBackward0>)
    """

    weight: nn.Parameter | None

    def __init__(
        self,
        dim: int,
        eps: float = 1e-6,
        *,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.dim, self.eps = dim, eps
        self.register_parameter("weight", _parameter(dim, affine, device, dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weight one."""
        if self.weight is not None:
            nn.init.ones_(self.weight)

    def forward(self, x: Float[Tensor, "*lead d"]) -> Float[Tensor, "*lead d"]:
        """Normalise ``x``; the result has its dtype."""
        _check_width(x, self.dim)
        wide = torch.promote_types(x.dtype, torch.float32)
        return F.rms_norm(x.to(wide), (self.dim,), _to(self.weight, wide), self.eps).to(x.dtype)

    def extra_repr(self) -> str:
        """Sizes, for ``print``."""
        return f"{self.dim}, eps={self.eps}, affine={self.weight is not None}"

    if TYPE_CHECKING:

        def __call__(self, x: Float[Tensor, "*lead d"]) -> Float[Tensor, "*lead d"]: ...


class UnitNorm(nn.Module):
    """Length one over the last axis, in float32 or better; there is nothing to learn.

    Args:
        dim: width of the last axis.
        eps: the least length that is divided by.
        device, dtype: as other norms have them; a norm without weights needs neither.

    Raises:
        ValueError: at the call, the last axis is not ``dim`` wide.

    Example:
        >>> UnitNorm(2)(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).tolist()
        [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """

    def __init__(
        self,
        dim: int,
        eps: float = 1e-12,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.dim, self.eps = dim, eps

    def forward(self, x: Float[Tensor, "*lead d"]) -> Float[Tensor, "*lead d"]:
        """Normalise ``x``; the result has its dtype."""
        _check_width(x, self.dim)
        return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1, eps=self.eps).to(x.dtype)

    def extra_repr(self) -> str:
        """Sizes, for ``print``."""
        return f"{self.dim}, eps={self.eps}"

    if TYPE_CHECKING:

        def __call__(self, x: Float[Tensor, "*lead d"]) -> Float[Tensor, "*lead d"]: ...


def _parameter(
    dim: int, affine: bool, device: torch.device | str | None, dtype: torch.dtype | None
) -> nn.Parameter | None:
    return nn.Parameter(torch.empty(dim, device=device, dtype=dtype)) if affine else None


def _to(parameter: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if parameter is None else parameter.to(dtype)


def _check_width(x: Tensor, dim: int) -> None:
    if x.shape[-1] != dim:
        raise ValueError(f"x has width {x.shape[-1]}, but the norm was made for dim={dim}")
