"""DiT, the class-conditional image transformer of Peebles and Xie (2022, arXiv:2212.09748), over packed latents.

The recipe (section 3.2): the sum of an embedded noise level and an embedded class modulates every block by adaLN-Zero;
positions are fixed sinusoids of the row and the column; the network predicts the noise and, in as many channels again,
its variance. How the two conditions enter the blocks is a function that :class:`DiT` takes: :func:`dit_adaln_zero`, or
one of the paper's other three in :mod:`tubelet.models.dit_conditioning`.

What the published code cannot do: mixtures of sizes on one axis, videos, noise levels per frame or token, and any
attention pattern.

Shapes: ``*lead`` tokens, ``s`` samples, ``p = pt·ph·pw·c`` numbers a patch, ``q >= p`` predicted for it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tubelet.attention import Attention, Joint
from tubelet.blocks import Branch, ModulatedNorm, TransformerBlock
from tubelet.conditioning import AdaLNZero, LabelEmbedding, ModulationSlice, TimestepEmbedding
from tubelet.layout import LayoutIndex, Rows, TokenLayout
from tubelet.mlp import MLP
from tubelet.models.inputs import (
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
from tubelet.norms import LayerNorm
from tubelet.positions import SinCos2d, SinCos3d, Stretched
from tubelet.protocols import Pattern

__all__ = ["Conditioning", "DiT", "DiTConfig", "dit_adaln_zero", "dit_b", "dit_l", "dit_s", "dit_xl"]


@dataclass(frozen=True, kw_only=True)
class DiTConfig:
    """Sizes of a :class:`DiT`.

    ``patch`` is ``(t, h, w)`` in latent cells; ``variance_channels`` are predicted beside the latent ones, 0 where the
    variance is not learned; ``classes`` does not count the null class; ``position_axes`` is 2 for sinusoids of row and
    column, 3 for those of the frame too; ``base_grid`` is the ``(h, w)`` whose places every grid spans, None where row
    and column count as they are; a noise level ``t`` in [0, 1] is fed as ``time_scale·t + time_shift``, by default the
    published index ``i`` at the level ``(i + 1)/1000``.

    Raises:
        ValueError: a size does not divide or is not positive.

    Example:
        >>> DiTConfig(dim=32, depth=2, heads=2, mlp_dim=64).patch_dim
        16
    """

    dim: int
    depth: int
    heads: int
    mlp_dim: int
    latent_channels: int = 4
    variance_channels: int = 4
    classes: int = 1000
    patch: tuple[int, int, int] = (1, 2, 2)
    frequencies: int = 256
    freq_shift: int = 0
    eps: float = 1e-6
    mlp_eps: float = 1e-6
    position_axes: int = 2
    base_grid: tuple[int, int] | None = None
    time_scale: float = 1000.0
    time_shift: float = -1.0

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("dim", "depth", "heads", "mlp_dim", "latent_channels", "classes"):
            if (size := getattr(self, name)) < 1:
                raise ValueError(f"{name} must be positive, got {size}")
        if self.variance_channels < 0:
            raise ValueError(f"variance_channels must not be negative, got {self.variance_channels}")
        check_patch(self.patch)
        if self.base_grid is not None and min(self.base_grid) < 1:
            raise ValueError(f"base_grid={self.base_grid} is too small")
        if self.dim % self.heads:
            raise ValueError(f"dim={self.dim} is not a multiple of heads={self.heads}")
        if self.position_axes not in (2, 3):
            raise ValueError(f"position_axes must be 2 or 3, got {self.position_axes}")
        if self.dim % (step := {2: 4, 3: 16}[self.position_axes]):
            raise ValueError(
                f"dim={self.dim} is not a multiple of {step}, which position_axes={self.position_axes} need"
            )
        if self.frequencies % 2 or self.frequencies < 2:
            raise ValueError(f"frequencies must be even and positive, got {self.frequencies}")

    @property
    def patch_dim(self) -> int:
        """Numbers in one patch, ``pt·ph·pw·c``."""
        return math.prod(self.patch) * self.latent_channels

    @property
    def out_dim(self) -> int:
        """Numbers predicted for one patch: as many as it holds, and behind them those of the variance."""
        return math.prod(self.patch) * (self.latent_channels + self.variance_channels)


def dit_s(patch: int = 2) -> DiTConfig:
    """DiT-S: 33 million parameters; patches of 2, 4 or 8 latent cells a side.

    Example:
        >>> dit_s(8).patch
        (1, 8, 8)
    """
    return DiTConfig(dim=384, depth=12, heads=6, mlp_dim=1536, patch=(1, patch, patch))


def dit_b(patch: int = 2) -> DiTConfig:
    """DiT-B: 130 million parameters.

    Example:
        >>> dit_b().dim
        768
    """
    return DiTConfig(dim=768, depth=12, heads=12, mlp_dim=3072, patch=(1, patch, patch))


def dit_l(patch: int = 2) -> DiTConfig:
    """DiT-L: 458 million parameters.

    Example:
        >>> dit_l().depth
        24
    """
    return DiTConfig(dim=1024, depth=24, heads=16, mlp_dim=4096, patch=(1, patch, patch))


def dit_xl(patch: int = 2) -> DiTConfig:
    """DiT-XL: 675 million parameters; with patches of 2 the published model, for 256 and for 512 pixels.

    Example:
        >>> dit_xl().heads
        16
    """
    return DiTConfig(dim=1152, depth=28, heads=16, mlp_dim=4608, patch=(1, patch, patch))


Conditioning = Callable[..., tuple[Sequence[nn.Module], nn.Module]]
"""Makes the blocks and the last norm from a config, ``pattern``, ``device`` and ``dtype``. Example: ``dit_adaln_zero``.

