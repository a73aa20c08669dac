"""Allegro, the open video transformer of Rhymes AI (Zhou et al., 2024, arXiv:2410.15458), over packed latents.

The recipe is PixArt-alpha's (arXiv:2310.00426, section 2.3) with full space-time attention: one
projection of the noise level modulates all blocks, each of which adds a table; cross-attention to T5 text has neither a
norm before it nor a gate, and the block's second norm feeds the MLP alone. Queries and keys are not normed. RoPE gives
each axis a third of a head, turned in halves of its own, at places divided by a scale per axis.

What the published code cannot do: mixtures of sizes on one axis, noise levels per frame or token, and any attention
pattern. Its mask of a padded prompt is the prompt's own length here.

Shapes: ``*lead`` tokens, ``p = pt·ph·pw·c`` numbers a patch, ``m`` text tokens.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tubelet.attention import Attention, CrossAttention, Joint
from tubelet.blocks import Branch, TransformerBlock, norm_modulate
from tubelet.conditioning import AdaLNSingle, ModulationSlice, TimestepEmbedding
from tubelet.layout import LayoutIndex, Rows, TokenLayout
from tubelet.mlp import MLP
from tubelet.models.inputs import (
    check_dtypes,
    check_fields,
    check_patch,
    check_tokens,
    index_time,
    on,
    real_levels,
    reset_children,
)
from tubelet.norms import LayerNorm
from tubelet.positions import Interpolation, Rope3d
from tubelet.protocols import Pattern

__all__ = ["AllegroConfig", "AllegroTransformer", "allegro_3b"]

Layout = TokenLayout | LayoutIndex


@dataclass(frozen=True, kw_only=True)
class AllegroConfig:
    """Sizes of an :class:`AllegroTransformer`.

    ``patch`` is ``(t, h, w)`` in latent cells; ``scale`` what the coordinates of each axis are divided by before they
    turn queries and keys; a noise level ``t`` in [0, 1] is embedded as ``time_scale·t + time_shift``. The MLPs
    are four times as wide as the tokens.

    Raises:
        ValueError: a size does not divide or is not positive.

    Example:
        >>> AllegroConfig(dim=24, depth=2, heads=2).patch_dim
        16
    """

    dim: int
    depth: int
    heads: int
    latent_channels: int = 4
    text_dim: int = 4096
    patch: tuple[int, int, int] = (1, 2, 2)
    scale: tuple[float, float, float] = (2.2, 2.0, 2.0)
    frequencies: int = 256
    eps: float = 1e-6
    time_scale: float = 1000.0
    time_shift: float = -1.0

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("dim", "depth", "heads", "latent_channels", "text_dim"):
            if (size := getattr(self, name)) < 1:
                raise ValueError(f"{name} must be positive, got {size}")
        check_patch(self.patch)
        if min(self.scale) <= 0:
            raise ValueError(f"scale must be positive on each of three axes, got {self.scale}")
        if self.dim % self.heads or self.dim // self.heads % 6:
            raise ValueError(f"dim={self.dim} does not make heads={self.heads} of three axes of even width")
        if self.frequencies % 2 or self.frequencies < 2:
            raise ValueError(f"frequencies must be even and positive, got {self.frequencies}")

    @property
    def patch_dim(self) -> int:
        """Numbers in one patch, ``pt·ph·pw·c``."""
        return math.prod(self.patch) * self.latent_channels


def allegro_3b() -> AllegroConfig:
    """Text to video, 2.77 billion parameters.

    Example:
        >>> allegro_3b().dim
        2304
    """
    return AllegroConfig(dim=2304, depth=32, heads=24)


class AllegroTransformer(nn.Module):
    """Noisy patches, noise levels and text to the prediction on the patches.

    Args:
        config: its sizes.
        pattern: which tokens of a sample attend to each other in every block; the published model has ``Joint()``. A
            single block's is ``model.blocks[i].branches[0].inner.pattern``.

    Example:
        >>> from tubelet import Grid
        >>> model = AllegroTransformer(AllegroConfig(dim=24, depth=2, heads=2, text_dim=8))
        >>> layout = TokenLayout.packed([Grid(3, 4, 4), Grid(1, 2, 6)]).on("cpu")
        >>> text_layout = TokenLayout.packed([None, None], [3, 1]).on("cpu")
        >>> t = layout.rows(torch.tensor([0.2, 0.9]), "sample")
        >>> model(torch.randn(60, 16), t, torch.randn(4, 8), layout, text_layout).shape
        torch.Size([60, 16])
    """

    def __init__(
        self,
        config: AllegroConfig,
        *,
        pattern: Pattern = Joint(),  # noqa: B008 - a frozen value
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        dim, head_dim = config.dim, config.dim // config.heads
        axes = (head_dim // 3, head_dim // 3, head_dim // 3)
        self.embed = nn.Linear(config.patch_dim, dim, device=device, dtype=dtype)
        self.rope = Rope3d(head_dim, axes, layout="half_per_axis", place=Interpolation(config.scale))
        self.time = TimestepEmbedding(dim, config.frequencies, device=device, dtype=dtype)
        self.modulation = nn.Linear(dim, 6 * dim, device=device, dtype=dtype)
        self.text = MLP(config.text_dim, dim, out=dim, device=device, dtype=dtype)
        self.blocks = nn.ModuleList(_block(config, pattern, device, dtype) for _ in range(config.depth))
        self.final_norm = LayerNorm(dim, affine=False, device=device, dtype=dtype)
        self.final_modulation = AdaLNSingle(dim, parts=2, device=device, dtype=dtype)
        self.project = nn.Linear(dim, config.patch_dim, device=device, dtype=dtype)
        self._reset_own()

    def reset_parameters(self) -> None:
        """Every child anew (after meta construction, say), then the model's own."""
        reset_children(self)
        self._reset_own()

    def _reset_own(self) -> None:
        """PixArt-alpha's: Xavier input, normal embeddings, zero output; zero cross-attention, which has no gate."""
        nn.init.xavier_uniform_(self.embed.weight)
        for linear in (self.modulation, self.text.up, self.text.down):
            nn.init.normal_(linear.weight, std=0.02)
        nn.init.zeros_(self.project.weight)
        for linear in (self.embed, self.modulation, self.project):
            nn.init.zeros_(linear.bias)
        for module in self.modules():
            if isinstance(module, CrossAttention):
                nn.init.zeros_(module.out_proj.weight)

    def forward(
        self,
        x: Float[Tensor, "*lead p"],
        t: Rows,
        text: Float[Tensor, "*text_lead e"],
        layout: Layout,
        text_layout: Layout,
    ) -> Float[Tensor, "*lead p"]:
        """Predict from noisy patches. Padding may hold anything.

        Args:
            x: patches at their noise levels.
            t: noise levels in [0, 1], one row per sample, frame or token (or one for all).
            text: encoded prompts.
            layout: where the samples of ``x`` lie.
            text_layout: where the prompts of the same samples lie in ``text``.

        Raises:
            ValueError: shapes and layouts disagree.
        """
        index, text_index = on(layout, x), on(text_layout, x, "text_layout")
        check_tokens("x", x, self.config.patch_dim, index, index)
        check_tokens("text", text, self.config.text_dim, text_index, index)
        check_dtypes(self.embed, x=x, text=text)
        t = real_levels(t, index)
        time = t.map(lambda level: self.time(index_time(level, self.config.time_scale, self.config.time_shift)))
        shared = time.map(lambda c: self.modulation(F.silu(c)))
        words = self.text(text_index.zero_padding(text))
        # the tokens last: their gradient, which is the largest here, is the first to go
        h: Tensor = self.embed(index.zero_padding(x))
        context: Mapping[str, Any] = {
            "layout": index,
            "rope": self.rope(index.coords, torch.promote_types(h.dtype, torch.float32)),
            "text": words,
            "text_layout": text_index,
        }
        for block in self.blocks:
            h = block(h, shared, context)
        shift, scale = self.final_modulation(time.map(lambda c: torch.cat([c, c], dim=-1))).chunk(2)
        out: Tensor = self.project(norm_modulate(self.final_norm, h, shift, scale))
        return out

    if TYPE_CHECKING:

        def __call__(
            self,
            x: Float[Tensor, "*lead p"],
            t: Rows,
            text: Float[Tensor, "*text_lead e"],
            layout: Layout,
            text_layout: Layout,
        ) -> Float[Tensor, "*lead p"]: ...


def _block(
    config: AllegroConfig, pattern: Pattern, device: torch.device | str | None, dtype: torch.dtype | None
) -> TransformerBlock:
    """Modulated self-attention, cross-attention as it is, modulated MLP; one table for the block."""
    dim, heads, eps = config.dim, config.heads, config.eps
    attention = Branch(
        Attention(dim, heads, pattern=pattern, device=device, dtype=dtype),
        LayerNorm(dim, eps, affine=False, device=device, dtype=dtype),
        modulation=ModulationSlice(dim, 0),
        takes=("layout", "rope"),
    )
    cross = Branch(CrossAttention(dim, heads, device=device, dtype=dtype), takes=("text", "layout", "text_layout"))
    mlp = Branch(
        MLP(dim, device=device, dtype=dtype),
        LayerNorm(dim, eps, affine=False, device=device, dtype=dtype),
        modulation=ModulationSlice(dim, 3),
    )
    return TransformerBlock([attention, cross, mlp], AdaLNSingle(dim, parts=6, device=device, dtype=dtype))
