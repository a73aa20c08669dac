"""Latte, the latent diffusion transformer with separate space and time, over packed latents: text to video.

The recipe of the open checkpoint Latte-1 (Ma et al., 2024, arXiv:2401.03048, section 3.1) is PixArt-alpha's
(arXiv:2310.00426, section 2.3) with blocks over space and blocks over time in turn: one projection of the noise level
modulates all blocks, each of which adds a table; cross-attention to T5 text follows each attention over space, with
neither a norm before it nor a gate. Sinusoids of the place in the frame are added to the patches, those of the frame
once, before the first block over time; an image has none. The paper's other three variants are a word in the config.

What the published code cannot do: mixtures of sizes and of frame counts on one axis, text of each sample's own length,
noise levels per frame or token, any other pattern over space or time. The published pipeline attends to all tokens of a
prompt, cut to its own length if it is alone and with zeros behind it (which count) in a batch.

Shapes: ``*lead`` tokens, ``p = pt·ph·pw·c`` numbers a patch, ``q >= p`` numbers predicted for it, ``m`` text tokens.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tubelet.attention import CrossAttention, Spatial, Temporal
from tubelet.blocks import norm_modulate
from tubelet.conditioning import AdaLNSingle, TimestepEmbedding
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
from tubelet.models.latte_variants import LatteVariant, latte_arrangement, latte_blocks
from tubelet.norms import LayerNorm
from tubelet.positions import Stretched, sincos_1d, sincos_2d
from tubelet.protocols import Pattern

__all__ = ["LatteConfig", "LatteTransformer", "latte_1", "latte_positions"]

Layout = TokenLayout | LayoutIndex


@dataclass(frozen=True, kw_only=True)
class LatteConfig:
    """Sizes of a :class:`LatteTransformer`.

    ``depth`` counts all blocks, over space and over time; ``variance_channels`` are predicted beside the latents';
    ``patch`` is ``(t, h, w)`` in latent cells; ``sample_size`` is the side of a frame, in cells, over whose places the
    positions of every frame are spread, counted in steps of ``sample_size // 64`` from 128 on; samples of fewer frames
    than ``temporal_from`` pass by what attends over time (2: images do, as in the published joint training; 1: none);
    a noise level ``t`` in [0, 1] is embedded as ``time_scale·t + time_shift``. The MLPs are four times as
    wide as the tokens.

    Raises:
        ValueError: a size does not divide or is not positive, or the variant has another.

    Example:
        >>> LatteConfig(dim=24, depth=2, heads=2, variance_channels=4).out_dim
        32
    """

    dim: int
    depth: int
    heads: int
    variant: LatteVariant = "interleaved"
    latent_channels: int = 4
    variance_channels: int = 0
    text_dim: int = 4096
    patch: tuple[int, int, int] = (1, 2, 2)
    sample_size: int = 64
    temporal_from: int = 1
    frequencies: int = 256
    eps: float = 1e-6
    time_scale: float = 1000.0
    time_shift: float = -1.0

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("dim", "depth", "heads", "latent_channels", "text_dim", "temporal_from"):
            if (size := getattr(self, name)) < 1:
                raise ValueError(f"{name} must be positive, got {size}")
        check_patch(self.patch)
        if self.variance_channels < 0:
            raise ValueError(f"variance_channels must not be negative, got {self.variance_channels}")
        if self.dim % self.heads or self.dim % 4:
            raise ValueError(f"dim={self.dim} must be a multiple of heads={self.heads} and, for its positions, of 4")
        if self.variant == "half_heads" and self.heads % 2:
            raise ValueError(f"heads={self.heads} do not make two halves for variant='half_heads'")
        if self.sample_size < 1 or any(self.sample_size % side for side in self.patch[1:]):
            raise ValueError(f"sample_size={self.sample_size} is not made of patches of {self.patch[1:]}")
        if self.frequencies % 2 or self.frequencies < 2:
            raise ValueError(f"frequencies must be even and positive, got {self.frequencies}")
        latte_arrangement(self.variant, self.depth)

    @property
    def patch_dim(self) -> int:
        """Numbers in one patch, ``pt·ph·pw·c``."""
        return math.prod(self.patch) * self.latent_channels

    @property
    def out_dim(self) -> int:
        """Numbers predicted for one patch: as many as it holds, and behind them those of the variance."""
        return math.prod(self.patch) * (self.latent_channels + self.variance_channels)

    @property
    def places(self) -> tuple[float, float]:
        """How many places the rows and the columns of every frame are spread over."""
        step = max(self.sample_size // 64, 1)
        h, w = (self.sample_size / side / step for side in self.patch[1:])
        return h, w


def latte_1() -> LatteConfig:
    """Text to video, 1.06 billion parameters; it predicts the noise and the range of the variance.

    Example:
        >>> latte_1().depth
        56
    """
    return LatteConfig(dim=1152, depth=56, heads=16, variance_channels=4)


def latte_positions(
    index: LayoutIndex, sides: tuple[float, float], dim: int, dtype: torch.dtype
) -> tuple[Float[Tensor, "*lead d"], Float[Tensor, "*lead d"]]:
    """What is added to the tokens for their place in the frame, and before attention over time for the frame.

    Args:
        index: where the tokens lie.
        sides: how many places the rows and the columns of every frame are spread over.
        dim: width of the tokens.
        dtype: of the tokens; the sinusoids have it or float32, whichever is wider.

    Returns:
        Two sinusoids; the second is zero for images, whose only frame has no place in time.

    Example:
        >>> from tubelet import Grid
        >>> index = TokenLayout.packed([Grid(2, 1, 1), Grid(1, 1, 1)]).on("cpu")
        >>> in_frame, in_time = latte_positions(index, (4.0, 4.0), 4, torch.float32)
        >>> in_frame.shape, in_time.any(dim=-1).tolist()
        (torch.Size([3, 4]), [True, True, False])
    """
    places = Stretched(sides)(index.coords, index.extent)
    wide = torch.promote_types(dtype, torch.float32)
    in_frame, in_time = sincos_2d(places[..., 1:], dim, dtype=wide), sincos_1d(places[..., 0], dim, dtype=wide)
    return in_frame, torch.where(index.extent[..., :1] > 1, in_time, 0)


class LatteTransformer(nn.Module):
    """Noisy patches, noise levels and text to the prediction on the patches, the variance's numbers behind it.

    Args:
        config: its sizes.
        spatial: which tokens of a sample attend to each other over space.
        temporal: the same over time.

    Example:
        >>> from tubelet import Grid
        >>> model = LatteTransformer(LatteConfig(dim=24, depth=2, heads=2, text_dim=8, variance_channels=4))
        >>> layout = TokenLayout.packed([Grid(3, 4, 4), Grid(1, 2, 6)]).on("cpu")
        >>> text_layout = TokenLayout.packed([None, None], [3, 1]).on("cpu")
        >>> t = layout.rows(torch.tensor([0.2, 0.9]), "sample")
        >>> out = model(torch.randn(60, 16), t, torch.randn(4, 8), layout, text_layout)
        >>> noise, variance = out.split([16, 16], dim=-1)
        >>> noise.shape
        torch.Size([60, 16])
    """

    def __init__(
        self,
        config: LatteConfig,
        *,
        spatial: Pattern = Spatial(),  # noqa: B008 - a frozen value
        temporal: Pattern = Temporal(),  # noqa: B008 - a frozen value
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        dim, arranged = config.dim, latte_arrangement(config.variant, config.depth)
        self.embed = nn.Linear(config.patch_dim, dim, device=device, dtype=dtype)
        self.time = TimestepEmbedding(dim, config.frequencies, device=device, dtype=dtype)
        self.modulation = nn.Linear(dim, arranged.parts * dim, device=device, dtype=dtype)
        self.text = MLP(config.text_dim, dim, out=dim, device=device, dtype=dtype)
        self.before_time = arranged.before_time
        self.blocks = latte_blocks(
            arranged,
            dim,
            config.heads,
            spatial=spatial,
            temporal=temporal,
            modulation=lambda parts: AdaLNSingle(dim, parts, device=device, dtype=dtype),
            cross=lambda: CrossAttention(dim, config.heads, device=device, dtype=dtype),
            eps=config.eps,
            device=device,
            dtype=dtype,
        )
        self.final_norm = LayerNorm(dim, affine=False, device=device, dtype=dtype)
        self.final_modulation = AdaLNSingle(dim, parts=2, device=device, dtype=dtype)
        self.project = nn.Linear(dim, config.out_dim, device=device, dtype=dtype)
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
    ) -> Float[Tensor, "*lead q"]:
        """Predict from noisy patches. Padding may hold anything.

        Args:
            x: patches at their noise levels.
            t: noise levels in [0, 1], one row per sample, frame or token (or one for all).
            text: encoded prompts.
            layout: where the samples of ``x`` lie; any number of frames each.
            text_layout: where the prompts of the same samples lie in ``text``.

        Returns:
            ``config.out_dim`` numbers a patch: the prediction, then those of the variance channels in the same order.

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
        in_frame, in_time = latte_positions(index, self.config.places, self.config.dim, h.dtype)
        context: Mapping[str, Any] = {
            "layout": index,
            "moving": index.extent[..., :1] >= self.config.temporal_from,
            "text": words,
            "text_layout": text_index,
        }
        h = (h + in_frame).to(h.dtype)
        for block in self.blocks[: self.before_time]:
            h = block(h, shared, context)
        h = (h + in_time).to(h.dtype)
        for block in self.blocks[self.before_time :]:
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
        ) -> Float[Tensor, "*lead q"]: ...
