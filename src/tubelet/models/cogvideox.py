"""CogVideoX 1.0 and 1.5, the open video transformers of Zhipu AI (Yang et al., 2024, arXiv:2408.06072), packed.

The recipe (section 2.2): text and video are one sequence of shared blocks, each a joint attention and a GELU MLP with
affine norms; queries and keys are LayerNormed per head. The *expert adaptive LayerNorm* modulates text and video by
projections of their own of the noise level, without which the two would not share a scale. The 2B model adds
sinusoids to its patches; the larger ones rotate queries and keys of the video, text stays unrotated. The image-to-video
models read the latents of given frames beside the noisy ones; the first of them also adds a learned table of
positions, and that of 1.5 embeds a constant ``ofs`` beside the noise level. 1.5 has patches of two frames.

What the published code cannot do: mixtures of sizes on one axis, prompts of any length without padding, noise levels
per sample, frame or token (and others for the text), any attention pattern, and learned positions on smaller grids:
for fewer frames than the table has, diffusers takes sinusoids instead, and this model the table's first frames.

The published models were trained on prompts padded to 226 tokens (1.5: 224), all of which are attended: give the text
encoder's output of the whole padded prompt to repeat that.

Shapes: ``*lead`` tokens, ``p = pt·ph·pw·c`` numbers a patch, ``g`` the same of the given channels, ``m`` text tokens.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tubelet.attention import Attention, Joint
from tubelet.blocks import Branch, TransformerBlock, norm_modulate
from tubelet.conditioning import AdaLNZero, ModulationSlice, TimestepEmbedding
from tubelet.layout import JointIndex, LayoutIndex, Rows, TokenLayout
from tubelet.mlp import MLP
from tubelet.models.inputs import (
    check_dtypes,
    check_fields,
    check_given,
    check_patch,
    check_tokens,
    highest_levels,
    index_time,
    joined,
    on,
    per_sample,
    real_levels,
    reset_children,
)
from tubelet.norms import LayerNorm
from tubelet.positions import (
    CentralFit,
    Interpolation,
    LearnedGridPositions,
    LearnedTextPositions,
    Rope3d,
    Rotary,
    SinCos3d,
)
from tubelet.protocols import Pattern

__all__ = [
    "CogVideoXConfig",
    "CogVideoXTransformer",
    "cogvideox_1_5_5b",
    "cogvideox_1_5_5b_i2v",
    "cogvideox_2b",
    "cogvideox_5b",
    "cogvideox_5b_i2v",
]

Layout = TokenLayout | LayoutIndex


@dataclass(frozen=True, kw_only=True)
class CogVideoXConfig:
    """Sizes of a :class:`CogVideoXTransformer`.

    ``time_dim`` is the width of the embedded noise level; ``given_channels`` come beside the noisy latents; ``patch``
    is ``(t, h, w)`` in latent cells. Positions: ``rotary`` turns queries and keys, by places that
    :class:`tubelet.positions.CentralFit` lays over ``base`` rows and columns of tokens, or by the index (None);
    ``sincos`` adds sinusoids of the coordinates divided by these; ``learned`` adds a table of ``(t, h, w)`` cells and
    of ``learned_text`` text tokens. ``ofs`` embeds another number a sample beside the noise level. A noise level
    ``t`` in [0, 1] is fed as ``time_scale·t + time_shift``, by default the published index ``i`` at ``(i + 1)/1000``.

    Raises:
        ValueError: a size does not divide or is not positive, ``base`` without ``rotary``, or only one of ``learned``
            and ``learned_text``.

    Example:
        >>> CogVideoXConfig(dim=32, depth=2, heads=2).patch_dim
        64
    """

    dim: int
    depth: int
    heads: int
    time_dim: int = 512
    latent_channels: int = 16
    given_channels: int = 0
    text_dim: int = 4096
    patch: tuple[int, int, int] = (1, 2, 2)
    rotary: bool = True
    base: tuple[int, int] | None = None
    sincos: tuple[float, float, float] | None = None
    learned: tuple[int, int, int] | None = None
    learned_text: int = 0
    ofs: bool = False
    eps: float = 1e-5
    time_scale: float = 1000.0
    time_shift: float = -1.0

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("dim", "depth", "heads", "time_dim", "latent_channels", "text_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        check_patch(self.patch)
        if self.given_channels < 0:
            raise ValueError(f"given_channels must not be negative, got {self.given_channels}")
        if self.dim % 2 or self.time_dim % 2:
            raise ValueError(f"sinusoids of the noise level are even, got dim={self.dim}, time_dim={self.time_dim}")
        if self.dim % self.heads or (self.rotary and self.dim // self.heads % 16):
            raise ValueError(f"dim={self.dim} does not make heads={self.heads} of widths that 16 divides")
        if self.sincos is not None and self.dim % 16:
            raise ValueError(f"sincos={self.sincos} needs a dim that 16 divides, got dim={self.dim}")
        for name in ("base", "sincos", "learned"):
            if (sides := getattr(self, name)) is not None and min(sides) <= 0:
                raise ValueError(f"{name} must be positive on each axis, got {sides}")
        if self.learned_text < 0:
            raise ValueError(f"learned_text must not be negative, got {self.learned_text}")
        if self.base is not None and not self.rotary:
            raise ValueError(f"base={self.base} is a matter of rotations, but rotary=False")
        if (self.learned is None) != (self.learned_text == 0):
            raise ValueError(f"learned={self.learned} and learned_text={self.learned_text} belong to one table")

    @property
    def patch_dim(self) -> int:
        """Numbers in one patch, ``pt·ph·pw·c``."""
        return math.prod(self.patch) * self.latent_channels

    @property
    def given_dim(self) -> int:
        """Given numbers beside one patch."""
        return math.prod(self.patch) * self.given_channels


def cogvideox_2b() -> CogVideoXConfig:
    """Text to video with sinusoidal positions, 1.69 billion parameters.

    Example:
        >>> cogvideox_2b().dim
        1920
    """
    return CogVideoXConfig(dim=1920, depth=30, heads=30, rotary=False, sincos=(1.0, 1.875, 1.875))


def cogvideox_5b() -> CogVideoXConfig:
    """Text to video with rotary positions, 5.57 billion parameters.

    Example:
        >>> cogvideox_5b().depth
        42
    """
    return CogVideoXConfig(dim=3072, depth=42, heads=48, base=(30, 45))


def cogvideox_5b_i2v() -> CogVideoXConfig:
    """Image to video: given latents, and learned positions of 13 × 30 × 45 tokens beside the rotary ones.

    Example:
        >>> cogvideox_5b_i2v().learned
        (13, 30, 45)
    """
    return CogVideoXConfig(
        dim=3072, depth=42, heads=48, given_channels=16, base=(30, 45), learned=(13, 30, 45), learned_text=226
    )


def cogvideox_1_5_5b() -> CogVideoXConfig:
    """Text to video in patches of two frames, at any size (CogVideoX 1.5).

    Example:
        >>> cogvideox_1_5_5b().patch
        (2, 2, 2)
    """
    return CogVideoXConfig(dim=3072, depth=42, heads=48, patch=(2, 2, 2))


def cogvideox_1_5_5b_i2v() -> CogVideoXConfig:
    """Image to video in patches of two frames (CogVideoX 1.5); its published ``ofs`` is always 2.

    Example:
        >>> cogvideox_1_5_5b_i2v().ofs
        True
    """
    return CogVideoXConfig(dim=3072, depth=42, heads=48, given_channels=16, patch=(2, 2, 2), ofs=True)


class CogVideoXTransformer(nn.Module):
    """Noisy patches, noise levels and text to the prediction on the patches (the published models predict ``v``).

    Args:
        config: its sizes.
        pattern: which tokens of a sample, text and video together, attend to each other in every block; the published
            models have ``Joint()``. A single block's is ``model.blocks[i].branches[0].inner.pattern``.

    Example:
        >>> from tubelet import Grid
        >>> model = CogVideoXTransformer(CogVideoXConfig(dim=32, depth=2, heads=2, text_dim=8))
        >>> layout = TokenLayout.packed([Grid(3, 4, 4), Grid(1, 2, 6)])
        >>> text_layout = TokenLayout.packed([None, None], [3, 1])
        >>> t = layout.rows(torch.tensor([0.2, 0.9]), "sample")
        >>> model(torch.randn(60, 64), t, torch.randn(4, 8), layout, text_layout).shape
        torch.Size([60, 64])
    """

    def __init__(
        self,
        config: CogVideoXConfig,
        *,
        pattern: Pattern = Joint(),  # noqa: B008 - a frozen value
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        make: dict[str, Any] = {"device": device, "dtype": dtype}
        dim, depth, time_dim, eps = config.dim, range(config.depth), config.time_dim, config.eps
        self.embed = nn.Linear(config.patch_dim + config.given_dim, dim, **make)
        self.text = nn.Linear(config.text_dim, dim, **make)
        self.sincos = None if config.sincos is None else SinCos3d(dim, place=Interpolation(config.sincos))
        self.tables = nn.ModuleList(_tables(config, **make))
        self.place = None if config.base is None else CentralFit(config.base)
        self.rope = _rope(dim // config.heads) if config.rotary else None
        self.time = TimestepEmbedding(time_dim, dim, **make)
        self.ofs = TimestepEmbedding(time_dim, time_dim, **make) if config.ofs else None
        self.modulations = nn.ModuleList(AdaLNZero(dim, time_dim, parts=6, **make) for _ in depth)
        self.text_modulations = nn.ModuleList(AdaLNZero(dim, time_dim, parts=6, **make) for _ in depth)
        self.blocks = nn.ModuleList(_block(config, pattern, **make) for _ in depth)
        self.last_norm = LayerNorm(dim, eps, **make)
        self.final_norm = LayerNorm(dim, eps, **make)
        self.final_modulation = AdaLNZero(dim, time_dim, parts=2, **make)
        self.project = nn.Linear(dim, config.patch_dim, **make)
        self._reset_own()

    def reset_parameters(self) -> None:
        """Every child anew (after meta construction, say), then the model's own."""
        reset_children(self)
        self._reset_own()

    def _reset_own(self) -> None:
        """Xavier embeddings, zero output; the children have initialised themselves."""
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
        given: Float[Tensor, "*lead g"] | None = None,
        ofs: Float[Tensor, " s"] | None = None,
        text_t: Rows | None = None,
        joint: JointIndex | None = None,
    ) -> Float[Tensor, "*lead p"]:
        """Predict from noisy patches. Padding may hold anything.

        Args:
            x: patches at their noise levels.
            t: noise levels in [0, 1], one row per sample, frame or token (or one for all).
            text: encoded prompts.
            layout: where the samples of ``x`` lie.
            text_layout: where the prompts of the same samples lie in ``text``.
            given: patches of the given channels, where the config has some.
            ofs: one number per sample, where the config has ``ofs``.
            text_t: noise levels of the text's tokens; None means the highest of each sample.
            joint: the two layouts merged, text first: made here if None. Many calls, such as the steps of a sampler,
                may share one ``JointLayout((text_layout, layout)).on(device)``, which indices with dropped tokens need.

        Raises:
            ValueError: shapes and layouts disagree, or the config asks for inputs that are not there or has none such.
        """
        index, text_index = on(layout, x), on(text_layout, x, "text_layout")
        self._check(x, text, index, text_index, given, ofs)
        t = real_levels(t, index)
        ofs = None if ofs is None else per_sample("ofs", ofs, (), index)
        joint = joined(text_layout, layout, joint, x)
        inputs = x if given is None else torch.cat([x, given], dim=-1)
        text_time, time = self._times(text_t, t, ofs, text_index, index)
        words: Tensor = self.text(text_index.zero_padding(text))
        # the tokens last: their gradient, which is the largest here, is the first to go
        video: Tensor = self.embed(index.zero_padding(inputs))
        time, text_time = (rows.map(lambda c: c.to(video.dtype)) for rows in (time, text_time))
        h = self._placed(joint.merge(words, video), joint.index)
        context = {"layout": joint.index, "rope": self._turned(joint.index, h.dtype)}
        for block, on_text, on_video in zip(self.blocks, self.text_modulations, self.modulations, strict=True):
            h = block(h, joint.merge_rows(on_text(text_time), on_video(time)), context)
        _, video = joint.split(h)
        shift, scale = self.final_modulation(time).chunk(2)
        out: Tensor = self.project(norm_modulate(self.final_norm, self.last_norm(video), shift, scale))
        return out

    def _times(
        self, text_t: Rows | None, t: Rows, ofs: Tensor | None, text_layout: LayoutIndex, layout: LayoutIndex
    ) -> tuple[Rows, Rows]:
        """The embedded noise levels of text and video; rows by view are those of both."""
        time = self._time(t, ofs, layout)
        if text_t is None and time.index is None:
            return time, time
        text_t = highest_levels(t, layout, text_layout) if text_t is None else text_t
        return self._time(real_levels(text_t, text_layout, "text_t"), ofs, text_layout), time

    def _time(self, t: Rows, ofs: Tensor | None, layout: LayoutIndex) -> Rows:
        """The embedded noise levels, with each sample's embedded ``ofs`` added."""
        scale, shift = self.config.time_scale, self.config.time_shift
        time = t.map(lambda level: self.time(index_time(level, scale, shift)))
        if self.ofs is None or ofs is None:
            return time
        return layout.add_per_sample(time, self.ofs(ofs))

    def _placed(self, h: Tensor, merged: LayoutIndex) -> Tensor:
        """Tokens of the merged axis with what is added for their places."""
        if self.sincos is not None:
            h = h + self.sincos(merged.coords, torch.promote_types(h.dtype, torch.float32)).to(h.dtype)
        for table in self.tables:
            h = h + table(merged.coords)
        return h

    def _turned(self, merged: LayoutIndex, dtype: torch.dtype) -> Rotary | None:
        """The rotations of the video's tokens; the identity for text."""
        if self.rope is None:
            return None
        places = merged.coords if self.place is None else self.place(merged.coords, merged.extent)
        return self.rope(places, torch.promote_types(dtype, torch.float32))

    def _check(
        self,
        x: Tensor,
        text: Tensor,
        layout: LayoutIndex,
        text_layout: LayoutIndex,
        given: Tensor | None,
        ofs: Tensor | None,
    ) -> None:
        check_tokens("x", x, self.config.patch_dim, layout, layout)
        check_tokens("text", text, self.config.text_dim, text_layout, layout)
        check_dtypes(self.embed, x=x, text=text)
        check_given(given, self.config.given_channels, self.config.given_dim, layout)
        if (ofs is not None) != self.config.ofs:
            found = "None" if ofs is None else f"of shape {tuple(ofs.shape)}"
            raise ValueError(f"ofs is {found}, but the model has ofs={self.config.ofs}")

    if TYPE_CHECKING:

        def __call__(
            self,
            x: Float[Tensor, "*lead p"],
            t: Rows,
            text: Float[Tensor, "*text_lead e"],
            layout: Layout,
            text_layout: Layout,
            given: Float[Tensor, "*lead g"] | None = None,
            ofs: Float[Tensor, " s"] | None = None,
            text_t: Rows | None = None,
            joint: JointIndex | None = None,
        ) -> Float[Tensor, "*lead p"]: ...


