"""The middle of Flux, which HunyuanVideo (arXiv:2412.03603) and Open-Sora 2 (arXiv:2503.09642) share.

A dual-stream block is MM-DiT's (Esser et al., 2024, arXiv:2403.03206, figure 2b): text and video have weights of their
own and meet in the attention. A single-stream block has one axis for both and computes attention and MLP side by side
(ViT-22B, arXiv:2302.05442, section 2). In both, adaLN-Zero modulates, norms have no weights, queries and keys are
RMS-normed head by head. The conditioning is the noise level, a pooled text vector and, in guidance-distilled models,
the guidance strength (Meng et al., 2023, arXiv:2210.03142).

Shapes: ``*lead`` tokens of the video, ``*text_lead`` of the text, ``d`` their width, ``v`` that of the pooled vector,
``s`` samples.
"""

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tubelet.attention import Attention, JointAttention, ParallelAttention
from tubelet.blocks import Branch, TransformerBlock
from tubelet.conditioning import AdaLNZero, ModulationSlice, TimestepEmbedding
from tubelet.layout import JointIndex, LayoutIndex, Rows
from tubelet.mlp import MLP
from tubelet.models.inputs import index_time
from tubelet.norms import LayerNorm, RMSNorm
from tubelet.positions import Rope3d
from tubelet.protocols import Pattern
from tubelet.streams import JointBranch, MultiStreamBlock, StreamBranches

__all__: list[str] = []


class FluxCondition(nn.Module):
    """Noise levels, pooled text and guidance strengths to the rows that modulate each stream.

    ``guidance`` says whether the strength is one of them; levels up to ``unguided`` are not told it. ``scale`` is what
    levels and strengths are multiplied by.
    """

    def __init__(
        self,
        dim: int,
        pooled_dim: int,
        *,
        guidance: bool = False,
        unguided: float = -1.0,
        scale: float = 1000.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.time = TimestepEmbedding(dim, device=device, dtype=dtype)
        self.pooled = MLP(pooled_dim, dim, act=nn.SiLU(), out=dim, device=device, dtype=dtype)
        self.guidance = TimestepEmbedding(dim, device=device, dtype=dtype) if guidance else None
        self.unguided, self.scale = unguided, scale
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal embeddings of the pooled text; the others initialise themselves."""
        for linear in (self.pooled.up, self.pooled.down):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(
        self,
        levels: tuple[Rows, Rows],
        layouts: tuple[LayoutIndex, LayoutIndex],
        pooled: Float[Tensor, "s v"],
        guidance: Float[Tensor, " s"] | None,
    ) -> tuple[Rows, Rows]:
        """Rows ``(r, d)`` for text and video; by view they are the same ones."""
        vectors = self.pooled(pooled)
        video = self._rows(levels[1], layouts[1], vectors, guidance)
        if video.index is None:
            return video, video
        return self._rows(levels[0], layouts[0], vectors, guidance), video

    def _rows(self, t: Rows, layout: LayoutIndex, vectors: Tensor, guidance: Tensor | None) -> Rows:
        rows = layout.add_per_sample(t.map(lambda level: self.time(index_time(level, self.scale))), vectors)
        if self.guidance is None or guidance is None:
            return rows
        strength = layout.add_per_sample(t.map(torch.zeros_like), guidance.to(t.values.dtype))
        told = self.guidance(index_time(strength.values, self.scale)) * (t.values > self.unguided)[:, None]
        return rows.map(lambda c: c + told)

    if TYPE_CHECKING:

        def __call__(
            self,
            levels: tuple[Rows, Rows],
            layouts: tuple[LayoutIndex, LayoutIndex],
            pooled: Float[Tensor, "s v"],
            guidance: Float[Tensor, " s"] | None,
        ) -> tuple[Rows, Rows]: ...


class FluxBlocks(nn.Module):
    """Blocks of two streams, then of one axis for both; what comes out is the video."""

    def __init__(
        self,
        dim: int,
        heads: int,
        mlp_dim: int,
        *,
        depth: int,
        single_depth: int,
        rope: Rope3d,
        pattern: Pattern,
        qkv_bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.rope = rope
        self.dual = nn.ModuleList(_dual(dim, heads, mlp_dim, pattern, qkv_bias, **made) for _ in range(depth))
        self.single = nn.ModuleList(_single(dim, heads, mlp_dim, pattern, **made) for _ in range(single_depth))

    def forward(
        self,
        text: Float[Tensor, "*text_lead d"],
        video: Float[Tensor, "*lead d"],
        conds: tuple[Rows, Rows],
        layout: LayoutIndex,
        joint: JointIndex,
    ) -> Float[Tensor, "*lead d"]:
        """Text and video with the conditioning of each; ``layout`` is that of the video."""
        streams, wide = (text, video), torch.promote_types(video.dtype, torch.float32)
        context: dict[str, Any] = {"joint": joint, "ropes": (None, self.rope(layout.coords, wide))}
        for block in self.dual:
            streams = block(streams, conds, context)
        h, rows = joint.merge(*streams), joint.merge_rows(*conds)
        context = {"layout": joint.index, "rope": self.rope(joint.index.coords, wide)}
        for block in self.single:
            h = block(h, rows, context)
        return joint.split(h)[1]

    if TYPE_CHECKING:

        def __call__(
            self,
            text: Float[Tensor, "*text_lead d"],
            video: Float[Tensor, "*lead d"],
            conds: tuple[Rows, Rows],
            layout: LayoutIndex,
            joint: JointIndex,
        ) -> Float[Tensor, "*lead d"]: ...


def _dual(dim: int, heads: int, mlp_dim: int, pattern: Pattern, qkv_bias: bool, **made: Any) -> MultiStreamBlock:
    """Streams ``(text, video)``, each modulated by its own rows."""
    attention: dict[str, Any] = {"bias": qkv_bias, "out_bias": True, "qk_norm": RMSNorm, **made}
    joint = JointBranch(
        JointAttention([Attention(dim, heads, **attention) for _ in range(2)], pattern=pattern),
        [Branch(nn.Identity(), _norm(dim), modulation=ModulationSlice(dim, 0)) for _ in range(2)],
        takes=("joint", "ropes"),
    )
    mlps = [Branch(MLP(dim, mlp_dim, **made), _norm(dim), modulation=ModulationSlice(dim, 3)) for _ in range(2)]
    return MultiStreamBlock([joint, StreamBranches(mlps)], [AdaLNZero(dim, dim, parts=6, **made) for _ in range(2)])


def _single(dim: int, heads: int, mlp_dim: int, pattern: Pattern, **made: Any) -> TransformerBlock:
    """One branch, attention and MLP side by side, on the merged axis."""
    attention = Attention(dim, heads, qk_norm=RMSNorm, out=False, pattern=pattern, **made)
    inner, modulation = ParallelAttention(attention, dim, mlp_dim, **made), AdaLNZero(dim, dim, **made)
    return TransformerBlock([Branch(inner, _norm(dim), modulation=modulation, takes=("layout", "rope"))])


def _norm(dim: int) -> LayerNorm:
    return LayerNorm(dim, affine=False)
