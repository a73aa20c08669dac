"""Mochi 1, the open video transformer of Genmo (2024), over packed latents.

The recipe (its published code and model card: "asymmetric diffusion transformer"): dual-stream blocks in which video
and text have weights and widths of their own, the text a half of the video's, and meet in one joint attention. Norms
stand before and behind each function (sandwich), without weights; modulation scales without shifting, gates pass
through tanh; the last block leaves the text as it is. Queries and keys are RMS-normed head by head, those of the video
turned by learned frequencies that mix the three axes over centred positions of one area. Attention-pooled T5 joins the
noise level in the modulation.

What the published code cannot do: mixtures of sizes on one axis, prompts without padding, noise levels per sample,
frame or token (the text then has its sample's highest), and any attention pattern.

The published network counts time from noise to data and predicts data minus noise; here as everywhere a level of 1 is
noise, and the velocity is noise minus data.

Shapes: ``*lead`` tokens, ``p = pt·ph·pw·c`` numbers a patch, ``m`` text tokens of ``e`` numbers.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tubelet.attention import Attention, Joint, JointAttention
from tubelet.blocks import Branch, norm_modulate
from tubelet.conditioning import AdaLNZero, ModulationSlice, TimestepEmbedding
from tubelet.layout import JointIndex, LayoutIndex, Rows, TokenLayout
from tubelet.mlp import SwiGLU
from tubelet.models.inputs import (
    check_dtypes,
    check_fields,
    check_patch,
    check_tokens,
    highest_levels,
    index_time,
    joined,
    on,
    real_levels,
    reset_children,
)
from tubelet.norms import LayerNorm, RMSNorm
from tubelet.pooling import MeanQueryPool
from tubelet.positions import AreaNormalised, MixedRope3d
from tubelet.protocols import Pattern
from tubelet.streams import JointBranch, MultiStreamBlock, StreamBranches

__all__ = ["MochiConfig", "MochiTransformer", "mochi_10b"]

Layout = TokenLayout | LayoutIndex


@dataclass(frozen=True, kw_only=True)
class MochiConfig:
    """Sizes of a :class:`MochiTransformer`.

    ``text_width`` is the width of the text inside the blocks, ``text_dim`` that of its encoder; ``patch`` is
    ``(t, h, w)`` in latent cells; ``area`` is that of the grid whose positions are the cells' own; ``time_scale`` is
    what a noise level in [0, 1] is multiplied by before its embedding.

    Raises:
        ValueError: a size does not divide or is not positive.

    Example:
        >>> MochiConfig(dim=24, depth=2, heads=2, text_width=12).patch_dim
        48
    """

    dim: int
    depth: int
    heads: int
    text_width: int
    latent_channels: int = 12
    text_dim: int = 4096
    pool_heads: int = 8
    patch: tuple[int, int, int] = (1, 2, 2)
    frequencies: int = 256
    area: float = 192.0 * 192.0
    time_scale: float = 1000.0

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("dim", "depth", "heads", "text_width", "latent_channels", "text_dim", "pool_heads", "area"):
            if not (size := getattr(self, name)) > 0:
                raise ValueError(f"{name} must be positive, got {size}")
        check_patch(self.patch)
        if self.dim % self.heads or self.dim // self.heads % 2:
            raise ValueError(f"dim={self.dim} does not make heads={self.heads} of even width")
        if self.text_dim % self.pool_heads:
            raise ValueError(f"text_dim={self.text_dim} is not a multiple of pool_heads={self.pool_heads}")
        if self.frequencies % 2 or self.frequencies < 2:
            raise ValueError(f"frequencies must be even and positive, got {self.frequencies}")

    @property
    def patch_dim(self) -> int:
        """Numbers in one patch, ``pt·ph·pw·c``."""
        return math.prod(self.patch) * self.latent_channels


def mochi_10b() -> MochiConfig:
    """Mochi 1 preview, 10.03 billion parameters.

    Example:
        >>> mochi_10b().depth
        48
    """
    return MochiConfig(dim=3072, depth=48, heads=24, text_width=1536)


class MochiTransformer(nn.Module):
    """Noisy patches, noise levels and text to the velocity on the patches.

    Args:
        config: its sizes.
        pattern: which tokens of a sample attend to each other in every block; the published model has ``Joint()``.

    Example:
        >>> from tubelet import Grid
        >>> model = MochiTransformer(MochiConfig(dim=24, depth=2, heads=2, text_width=12, text_dim=8))
        >>> layout = TokenLayout.packed([Grid(3, 4, 4), Grid(1, 2, 6)])
        >>> text_layout = TokenLayout.packed([None, None], [3, 1])
        >>> t = layout.on("cpu").rows(torch.tensor([0.2, 0.9]), "sample")
        >>> model(torch.randn(60, 48), t, torch.randn(4, 8), layout, text_layout).shape
        torch.Size([60, 48])
    """

    def __init__(
        self,
        config: MochiConfig,
        *,
        pattern: Pattern = Joint(),  # noqa: B008 - a frozen value
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.embed = nn.Linear(config.patch_dim, dim, **made)
        self.places = AreaNormalised(config.area)
        self.rope = MixedRope3d(config.heads, dim // config.heads, **made)
        self.time = TimestepEmbedding(dim, config.frequencies, **made)
        self.pool = MeanQueryPool(config.text_dim, config.pool_heads, dim, **made)
        self.text = nn.Linear(config.text_dim, config.text_width, **made)
        last = config.depth - 1
        self.blocks = nn.ModuleList(_block(config, pattern, i < last, device, dtype) for i in range(config.depth))
        self.final_norm = LayerNorm(dim, affine=False, **made)
        self.final_modulation = AdaLNZero(dim, dim, parts=2, **made)
        self.project = nn.Linear(dim, config.patch_dim, **made)
        self._reset_own()

    def reset_parameters(self) -> None:
        """Every child anew (after meta construction, say), then the model's own."""
        reset_children(self)
        self._reset_own()

    def _reset_own(self) -> None:
        """Xavier input and text, zero output; the children have initialised themselves."""
        for linear in (self.embed, self.text):
            nn.init.xavier_uniform_(linear.weight)
        nn.init.zeros_(self.project.weight)
        for linear in (self.embed, self.text, self.project):
            nn.init.zeros_(linear.bias)

    def forward(
        self,
        x: Float[Tensor, "*lead p"],
        t: Rows,
        text: Float[Tensor, "*text_lead e"],
        layout: Layout,
        text_layout: Layout,
        joint: JointIndex | None = None,
    ) -> Float[Tensor, "*lead p"]:
        """Predict from noisy patches. Padding may hold anything.

        Args:
            x: patches at their noise levels.
            t: noise levels in [0, 1], one row per sample, frame or token (or one for all).
            text: encoded prompts.
            layout: where the samples of ``x`` lie.
            text_layout: where the prompts of the same samples lie in ``text``.
            joint: the two layouts merged, text first: made here if None. Many calls, such as the steps of a sampler,
                may share one ``JointLayout((text_layout, layout)).on(device)``, which indices with dropped tokens need.

        Raises:
            ValueError: shapes and layouts disagree.
        """
        index, text_index = on(layout, x), on(text_layout, x, "text_layout")
        check_tokens("x", x, self.config.patch_dim, index, index)
        check_tokens("text", text, self.config.text_dim, text_index, index)
        check_dtypes(self.embed, x=x, text=text)
        t = real_levels(t, index)
        joint = joined(text_layout, layout, joint, x)
        text = text_index.zero_padding(text)
        conds = self._conds(t, self.pool(text, text_index), index, text_index)
        words, places = self.text(text), self.places(index.coords, index.extent)
        # the tokens last: their gradient, which is the largest here, is the first to go
        streams: tuple[Tensor, ...] = (words, self.embed(index.zero_padding(x)))
        context: dict[str, Any] = {"joint": joint, "ropes": (None, self.rope(places))}
        for block in self.blocks:
            streams = block(streams, conds, context)
        scale, shift = self.final_modulation(conds[1]).chunk(2)
        out: Tensor = self.project(norm_modulate(self.final_norm, streams[1], shift, scale))
        return -out

    def _conds(self, t: Rows, pooled: Tensor, index: LayoutIndex, text_index: LayoutIndex) -> tuple[Rows, Rows]:
        """Conditioning of text and video; rows by view are those of both."""
        video = self._cond(t, pooled, index)
        if video.index is None:
            return video, video
        return self._cond(highest_levels(t, index, text_index), pooled, text_index), video

    def _cond(self, t: Rows, pooled: Tensor, index: LayoutIndex) -> Rows:
        """The embedded time, from noise to data, plus the pooled text."""
        time = t.map(lambda level: self.time(index_time(1 - level, self.config.time_scale)).to(pooled.dtype))
        return index.add_per_sample(time, pooled)

    if TYPE_CHECKING:

        def __call__(
            self,
            x: Float[Tensor, "*lead p"],
            t: Rows,
            text: Float[Tensor, "*text_lead e"],
            layout: Layout,
            text_layout: Layout,
            joint: JointIndex | None = None,
        ) -> Float[Tensor, "*lead p"]: ...


