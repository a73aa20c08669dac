"""Wan 2.1 and 2.2, the open video transformers of Alibaba (Wan team, 2025, arXiv:2503.20314), over packed latents.

The recipe (section 4.2): blocks of full space-time self-attention, cross-attention to umT5 text and a GELU MLP. One
projection of the noise level modulates all blocks, each of which adds a table; cross-attention is neither modulated nor
gated and has an affine norm; queries and keys are RMS-normed across all heads; norms, modulation and residual are
float32 in a bfloat16 model. Image-to-video models read given latents beside the noisy ones, and the first of them also
an image encoder's tokens by keys and values of their own.

What the published code cannot do: mixtures of sizes on one axis, prompts of any length without padding, noise levels
per sample, frame or token, and any attention pattern.

The published models were trained on prompts padded with zeros to 512 tokens, all of which are attended;
:func:`pad_prompts` repeats that. A text layout of the prompts' own lengths leaves the padding out.

Shapes: ``*lead`` tokens, ``p = pt·ph·pw·c`` numbers a patch, ``g`` the same of the given channels, ``m`` text tokens.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tubelet.attention import Attention, CrossAttention, DecoupledCrossAttention, Joint
from tubelet.blocks import Branch, TransformerBlock, norm_modulate
from tubelet.conditioning import AdaLNSingle, ModulationSlice, TimestepEmbedding
from tubelet.layout import LayoutIndex, Rows, TokenLayout
from tubelet.mlp import MLP
from tubelet.models.inputs import (
    check_dtypes,
    check_fields,
    check_given,
    check_longest,
    check_patch,
    check_tokens,
    index_time,
    on,
    real_levels,
    reset_children,
)
from tubelet.norms import LayerNorm, RMSNorm
from tubelet.positions import Rope3d
from tubelet.protocols import Pattern

__all__ = [
    "WanConfig",
    "WanTransformer",
    "pad_prompts",
    "wan_1_3b",
    "wan_2_2_5b",
    "wan_2_2_i2v_14b",
    "wan_14b",
    "wan_i2v_14b",
]

Layout = TokenLayout | LayoutIndex


@dataclass(frozen=True, kw_only=True)
class WanConfig:
    """Sizes of a :class:`WanTransformer`.

    ``patch`` is ``(t, h, w)`` in latent cells; ``given_channels`` come beside the noisy latents (mask and frames that
    are given); ``image_dim`` is the width of an image encoder's tokens, None without; ``image_tokens`` how many of them
    have learned positions (two images of 257), None without; ``cross_norm`` puts an affine norm before cross-attention;
    ``time_scale`` is what a noise level in [0, 1] is multiplied by before its embedding.

    Raises:
        ValueError: a size does not divide or is not positive, or ``image_tokens`` without ``image_dim``.

    Example:
        >>> WanConfig(dim=24, depth=2, heads=2, mlp_dim=32).patch_dim
        64
    """

    dim: int
    depth: int
    heads: int
    mlp_dim: int
    latent_channels: int = 16
    given_channels: int = 0
    text_dim: int = 4096
    image_dim: int | None = None
    image_tokens: int | None = None
    patch: tuple[int, int, int] = (1, 2, 2)
    frequencies: int = 256
    cross_norm: bool = True
    eps: float = 1e-6
    time_scale: float = 1000.0

    def __post_init__(self) -> None:
        check_fields(self)
        sizes = ("dim", "depth", "heads", "mlp_dim", "latent_channels", "text_dim", "image_dim", "image_tokens")
        for name in sizes:
            if (size := getattr(self, name)) is not None and size < 1:
                raise ValueError(f"{name} must be positive, got {size}")
        check_patch(self.patch)
        if self.given_channels < 0:
            raise ValueError(f"given_channels must not be negative, got {self.given_channels}")
        if self.dim % self.heads or self.dim // self.heads % 2 or self.dim < 6 * self.heads:
            raise ValueError(f"dim={self.dim} does not make heads={self.heads} of even width, at least 6")
        if self.frequencies % 2 or self.frequencies < 2:
            raise ValueError(f"frequencies must be even and positive, got {self.frequencies}")
        if self.image_tokens is not None and self.image_dim is None:
            raise ValueError(f"image_tokens={self.image_tokens} have positions, but image_dim is None")

    @property
    def patch_dim(self) -> int:
        """Numbers in one patch, ``pt·ph·pw·c``."""
        return math.prod(self.patch) * self.latent_channels

    @property
    def given_dim(self) -> int:
        """Given numbers beside one patch."""
        return math.prod(self.patch) * self.given_channels


def wan_1_3b() -> WanConfig:
    """Text to video, 1.42 billion parameters (Wan 2.1).

    Example:
        >>> wan_1_3b().depth
        30
    """
    return WanConfig(dim=1536, depth=30, heads=12, mlp_dim=8960)


def wan_14b() -> WanConfig:
    """Text to video, 14.3 billion parameters (Wan 2.1; each of the two experts of Wan 2.2 A14B).

    Example:
        >>> wan_14b().dim
        5120
    """
    return WanConfig(dim=5120, depth=40, heads=40, mlp_dim=13824)


def wan_i2v_14b() -> WanConfig:
    """Image to video with CLIP's tokens of the image beside its latents (Wan 2.1).

    Example:
        >>> wan_i2v_14b().given_channels
        20
    """
    return WanConfig(dim=5120, depth=40, heads=40, mlp_dim=13824, given_channels=20, image_dim=1280)


def wan_2_2_i2v_14b() -> WanConfig:
    """Image to video by latents alone (each of the two experts of Wan 2.2 A14B).

    Example:
        >>> wan_2_2_i2v_14b().image_dim is None
        True
    """
    return WanConfig(dim=5120, depth=40, heads=40, mlp_dim=13824, given_channels=20)


def wan_2_2_5b() -> WanConfig:
    """Text and image to video on latents of 16×16 pixels; noise levels per token (Wan 2.2).

    Example:
        >>> wan_2_2_5b().latent_channels
        48
    """
    return WanConfig(dim=3072, depth=30, heads=24, mlp_dim=14336, latent_channels=48)


def pad_prompts(
    text: Float[Tensor, "*text_lead e"], layout: TokenLayout, tokens: int = 512
) -> tuple[Float[Tensor, "*padded_lead e"], TokenLayout]:
    """Prompts with zeros behind them that count as tokens, as the published models are fed.

    Args:
        text: encoded prompts, end to end or in rows.
        layout: where they lie.
        tokens: how many each prompt has afterwards.

    Returns:
        The longer prompts in the form of the given ones, and their layout.

    Raises:
        ValueError: a prompt is longer than ``tokens``.

    Example:
        >>> text, layout = pad_prompts(torch.ones(3, 8), TokenLayout.packed([None, None], [2, 1]), tokens=4)
        >>> text[:, 0].tolist(), layout.lengths
        ([1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0], (4, 4))
    """
    if max(layout.lengths) > tokens:
        raise ValueError(f"a prompt has {max(layout.lengths)} tokens, more than tokens={tokens}")
    flat, samples = text.reshape(-1, text.shape[-1]), len(layout.lengths)
    parts = (flat[start : start + n] for start, n in zip(layout.starts, layout.lengths, strict=True))
    padded = torch.stack([F.pad(part, (0, 0, 0, tokens - len(part))) for part in parts])
    if layout.batched:
        return padded, TokenLayout.padded([tokens] * samples, tokens)
    return padded.flatten(0, 1), TokenLayout.packed([None] * samples, [tokens] * samples)


class WanTransformer(nn.Module):
    """Noisy patches, noise levels and text to the velocity on the patches.

    Args:
        config: its sizes.
        pattern: which tokens of a sample attend to each other in every block; the published models have ``Joint()``. A
            single block's is ``model.blocks[i].branches[0].inner.pattern``.

    Example:
        >>> from tubelet import Grid
        >>> model = WanTransformer(WanConfig(dim=24, depth=2, heads=2, mlp_dim=32, text_dim=8))
        >>> layout = TokenLayout.packed([Grid(3, 4, 4), Grid(1, 2, 6)]).on("cpu")
        >>> text_layout = TokenLayout.packed([None, None], [3, 1]).on("cpu")
        >>> t = layout.rows(torch.tensor([0.2, 0.9]), "sample")
        >>> model(torch.randn(60, 64), t, torch.randn(4, 8), layout, text_layout).shape
        torch.Size([60, 64])
    """

    def __init__(
        self,
        config: WanConfig,
        *,
        pattern: Pattern = Joint(),  # noqa: B008 - a frozen value
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.embed = nn.Linear(config.patch_dim + config.given_dim, dim, device=device, dtype=dtype)
        self.rope = Rope3d(dim // config.heads)
        self.time = TimestepEmbedding(dim, config.frequencies, device=device, dtype=dtype)
        self.modulation = nn.Linear(dim, 6 * dim, device=device, dtype=dtype)
        self.text = MLP(config.text_dim, dim, out=dim, device=device, dtype=dtype)
        self.image = None if config.image_dim is None else _ImageTokens(config, device=device, dtype=dtype)
        self.blocks = nn.ModuleList(_block(config, pattern, device, dtype) for _ in range(config.depth))
        self.final_norm = LayerNorm(dim, config.eps, affine=False, device=device, dtype=dtype)
        self.final_modulation = AdaLNSingle(dim, parts=2, device=device, dtype=dtype)
        self.project = nn.Linear(dim, config.patch_dim, device=device, dtype=dtype)
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
        x: Float[Tensor, "*lead p"],
        t: Rows,
        text: Float[Tensor, "*text_lead e"],
        layout: Layout,
        text_layout: Layout,
        given: Float[Tensor, "*lead g"] | None = None,
        image: Float[Tensor, "*image_lead i"] | None = None,
        image_layout: Layout | None = None,
    ) -> Float[Tensor, "*lead p"]:
        """Predict from noisy patches. Padding may hold anything.

        Args:
            x: patches at their noise levels.
            t: noise levels in [0, 1], one row per sample, frame or token (or one for all).
            text: encoded prompts.
            layout: where the samples of ``x`` lie.
            text_layout: where the prompts of the same samples lie in ``text``.
            given: patches of the given channels, where the config has some.
            image, image_layout: an image encoder's tokens and where they lie, where the config has ``image_dim``.

        Raises:
            ValueError: shapes and layouts disagree, or the config asks for inputs that are not there or has none such.
        """
        index, text_index = on(layout, x), on(text_layout, x, "text_layout")
        self._check(x, text, index, text_index, given)
        t = real_levels(t, index)
        inputs = x if given is None else torch.cat([x, given], dim=-1)
        time = t.map(lambda level: self.time(index_time(level, self.config.time_scale)))
        words = self.text(text_index.zero_padding(text))
        # the tokens last: their gradient, which is the largest here, is the first to go
        h: Tensor = self.embed(index.zero_padding(inputs))
        time = time.map(lambda c: c.to(h.dtype))
        shared = time.map(lambda c: self.modulation(F.silu(c)))
        context: dict[str, Any] = {
            "layout": index,
            "rope": self.rope(index.coords, torch.promote_types(h.dtype, torch.float32)),
            "text": words,
            "text_layout": text_index,
            **self._image(image, image_layout, index),
        }
        for block in self.blocks:
            h = block(h, shared, context)
        shift, scale = self.final_modulation(time.map(lambda c: torch.cat([c, c], dim=-1))).chunk(2)
        out: Tensor = self.project(norm_modulate(self.final_norm, h, shift, scale))
        return out

    def _image(self, image: Tensor | None, layout: Layout | None, index: LayoutIndex) -> Mapping[str, Any]:
        """The context of the image's tokens; empty for a model without."""
        if self.image is None:
            if image is not None:
                raise ValueError(f"image has shape {tuple(image.shape)}, but the model has image_dim=None")
            if layout is not None:
                raise ValueError(f"image_layout has tokens {layout.shape}, but the model has image_dim=None")
            return {}
        if image is None or layout is None:
            raise ValueError(f"the model has image_dim={self.config.image_dim}: give image and image_layout")
        image_index = on(layout, image, "image_layout")
        check_tokens("image", image, self.image.width, image_index, index)
        if self.config.image_tokens is not None:
            check_longest("an image", image_index, self.config.image_tokens, "image_tokens")
        return {"image": self.image(image, image_index), "image_layout": image_index}

    def _check(
        self, x: Tensor, text: Tensor, layout: LayoutIndex, text_layout: LayoutIndex, given: Tensor | None
    ) -> None:
        check_tokens("x", x, self.config.patch_dim, layout, layout)
        check_tokens("text", text, self.config.text_dim, text_layout, layout)
        check_dtypes(self.embed, x=x, text=text)
        check_given(given, self.config.given_channels, self.config.given_dim, layout)

    if TYPE_CHECKING:

        def __call__(
            self,
            x: Float[Tensor, "*lead p"],
            t: Rows,
            text: Float[Tensor, "*text_lead e"],
            layout: Layout,
            text_layout: Layout,
            given: Float[Tensor, "*lead g"] | None = None,
            image: Float[Tensor, "*image_lead i"] | None = None,
            image_layout: Layout | None = None,
        ) -> Float[Tensor, "*lead p"]: ...


