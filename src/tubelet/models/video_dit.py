"""A text-conditioned video diffusion transformer over packed or dense latents of any size, with known frames.

The recipe: DiT's adaLN-Zero blocks (arXiv:2212.09748) with attention over space and time, joint or in one of ViViT's
factorised ways (arXiv:2103.15691), per-head RMS qk-norm, 3-D RoPE and cross-attention to the prompt; the prompt's mean
also joins the noise level in the modulation. Noise levels come as rows per sample, per frame or per token, and a mask
says which values are known, so that one set of weights serves text-to-video, image-to-video and every other completion
(diffusion forcing, arXiv:2407.01392; masks as in W.A.L.T).

Shapes: ``*lead`` tokens, ``p = pt·ph·pw·c`` numbers a patch, ``m`` text tokens.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tubelet.attention import Attention, CrossAttention
from tubelet.blocks import Branch, TransformerBlock, modulate
from tubelet.conditioning import AdaLNZero, TimestepEmbedding
from tubelet.layout import LayoutIndex, Rows, TokenLayout
from tubelet.mlp import MLP
from tubelet.models.inputs import (
    check_dtypes,
    check_fields,
    index_time,
    on,
    real_levels,
    reset_children,
)
from tubelet.models.space_time import SpaceTime, space_time
from tubelet.norms import LayerNorm, RMSNorm
from tubelet.positions import Rope3d, SinCos3d
from tubelet.protocols import Pattern

__all__ = [
    "VideoDiT",
    "VideoDiTConfig",
    "video_dit_b",
    "video_dit_digits",
    "video_dit_s",
    "video_dit_xl",
]


@dataclass(frozen=True, kw_only=True)
class VideoDiTConfig:
    """Sizes of a :class:`VideoDiT`.

    ``patch`` is ``(t, h, w)`` in latent cells; ``cond_dim`` the width of the modulation's conditioning; ``time_scale``
    what a noise level in [0, 1] is multiplied by before its embedding; ``space_time`` how self-attention meets space
    and time, as :func:`tubelet.models.space_time` has it.

    Raises:
        ValueError: a size does not divide, is not positive, or is no whole number where one is needed.

    Example:
        >>> VideoDiTConfig(latent_channels=4, dim=64, depth=2, heads=4, text_dim=32).patch_dim
        4
    """

    latent_channels: int
    dim: int
    depth: int
    heads: int
    text_dim: int
    patch: tuple[int, int, int] = (1, 1, 1)
    mlp_ratio: float = 4.0
    cond_dim: int | None = None
    rope_theta: float = 10000.0
    time_scale: float = 1000.0
    space_time: SpaceTime = "joint"

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("latent_channels", "dim", "depth", "heads", "text_dim", "cond_dim"):
            if (size := getattr(self, name)) is not None and not _is_size(size):
                raise ValueError(f"{name} must be a positive whole number, got {size!r}")
        for name in ("mlp_ratio", "rope_theta", "time_scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")
        sides: tuple[Any, ...] = self.patch
        if len(sides) != 3 or not all(map(_is_size, sides)):
            raise ValueError(f"patch must be three positive whole numbers (t, h, w), got {self.patch!r}")
        if self.dim % self.heads:
            raise ValueError(f"dim={self.dim} is not a multiple of heads={self.heads}")
        if self.dim % 32:
            raise ValueError(f"dim={self.dim} is not a multiple of 32, which its two position codes need")
        space_time(self.space_time, self.depth, self.heads)

    @property
    def patch_dim(self) -> int:
        """Numbers in one patch, ``pt·ph·pw·c``."""
        return math.prod(self.patch) * self.latent_channels


def video_dit_s(latent_channels: int = 16, text_dim: int = 512) -> VideoDiTConfig:
    """Small: 12 layers of width 384.

    Example:
        >>> video_dit_s().depth
        12
    """
    return VideoDiTConfig(
        latent_channels=latent_channels,
        text_dim=text_dim,
        dim=384,
        depth=12,
        heads=6,
        patch=(1, 2, 2),
    )


def video_dit_b(latent_channels: int = 16, text_dim: int = 512) -> VideoDiTConfig:
    """Base: 12 layers of width 768.

    Example:
        >>> video_dit_b().dim
        768
    """
    return VideoDiTConfig(
        latent_channels=latent_channels,
        text_dim=text_dim,
        dim=768,
        depth=12,
        heads=12,
        patch=(1, 2, 2),
    )


def video_dit_xl(latent_channels: int = 16, text_dim: int = 512) -> VideoDiTConfig:
    """Extra large: 28 layers of width 1152.

    Example:
        >>> video_dit_xl().heads
        16
    """
    return VideoDiTConfig(
        latent_channels=latent_channels,
        text_dim=text_dim,
        dim=1152,
        depth=28,
        heads=16,
        patch=(1, 2, 2),
    )


def video_dit_digits(latent_channels: int = 16, text_dim: int = 64) -> VideoDiTConfig:
    """The demo's model of drifting handwriting: 5 layers of width 192, 2.8 M parameters.

    Example:
        >>> video_dit_digits().patch
        (1, 1, 1)
    """
    return VideoDiTConfig(
        latent_channels=latent_channels,
        text_dim=text_dim,
        dim=192,
        depth=5,
        heads=6,
        mlp_ratio=3.0,
        cond_dim=64,
    )


class VideoDiT(nn.Module):
    """Noisy patches, noise levels and text to a prediction on the patches.

    Example:
        >>> from tubelet import Grid
        >>> model = VideoDiT(VideoDiTConfig(latent_channels=4, dim=64, depth=2, heads=4, text_dim=8))
        >>> layout = TokenLayout.packed([Grid(3, 4, 4), Grid(1, 2, 6)]).on("cpu")
        >>> text_layout = TokenLayout.packed([None, None], [3, 1]).on("cpu")
        >>> t = layout.rows(torch.tensor([0.2, 0.9]), "sample")
        >>> model(torch.randn(60, 4), t, torch.randn(4, 8), layout, text_layout).shape
        torch.Size([60, 4])
    """

    def __init__(
        self,
        config: VideoDiTConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        cond = dim if config.cond_dim is None else config.cond_dim
        self.embed = nn.Linear(config.patch_dim + math.prod(config.patch), dim, device=device, dtype=dtype)
        self.from_start, self.from_end = SinCos3d(dim // 2), SinCos3d(dim // 2)
        self.rope = Rope3d(dim // config.heads, theta=config.rope_theta)
        self.time = TimestepEmbedding(cond, device=device, dtype=dtype)
        self.pooled = nn.Linear(config.text_dim, cond, device=device, dtype=dtype)
        patterns = space_time(config.space_time, config.depth, config.heads)
        self.blocks = nn.ModuleList(_block(config, each, cond, device, dtype) for each in patterns)
        self.final_norm = LayerNorm(dim, affine=False, device=device, dtype=dtype)
        self.final_modulation = AdaLNZero(dim, cond, parts=2, device=device, dtype=dtype)
        self.project = nn.Linear(dim, config.patch_dim, device=device, dtype=dtype)
        self._reset_own()

    def reset_parameters(self) -> None:
        """DiT's initialisation, whole: every child anew (after meta construction, say), then the model's own."""
        reset_children(self)
        self._reset_own()

    def _reset_own(self) -> None:
        """Xavier input, zero output, cross-attention that starts as zero; the children have initialised themselves."""
        nn.init.xavier_uniform_(self.embed.weight)
        nn.init.zeros_(self.embed.bias)
        nn.init.normal_(self.pooled.weight, std=self.pooled.in_features**-0.5)
        nn.init.zeros_(self.pooled.bias)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)
        for module in self.modules():
            if isinstance(module, CrossAttention):
                nn.init.zeros_(module.out_proj.weight)

    def forward(
        self,
        x: Float[Tensor, "*lead p"],
        t: Rows,
        text: Float[Tensor, "*text_lead e"],
        layout: TokenLayout | LayoutIndex,
        text_layout: TokenLayout | LayoutIndex,
        known: Float[Tensor, "*lead k"] | None = None,
    ) -> Float[Tensor, "*lead p"]:
        """Predict from noisy patches.

        Args:
            x: patches at their noise levels; known values stand clean, at level 0. Padding may hold anything.
            t: noise levels in [0, 1], one row per sample, frame or token (or one for all).
            text: encoded prompts.
            layout: where the samples of ``x`` lie.
            text_layout: where the prompts of the same samples lie in ``text``.
            known: 1 where a latent cell is given, else 0; ``k = pt·ph·pw``. None: nothing is known.

        Raises:
            ValueError: shapes and layouts disagree.
        """
        layout = on(layout, x)
        text_layout = on(text_layout, x, "text_layout")
        self._check(x, text, layout, text_layout)
        t = real_levels(t, layout)
        mask = self._mask(x, known)
        text = text_layout.zero_padding(text)
        h: Tensor = self.embed(layout.zero_padding(torch.cat([x, mask], dim=-1)))
        h = h + self._positions(layout).to(h.dtype)
        cond = t.map(lambda level: self.time(index_time(level, self.config.time_scale)))
        cond = layout.add_per_sample(cond, self.pooled(_mean_text(text, text_layout)))
        context: Mapping[str, Any] = {
            "layout": layout,
            "rope": self.rope(layout.coords),
            "text": text,
            "text_layout": text_layout,
        }
        for block in self.blocks:
            h = block(h, cond, context)
        shift, scale = self.final_modulation(cond).chunk(2)
        out: Tensor = self.project(modulate(self.final_norm(h), shift, scale))
        return out

    def _positions(self, layout: LayoutIndex) -> Float[Tensor, "*lead d"]:
        """Where a token stands, counted from the start and from the end of its grid."""
        ends = torch.where(layout.coords[..., :1] < 0, -1, layout.extent - 1 - layout.coords)
        return torch.cat([self.from_start(layout.coords), self.from_end(ends)], dim=-1)

    def _mask(self, x: Tensor, known: Tensor | None) -> Tensor:
        """``known``, or zeros."""
        shape = (*x.shape[:-1], math.prod(self.config.patch))
        if known is None:
            return x.new_zeros(shape)
        if known.shape != shape:
            raise ValueError(f"known has shape {tuple(known.shape)}, but x and the patch ask for {shape}")
        return known.to(x.dtype)

    def _check(self, x: Tensor, text: Tensor, layout: LayoutIndex, text_layout: LayoutIndex) -> None:
        if x.shape[-1] != self.config.patch_dim:
            raise ValueError(f"x has {x.shape[-1]} numbers a patch, but the model has {self.config.patch_dim}")
        if tuple(x.shape[:-1]) != layout.shape:
            raise ValueError(f"x has tokens {tuple(x.shape[:-1])}, but layout has {layout.shape}")
        if tuple(text.shape[:-1]) != text_layout.shape:
            raise ValueError(f"text has tokens {tuple(text.shape[:-1])}, but text_layout has {text_layout.shape}")
        if text.shape[-1] != self.config.text_dim:
            raise ValueError(f"text is {text.shape[-1]} wide, but the model has text_dim={self.config.text_dim}")
        if not layout.same_samples(text_layout):
            raise ValueError(f"layout has {layout.samples} samples, but text_layout has {text_layout.samples}")
        check_dtypes(self.embed, x=x, text=text)

    if TYPE_CHECKING:

        def __call__(
            self,
            x: Float[Tensor, "*lead p"],
            t: Rows,
            text: Float[Tensor, "*text_lead e"],
            layout: TokenLayout | LayoutIndex,
            text_layout: TokenLayout | LayoutIndex,
            known: Float[Tensor, "*lead k"] | None = None,
        ) -> Float[Tensor, "*lead p"]: ...


def _is_size(value: Any) -> bool:
    return isinstance(value, Integral) and int(value) > 0


def _block(
    config: VideoDiTConfig,
    patterns: Sequence[Pattern],
    cond: int,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> TransformerBlock:
    """Modulated self-attention by each pattern, plain cross-attention, modulated MLP."""
    dim = config.dim
    attentions = [
        Branch(
            Attention(dim, config.heads, qk_norm=RMSNorm, pattern=pattern, device=device, dtype=dtype),
            LayerNorm(dim, affine=False, device=device, dtype=dtype),
            modulation=AdaLNZero(dim, cond, device=device, dtype=dtype),
            takes=("layout", "rope"),
        )
        for pattern in patterns
    ]
    cross = Branch(
        CrossAttention(
            dim,
            config.heads,
            context_dim=config.text_dim,
            qk_norm=RMSNorm,
            device=device,
            dtype=dtype,
        ),
        LayerNorm(dim, device=device, dtype=dtype),
        takes=("text", "layout", "text_layout"),
    )
    mlp = Branch(
        MLP(dim, int(dim * config.mlp_ratio), device=device, dtype=dtype),
        LayerNorm(dim, affine=False, device=device, dtype=dtype),
        modulation=AdaLNZero(dim, cond, device=device, dtype=dtype),
    )
    return TransformerBlock([*attentions, cross, mlp])


def _mean_text(text: Float[Tensor, "*lead e"], layout: LayoutIndex) -> Float[Tensor, "s e"]:
    """The mean token of each sample's prompt, ``(s, e)`` with ``s`` up to the layout's capacity of samples.

    Padding counts for sample 0, so it must be zero.
    """
    flat = text.reshape(-1, text.shape[-1])
    total = flat.new_zeros(layout.seqlens.shape[0], flat.shape[-1])
    total = total.index_add(0, layout.sample.flatten().clamp(min=0), flat)
    return total / layout.seqlens.clamp(min=1)[:, None].to(flat.dtype)