def _rope(head_dim: int) -> Rope3d:
    """A quarter of a head turns with the frame, three eighths each with row and column."""
    plane = head_dim // 8 * 3
    return Rope3d(head_dim, (head_dim - 2 * plane, plane, plane))


def _tables(config: CogVideoXConfig, device: torch.device | str | None, dtype: torch.dtype | None) -> list[nn.Module]:
    """Learned positions of the video and of the text; none for most models."""
    if config.learned is None:
        return []
    grid = LearnedGridPositions(config.learned, config.dim, device=device, dtype=dtype)
    return [grid, LearnedTextPositions(config.learned_text, config.dim, device=device, dtype=dtype)]


def _block(
    config: CogVideoXConfig, pattern: Pattern, device: torch.device | str | None, dtype: torch.dtype | None
) -> TransformerBlock:
    """Modulated joint attention and MLP on the merged axis; the rows come from outside, text's and video's together."""
    dim, eps = config.dim, config.eps
    qk_norm = partial(LayerNorm, eps=1e-6)
    attention = Branch(
        Attention(dim, config.heads, qk_norm=qk_norm, pattern=pattern, device=device, dtype=dtype),
        LayerNorm(dim, eps, device=device, dtype=dtype),
        modulation=ModulationSlice(dim, 0),
        takes=("layout", "rope"),
    )
    mlp = Branch(
        MLP(dim, device=device, dtype=dtype),
        LayerNorm(dim, eps, device=device, dtype=dtype),
        modulation=ModulationSlice(dim, 3),
    )
    return TransformerBlock([attention, mlp])
