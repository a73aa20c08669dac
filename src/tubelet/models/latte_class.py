"""Latte as the paper trains it: videos of a class, or of no class, without text (Ma et al., 2024, arXiv:2401.03048).

DiT's blocks (arXiv:2212.09748) with attention over space or over time in one of four arrangements (section 3.1): every
block makes its own modulation from the noise level and the label, closed at the start (adaLN-Zero). Positions are those
of :mod:`tubelet.models.latte`. Images that are trained beside videos pass by the blocks over time.

What the published code cannot do: frames of other sides or number than trained, mixtures of sizes on one axis, noise
levels per frame or token, any other pattern over space or time.

Shapes: ``*lead`` tokens, ``p = pt·ph·pw·c`` numbers a patch, ``q >= p`` numbers predicted for it, ``s`` samples.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tubelet.attention import Spatial, Temporal
from tubelet.blocks import norm_modulate
from tubelet.conditioning import AdaLNZero, LabelEmbedding, TimestepEmbedding
from tubelet.layout import LayoutIndex, Rows, TokenLayout
from tubelet.models.inputs import (
    check_asked,
    check_dtypes,
    check_fields,
    check_patch,
    check_per_sample,
    check_tokens,
    index_time,
    on,
    real_levels,
    reset_children,
)
from tubelet.models.latte import latte_positions
from tubelet.models.latte_variants import LatteVariant, latte_arrangement, latte_blocks
from tubelet.norms import LayerNorm
from tubelet.protocols import Pattern

__all__ = ["LatteClassConfig", "LatteClassTransformer", "latte_b", "latte_l", "latte_s", "latte_xl"]

Layout = TokenLayout | LayoutIndex


@dataclass(frozen=True, kw_only=True)
class LatteClassConfig:
    """Sizes of a :class:`LatteClassTransformer`.

    ``classes`` is the number of labels, None without; ``sample_size`` the side of a frame, in latent cells, over whose
    places the positions of every frame are spread; ``depth``, ``variance_channels``, ``patch``, ``temporal_from`` and
    ``time_scale`` and ``time_shift`` are as in :class:`tubelet.models.LatteConfig`.

    Raises:
        ValueError: a size does not divide or is not positive, or the variant has another.

    Example:
        >>> LatteClassConfig(dim=24, depth=2, heads=2).out_dim
        32
    """

    dim: int
    depth: int
    heads: int
    classes: int | None = None
    variant: LatteVariant = "interleaved"
    latent_channels: int = 4
    variance_channels: int = 4
    patch: tuple[int, int, int] = (1, 2, 2)
    sample_size: int = 32
    temporal_from: int = 2
    frequencies: int = 256
    time_scale: float = 1000.0
    time_shift: float = -1.0

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("dim", "depth", "heads", "classes", "latent_channels", "temporal_from", "sample_size"):
            if (size := getattr(self, name)) is not None and size < 1:
                raise ValueError(f"{name} must be positive, got {size}")
        check_patch(self.patch)
        if self.variance_channels < 0:
            raise ValueError(f"variance_channels must not be negative, got {self.variance_channels}")
        if self.dim % self.heads or self.dim % 4:
            raise ValueError(f"dim={self.dim} must be a multiple of heads={self.heads} and, for its positions, of 4")
        if self.variant == "half_heads" and self.heads % 2:
            raise ValueError(f"heads={self.heads} do not make two halves for variant='half_heads'")
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


def latte_s(classes: int | None = None) -> LatteClassConfig:
    """Small: 12 blocks of width 384.

    Example:
        >>> latte_s().heads
        6
    """
    return LatteClassConfig(dim=384, depth=12, heads=6, classes=classes)


def latte_b(classes: int | None = None) -> LatteClassConfig:
    """Base: 12 blocks of width 768.

    Example:
        >>> latte_b().heads
        12
    """
    return LatteClassConfig(dim=768, depth=12, heads=12, classes=classes)


def latte_l(classes: int | None = None) -> LatteClassConfig:
    """Large: 24 blocks of width 1024.

    Example:
        >>> latte_l().depth
        24
    """
    return LatteClassConfig(dim=1024, depth=24, heads=16, classes=classes)


def latte_xl(classes: int | None = None) -> LatteClassConfig:
    """Extra large: 28 blocks of width 1152.

    Example:
        >>> latte_xl(classes=101).dim
        1152
    """
    return LatteClassConfig(dim=1152, depth=28, heads=16, classes=classes)


class LatteClassTransformer(nn.Module):
    """Noisy patches, noise levels and labels to the prediction on the patches, the variance's numbers behind it.

    Args:
        config: its sizes.
        spatial: which tokens of a sample attend to each other over space.
        temporal: the same over time.

    Example:
        >>> from tubelet import Grid
        >>> model = LatteClassTransformer(LatteClassConfig(dim=24, depth=2, heads=2, classes=10))
        >>> layout = TokenLayout.packed([Grid(3, 4, 4), Grid(1, 2, 6)]).on("cpu")
        >>> t = layout.rows(torch.tensor([0.2, 0.9]), "sample")
        >>> labels = torch.tensor([3, model.label.null])
        >>> noise, variance = model(torch.randn(60, 16), t, layout, labels).split([16, 16], dim=-1)
        >>> noise.shape
        torch.Size([60, 16])
    """

    def __init__(
        self,
        config: LatteClassConfig,
        *,
        spatial: Pattern = Spatial(),  # noqa: B008 - a frozen value
        temporal: Pattern = Temporal(),  # noqa: B008 - a frozen value
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        dim, classes, arranged = config.dim, config.classes, latte_arrangement(config.variant, config.depth)
        self.embed = nn.Linear(config.patch_dim, dim, device=device, dtype=dtype)
        self.time = TimestepEmbedding(dim, config.frequencies, device=device, dtype=dtype)
        self.label = None if classes is None else LabelEmbedding(classes, dim, device=device, dtype=dtype)
        self.before_time = arranged.before_time
        self.blocks = latte_blocks(
            arranged,
            dim,
            config.heads,
            spatial=spatial,
            temporal=temporal,
            modulation=lambda parts: AdaLNZero(dim, dim, parts, device=device, dtype=dtype),
            device=device,
            dtype=dtype,
        )
        self.final_norm = LayerNorm(dim, affine=False, device=device, dtype=dtype)
        self.final_modulation = AdaLNZero(dim, dim, parts=2, device=device, dtype=dtype)
        self.project = nn.Linear(dim, config.out_dim, device=device, dtype=dtype)
        self._reset_own()

    def reset_parameters(self) -> None:
        """Every child anew (after meta construction, say), then the model's own."""
        reset_children(self)
        self._reset_own()

    def _reset_own(self) -> None:
        """Xavier input, zero output."""
        nn.init.xavier_uniform_(self.embed.weight)
        nn.init.zeros_(self.project.weight)
        for linear in (self.embed, self.project):
            nn.init.zeros_(linear.bias)

    def forward(
        self,
        x: Float[Tensor, "*lead p"],
        t: Rows,
        layout: Layout,
        labels: Int[Tensor, " s"] | None = None,
    ) -> Float[Tensor, "*lead q"]:
        """Predict from noisy patches. Padding may hold anything.

        Args:
            x: patches at their noise levels.
            t: noise levels in [0, 1], one row per sample, frame or token (or one for all).
            layout: where the samples of ``x`` lie; any number of frames each.
            labels: the class of each sample, where the config has some; ``config.classes`` for none.

        Returns:
            ``config.out_dim`` numbers a patch: the prediction, then those of the variance channels in the same order.

        Raises:
            ValueError: shapes and layout disagree, or the config asks for labels that are not there or has none.
        """
        index = on(layout, x)
        check_tokens("x", x, self.config.patch_dim, index, index)
        check_dtypes(self.embed, x=x)
        t = real_levels(t, index)
        h: Tensor = self.embed(index.zero_padding(x))
        in_frame, in_time = latte_positions(index, self._places(), self.config.dim, h.dtype)
        cond = self._add_labels(
            t.map(lambda level: self.time(index_time(level, self.config.time_scale, self.config.time_shift))),
            labels,
            index,
        )
        context: Mapping[str, Any] = {
            "layout": index,
            "moving": index.extent[..., :1] >= self.config.temporal_from,
        }
        h = (h + in_frame).to(h.dtype)
        for block in self.blocks[: self.before_time]:
            h = block(h, cond, context)
        h = (h + in_time).to(h.dtype)
        for block in self.blocks[self.before_time :]:
            h = block(h, cond, context)
        shift, scale = self.final_modulation(cond).chunk(2)
        out: Tensor = self.project(norm_modulate(self.final_norm, h, shift, scale))
        return out

    def _places(self) -> tuple[float, float]:
        h, w = (self.config.sample_size / side for side in self.config.patch[1:])
        return h, w

    def _add_labels(self, time: Rows, labels: Tensor | None, index: LayoutIndex) -> Rows:
        """The embedded labels beside the embedded noise levels; the levels alone for a model without classes."""
        check_asked("labels", labels, self.label is not None, f"classes={self.config.classes}")
        if labels is None or self.label is None:
            return time
        check_per_sample("labels", labels, (), index)
        return index.add_per_sample(time, self.label(labels))

    if TYPE_CHECKING:

        def __call__(
            self,
            x: Float[Tensor, "*lead p"],
            t: Rows,
            layout: Layout,
            labels: Int[Tensor, " s"] | None = None,
        ) -> Float[Tensor, "*lead q"]: ...