Blocks are called as ``block(h, cond, context)`` and the norm as ``norm(h, cond)``, with ``cond`` the rows of the summed
embeddings, and in ``context`` the ``layout``, and alone the rows of the embedded ``time`` and of the ``label``.
"""


def dit_adaln_zero(
    config: DiTConfig, pattern: Pattern, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> tuple[Sequence[nn.Module], nn.Module]:
    """DiT's own blocks: shift, scale and gate of both branches from one zero-initialised projection (figure 3, left).

    Example:
        >>> blocks, norm = dit_adaln_zero(DiTConfig(dim=16, depth=2, heads=2, mlp_dim=32), Joint())
        >>> len(blocks), norm(torch.ones(3, 16), Rows(torch.ones(1, 16))).shape
        (2, torch.Size([3, 16]))
    """
    dim, eps = config.dim, config.eps
    options: dict[str, Any] = {"device": device, "dtype": dtype}

    def block() -> nn.Module:
        attention = Branch(
            Attention(dim, config.heads, pattern=pattern, **options),
            LayerNorm(dim, eps, affine=False, **options),
            modulation=ModulationSlice(dim, 0),
            takes=("layout",),
        )
        mlp = Branch(
            MLP(dim, config.mlp_dim, **options),
            LayerNorm(dim, config.mlp_eps, affine=False, **options),
            modulation=ModulationSlice(dim, 3),
        )
        return TransformerBlock([attention, mlp], AdaLNZero(dim, dim, parts=6, **options))

    last = ModulatedNorm(LayerNorm(dim, eps, affine=False, **options), AdaLNZero(dim, dim, parts=2, **options))
    return [block() for _ in range(config.depth)], last


class DiT(nn.Module):
    """Noisy patches, noise levels and classes to the predicted noise (and variance) on the patches.

    Args:
        config: its sizes.
        pattern: which tokens of a sample attend to each other in every block; the published models have ``Joint()``.
        conditioning: how noise level and class enter the blocks.

    Example:
        >>> from tubelet import Grid
        >>> model = DiT(DiTConfig(dim=32, depth=2, heads=2, mlp_dim=64))
        >>> layout = TokenLayout.packed([Grid(1, 4, 4), Grid(1, 2, 6)]).on("cpu")
        >>> t = layout.rows(torch.tensor([0.2, 0.9]), "sample")
        >>> labels = torch.tensor([7, model.label.null])
        >>> noise, variance = model(torch.randn(28, 16), t, layout, labels).split([16, 16], dim=-1)
        >>> noise.shape
        torch.Size([28, 16])
    """

    def __init__(
        self,
        config: DiTConfig,
        *,
        pattern: Pattern = Joint(),  # noqa: B008 - a frozen value
        conditioning: Conditioning = dit_adaln_zero,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config, self.conditioning = config, conditioning
        dim = config.dim
        self.embed = nn.Linear(config.patch_dim, dim, device=device, dtype=dtype)
        self.places = (
            _as_they_are
            if config.base_grid is None
            else Stretched((float(config.base_grid[0]), float(config.base_grid[1])))
        )
        self.positions = {2: SinCos2d, 3: SinCos3d}[config.position_axes](dim)
        self.time = TimestepEmbedding(dim, config.frequencies, freq_shift=config.freq_shift, device=device, dtype=dtype)
        self.label = LabelEmbedding(config.classes, dim, device=device, dtype=dtype)
        blocks, self.final_norm = conditioning(config, pattern, device=device, dtype=dtype)
        self.blocks = nn.ModuleList(blocks)
        self.project = nn.Linear(dim, config.out_dim, device=device, dtype=dtype)
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
        layout: TokenLayout | LayoutIndex,
        labels: Int[Tensor, " s"],
    ) -> Float[Tensor, "*lead q"]:
        """Predict from noisy patches. Padding may hold anything.

        Args:
            x: patches at their noise levels.
            t: noise levels in [0, 1], one row per sample, frame or token (or one for all).
            layout: where the samples of ``x`` lie.
            labels: the class of each sample; ``model.label.null`` is none.

        Returns:
            ``config.out_dim`` numbers a patch: the noise, then those of the variance in the same order.

        Raises:
            ValueError: shapes and layout disagree, or a label is no class.
        """
        index = on(layout, x)
        check_tokens("x", x, self.config.patch_dim, index, index)
        check_dtypes(self.embed, x=x)
        t = real_levels(t, index)
        check_per_sample("labels", labels, (), index)
        h: Tensor = self.embed(index.zero_padding(x))
        places = self.places(index.coords, index.extent)
        h = (h + self.positions(places, torch.promote_types(h.dtype, torch.float32))).to(h.dtype)
        scale, shift = self.config.time_scale, self.config.time_shift
        time = t.map(lambda level: self.time(index_time(level, scale, shift)).to(h.dtype))
        label = index.rows(labels, "sample").map(self.label)
        cond = index.add_per_sample(time, label.values)
        context: dict[str, Any] = {"layout": index, "time": time, "label": label}
        for block in self.blocks:
            h = block(h, cond, context)
        out: Tensor = self.project(self.final_norm(h, cond))
        return out

    if TYPE_CHECKING:

        def __call__(
            self,
            x: Float[Tensor, "*lead p"],
            t: Rows,
            layout: TokenLayout | LayoutIndex,
            labels: Int[Tensor, " s"],
        ) -> Float[Tensor, "*lead q"]: ...


def _as_they_are(coords: Tensor, _extent: Tensor) -> Tensor:
    """The places of a grid that no other is the measure of."""
    return coords
