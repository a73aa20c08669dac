"""The block of an image transformer (ViT, Dosovitskiy et al., 2021, arXiv:2010.11929, equations 2 and 3).

Self-attention, then an MLP, each behind an affine norm. Several attentions in turn, one for each pattern, make it the
block of ViViT's factorised self-attention (arXiv:2103.15691, equations 4 to 6). Shapes: ``(*lead, d)``.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from tubelet.attention import Attention
from tubelet.blocks import Branch, TransformerBlock
from tubelet.mlp import MLP
from tubelet.norms import LayerNorm
from tubelet.protocols import Pattern

__all__ = ["vit_block"]


def vit_block(
    dim: int,
    heads: int,
    mlp_dim: int,
    patterns: Sequence[Pattern],
    *,
    qkv_bias: bool = True,
    gelu: Literal["none", "tanh"] = "none",
    eps: float = 1e-6,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> TransformerBlock:
    """A block that takes ``layout`` from its context.

    Args:
        dim, heads, mlp_dim: width of the tokens, heads of each attention, width inside the MLP.
        patterns: of its attentions, in order.
        qkv_bias: give queries, keys and values a bias; the last projection always has one.
        gelu: the approximation of the activation, as :class:`torch.nn.GELU` has it.
        eps: of the norms.

    Example:
        >>> from tubelet.attention import Spatial, Temporal
        >>> block = vit_block(8, 2, 16, [Spatial(), Temporal()])
        >>> [type(branch.inner).__name__ for branch in block.branches]
        ['Attention', 'Attention', 'MLP']
    """

    def branch(inner: nn.Module, takes: Sequence[str] = ()) -> Branch:
        return Branch(inner, LayerNorm(dim, eps, device=device, dtype=dtype), takes=takes)

    def attention(pattern: Pattern) -> Branch:
        inner = Attention(dim, heads, bias=qkv_bias, out_bias=True, pattern=pattern, device=device, dtype=dtype)
        return branch(inner, takes=("layout",))

    mlp = MLP(dim, mlp_dim, act=nn.GELU(approximate=gelu), device=device, dtype=dtype)
    return TransformerBlock([*map(attention, patterns), branch(mlp)])
