"""The two blocks of Flux, as HunyuanVideo (arXiv:2412.03603, section 4.3) and Open-Sora 2 (arXiv:2503.09642) have them.

A dual-stream block is MM-DiT's (Esser et al., 2024, arXiv:2403.03206, figure 2b): text and video have weights of their
own and meet in the attention. A single-stream block has one axis for both and computes attention and MLP side by side
(ViT-22B, arXiv:2302.05442, section 2). In both, adaLN-Zero modulates, norms have no weights, queries and keys are
RMS-normed head by head.
"""

from functools import partial

import torch
from torch import nn

from tubelet.attention import Attention, JointAttention, ParallelAttention
from tubelet.blocks import Branch, TransformerBlock
from tubelet.conditioning import AdaLNZero, ModulationSlice
from tubelet.mlp import MLP
from tubelet.norms import LayerNorm, RMSNorm
from tubelet.protocols import Pattern
from tubelet.streams import JointBranch, MultiStreamBlock, StreamBranches

__all__: list[str] = []


def dual_block(
    dim: int,
    heads: int,
    mlp_dim: int,
    pattern: Pattern,
    *,
    qkv_bias: bool = True,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> MultiStreamBlock:
    """Streams ``(text, video)``, each modulated by its own rows; takes ``joint`` and ``ropes`` from the context."""
    make = partial(
        Attention, dim, heads, bias=qkv_bias, out_bias=True, qk_norm=RMSNorm, device=device, dtype=dtype
    )  # fmt: skip
    joint = JointBranch(
        JointAttention([make(), make()], pattern=pattern),
        [Branch(nn.Identity(), _norm(dim), modulation=ModulationSlice(dim, 0)) for _ in range(2)],
        takes=("joint", "ropes"),
    )
    mlps = [
        Branch(MLP(dim, mlp_dim, device=device, dtype=dtype), _norm(dim), modulation=ModulationSlice(dim, 3))
        for _ in range(2)
    ]
    sources = [AdaLNZero(dim, dim, parts=6, device=device, dtype=dtype) for _ in range(2)]
    return MultiStreamBlock([joint, StreamBranches(mlps)], sources)


def single_block(
    dim: int,
    heads: int,
    mlp_dim: int,
    pattern: Pattern,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> TransformerBlock:
    """One branch on the merged axis; takes ``layout`` and ``rope`` from the context."""
    attention = Attention(dim, heads, qk_norm=RMSNorm, out=False, pattern=pattern, device=device, dtype=dtype)
    branch = Branch(
        ParallelAttention(attention, dim, mlp_dim, device=device, dtype=dtype),
        _norm(dim),
        modulation=AdaLNZero(dim, dim, device=device, dtype=dtype),
        takes=("layout", "rope"),
    )
    return TransformerBlock([branch])


def _norm(dim: int) -> LayerNorm:
    return LayerNorm(dim, affine=False)
