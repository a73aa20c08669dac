"""Cosmos 1, Predict2 and Predict2.5, the open world models of NVIDIA (arXiv:2501.03575), over packed latents.

The recipe (section 5.2.1): blocks of full space-time self-attention, cross-attention to text and a GELU MLP, each of
them modulated and gated by adaLN-LoRA; no affine layer norms, no biases; queries and keys of both attentions are
RMS-normed head by head; rotations of halves, with a base for each axis and frames counted by their rate. The first
models also add learned positions, scaled to unit RMS, before every block. One channel marks padded pixels, and in
models that continue a video another marks the latents that are given.

What the published code cannot do: mixtures of sizes on one axis, prompts of any length without padding, noise levels
per token, a frame rate for each sample, and any attention pattern.

What they predict, of unit-variance latents: Predict2 the velocity ``eps - x0`` on the straight path; Cosmos 1
``sigma·x0 - alpha·eps`` on a path with ``alpha² + sigma² = 1``, which is ``v`` with the other sign.

The published models were trained on prompts padded with zeros to 512 tokens, all of which are attended;
:func:`tubelet.models.pad_prompts` repeats that.

Shapes: ``*lead`` tokens, ``p = pt·ph·pw·c`` numbers a patch, ``k = pt·ph·pw`` cells a patch.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tubelet.attention import Attention, CrossAttention, Joint
from tubelet.blocks import Branch, TransformerBlock, norm_modulate
from tubelet.conditioning import AdaLNLoRA, timestep_sinusoid
from tubelet.layout import LayoutIndex, Rows, TokenLayout
from tubelet.mlp import MLP
from tubelet.models.inputs import (
    check_asked,
    check_dtypes,
    check_fields,
    check_hidden,
    check_per_sample,
    check_rates,
    check_tokens,
    on,
    real_levels,
    reset_children,
)
from tubelet.norms import LayerNorm, RMSNorm
from tubelet.positions import FrameRate, LearnedPositions, Rope3d, ntk_theta, rope_axes
from tubelet.protocols import Pattern

__all__ = [
    "CosmosConfig",
    "CosmosTransformer",
    "cosmos_1_7b",
    "cosmos_1_14b",
    "cosmos_1_v2w_7b",
    "cosmos_1_v2w_14b",
    "cosmos_2_5_2b",
    "cosmos_2_5_14b",
    "cosmos_2_t2i_2b",
    "cosmos_2_t2i_14b",
    "cosmos_2_v2w_2b",
    "cosmos_2_v2w_14b",
]

Layout = TokenLayout | LayoutIndex
Time = Literal["level", "edm"]


@dataclass(frozen=True, kw_only=True)
class CosmosConfig:
    """Sizes of a :class:`CosmosTransformer`.

    ``rank`` is that of adaLN-LoRA; ``text_dim`` the width of encoded prompts, ``context_dim`` the width that they are
    projected to first, None where they are attended as they are; ``patch`` is ``(t, h, w)`` in latent cells;
    ``known_channel`` and ``padding_channel`` put a mask beside the latents of a cell; ``extent`` is the largest grid
    ``(t, h, w)`` of the learned positions, None without; ``rope_scale`` is how many times longer each axis is than the
    base 10,000 of the rotations serves.

    ``time`` says what of a noise level ``t = sigma / (alpha + sigma)`` the network is fed: ``"level"`` is ``t`` itself
    (Predict2), ``"edm"`` is ``log(0.5·sigma / alpha) / 4`` (Cosmos 1, whose data have a deviation of 0.5; EDM,
    arXiv:2206.00364, table 1), where a level counts as at least 1e-6 away from 0 and from 1.

    Raises:
        ValueError: a size does not divide or is not positive, or ``time`` is unknown.

    Example:
        >>> CosmosConfig(dim=24, depth=2, heads=2).patch_dim
        64
    """

    dim: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    rank: int = 256
    latent_channels: int = 16
    known_channel: bool = False
    padding_channel: bool = True
    text_dim: int = 1024
    context_dim: int | None = None
    patch: tuple[int, int, int] = (1, 2, 2)
    extent: tuple[int, int, int] | None = None
    rope_scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    time: Time = "level"

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("dim", "depth", "heads", "rank", "latent_channels", "text_dim", "context_dim"):
            if (size := getattr(self, name)) is not None and size < 1:
                raise ValueError(f"{name} must be positive, got {size}")
        for name in ("patch", "extent", "rope_scale"):
            if (sides := getattr(self, name)) is not None and min(sides) <= 0:
                raise ValueError(f"{name} must be positive on each axis, got {sides}")
        if self.dim % self.heads or self.dim // self.heads % 2 or self.dim < 6 * self.heads:
            raise ValueError(f"dim={self.dim} does not make heads={self.heads} of even width, at least 6")
        check_hidden(self.dim, self.mlp_ratio)

    @property
    def mlp_dim(self) -> int:
        """Hidden width of the MLPs."""
        return int(self.dim * self.mlp_ratio)

    @property
    def cells(self) -> int:
        """Latent cells in one patch, ``pt·ph·pw``."""
        return math.prod(self.patch)

    @property
    def patch_dim(self) -> int:
        """Numbers in one patch, ``pt·ph·pw·c``."""
        return self.cells * self.latent_channels


_2B: dict[str, Any] = {"dim": 2048, "depth": 28, "heads": 16}
_7B: dict[str, Any] = {"dim": 4096, "depth": 28, "heads": 32}
_14B: dict[str, Any] = {"dim": 5120, "depth": 36, "heads": 40}
_FIRST: dict[str, Any] = {"extent": (128, 120, 120), "time": "edm"}


def cosmos_1_7b() -> CosmosConfig:
    """Text to world, 7.2 billion parameters (Cosmos 1).

    Example:
        >>> cosmos_1_7b().extent
        (128, 120, 120)
    """
    return CosmosConfig(**_7B, **_FIRST, rope_scale=(2.0, 1.0, 1.0))


def cosmos_1_v2w_7b() -> CosmosConfig:
    """Text and video to world, 7.2 billion parameters (Cosmos 1).

    Example:
        >>> cosmos_1_v2w_7b().known_channel
        True
    """
    return CosmosConfig(**_7B, **_FIRST, rope_scale=(2.0, 1.0, 1.0), known_channel=True)


def cosmos_1_14b() -> CosmosConfig:
    """Text to world, 14.3 billion parameters (Cosmos 1).

    Example:
        >>> cosmos_1_14b().depth
        36
    """
    return CosmosConfig(**_14B, **_FIRST, rope_scale=(2.0, 2.0, 2.0))


def cosmos_1_v2w_14b() -> CosmosConfig:
    """Text and video to world, 14.3 billion parameters (Cosmos 1).

    Example:
        >>> cosmos_1_v2w_14b().rope_scale
        (2.0, 2.0, 2.0)
    """
    return CosmosConfig(**_14B, **_FIRST, rope_scale=(2.0, 2.0, 2.0), known_channel=True)


def cosmos_2_t2i_2b() -> CosmosConfig:
    """Text to image, 2 billion parameters (Cosmos-Predict2).

    Example:
        >>> cosmos_2_t2i_2b().heads
        16
    """
    return CosmosConfig(**_2B, rope_scale=(1.0, 4.0, 4.0))


def cosmos_2_t2i_14b() -> CosmosConfig:
    """Text to image, 14.3 billion parameters (Cosmos-Predict2).

    Example:
        >>> cosmos_2_t2i_14b().dim
        5120
    """
    return CosmosConfig(**_14B, rope_scale=(1.0, 4.0, 4.0))


def cosmos_2_v2w_2b() -> CosmosConfig:
    """Text and video to world, 2 billion parameters; noise levels per frame (Cosmos-Predict2).

    Example:
        >>> cosmos_2_v2w_2b().known_channel
        True
    """
    return CosmosConfig(**_2B, rope_scale=(1.0, 3.0, 3.0), known_channel=True)


def cosmos_2_v2w_14b() -> CosmosConfig:
    """Text and video to world, 14.3 billion parameters; noise levels per frame (Cosmos-Predict2).

    Example:
        >>> cosmos_2_v2w_14b().rope_scale[1:]
        (2.0, 2.0)
    """
    return CosmosConfig(**_14B, rope_scale=(20 / 24, 2.0, 2.0), known_channel=True)


def cosmos_2_5_2b() -> CosmosConfig:
    """Text, image or video to world, 2.1 billion parameters, on all layers of Qwen2.5-VL (Cosmos-Predict2.5).

    Example:
        >>> cosmos_2_5_2b().text_dim
        100352
    """
    return CosmosConfig(**_2B, rope_scale=(1.0, 3.0, 3.0), known_channel=True, text_dim=100352, context_dim=1024)


def cosmos_2_5_14b() -> CosmosConfig:
    """Text, image or video to world, 14.4 billion parameters, on all layers of Qwen2.5-VL (Cosmos-Predict2.5).

    Example:
        >>> cosmos_2_5_14b().context_dim
        1024
    """
    return CosmosConfig(**_14B, rope_scale=(1.0, 3.0, 3.0), known_channel=True, text_dim=100352, context_dim=1024)


class CosmosTransformer(nn.Module):
    """Noisy patches, noise levels and text to a prediction on the patches.

    Args:
        config: its sizes.
        pattern: which tokens of a sample attend to each other in every block; the published models have ``Joint()``. A
            single block's is ``model.blocks[i].branches[0].inner.pattern``.

    Example:
        >>> from tubelet import Grid
        >>> model = CosmosTransformer(CosmosConfig(dim=24, depth=2, heads=2, text_dim=8))
        >>> layout = TokenLayout.packed([Grid(3, 4, 4), Grid(1, 2, 6)]).on("cpu")
        >>> text_layout = TokenLayout.packed([None, None], [3, 1]).on("cpu")
        >>> t, fps = layout.rows(torch.tensor([0.2, 0.9]), "sample"), torch.tensor([16.0, 24.0])
        >>> model(torch.randn(60, 64), t, torch.randn(4, 8), layout, text_layout, fps=fps).shape
        torch.Size([60, 64])
    """

    def __init__(
        self,
        config: CosmosConfig,
        *,
        pattern: Pattern = Joint(),  # noqa: B008 - a frozen value
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        dim, axes = config.dim, rope_axes(config.dim // config.heads)
        inputs = config.patch_dim + config.cells * (config.known_channel + config.padding_channel)
        self.embed = nn.Linear(inputs, dim, False, device=device, dtype=dtype)
        self.rope = Rope3d(sum(axes), axes, ntk_theta(axes, config.rope_scale), layout="half")
        self.frame_rate = FrameRate(24.0)
        self.positions = None
        if config.extent is not None:
            self.positions = LearnedPositions(config.extent, dim, device=device, dtype=dtype)
        self.time_norm = RMSNorm(dim, device=device, dtype=dtype)
        self.modulation = MLP(dim, dim, act=nn.SiLU(), bias=False, out=3 * dim, device=device, dtype=dtype)
        self.text: nn.Module = nn.Identity()
        if config.context_dim is not None:
            linear = nn.Linear(config.text_dim, config.context_dim, device=device, dtype=dtype)
            self.text = nn.Sequential(linear, nn.GELU())
        self.blocks = nn.ModuleList(_block(config, pattern, device, dtype) for _ in range(config.depth))
        self.final_norm = LayerNorm(dim, affine=False, device=device, dtype=dtype)
        self.final_modulation = AdaLNLoRA(dim, dim, config.rank, parts=2, device=device, dtype=dtype)
        self.project = nn.Linear(dim, config.patch_dim, False, device=device, dtype=dtype)
        self._reset_own()

    def reset_parameters(self) -> None:
        """Every child anew (after meta construction, say), then the model's own."""
        reset_children(self)
        self._reset_own()

    def _reset_own(self) -> None:
        """Xavier input, normal modulation, zero output; the children have initialised themselves."""
        nn.init.xavier_uniform_(self.embed.weight)
        for linear in (self.modulation.up, self.modulation.down):
            nn.init.normal_(linear.weight, std=0.02)
        nn.init.zeros_(self.project.weight)

    def forward(
        self,
        x: Float[Tensor, "*lead p"],
        t: Rows,
        text: Float[Tensor, "*text_lead e"],
        layout: Layout,
        text_layout: Layout,
        known: Float[Tensor, "*lead k"] | None = None,
        padding: Float[Tensor, "*lead k"] | None = None,
        fps: Float[Tensor, " s"] | None = None,
    ) -> Float[Tensor, "*lead p"]:
        """Predict from noisy patches. Padding of the layouts may hold anything.

        Args:
            x: patches at their noise levels; the given ones of a video hold what is given.
            t: noise levels in [0, 1], one row per sample, frame or token (or one for all).
            text: encoded prompts.
            layout: where the samples of ``x`` lie.
            text_layout: where the prompts of the same samples lie in ``text``.
            known: 1 where a latent cell is given, else 0, where the config has ``known_channel``.
            padding: 1 where a latent cell shows padding of the picture, else 0; None: none does.
            fps: frames a second of each sample; None: 24.

        Raises:
            ValueError: shapes and layouts disagree, or the config asks for inputs that are not there or has none such.
        """
        index, text_index = on(layout, x), on(text_layout, x, "text_layout")
        self._check(x, text, index, text_index)
        t = real_levels(t, index)
        inputs = index.zero_padding(self._with_masks(x, known, padding, index))
        h: Tensor = self.embed(inputs)
        places = None if self.positions is None else _unit(self.positions(index.coords)).to(h.dtype)
        cond = t.map(lambda level: self._condition(level, h.dtype))
        context: dict[str, Any] = {
            "layout": index,
            "rope": self.rope(self._coords(index, fps), torch.promote_types(h.dtype, torch.float32)),
            "text": self.text(text_index.zero_padding(text)),
            "text_layout": text_index,
        }
        for block in self.blocks:
            h = block(h if places is None else h + places, cond, context)
        shift, scale = self.final_modulation(cond).chunk(2)
        out: Tensor = self.project(norm_modulate(self.final_norm, h, shift, scale))
        return out

    def _condition(self, level: Float[Tensor, " r"], dtype: torch.dtype) -> Float[Tensor, "r c"]:
        """The normed sinusoid of each noise level, and behind it the modulation that all blocks share."""
        features = timestep_sinusoid(_MODEL_TIME[self.config.time](level), self.config.dim).to(dtype)
        return torch.cat([self.time_norm(features), self.modulation(features)], dim=-1)

    def _coords(self, index: LayoutIndex, fps: Tensor | None) -> Tensor:
        """Where each token stands, frames counted by their rate."""
        if fps is None:
            return index.coords
        check_per_sample("fps", fps, (), index)
        rates = index.rows(fps, "sample")
        check_rates("fps", rates, index)
        return self.frame_rate(index.coords, rates.expand())

    def _with_masks(self, x: Tensor, known: Tensor | None, padding: Tensor | None, index: LayoutIndex) -> Tensor:
        """Latents, and behind them the masks that the config has."""
        config = self.config
        check_asked("known", known, config.known_channel, f"known_channel={config.known_channel}")
        if padding is None and config.padding_channel:
            padding = x.new_zeros(*x.shape[:-1], config.cells)
        elif padding is not None and not config.padding_channel:
            raise ValueError(f"padding is of shape {tuple(padding.shape)}, but the model has padding_channel=False")
        masks = {name: mask for name, mask in (("known", known), ("padding", padding)) if mask is not None}
        for name, mask in masks.items():
            check_tokens(name, mask, config.cells, index, index)
        return torch.cat([x, *(mask.to(x.dtype) for mask in masks.values())], dim=-1)

    def _check(self, x: Tensor, text: Tensor, layout: LayoutIndex, text_layout: LayoutIndex) -> None:
        check_tokens("x", x, self.config.patch_dim, layout, layout)
        check_tokens("text", text, self.config.text_dim, text_layout, layout)
        check_dtypes(self.embed, x=x, text=text)

    if TYPE_CHECKING:

        def __call__(
            self,
            x: Float[Tensor, "*lead p"],
            t: Rows,
            text: Float[Tensor, "*text_lead e"],
            layout: Layout,
            text_layout: Layout,
            known: Float[Tensor, "*lead k"] | None = None,
            padding: Float[Tensor, "*lead k"] | None = None,
            fps: Float[Tensor, " s"] | None = None,
        ) -> Float[Tensor, "*lead p"]: ...


