"""Open-Sora 2, an open video transformer grown out of Flux (Peng et al., 2025, arXiv:2503.09642), over packed latents.

The recipe: Flux's blocks of two streams, then of one, on latents of HunyuanVideo's autoencoder. The text is T5's, a
pooled CLIP vector joins the noise level, and rotary positions are those of t, h and w; text stands at the origin, where
nothing turns. Frames that are given, at the start, the end or anywhere, come as channels: a mask and their latents,
through a projection of their own that begins as zero.

What the published code cannot do: mixtures of sizes on one axis, prompts without padding, noise levels per sample,
frame or token, and any attention pattern. Its model was trained on prompts padded to 512 tokens before T5, all of which
are attended: give all of them as text to repeat that.

Shapes: ``*lead`` tokens, ``p = pt·ph·pw·c`` numbers a patch, ``g`` the same of the given channels, ``e`` the width of
the text's tokens, ``v`` that of the pooled vector, ``s`` samples.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tubelet.attention import Joint
from tubelet.blocks import norm_modulate
from tubelet.conditioning import AdaLNZero
from tubelet.layout import JointIndex, LayoutIndex, Rows, TokenLayout
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
    joined,
    on,
    per_sample,
    real_levels,
    reset_children,
)
from tubelet.norms import LayerNorm
from tubelet.positions import Rope3d, RotaryLayout
from tubelet.protocols import Pattern

__all__ = ["OpenSoraConfig", "OpenSoraTransformer", "open_sora_2"]

Layout = TokenLayout | LayoutIndex


@dataclass(frozen=True, kw_only=True)
class OpenSoraConfig:
    """Sizes of an :class:`OpenSoraTransformer`.

    ``depth`` counts blocks of two streams, ``single_depth`` those of one; an MLP is ``mlp_ratio`` times as wide as the
    tokens. ``rope_axes`` share the width of a head among t, h and w, ``rope_layout`` says which features pair.
    ``patch`` is ``(t, h, w)`` in latent cells; ``given_channels`` come beside the noisy latents (a mask and frames that
    are given). ``qkv_bias`` is that of the blocks of two streams; ``guidance`` is for models distilled with a guidance
    strength. ``time_scale`` is what noise levels in [0, 1] and guidance strengths are multiplied by.

    Raises:
        ValueError: a size does not divide or is not positive, or ``rope_axes`` do not share a head.

    Example:
        >>> OpenSoraConfig(dim=24, heads=2, depth=1, single_depth=2, rope_axes=(4, 4, 4)).patch_dim
        64
    """

    dim: int
    heads: int
    depth: int
    single_depth: int
    mlp_ratio: float = 4.0
    latent_channels: int = 16
    given_channels: int = 0
    text_dim: int = 4096
    pooled_dim: int = 768
    patch: tuple[int, int, int] = (1, 2, 2)
    rope_axes: tuple[int, int, int] = (16, 56, 56)
    rope_theta: float = 10000.0
    rope_layout: RotaryLayout = "half"
    qkv_bias: bool = True
    guidance: bool = False
    time_scale: float = 1000.0

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("dim", "heads", "latent_channels", "text_dim", "pooled_dim", "mlp_ratio", "rope_theta"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("depth", "single_depth", "given_channels"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        check_patch(self.patch)
        check_axes(self.rope_axes, self.dim, self.heads)
        check_hidden(self.dim, self.mlp_ratio)

    @property
    def mlp_dim(self) -> int:
        """Width inside the MLPs."""
        return int(self.dim * self.mlp_ratio)

    @property
    def patch_dim(self) -> int:
        """Numbers in one patch, ``pt·ph·pw·c``."""
        return math.prod(self.patch) * self.latent_channels

    @property
    def given_dim(self) -> int:
        """Given numbers beside one patch."""
        return math.prod(self.patch) * self.given_channels


def open_sora_2() -> OpenSoraConfig:
    """Text and image to video, 11.9 billion parameters; a mask and 16 channels of given latents.

    Example:
        >>> open_sora_2().given_channels
        17
    """
    return OpenSoraConfig(dim=3072, heads=24, depth=19, single_depth=38, given_channels=17)


class OpenSoraTransformer(nn.Module):
    """Noisy patches, noise levels and text to the velocity on the patches.

    Args:
        config: its sizes.
        pattern: which tokens of a sample attend to each other in every block; the published model has ``Joint()``.

    Example:
        >>> from tubelet import Grid
        >>> config = OpenSoraConfig(
        ...     dim=24, heads=2, depth=1, single_depth=1, rope_axes=(4, 4, 4), text_dim=8, pooled_dim=5
        ... )
        >>> model = OpenSoraTransformer(config)
        >>> layout = TokenLayout.packed([Grid(3, 4, 4), Grid(1, 2, 6)])
        >>> text_layout = TokenLayout.packed([None, None], [3, 1])
        >>> t = layout.rows(torch.tensor([0.2, 0.9]), "sample")
        >>> model(torch.randn(60, 64), t, torch.randn(4, 8), layout, text_layout, torch.randn(2, 5)).shape
        torch.Size([60, 64])
    """

    def __init__(
        self,
        config: OpenSoraConfig,
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
        self.given = nn.Linear(config.given_dim, dim, **made) if config.given_channels else None
        self.text = nn.Linear(config.text_dim, dim, **made)
        self.condition = FluxCondition(
            dim, config.pooled_dim, guidance=config.guidance, scale=config.time_scale, **made
        )  # fmt: skip
        self.blocks = FluxBlocks(
            dim,
            config.heads,
            config.mlp_dim,
            depth=config.depth,
            single_depth=config.single_depth,
            rope=Rope3d(dim // config.heads, config.rope_axes, config.rope_theta, config.rope_layout),
            pattern=pattern,
            qkv_bias=config.qkv_bias,
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
        """Xavier inputs, zeros for what is given and for the output; the children have initialised themselves."""
        for linear in (self.embed, self.text):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        for linear in (self.project,) if self.given is None else (self.project, self.given):
            nn.init.zeros_(linear.weight)
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
        words: Tensor = self.text(text_index.zero_padding(text))
        # the tokens last: their gradient, which is the largest here, is the first to go
        video: Tensor = self.embed(index.zero_padding(x))
        if self.given is not None and given is not None:
            video = video + self.given(index.zero_padding(given))
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
