"""HunyuanVideo, the open video transformer of Tencent (Kong et al., 2024, arXiv:2412.03603), over packed latents.

The recipe ("Unified image and video generative architecture"): blocks of two streams, text and video with weights of
their own and one attention, then blocks of one stream with attention and MLP side by side. Rotary positions turn the
video alone. The text, of a language model, first passes a small transformer without positions, the token refiner, gated
by the noise level and the prompt's mean; a pooled CLIP vector and, in guidance-distilled models, the guidance strength
join the noise level.

Image to video comes in two ways (HunyuanVideo-I2V). ``"latent_concat"`` reads the image's latents and a mask beside the
noisy ones: the given channels. ``"token_replace"`` puts the image's latents in the place of the first frame, at noise
level 0: that is one level per frame, ``layout.rows(levels, "frame")``, and the text has the highest of its sample's.
Clean frames are not told the guidance. The published code ends with the noisy level for all frames, so that its
prediction on the first frame, which nothing reads, is another.

What the published code cannot do: mixtures of sizes on one axis, noise levels per frame or token of any kind, and any
attention pattern.

Shapes: ``*lead`` tokens, ``p = pt·ph·pw·c`` numbers a patch, ``g`` the same of the given channels, ``e`` the width of
the text's tokens, ``v`` that of the pooled vector, ``s`` samples.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tubelet.attention import Attention, Joint
from tubelet.blocks import Branch, TransformerBlock, norm_modulate
from tubelet.conditioning import AdaLNZero, ModulationSlice, TimestepEmbedding
from tubelet.layout import JointIndex, LayoutIndex, Rows, TokenLayout
from tubelet.mlp import MLP
from tubelet.models.flux import FluxBlocks, FluxCondition
from tubelet.models.inputs import (
    check_axes,
    check_dtypes,
    check_fields,
    check_given,
    check_hidden,
    check_patch,
    check_tokens,
    checked_guidance,
    highest_levels,
    index_time,
    joined,
    on,
    per_sample,
    real_levels,
    reset_children,
)
from tubelet.norms import LayerNorm
from tubelet.pooling import mean_pool
from tubelet.positions import Rope3d
from tubelet.protocols import Pattern

__all__ = [
    "HunyuanVideoConfig",
    "HunyuanVideoTransformer",
    "hunyuan_video",
    "hunyuan_video_i2v",
    "hunyuan_video_i2v_concat",
]

Layout = TokenLayout | LayoutIndex
_IMAGE_CONDITIONS = (None, "latent_concat", "token_replace")


@dataclass(frozen=True, kw_only=True)
class HunyuanVideoConfig:
    """Sizes of a :class:`HunyuanVideoTransformer`.

    ``depth`` counts blocks of two streams, ``single_depth`` those of one, ``refiner_depth`` those of the token refiner;
    an MLP is ``mlp_ratio`` times as wide as the tokens, in the refiner four times. ``rope_axes`` share the width of a
    head among t, h and w. ``patch`` is ``(t, h, w)`` in latent cells; ``given_channels`` come beside the noisy latents.
    ``guidance`` is for models distilled with a guidance strength; ``image_condition`` says how an image is given, if
    one is. ``time_scale`` is what noise levels in [0, 1] and guidance strengths are multiplied by.

    Raises:
        ValueError: a size does not divide or is not positive, ``rope_axes`` do not share a head, or ``image_condition``
            is unknown.

    Example:
        >>> HunyuanVideoConfig(dim=24, heads=2, depth=1, single_depth=2, rope_axes=(4, 4, 4)).patch_dim
        64
    """

    dim: int
    heads: int
    depth: int
    single_depth: int
    refiner_depth: int = 2
    mlp_ratio: float = 4.0
    latent_channels: int = 16
    given_channels: int = 0
    text_dim: int = 4096
    pooled_dim: int = 768
    patch: tuple[int, int, int] = (1, 2, 2)
    rope_axes: tuple[int, int, int] = (16, 56, 56)
    rope_theta: float = 256.0
    guidance: bool = False
    image_condition: str | None = None
    time_scale: float = 1000.0

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("dim", "heads", "latent_channels", "text_dim", "pooled_dim", "mlp_ratio", "rope_theta"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("depth", "single_depth", "refiner_depth", "given_channels"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        check_patch(self.patch)
        check_axes(self.rope_axes, self.dim, self.heads)
        check_hidden(self.dim, self.mlp_ratio)
        if self.image_condition not in _IMAGE_CONDITIONS:
            raise ValueError(f"image_condition must be one of {_IMAGE_CONDITIONS}, got {self.image_condition!r}")

    @property
    def mlp_dim(self) -> int:
        """Width inside the MLPs of the blocks."""
        return int(self.dim * self.mlp_ratio)

    @property
    def patch_dim(self) -> int:
        """Numbers in one patch, ``pt·ph·pw·c``."""
        return math.prod(self.patch) * self.latent_channels

    @property
    def given_dim(self) -> int:
        """Given numbers beside one patch."""
        return math.prod(self.patch) * self.given_channels


def hunyuan_video() -> HunyuanVideoConfig:
    """Text to video, 12.8 billion parameters, distilled with a guidance strength.

    Example:
        >>> hunyuan_video().single_depth
        40
    """
    return HunyuanVideoConfig(dim=3072, heads=24, depth=20, single_depth=40, guidance=True)


def hunyuan_video_i2v() -> HunyuanVideoConfig:
    """Image to video with the image as the first frame (HunyuanVideo-I2V, its second weights).

    Example:
        >>> hunyuan_video_i2v().image_condition
        'token_replace'
    """
    return HunyuanVideoConfig(
        dim=3072, heads=24, depth=20, single_depth=40, guidance=True, image_condition="token_replace"
    )  # fmt: skip


def hunyuan_video_i2v_concat() -> HunyuanVideoConfig:
    """Image to video with the image's latents and a mask as channels (HunyuanVideo-I2V, its first weights).

    Example:
        >>> hunyuan_video_i2v_concat().given_channels
        17
    """
    return HunyuanVideoConfig(
        dim=3072, heads=24, depth=20, single_depth=40, given_channels=17, image_condition="latent_concat"
    )  # fmt: skip


class HunyuanVideoTransformer(nn.Module):
    """Noisy patches, noise levels and text to the velocity on the patches.

    Args:
        config: its sizes.
        pattern: which tokens of a sample attend to each other in every block; the published models have ``Joint()``.

    Example:
        >>> from tubelet import Grid
        >>> config = HunyuanVideoConfig(
        ...     dim=24, heads=2, depth=1, single_depth=1, rope_axes=(4, 4, 4), text_dim=8, pooled_dim=5
        ... )
        >>> model = HunyuanVideoTransformer(config)
        >>> layout = TokenLayout.packed([Grid(3, 4, 4), Grid(1, 2, 6)])
        >>> text_layout = TokenLayout.packed([None, None], [3, 1])
        >>> t = layout.rows(torch.tensor([0.2, 0.9]), "sample")
        >>> model(torch.randn(60, 64), t, torch.randn(4, 8), layout, text_layout, torch.randn(2, 5)).shape
        torch.Size([60, 64])
    """

    def __init__(
        self,
        config: HunyuanVideoConfig,
        *,
        pattern: Pattern = Joint(),  # noqa: B008 - a frozen value
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.embed = nn.Linear(config.patch_dim + config.given_dim, dim, **made)
        self.refiner = _TextRefiner(config, **made)
        # a first frame that is given is not told the guidance
        unguided = 0.0 if config.image_condition == "token_replace" else -1.0
        self.condition = FluxCondition(
            dim, config.pooled_dim, guidance=config.guidance, unguided=unguided, scale=config.time_scale, **made
        )
        self.blocks = FluxBlocks(
            dim,
            config.heads,
            config.mlp_dim,
            depth=config.depth,
            single_depth=config.single_depth,
            rope=Rope3d(dim // config.heads, config.rope_axes, config.rope_theta),
            pattern=pattern,
            **made,
        )
        self.final_norm = LayerNorm(dim, affine=False, **made)
        self.final_modulation = AdaLNZero(dim, dim, parts=2, **made)
        self.project = nn.Linear(dim, config.patch_dim, **made)
        self._reset_own()

    def reset_parameters(self) -> None:
        """Every child anew (after meta construction, say), then the model's own."""
        reset_children(self)
        self._reset_own()

    def _reset_own(self) -> None:
        """Xavier input, zero output; the children have initialised themselves."""
        nn.init.xavier_uniform_(self.embed.weight)
        nn.init.zeros_(self.project.weight)
        for linear in (self.embed, self.project):
            nn.init.zeros_(linear.bias)

    def forward(
        self,
        x: Float[Tensor, "*lead p"],
        t: Rows,
        text: Float[Tensor, "*text_lead e"],
        layout: Layout,
        text_layout: Layout,
        pooled: Float[Tensor, "s v"],
        guidance: Float[Tensor, " s"] | None = None,
        given: Float[Tensor, "*lead g"] | None = None,
        joint: JointIndex | None = None,
    ) -> Float[Tensor, "*lead p"]:
        """Predict from noisy patches. Padding may hold anything.

        Args:
            x: patches at their noise levels.
            t: noise levels in [0, 1], one row per sample, frame or token (or one for all).
            text: encoded prompts.
            layout: where the samples of ``x`` lie.
            text_layout: where the prompts of the same samples lie in ``text``.
            pooled: one vector per sample, of a CLIP text encoder.
            guidance: strength per sample, where the config has ``guidance``.
            given: patches of the given channels, where the config has some.
            joint: the two layouts merged, text first: made here if None. Many calls, such as the steps of a sampler,
                may share one ``JointLayout((text_layout, layout)).on(device)``, which indices with dropped tokens need.

        Raises:
            ValueError: shapes and layouts disagree, or the config asks for inputs that are not there or has none such.
        """
        index, text_index = on(layout, x), on(text_layout, x, "text_layout")
        check_tokens("x", x, self.config.patch_dim, index, index)
        check_tokens("text", text, self.config.text_dim, text_index, index)
        check_dtypes(self.embed, x=x, text=text)
        t = real_levels(t, index)
        pooled = per_sample("pooled", pooled, (self.config.pooled_dim,), index)
        guidance = checked_guidance(guidance, self.config.guidance, index)
        check_given(given, self.config.given_channels, self.config.given_dim, index)
        joint = joined(text_layout, layout, joint, x)
        levels = highest_levels(t, index, text_index)
        conds = self.condition((levels, t), (text_index, index), pooled, guidance)
        inputs = x if given is None else torch.cat([x, given], dim=-1)
        words: Tensor = self.refiner(text, levels, text_index)
        # the tokens last: their gradient, which is the largest here, is the first to go
        video: Tensor = self.embed(index.zero_padding(inputs))
        video = self.blocks(words, video, conds, index, joint)
        shift, scale = self.final_modulation(conds[1]).chunk(2)
        out: Tensor = self.project(norm_modulate(self.final_norm, video, shift, scale))
        return out

    if TYPE_CHECKING:

        def __call__(
            self,
            x: Float[Tensor, "*lead p"],
            t: Rows,
            text: Float[Tensor, "*text_lead e"],
            layout: Layout,
            text_layout: Layout,
            pooled: Float[Tensor, "s v"],
            guidance: Float[Tensor, " s"] | None = None,
            given: Float[Tensor, "*lead g"] | None = None,
            joint: JointIndex | None = None,
        ) -> Float[Tensor, "*lead p"]: ...


