"""U-ViT, the transformer with long skip connections of Bao et al. (2022, arXiv:2209.12152), over packed latents.

The recipe (section 3): everything is a token. Before the patches of a sample stand one of its noise level, a raw
sinusoid, and one of its class or those of its text; all have learned positions. Of the blocks of a plain ViT, each of
the second half joins its tokens with those that its mirror image in the first half made. A convolution of 3 by 3 cells
may end the prediction of the noise.

What the published code cannot do: mixtures of sizes on one axis, up to the size of the table of positions; prompts
without padding; videos; and any attention pattern. The noise level is a token, so that there is one for each sample.

Shapes: ``*lead`` tokens, ``s`` samples, ``p = pt·ph·pw·c`` numbers a patch, ``m`` text tokens of width ``e``.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from tubelet.attention import Joint
from tubelet.blocks import LongSkip
from tubelet.conditioning import LabelEmbedding, timestep_sinusoid
from tubelet.layout import JointIndex, LayoutIndex, Rows, TokenLayout
from tubelet.mlp import MLP
from tubelet.models.inputs import (
    check_asked,
    check_dtypes,
    check_fields,
    check_longest,
    check_patch,
    check_per_sample,
    check_tokens,
    index_time,
    on,
    real_levels,
    reset_children,
)
from tubelet.models.patch_conv import PatchConv
from tubelet.models.vit_block import vit_block
from tubelet.norms import LayerNorm
from tubelet.positions import LearnedGridPositions
from tubelet.protocols import Pattern

__all__ = [
    "UViT",
    "UViTConfig",
    "uvit_celeba64",
    "uvit_cifar10",
    "uvit_coco",
    "uvit_coco_deep",
    "uvit_h_imagenet256",
    "uvit_h_imagenet512",
    "uvit_l_imagenet64",
    "uvit_l_imagenet256",
    "uvit_l_imagenet512",
    "uvit_m_imagenet64",
]

Layout = TokenLayout | LayoutIndex


@dataclass(frozen=True, kw_only=True)
class UViTConfig:
    """Sizes of a :class:`UViT`.

    ``depth`` is even and does not count the block in the middle; ``grid`` is the largest ``(t, h, w)`` of tokens, for
    which there are positions; ``patch`` is ``(t, h, w)`` in cells; ``classes`` is None without labels, and does not
    count the null class, which ``null_class`` adds; ``text_dim`` is the width of text tokens, None without, of which a
    prompt has up to ``text_tokens``; ``conv`` ends the model with a convolution; ``time_mlp`` sends the sinusoid of the
    noise level through an MLP; ``time_scale`` is what a noise level in [0, 1] is multiplied by before its sinusoid.

    Raises:
        ValueError: a size does not divide or is not positive, or there are both classes and text.

    Example:
        >>> UViTConfig(dim=32, depth=2, heads=2, mlp_dim=64, grid=(1, 4, 4)).prefix
        1
    """

    dim: int
    depth: int
    heads: int
    mlp_dim: int
    grid: tuple[int, int, int]
    latent_channels: int = 4
    patch: tuple[int, int, int] = (1, 2, 2)
    classes: int | None = None
    null_class: bool = True
    text_dim: int | None = None
    text_tokens: int = 77
    conv: bool = True
    time_mlp: bool = False
    qkv_bias: bool = False
    eps: float = 1e-5
    time_scale: float = 1000.0

    def __post_init__(self) -> None:
        check_fields(self)
        sizes = ("dim", "depth", "heads", "mlp_dim", "latent_channels", "classes", "text_dim", "text_tokens")
        for name in sizes:
            if (size := getattr(self, name)) is not None and size < 1:
                raise ValueError(f"{name} must be positive, got {size}")
        check_patch(self.patch)
        if min(self.grid) < 1:
            raise ValueError(f"grid must be three positive sides (t, h, w), got {self.grid}")
        if self.dim % self.heads or self.dim % 2:
            raise ValueError(f"dim={self.dim} must be even and a multiple of heads={self.heads}")
        if self.depth % 2:
            raise ValueError(f"depth must be even, half before and half behind the middle, got {self.depth}")
        if self.classes is not None and self.text_dim is not None:
            raise ValueError(f"classes={self.classes} and text_dim={self.text_dim} exclude each other")

    @property
    def patch_dim(self) -> int:
        """Numbers in one patch, ``pt·ph·pw·c``."""
        return math.prod(self.patch) * self.latent_channels

    @property
    def prefix(self) -> int:
        """How many tokens can stand before the patches of a sample."""
        return 1 + (self.classes is not None) + (0 if self.text_dim is None else self.text_tokens)


def uvit_cifar10() -> UViTConfig:
    """U-ViT-S/2 on pixels of 32×32, without labels: 44 million parameters.

    Example:
        >>> uvit_cifar10().grid
        (1, 16, 16)
    """
    return _small(latent_channels=3, time_scale=999.0)


def uvit_celeba64() -> UViTConfig:
    """U-ViT-S/4 on pixels of 64×64, without labels: 44 million parameters.

    Example:
        >>> uvit_celeba64().patch
        (1, 4, 4)
    """
    return _small(latent_channels=3, patch=(1, 4, 4), time_scale=999.0)


def uvit_m_imagenet64() -> UViTConfig:
    """U-ViT-M/4 on pixels of 64×64, without a null class: 131 million parameters.

    Example:
        >>> uvit_m_imagenet64().depth
        16
    """
    return UViTConfig(
        dim=768, depth=16, heads=12, mlp_dim=3072, grid=(1, 16, 16), latent_channels=3, patch=(1, 4, 4),
        classes=1000, null_class=False, time_scale=999.0,
    )  # fmt: skip


def uvit_l_imagenet64() -> UViTConfig:
    """U-ViT-L/4 on pixels of 64×64, without a null class: 287 million parameters.

    Example:
        >>> uvit_l_imagenet64().null_class
        False
    """
    return _large(latent_channels=3, patch=(1, 4, 4), null_class=False, time_scale=999.0)


def uvit_l_imagenet256() -> UViTConfig:
    """U-ViT-L/2 on latents of 32×32: 287 million parameters.

    Example:
        >>> uvit_l_imagenet256().dim
        1024
    """
    return _large()


def uvit_h_imagenet256() -> UViTConfig:
    """U-ViT-H/2 on latents of 32×32, without a convolution: 501 million parameters.

    Example:
        >>> uvit_h_imagenet256().conv
        False
    """
    return _huge()


def uvit_l_imagenet512() -> UViTConfig:
    """U-ViT-L/4 on latents of 64×64: 287 million parameters.

    Example:
        >>> uvit_l_imagenet512().patch
        (1, 4, 4)
    """
    return _large(patch=(1, 4, 4))


def uvit_h_imagenet512() -> UViTConfig:
    """U-ViT-H/4 on latents of 64×64, without a convolution: 501 million parameters.

    Example:
        >>> uvit_h_imagenet512().depth
        28
    """
    return _huge(patch=(1, 4, 4))


def uvit_coco() -> UViTConfig:
    """U-ViT-S/2 on latents of 32×32, from CLIP's text tokens: 45 million parameters.

    Example:
        >>> uvit_coco().prefix
        78
    """
    return _small(text_dim=768)


def uvit_coco_deep() -> UViTConfig:
    """U-ViT-S/2 (Deep) on latents of 32×32, from CLIP's text tokens: 58 million parameters.

    Example:
        >>> uvit_coco_deep().depth
        16
    """
    return _small(text_dim=768, depth=16)


def _small(**changes: Any) -> UViTConfig:
    return UViTConfig(**{"dim": 512, "depth": 12, "heads": 8, "mlp_dim": 2048, "grid": (1, 16, 16), **changes})


def _large(**changes: Any) -> UViTConfig:
    sizes = {"dim": 1024, "depth": 20, "heads": 16, "mlp_dim": 4096, "grid": (1, 16, 16), "classes": 1000}
    return UViTConfig(**{**sizes, **changes})


def _huge(**changes: Any) -> UViTConfig:
    sizes = {"dim": 1152, "depth": 28, "heads": 16, "mlp_dim": 4608, "grid": (1, 16, 16), "classes": 1000}
    return UViTConfig(**{**sizes, "conv": False, **changes})


class UViT(nn.Module):
    """Noisy patches, noise levels and a class or text to the noise on the patches.

    Args:
        config: its sizes.
        pattern: which tokens of a sample, those before its patches too, attend to each other in every block; the
            published models have ``Joint()``.

    Example:
        >>> from tubelet import Grid
        >>> model = UViT(UViTConfig(dim=32, depth=2, heads=2, mlp_dim=64, grid=(1, 4, 6), classes=10))
        >>> layout = TokenLayout.packed([Grid(1, 4, 4), Grid(1, 2, 6)]).on("cpu")
        >>> t = layout.rows(torch.tensor([0.2, 0.9]), "sample")
        >>> model(torch.randn(28, 16), t, layout, torch.tensor([7, model.label.null])).shape
        torch.Size([28, 16])
    """

    def __init__(
        self,
        config: UViTConfig,
        *,
        pattern: Pattern = Joint(),  # noqa: B008 - a frozen value
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        make: dict[str, Any] = {"device": device, "dtype": dtype}
        dim, half = config.dim, range(config.depth // 2)
        self.embed = nn.Linear(config.patch_dim, dim, **make)
        self.positions = LearnedGridPositions(config.grid, dim, **make)
        self.prefix = nn.Parameter(torch.empty(config.prefix, dim, **make))
        self.time = MLP(dim, act=nn.SiLU(), **make) if config.time_mlp else nn.Identity()
        self.label = (
            None if config.classes is None else LabelEmbedding(config.classes, dim, null=config.null_class, **make)
        )
        self.text = None if config.text_dim is None else nn.Linear(config.text_dim, dim, **make)
        block = partial(
            vit_block, dim, config.heads, config.mlp_dim, [pattern], qkv_bias=config.qkv_bias, eps=config.eps, **make
        )
        self.in_blocks = nn.ModuleList(block() for _ in half)
        self.mid_block = block()
        self.out_blocks = nn.ModuleList(LongSkip(dim, block(), **make) for _ in half)
        self.final_norm = LayerNorm(dim, config.eps, **make)
        self.project = nn.Linear(dim, config.patch_dim, **make)
        self.conv = PatchConv(config.latent_channels, config.patch, **make) if config.conv else None
        self._reset_own()

    def reset_parameters(self) -> None:
        """Every child anew (after meta construction, say), then the model's own."""
        reset_children(self)
        self._reset_own()

    def _reset_own(self) -> None:
        """Normal linear layers and positions of deviation 0.02, zero biases; labels of deviation 1."""
        nn.init.normal_(self.prefix, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if self.label is not None:
            nn.init.normal_(self.label.table.weight)

    def forward(
        self,
        x: Float[Tensor, "*lead p"],
        t: Rows,
        layout: Layout,
        labels: Int[Tensor, " s"] | None = None,
        text: Float[Tensor, "*text_lead e"] | None = None,
        text_layout: Layout | None = None,
    ) -> Float[Tensor, "*lead p"]:
        """Predict from noisy patches. Padding may hold anything.

        Args:
            x: patches at their noise levels.
            t: noise levels in [0, 1], one row per sample (or one for all).
            layout: where the samples of ``x`` lie.
            labels: the class of each sample, where the config has ``classes``.
            text, text_layout: encoded prompts and where those of the same samples lie, where the config has
                ``text_dim``.

        Raises:
            ValueError: shapes and layouts disagree, there is more than one noise level a sample, a grid or a prompt is
                larger than the positions, or the config asks for inputs that are not there or has none such.
        """
        index = on(layout, x)
        check_tokens("x", x, self.config.patch_dim, index, index)
        check_dtypes(self.embed, x=x)
        t = real_levels(t, index)
        patches: Tensor = self.embed(index.zero_padding(x))
        patches = patches + self.positions(index.coords)
        streams = [*self._conditions(t, labels, index, patches.dtype), *self._words(text, text_layout, index)]
        joint = JointIndex.of(*(where for _, where in streams), index)
        h = joint.merge(*(tokens for tokens, _ in streams), patches)
        context, skips = {"layout": joint.index}, []
        for block in self.in_blocks:
            h = block(h, None, context)
            skips.append(h)
        h = self.mid_block(h, None, context)
        for block in self.out_blocks:
            h = block(h, skips.pop(), None, context)
        out: Tensor = self.project(self.final_norm(joint.split(h)[-1]))
        return out if self.conv is None else self.conv(out, index)

    def _conditions(
        self, t: Rows, labels: Tensor | None, index: LayoutIndex, dtype: torch.dtype
    ) -> list[tuple[Tensor, LayoutIndex]]:
        """The class of each sample, if there are classes, and its noise level, as tokens and where they lie."""
        samples = index.seqlens.shape[0]
        if len(t.values) not in (1, samples):
            raise ValueError(f"t has {len(t.values)} noise levels, but a token of them for each of {samples} samples")
        check_asked("labels", labels, self.label is not None, f"classes={self.config.classes}")
        sinusoid = timestep_sinusoid(index_time(t.values, self.config.time_scale), self.config.dim).to(dtype)
        tokens = [self.time(sinusoid).expand(samples, -1)]
        if self.label is not None and labels is not None:
            check_per_sample("labels", labels, (), index)
            tokens.insert(0, self.label(index.rows(labels, "sample").values))
        where = index.prefix(len(tokens))
        return [((torch.stack(tokens, dim=1) + self.prefix[: len(tokens)]).reshape(*where.shape, -1), where)]

    def _words(
        self, text: Tensor | None, layout: Layout | None, index: LayoutIndex
    ) -> list[tuple[Tensor, LayoutIndex]]:
        """The tokens of the prompts and where they lie; none for a model without."""
        if self.text is None:
            if text is not None:
                raise ValueError(f"text has shape {tuple(text.shape)}, but the model has text_dim=None")
            return []
        if text is None or layout is None:
            raise ValueError(f"the model has text_dim={self.config.text_dim}: give text and text_layout")
        where = on(layout, text)
        check_tokens("text", text, self.text.in_features, where, index)
        check_longest("a prompt", where, self.config.text_tokens, "text_tokens")
        words = self.text(where.zero_padding(text))
        return [(words + F.embedding(where.coords[..., 2].clamp(min=0), self.prefix[1:]), where)]

    if TYPE_CHECKING:

        def __call__(
            self,
            x: Float[Tensor, "*lead p"],
            t: Rows,
            layout: Layout,
            labels: Int[Tensor, " s"] | None = None,
            text: Float[Tensor, "*text_lead e"] | None = None,
            text_layout: Layout | None = None,
        ) -> Float[Tensor, "*lead p"]: ...
