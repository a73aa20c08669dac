"""W.A.L.T, the window-attention latent transformer of videos and images (Gupta et al., 2023, arXiv:2312.06662).

The recipe (section 3.2): blocks whose attention sees a window of one frame and blocks whose attention sees a window of
space and time, in turn; images pass the latter under an identity mask. Positions are learned for each frame and each
place in it, and relative ones are added to the scores; queries and keys are normed. One projection of noise level and
class modulates the first block, and each other adds a term of low rank to it (adaLN-LoRA). Text enters blocks over
space by cross-attention, whose keys are the tokens of the window and the text. Beside the noisy latents stand, as
channels, what the config asks for: the network's own last estimate (self-conditioning), given frames and their mask
(frame prediction), and the latents of a lower resolution with the level of the noise in them (super-resolution).

It predicts ``v`` on a path without signal at the end: :func:`walt_process`.

What the paper does not have: mixtures of sizes on one axis, noise levels per frame or token, grids that the windows do
not divide, videos of more frames than a window.

Shapes: ``*lead`` tokens, ``p = pt·ph·pw·c`` numbers a patch, ``m`` text tokens, ``s`` samples.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tubelet.attention import Attention, JoinedCrossAttention, RelativePositions, VideoOnly, Window
from tubelet.blocks import Branch, TransformerBlock, norm_modulate
from tubelet.conditioning import AdaLNLoRA, AdaLNZero, LabelEmbedding, ModulationSlice, TimestepEmbedding
from tubelet.diffusion import VP, Process, discrete
from tubelet.layout import LayoutIndex, Rows, TokenLayout
from tubelet.mlp import MLP
from tubelet.models.inputs import (
    check_asked,
    check_dtypes,
    check_fields,
    check_no_text,
    check_patch,
    check_per_sample,
    check_tokens,
    index_time,
    joined,
    on,
    per_sample,
    real_levels,
    reset_children,
)
from tubelet.norms import LayerNorm
from tubelet.positions import LearnedSpaceTimePositions

__all__ = ["Walt", "WaltConfig", "walt_l", "walt_process", "walt_xl"]

Layout = TokenLayout | LayoutIndex


@dataclass(frozen=True, kw_only=True)
class WaltConfig:
    """Sizes of a :class:`Walt`.

    ``rank`` is that of adaLN-LoRA; ``classes`` does not count the null class, None without classes; ``text_dim`` is the
    width of encoded prompts, None without text; ``patch`` is ``(t, h, w)`` in latent cells; ``extent`` the largest grid
    ``(t, h, w)`` of the learned positions, by default that of the base stage; ``spatial_window`` and ``window`` are the
    sides of the two kinds of windows. ``self_conditioning``, ``frame_prediction`` and ``super_resolution`` say what
    stands beside the noisy latents. A noise level ``t`` in [0, 1] is fed as ``time_scale·t + time_shift``, by default
    the index ``i`` of the level ``(i + 1)/1000``.

    Raises:
        ValueError: a size does not divide or is not positive.

    Example:
        >>> WaltConfig(dim=32, depth=2, heads=2, mlp_dim=64).patch_dim
        8
    """

    dim: int
    depth: int
    heads: int
    mlp_dim: int
    rank: int = 2
    latent_channels: int = 8
    classes: int | None = None
    text_dim: int | None = None
    patch: tuple[int, int, int] = (1, 1, 1)
    extent: tuple[int, int, int] = (5, 16, 16)
    spatial_window: tuple[int, int, int] = (1, 16, 16)
    window: tuple[int, int, int] = (5, 8, 8)
    self_conditioning: bool = True
    frame_prediction: bool = False
    super_resolution: bool = False
    frequencies: int = 256
    time_scale: float = 1000.0
    time_shift: float = -1.0

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("dim", "depth", "heads", "mlp_dim", "rank", "latent_channels", "classes", "text_dim"):
            if (size := getattr(self, name)) is not None and size < 1:
                raise ValueError(f"{name} must be positive, got {size}")
        check_patch(self.patch)
        for name in ("extent", "spatial_window", "window"):
            if min(sides := getattr(self, name)) < 1:
                raise ValueError(f"{name} must be positive on each axis, got {sides}")
        if self.dim % self.heads:
            raise ValueError(f"dim={self.dim} is not a multiple of heads={self.heads}")
        if self.frequencies % 2 or self.frequencies < 2:
            raise ValueError(f"frequencies must be even and positive, got {self.frequencies}")

    @property
    def patch_dim(self) -> int:
        """Numbers in one patch, ``pt·ph·pw·c``."""
        return math.prod(self.patch) * self.latent_channels

    @property
    def known_dim(self) -> int:
        """Numbers that say what is known of one patch: as many as it holds, and the mask."""
        return self.patch_dim + 1

    @property
    def input_dim(self) -> int:
        """Numbers that stand side by side in one patch of the input."""
        beside = self.patch_dim * (self.self_conditioning + self.super_resolution)
        return self.patch_dim + beside + self.known_dim * self.frame_prediction


def walt_l(**options: Any) -> WaltConfig:
    """W.A.L.T-L, 313 million parameters; ``options`` are further fields of the config, such as ``classes=101``.

    The defaults are those of the base stage, latents of up to 5×16×16 cells (17 frames of 128×128 pixels). A stage
    that doubles its sides is ``walt_l(super_resolution=True, extent=(5, 32, 32))``.

    Example:
        >>> walt_l(classes=101).rank, walt_l(super_resolution=True, extent=(5, 32, 32)).extent
        (2, (5, 32, 32))
    """
    return WaltConfig(dim=1024, depth=24, heads=16, mlp_dim=4096, **options)


def walt_xl(**options: Any) -> WaltConfig:
    """W.A.L.T-XL, 460 million parameters; ``options`` as of :func:`walt_l`.

    Example:
        >>> walt_xl(text_dim=2048).depth
        28
    """
    return WaltConfig(dim=1152, depth=28, heads=16, mlp_dim=4608, **options)


def walt_process(steps: int = 1000) -> Process:
    """How W.A.L.T's data are noised: a true-linear path of ``steps`` betas without signal at its end, ``v`` predicted.

    The paper samples it by 50 steps of DDIM: ``sample(..., process.times(50), process=process, step=ddim_step)``, where
    the first step starts at noise alone (arXiv:2305.08891).

    Raises:
        ValueError: ``steps`` is below 2.

    Example:
        >>> process = walt_process()
        >>> process.prediction, float(process.path.alpha(torch.ones(1)))
        ('v', 0.0)
    """
    if steps < 2:
        raise ValueError(f"steps must be at least 2, got {steps}")
    return Process(path=VP.linear(steps).zero_terminal_snr(), prediction="v", density=discrete(steps))


class Walt(nn.Module):
    """Noisy patches, noise levels and classes or text to a prediction on the patches.

    Args:
        config: its sizes.

    Example:
        >>> from tubelet import Grid
        >>> model = Walt(WaltConfig(dim=32, depth=2, heads=2, mlp_dim=64, classes=10))
        >>> layout = TokenLayout.packed([Grid(3, 4, 4), Grid(1, 2, 6)]).on("cpu")
        >>> t = layout.rows(torch.tensor([0.2, 0.9]), "sample")
        >>> model(torch.randn(60, 8), t, layout, torch.tensor([3, model.label.null])).shape
        torch.Size([60, 8])
    """

    def __init__(
        self, config: WaltConfig, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        self.embed = nn.Linear(config.input_dim, dim, **options)
        self.positions = LearnedSpaceTimePositions(config.extent, dim, **options)
        self.time = TimestepEmbedding(dim, config.frequencies, **options)
        self.noise = TimestepEmbedding(dim, config.frequencies, **options) if config.super_resolution else None
        self.label = None if config.classes is None else LabelEmbedding(config.classes, dim, **options)
        self.text = None
        if config.text_dim is not None:
            self.text = nn.Sequential(nn.Linear(config.text_dim, dim, **options), LayerNorm(dim, **options))
        self.modulation = AdaLNZero(dim, dim, parts=6, **options)
        self.blocks = nn.ModuleList(_block(config, number, **options) for number in range(config.depth))
        self.final_norm = LayerNorm(dim, affine=False, **options)
        self.final_modulation = AdaLNZero(dim, dim, parts=2, **options)
        self.project = nn.Linear(dim, config.patch_dim, **options)
        self._reset_own()

    def reset_parameters(self) -> None:
        """Every child anew (after meta construction, say), then the model's own."""
        reset_children(self)
        self._reset_own()

    def _reset_own(self) -> None:
        """Xavier input, zero output, cross-attention that starts as zero; the children have initialised themselves."""
        nn.init.xavier_uniform_(self.embed.weight)
        nn.init.zeros_(self.project.weight)
        for linear in (self.embed, self.project):
            nn.init.zeros_(linear.bias)
        for module in self.modules():
            if isinstance(module, JoinedCrossAttention):
                nn.init.zeros_(module.out_proj.weight)

    def forward(
        self,
        x: Float[Tensor, "*lead p"],
        t: Rows,
        layout: Layout,
        labels: Int[Tensor, " s"] | None = None,
        text: Float[Tensor, "*text_lead e"] | None = None,
        text_layout: Layout | None = None,
        *,
        estimate: Float[Tensor, "*lead p"] | None = None,
        known: Float[Tensor, "*lead k"] | None = None,
        low: Float[Tensor, "*lead p"] | None = None,
        noise: Float[Tensor, " s"] | None = None,
    ) -> Float[Tensor, "*lead p"]:
        """Predict from noisy patches. Padding of the layouts may hold anything.

        Args:
            x: patches at their noise levels.
            t: noise levels in [0, 1], one row per sample, frame or token (or one for all).
            layout: where the samples of ``x`` lie.
            labels: the class of each sample, where the config has some; ``model.label.null`` is none.
            text: encoded prompts, where the config has ``text_dim``.
            text_layout: where the prompts of the same samples lie in ``text``; none of a sample is no text.
            estimate: the data as the network last estimated them, where the config has ``self_conditioning``; None:
                zeros, as in the first of a sampler's steps.
            known: given patches, zeros elsewhere, and the mask, :attr:`tubelet.diffusion.Known.channels`, where the
                config has ``frame_prediction``; None: nothing is given.
            low: patches of the lower resolution, upsampled and noised, where the config has ``super_resolution``.
            noise: the level of that noise in [0, 1], of each sample.

        Raises:
            ValueError: shapes and layouts disagree, samples of ``layout`` have text (it lies in ``text_layout``), a
                grid is larger than ``extent``, or the config asks for inputs that are not there or has none such.
        """
        index = on(layout, x)
        check_tokens("x", x, self.config.patch_dim, index, index)
        check_no_text("layout", index)
        check_dtypes(self.embed, x=x)
        t = real_levels(t, index)
        inputs = self._beside(x, index, estimate, known, low)
        h: Tensor = self.embed(index.zero_padding(inputs))
        h = h + self.positions(index.coords).to(h.dtype)
        cond = self._condition(t, index, labels, noise)
        context = {"layout": index, **self._text(x, layout, index, text, text_layout)}
        shared = self.modulation(cond)
        both = cond.map(lambda c: torch.cat([c, shared.values], dim=-1))
        for block in self.blocks:
            h = block(h, both, context)
        shift, scale = self.final_modulation(cond).chunk(2)
        out: Tensor = self.project(norm_modulate(self.final_norm, h, shift, scale))
        return out

    def _beside(
        self, x: Tensor, index: LayoutIndex, estimate: Tensor | None, known: Tensor | None, low: Tensor | None
    ) -> Float[Tensor, "*lead i"]:
        """The noisy latents, and what stands beside them."""
        config = self.config
        check_asked("low", low, config.super_resolution, f"super_resolution={config.super_resolution}")
        parts = {
            "estimate": (estimate, config.self_conditioning, config.patch_dim),
            "known": (known, config.frame_prediction, config.known_dim),
            "low": (low, config.super_resolution, config.patch_dim),
        }
        inputs = [x]
        for name, (part, has, width) in parts.items():
            if part is not None and not has:
                check_asked(name, part, has, "none: see its config")
            if has:
                part = x.new_zeros(*x.shape[:-1], width) if part is None else part
                check_tokens(name, part, width, index, index)
                inputs.append(part.to(x.dtype))
        return torch.cat(inputs, dim=-1)

    def _condition(self, t: Rows, index: LayoutIndex, labels: Tensor | None, noise: Tensor | None) -> Rows:
        """The embedded noise levels, the classes, and the level of the noise in a lower resolution, summed."""
        config = self.config
        cond = t.map(lambda level: self._embedded(self.time, level))
        check_asked("labels", labels, self.label is not None, f"classes={config.classes}")
        check_asked("noise", noise, self.noise is not None, f"super_resolution={config.super_resolution}")
        if labels is not None and self.label is not None:
            check_per_sample("labels", labels, (), index)
            cond = index.add_per_sample(cond, self.label(labels))
        if noise is not None and self.noise is not None:
            level = real_levels(index.rows(per_sample("noise", noise, (), index), "sample"), index, "noise")
            cond = index.add_per_sample(cond, self._embedded(self.noise, level.values))
        return cond

    def _embedded(self, embedding: nn.Module, level: Float[Tensor, " r"]) -> Float[Tensor, "r d"]:
        out: Tensor = embedding(index_time(level, self.config.time_scale, self.config.time_shift))
        return out.to(self.embed.weight.dtype)

    def _text(
        self, x: Tensor, layout: Layout, index: LayoutIndex, text: Tensor | None, text_layout: Layout | None
    ) -> dict[str, Any]:
        """What the cross-attention takes."""
        asked, why = self.text is not None, f"text_dim={self.config.text_dim}"
        check_asked("text", text, asked, why)
        check_asked("text_layout", text_layout, asked, why)
        if self.text is None or text is None or text_layout is None:
            return {}
        text_index = on(text_layout, x, "text_layout")
        assert self.config.text_dim is not None
        check_tokens("text", text, self.config.text_dim, text_index, index)
        check_dtypes(self.embed, text=text)
        encoded = self.text(text_index.zero_padding(text))
        return {"text": encoded, "joint": joined(text_layout, layout, None, x)}

    if TYPE_CHECKING:

        def __call__(
            self,
            x: Float[Tensor, "*lead p"],
            t: Rows,
            layout: Layout,
            labels: Int[Tensor, " s"] | None = None,
            text: Float[Tensor, "*text_lead e"] | None = None,
            text_layout: Layout | None = None,
            *,
            estimate: Float[Tensor, "*lead p"] | None = None,
            known: Float[Tensor, "*lead k"] | None = None,
            low: Float[Tensor, "*lead p"] | None = None,
            noise: Float[Tensor, " s"] | None = None,
        ) -> Float[Tensor, "*lead p"]: ...


