"""LTX-Video, the open video transformer of Lightricks (HaCohen et al., 2024, arXiv:2501.00103), over packed latents.

The recipe: blocks of full space-time self-attention, cross-attention to T5 text and a GELU MLP, on latents of 8×32×32
pixels, one cell a token. One projection of the noise level modulates all blocks, each of which adds a table
(adaLN-single, arXiv:2310.00426); cross-attention is neither normed before nor modulated nor gated; queries and keys are
RMS-normed across all heads, and rotated over that whole width by seconds and pixels: a token's places are inputs of
their own, since they depend on the frame rate (:func:`ltx_places`).

What the published code cannot do: mixtures of sizes and frame rates on one axis, prompts of any length without padding,
and any attention pattern.

Shapes: ``*lead`` tokens of ``c`` latent channels, ``*text_lead`` text tokens of width ``e``.
"""

from dataclasses import dataclass
from functools import partial
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
    check_rates,
    check_tokens,
    index_time,
    on,
    real_levels,
    reset_children,
)
from tubelet.norms import LayerNorm, RMSNorm
from tubelet.positions import FirstPixel, FractionalRope3d, FrameRate, Interpolation
from tubelet.protocols import Pattern

__all__ = ["LTXConfig", "LTXTransformer", "ltx_2b", "ltx_13b", "ltx_places"]

Layout = TokenLayout | LayoutIndex

_LARGEST = (20.0, 2048.0, 2048.0)
"""Seconds, rows and columns of which places are fractions."""


@dataclass(frozen=True, kw_only=True)
class LTXConfig:
    """Sizes of an :class:`LTXTransformer`.

    ``eps`` is that of the blocks' norms; ``time_scale`` is what a noise level in [0, 1] is multiplied by before its
    embedding.

    Raises:
        ValueError: a size does not divide or is too small.

    Example:
        >>> LTXConfig(dim=24, depth=2, heads=2).latent_channels
        128
    """

    dim: int
    depth: int
    heads: int
    latent_channels: int = 128
    text_dim: int = 4096
    eps: float = 1e-6
    time_scale: float = 1000.0

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("dim", "depth", "heads", "latent_channels", "text_dim"):
            if (size := getattr(self, name)) < 1:
                raise ValueError(f"{name} must be positive, got {size}")
        if self.dim % self.heads or self.dim // self.heads % 2:
            raise ValueError(f"dim={self.dim} does not make heads={self.heads} of even width")
        if self.dim < 12:
            raise ValueError(f"dim={self.dim} is too narrow to rotate; the least is 12")


def ltx_2b() -> LTXConfig:
    """Text and image to video, 1.92 billion parameters (0.9 to 0.9.6 and 0.9.8).

    Example:
        >>> ltx_2b().depth
        28
    """
    return LTXConfig(dim=2048, depth=28, heads=32)


def ltx_13b() -> LTXConfig:
    """Text and image to video, 13.0 billion parameters (0.9.7 and 0.9.8).

    Example:
        >>> ltx_13b().dim
        4096
    """
    return LTXConfig(dim=4096, depth=48, heads=32)


def ltx_places(
    index: LayoutIndex, fps: Rows | float, *, causal: bool = True, stride: tuple[int, int, int] = (8, 32, 32)
) -> Float[Tensor, "*lead 3"]:
    """Where each token begins: seconds from the start of its video, rows and columns of pixels.

    Attention sees differences of places only. Tokens that are no cell of their sample's grid, such as a given later
    frame, have places of their own; a negative second marks a token that is not rotated.

    Args:
        index: where the samples lie.
        fps: frames a second, positive, one row per sample (``index.rows(values, "sample")``), or one number for all.
        causal: the first latent frame holds one frame, as in 0.9.5 and later; the models before took 8 for all.
        stride: pixels in a cell of the latents along ``(t, h, w)``.

    Raises:
        ValueError: a stride or a rate is not positive (on the CPU, where looking waits for no device), or the rates are
            those of another layout.

    Example:
        >>> from tubelet import Grid
        >>> index = TokenLayout.packed([Grid(2, 1, 1), Grid(2, 1, 1)]).on("cpu")
        >>> ltx_places(index, index.rows(torch.tensor([25.0, 50.0]), "sample"))[:, 0].tolist()
        [0.0, 0.04, 0.0, 0.02]
    """
    if not isinstance(fps, Rows | float | int):  # a tensor would broadcast over tokens
        raise ValueError(f"fps must be a number or index.rows(rates, 'sample'), got {type(fps).__name__}")
    if isinstance(fps, Rows):
        check_rates("fps", fps, index)
    rate = fps.expand() if isinstance(fps, Rows) else fps
    return FrameRate(base=1.0)(FirstPixel(stride, causal)(index.coords), rate)