def _block(
    config: CosmosConfig, pattern: Pattern, device: torch.device | str | None, dtype: torch.dtype | None
) -> TransformerBlock:
    """Self-attention, cross-attention and MLP, each modulated and gated by its own low-rank term."""
    dim, heads = config.dim, config.heads
    context_dim = config.text_dim if config.context_dim is None else config.context_dim
    options: dict[str, Any] = {"bias": False, "device": device, "dtype": dtype}
    qk_norm = partial(RMSNorm, eps=1e-5)  # as in diffusers; NVIDIA's own code has 1e-6

    def branch(inner: nn.Module, takes: tuple[str, ...] = ()) -> Branch:
        norm = LayerNorm(dim, affine=False, device=device, dtype=dtype)
        modulation = AdaLNLoRA(dim, dim, config.rank, device=device, dtype=dtype)
        return Branch(inner, norm, modulation=modulation, takes=takes)

    attention = Attention(dim, heads, qk_norm=qk_norm, pattern=pattern, **options)
    cross = CrossAttention(dim, heads, context_dim=context_dim, qk_norm=qk_norm, **options)
    return TransformerBlock(
        [
            branch(attention, ("layout", "rope")),
            branch(cross, ("text", "layout", "text_layout")),
            branch(MLP(dim, config.mlp_dim, act=nn.GELU(), **options)),
        ]
    )


def _unit(vectors: Float[Tensor, "*lead d"]) -> Float[Tensor, "*lead d"]:
    """Vectors over their root mean square; zeros stay zeros."""
    wide = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
    out: Tensor = wide / (torch.linalg.vector_norm(wide, dim=-1, keepdim=True) / math.sqrt(wide.shape[-1]) + 1e-6)
    return out


def _edm(t: Tensor) -> Tensor:
    """``log(0.5·t / (1 - t)) / 4``, in float32 or better; finite at 0 and at 1."""
    wide = t.to(torch.promote_types(t.dtype, torch.float32))
    return (torch.logit(wide, eps=1e-6) + math.log(0.5)) / 4


_MODEL_TIME: dict[str, Callable[[Tensor], Tensor]] = {"level": lambda t: t, "edm": _edm}
