"""Norm and rotation of queries and keys by one kernel: what :func:`tubelet.fused.use_kernels` gives attention modules.

Each does what the function of the same name without ``fused_`` does, in one pass (:mod:`tubelet.kernels`).
"""

from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor, nn

from tubelet.attention.projections import split
from tubelet.kernels import HeadNorm, norm_rope, qk_norm_rope
from tubelet.norms import LayerNorm, RMSNorm
from tubelet.positions import Rotary

if TYPE_CHECKING:
    from tubelet.attention.modules import Attention

__all__ = ["fused_normed_and_turned", "fused_normed_heads", "head_norm"]


def head_norm(norm: nn.Module) -> HeadNorm | None:
    """The kernel's name of a norm of queries or keys; None where it has none.

    Example:
        >>> head_norm(RMSNorm(8)), head_norm(nn.Identity()), head_norm(nn.Tanh())
        ('rms', 'none', None)
    """
    kinds: tuple[tuple[type[nn.Module], HeadNorm], ...] = (
        (RMSNorm, "rms"), (LayerNorm, "layer"), (nn.Identity, "none"),
    )  # fmt: skip
    return next((name for kind, name in kinds if isinstance(norm, kind)), None)


def fused_normed_and_turned(
    attention: "Attention", q: Float[Tensor, "*lead hd"], k: Float[Tensor, "*lead hkd"], rope: Rotary | None
) -> tuple[Float[Tensor, "*lead h d"], Float[Tensor, "*lead hk d"]]:
    """Queries and keys from their projections, whose norms are alike: normed, split into heads, and rotated.

    Example:
        >>> import torch
        >>> from tubelet.attention import Attention
        >>> attention = Attention(8, 2, qk_norm=RMSNorm)
        >>> fused_normed_and_turned(attention, torch.randn(3, 8), torch.randn(3, 8), None)[0].shape
        torch.Size([3, 2, 4])
    """
    width = attention.head_dim
    q, k, of_q, of_k = split(q, width), split(k, width), attention.q_norm, attention.k_norm
    kind = _kind(of_q)
    if kind == "none" and rope is None:
        return q, k
    options = {"norm": kind, "across_heads": attention.norm_widths[0] != width, **_eps(of_q)}
    (q_weight, q_bias), (k_weight, k_bias) = _affine(of_q), _affine(of_k)
    return qk_norm_rope(q, k, rope, q_weight, k_weight, q_bias=q_bias, k_bias=k_bias, **options)


def fused_normed_heads(norm: nn.Module, x: Tensor, width: int, head_dim: int) -> Tensor:
    """Norm each group of ``width`` features, one head or all of them, then split into heads.

    Example:
        >>> import torch
        >>> fused_normed_heads(RMSNorm(8), torch.randn(3, 8), 8, 4).shape
        torch.Size([3, 2, 4])
    """
    kind, x = _kind(norm), split(x, head_dim)
    if kind == "none":
        return x
    weight, bias = _affine(norm)
    return norm_rope(x, None, weight, bias, norm=kind, across_heads=width != head_dim, **_eps(norm))


def _kind(norm: nn.Module) -> HeadNorm:
    kind = head_norm(norm)
    assert kind is not None
    return kind


def _eps(norm: nn.Module) -> dict[str, Any]:
    return {"eps": norm.eps} if isinstance(norm, RMSNorm | LayerNorm) else {}


def _affine(norm: nn.Module) -> tuple[Tensor | None, Tensor | None]:
    """Weight and bias."""
    weight = norm.weight if isinstance(norm, RMSNorm | LayerNorm) else None
    return weight, norm.bias if isinstance(norm, LayerNorm) else None