def _block(config: WaltConfig, number: int, **options: Any) -> TransformerBlock:
    """Blocks over a frame and over space and time in turn; the first of all has the shared modulation as it is."""
    dim, heads, over_space = config.dim, config.heads, number % 2 == 0
    sides = config.spatial_window if over_space else config.window
    attention = Attention(
        dim,
        heads,
        qk_norm=LayerNorm,
        pattern=Window(sides) if over_space else VideoOnly(Window(sides)),
        relative=RelativePositions(heads, sides, **options),
        **options,
    )
    branches = [
        Branch(
            attention,
            LayerNorm(dim, affine=False, **options),
            modulation=ModulationSlice(dim, 0),
            takes=("layout",),
        )
    ]
    if over_space and config.text_dim is not None:
        cross = JoinedCrossAttention(dim, heads, qk_norm=LayerNorm, pattern=Window(sides), **options)
        branches.append(Branch(cross, LayerNorm(dim, **options), takes=("text", "layout", "joint")))
    mlp = MLP(dim, config.mlp_dim, **options)
    branches.append(Branch(mlp, LayerNorm(dim, affine=False, **options), modulation=ModulationSlice(dim, 3)))
    source: nn.Module = ModulationSlice(dim, 1, parts=6)
    if number:
        source = AdaLNLoRA(dim, dim, config.rank, parts=6, **options)
    return TransformerBlock(branches, source)