class LTXTransformer(nn.Module):
    """Noisy latents, noise levels, places and text to the velocity on the latents.

    Args:
        config: its sizes.
        pattern: which tokens of a sample attend to each other in every block; the published models have ``Joint()``. A
            single block's is ``model.blocks[i].branches[0].inner.pattern``.

    Example:
        >>> from tubelet import Grid
        >>> model = LTXTransformer(LTXConfig(dim=24, depth=2, heads=2, latent_channels=4, text_dim=8))
        >>> layout = TokenLayout.packed([Grid(3, 4, 4), Grid(1, 2, 6)]).on("cpu")
        >>> text_layout = TokenLayout.packed([None, None], [3, 1]).on("cpu")
        >>> t = layout.rows(torch.tensor([0.2, 0.9]), "sample")
        >>> places = ltx_places(layout, layout.rows(torch.tensor([24.0, 30.0]), "sample"))
        >>> model(torch.randn(60, 4), t, torch.randn(4, 8), layout, text_layout, places).shape
        torch.Size([60, 4])
    """

    def __init__(
        self,
        config: LTXConfig,
        *,
        pattern: Pattern = Joint(),  # noqa: B008 - a frozen value
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        dim, channels = config.dim, config.latent_channels
        self.embed = nn.Linear(channels, dim, device=device, dtype=dtype)
        self.rope = FractionalRope3d(config.heads, dim // config.heads, place=Interpolation(_LARGEST))
        self.time = TimestepEmbedding(dim, device=device, dtype=dtype)
        self.modulation = nn.Linear(dim, 6 * dim, device=device, dtype=dtype)
        self.text = MLP(config.text_dim, dim, out=dim, device=device, dtype=dtype)
        self.blocks = nn.ModuleList(_block(config, pattern, device, dtype) for _ in range(config.depth))
        self.final_norm = LayerNorm(dim, 1e-6, affine=False, device=device, dtype=dtype)
        self.final_modulation = AdaLNSingle(dim, parts=2, device=device, dtype=dtype)
        self.project = nn.Linear(dim, channels, device=device, dtype=dtype)
        self._reset_own()

    def reset_parameters(self) -> None:
        """Every child anew (after meta construction, say), then the model's own."""
        reset_children(self)
        self._reset_own()

    def _reset_own(self) -> None:
        """Xavier input, normal embeddings, zero output; the children have initialised themselves."""
        nn.init.xavier_uniform_(self.embed.weight)
        for linear in (self.modulation, self.text.up, self.text.down):
            nn.init.normal_(linear.weight, std=0.02)
        nn.init.zeros_(self.project.weight)
        for linear in (self.embed, self.modulation, self.project):
            nn.init.zeros_(linear.bias)

    def forward(
        self,
        x: Float[Tensor, "*lead c"],
        t: Rows,
        text: Float[Tensor, "*text_lead e"],
        layout: Layout,
        text_layout: Layout,
        places: Float[Tensor, "*lead 3"],
    ) -> Float[Tensor, "*lead c"]:
        """Predict from noisy latents. Padding may hold anything.

        Args:
            x: latents at their noise levels, a token a cell.
            t: noise levels in [0, 1], one row per sample, frame or token (or one for all).
            text: encoded prompts.
            layout: where the samples of ``x`` lie.
            text_layout: where the prompts of the same samples lie in ``text``.
            places: where each token begins, in seconds and pixels (:func:`ltx_places`).

        Raises:
            ValueError: shapes and layouts disagree.
        """
        index, text_index = on(layout, x), on(text_layout, x, "text_layout")
        check_tokens("x", x, self.config.latent_channels, index, index)
        check_tokens("text", text, self.config.text_dim, text_index, index)
        check_dtypes(self.embed, x=x, text=text)
        check_tokens("places", places, 3, index, index)
        t = real_levels(t, index)
        time = t.map(lambda level: self.time(index_time(level, self.config.time_scale)))
        words = self.text(text_index.zero_padding(text))
        # the tokens last: their gradient, which is the largest here, is the first to go
        h: Tensor = self.embed(index.zero_padding(x))
        time = time.map(lambda c: c.to(h.dtype))
        shared = time.map(lambda c: self.modulation(F.silu(c)))
        context: dict[str, Any] = {
            "layout": index,
            "rope": self.rope(index.zero_padding(places), torch.promote_types(h.dtype, torch.float32)),
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
            x: Float[Tensor, "*lead c"],
            t: Rows,
            text: Float[Tensor, "*text_lead e"],
            layout: Layout,
            text_layout: Layout,
            places: Float[Tensor, "*lead 3"],
        ) -> Float[Tensor, "*lead c"]: ...


def _block(
    config: LTXConfig, pattern: Pattern, device: torch.device | str | None, dtype: torch.dtype | None
) -> TransformerBlock:
    """Modulated self-attention, plain cross-attention without a norm, modulated MLP; one table for the block."""
    dim, heads = config.dim, config.heads
    qk_norm = partial(RMSNorm, eps=1e-5)
    attention = Branch(
        Attention(dim, heads, qk_norm=qk_norm, across_heads=True, pattern=pattern, device=device, dtype=dtype),
        RMSNorm(dim, config.eps, affine=False, device=device, dtype=dtype),
        modulation=ModulationSlice(dim, 0),
        takes=("layout", "rope"),
    )
    cross = Branch(
        CrossAttention(dim, heads, qk_norm=qk_norm, across_heads=True, device=device, dtype=dtype),
        takes=("text", "layout", "text_layout"),
    )
    mlp = Branch(
        MLP(dim, device=device, dtype=dtype),
        RMSNorm(dim, config.eps, affine=False, device=device, dtype=dtype),
        modulation=ModulationSlice(dim, 3),
    )
    return TransformerBlock([attention, cross, mlp], AdaLNSingle(dim, parts=6, device=device, dtype=dtype))
