"""What attention modules share around ``attend``: sizes, norms of queries and keys, heads apart and together again."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__: list[str] = []


def width_of_heads(dim: int, heads: int, head_dim: int | None) -> int:
    """``head_dim``, or ``dim`` over ``heads``."""
    if heads < 1 or dim < 1 or (head_dim is not None and head_dim < 1):
        raise ValueError(f"dim, heads and head_dim must be positive, got dim={dim}, heads={heads}, head_dim={head_dim}")
    if head_dim is None and dim % heads:
        raise ValueError(f"dim={dim} is not a multiple of heads={heads}; give head_dim")
    return dim // heads if head_dim is None else head_dim


def key_heads(heads: int, kv_heads: int | None) -> int:
    """``kv_heads``, or as many as there are ``heads``."""
    kv_heads = heads if kv_heads is None else kv_heads
    if kv_heads < 1 or heads % kv_heads:
        raise ValueError(f"heads={heads} is not a multiple of kv_heads={kv_heads}")
    return kv_heads


def qk_norms(
    make: Callable[..., nn.Module] | None,
    widths: tuple[int, int],
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> tuple[nn.Module, nn.Module]:
    """The norms of queries and keys, or none."""
    if make is None:
        return nn.Identity(), nn.Identity()
    return make(widths[0], device=device, dtype=dtype), make(widths[1], device=device, dtype=dtype)


def check_width(name: str, x: Tensor, proj: nn.Module) -> None:
    """A clear error instead of a matrix product's; a replaced projection (quantised, adapted) checks for itself."""
    if isinstance(proj, nn.Linear) and x.shape[-1] != proj.in_features:
        raise ValueError(f"{name} has width {x.shape[-1]}, but the module was made for {proj.in_features}")


def split(x: Tensor, head_dim: int) -> Tensor:
    """``(*lead, heads·head_dim)`` to ``(*lead, heads, head_dim)``."""
    return x.reshape(*x.shape[:-1], x.shape[-1] // head_dim, head_dim)


def normed_heads(norm: nn.Module, x: Tensor, width: int, head_dim: int) -> Tensor:
    """Norm each group of ``width`` features, one head or all of them, then split into heads."""
    return split(norm(split(x, width)).flatten(-2), head_dim)


def project(proj: nn.Module, x: Tensor) -> Tensor:
    """The heads together again, through the last projection."""
    out: Tensor = proj(x.flatten(-2))
    return out


def xavier_(*projections: nn.Linear) -> None:
    """Xavier-uniform weights, zero biases."""
    for projection in projections:
        nn.init.xavier_uniform_(projection.weight)
        if projection.bias is not None:
            nn.init.zeros_(projection.bias)