class _ImageTokens(nn.Module):
    """An image encoder's tokens to the width of the model, between two norms; with positions for several images."""

    positions: nn.Parameter | None

    def __init__(
        self, config: WanConfig, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        assert config.image_dim is not None
        self.width = config.image_dim
        self.before = LayerNorm(self.width, 1e-5, device=device, dtype=dtype)
        self.mlp = MLP(self.width, self.width, act=nn.GELU(), out=config.dim, device=device, dtype=dtype)
        self.after = LayerNorm(config.dim, 1e-5, device=device, dtype=dtype)
        table = None
        if config.image_tokens is not None:
            table = nn.Parameter(torch.zeros(config.image_tokens, self.width, device=device, dtype=dtype))
        self.register_parameter("positions", table)

    def reset_parameters(self) -> None:
        """Zero positions; the children initialise themselves."""
        if self.positions is not None:
            nn.init.zeros_(self.positions)

    def forward(self, image: Float[Tensor, "*lead i"], layout: LayoutIndex) -> Float[Tensor, "*lead d"]:
        """``(*lead, image_dim)`` to ``(*lead, dim)``."""
        image = layout.zero_padding(image)
        if self.positions is not None:
            image = image + F.embedding(layout.coords[..., 2].clamp(min=0), self.positions)
        out: Tensor = self.after(self.mlp(self.before(image)))
        return out

    if TYPE_CHECKING:

        def __call__(self, image: Float[Tensor, "*lead i"], layout: LayoutIndex) -> Float[Tensor, "*lead d"]: ...


def _block(
    config: WanConfig, pattern: Pattern, device: torch.device | str | None, dtype: torch.dtype | None
) -> TransformerBlock:
    """Modulated self-attention, plain cross-attention, modulated MLP; one table for the block."""
    dim, heads, eps = config.dim, config.heads, config.eps
    qk_norm = partial(RMSNorm, eps=eps)
    attention = Branch(
        Attention(dim, heads, qk_norm=qk_norm, across_heads=True, pattern=pattern, device=device, dtype=dtype),
        LayerNorm(dim, eps, affine=False, device=device, dtype=dtype),
        modulation=ModulationSlice(dim, 0),
        takes=("layout", "rope"),
    )
    kind = CrossAttention if config.image_dim is None else DecoupledCrossAttention
    image = () if config.image_dim is None else ("image", "image_layout")
    cross = Branch(
        kind(dim, heads, qk_norm=qk_norm, across_heads=True, device=device, dtype=dtype),
        LayerNorm(dim, eps, device=device, dtype=dtype) if config.cross_norm else None,
        takes=("text", "layout", "text_layout", *image),
    )
    mlp = Branch(
        MLP(dim, config.mlp_dim, device=device, dtype=dtype),
        LayerNorm(dim, eps, affine=False, device=device, dtype=dtype),
        modulation=ModulationSlice(dim, 3),
    )
    return TransformerBlock([attention, cross, mlp], AdaLNSingle(dim, parts=6, device=device, dtype=dtype))