class _TextRefiner(nn.Module):
    """A language model's tokens to the width of the model, through blocks that attend both ways.

    The noise level and the mean of the prompt close and open the branches; norms are affine and unmodulated.
    """

    keeps_pattern = True  # a pattern of the model is about its video

    def __init__(
        self,
        config: HunyuanVideoConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dim = config.dim
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.time_scale = config.time_scale
        self.embed = nn.Linear(config.text_dim, dim, **made)
        self.time = TimestepEmbedding(dim, **made)
        self.mean = MLP(config.text_dim, dim, act=nn.SiLU(), out=dim, **made)
        self.blocks = nn.ModuleList(_refiner_block(dim, config.heads, **made) for _ in range(config.refiner_depth))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal embeddings; the blocks initialise themselves."""
        for linear in (self.embed, self.mean.up, self.mean.down):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, text: Float[Tensor, "*lead e"], t: Rows, layout: LayoutIndex) -> Float[Tensor, "*lead d"]:
        """``(*lead, text_dim)`` to ``(*lead, dim)``; ``t`` are noise levels of the text."""
        mean = self.mean(mean_pool(text, layout))
        cond = layout.add_per_sample(t.map(lambda level: self.time(index_time(level, self.time_scale))), mean)
        h: Tensor = self.embed(layout.zero_padding(text))
        for block in self.blocks:
            h = block(h, cond, {"layout": layout})
        return h

    if TYPE_CHECKING:

        def __call__(
            self, text: Float[Tensor, "*lead e"], t: Rows, layout: LayoutIndex
        ) -> Float[Tensor, "*lead d"]: ...


def _refiner_block(dim: int, heads: int, **made: Any) -> TransformerBlock:
    """Self-attention and a SiLU MLP whose gates alone are modulated."""
    attention = Branch(
        Attention(dim, heads, **made),
        LayerNorm(dim, **made),
        modulation=ModulationSlice(dim, 0, parts=1),
        parts=("gate",),
        takes=("layout",),
    )
    mlp = Branch(
        MLP(dim, 4 * dim, act=nn.SiLU(), **made),
        LayerNorm(dim, **made),
        modulation=ModulationSlice(dim, 1, parts=1),
        parts=("gate",),
    )
    return TransformerBlock([attention, mlp], AdaLNZero(dim, dim, parts=2, **made))