def _block(
    config: MochiConfig,
    pattern: Pattern,
    moves_text: bool,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> MultiStreamBlock:
    """Joint attention, then an MLP for each stream; the last block's text has neither a way back nor an MLP."""
    made: dict[str, Any] = {"device": device, "dtype": dtype}
    heads, head_dim = config.heads, config.dim // config.heads
    widths, moves = (config.text_width, config.dim), (moves_text, True)
    norm, qk_norm = partial(RMSNorm, affine=False), partial(RMSNorm, eps=1e-5)
    sandwich: dict[str, Any] = {"parts": ("scale", "gate"), "gate": torch.tanh}
    streams = [
        Attention(w, heads, head_dim=head_dim, bias=False, qk_norm=qk_norm, out_bias=True, out=back, **made)
        for w, back in zip(widths, moves, strict=True)
    ]
    around = [
        Branch(nn.Identity(), norm(w), modulation=ModulationSlice(w, 0, 2), post_norm=norm(w), **sandwich)
        if back
        else Branch(nn.Identity(), norm(w), modulation=ModulationSlice(w, 0, 1), parts=("scale",))
        for w, back in zip(widths, moves, strict=True)
    ]
    attention = JointBranch(JointAttention(streams, pattern=pattern), around, updates=moves, takes=("joint", "ropes"))
    mlps = [
        Branch(SwiGLU(w, **made), norm(w), modulation=ModulationSlice(w, 2, 2), post_norm=norm(w), **sandwich)
        if back
        else None
        for w, back in zip(widths, moves, strict=True)
    ]
    modulations = [
        AdaLNZero(w, config.dim, parts=4 if back else 1, **made) for w, back in zip(widths, moves, strict=True)
    ]
    return MultiStreamBlock([attention, StreamBranches(mlps)], modulations)
