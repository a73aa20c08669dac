"""Three other ways to bring noise level and class into the blocks of DiT (arXiv:2212.09748, section 3.2, figure 3).

Each is a function to be given to :class:`tubelet.models.DiT` as its ``conditioning``: ``DiT(dit_xl(),
conditioning=dit_in_context)``. Blocks that are not modulated have affine norms, as those of any ViT. Conditions that
are tokens are two for each sample, so that these take one noise level a sample; adaLN takes any.

Shapes: ``*lead`` tokens of width ``d``, ``s`` samples.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tubelet.attention import Attention, CrossAttention
from tubelet.blocks import Branch, ModulatedNorm, TransformerBlock
from tubelet.conditioning import AdaLNZero, ModulationSlice
from tubelet.layout import JointIndex, LayoutIndex, Rows
from tubelet.mlp import MLP
from tubelet.models.dit import DiTConfig
from tubelet.norms import LayerNorm
from tubelet.protocols import Pattern

__all__ = ["dit_adaln", "dit_cross_attention", "dit_in_context"]

Device = torch.device | str | None


def dit_adaln(
    config: DiTConfig, pattern: Pattern, device: Device = None, dtype: torch.dtype | None = None
) -> tuple[Sequence[nn.Module], nn.Module]:
    """Shift and scale of both branches, without gates.

    Example:
        >>> from tubelet.models import DiT
        >>> model = DiT(DiTConfig(dim=16, depth=1, heads=2, mlp_dim=32), conditioning=dit_adaln)
        >>> model.blocks[0].branches[0].parts
        ('shift', 'scale')
    """
    dim = config.dim
    make: dict[str, Any] = {"device": device, "dtype": dtype}

    def block() -> nn.Module:
        attention, mlp = (
            Branch(
                inner,
                LayerNorm(dim, eps, affine=False, **make),
                modulation=ModulationSlice(dim, start, parts=2),
                parts=("shift", "scale"),
                takes=takes,
            )
            for inner, eps, start, takes in (
                (Attention(dim, config.heads, pattern=pattern, **make), config.eps, 0, ("layout",)),
                (MLP(dim, config.mlp_dim, **make), config.mlp_eps, 2, ()),
            )
        )
        return TransformerBlock([attention, mlp], AdaLNZero(dim, dim, parts=4, **make))

    last = ModulatedNorm(LayerNorm(dim, config.eps, affine=False, **make), AdaLNZero(dim, dim, parts=2, **make))
    return [block() for _ in range(config.depth)], last


def dit_cross_attention(
    config: DiTConfig, pattern: Pattern, device: Device = None, dtype: torch.dtype | None = None
) -> tuple[Sequence[nn.Module], nn.Module]:
    """Behind each self-attention another, from the tokens to the two conditions.

    Example:
        >>> from tubelet.models import DiT
        >>> model = DiT(DiTConfig(dim=16, depth=3, heads=2, mlp_dim=32), conditioning=dit_cross_attention)
        >>> len(model.blocks[0].blocks)
        3
    """
    make: dict[str, Any] = {"device": device, "dtype": dtype}

    def block() -> nn.Module:
        attention, mlp = _plain(config, pattern, **make)
        cross = Branch(
            CrossAttention(config.dim, config.heads, **make),
            LayerNorm(config.dim, config.eps, **make),
            takes=("text", "layout", "text_layout"),
        )
        return TransformerBlock([attention, cross, mlp])

    return [_Attended([block() for _ in range(config.depth)])], ModulatedNorm(LayerNorm(config.dim, config.eps, **make))


def dit_in_context(
    config: DiTConfig, pattern: Pattern, device: Device = None, dtype: torch.dtype | None = None
) -> tuple[Sequence[nn.Module], nn.Module]:
    """The two conditions stand as tokens before those of each sample, and are taken away after the last block.

    Example:
        >>> from tubelet.models import DiT
        >>> model = DiT(DiTConfig(dim=16, depth=3, heads=2, mlp_dim=32), conditioning=dit_in_context)
        >>> len(model.blocks[0].blocks)
        3
    """
    make: dict[str, Any] = {"device": device, "dtype": dtype}
    blocks = [TransformerBlock(_plain(config, pattern, **make)) for _ in range(config.depth)]
    return [_Prefixed(blocks)], ModulatedNorm(LayerNorm(config.dim, config.eps, **make))


class _Prefixed(nn.Module):
    """Blocks over tokens that have their conditions before them."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Float[Tensor, "*lead d"], cond: Rows, context: Mapping[str, Any]) -> Float[Tensor, "*lead d"]:
        """Conditions in, blocks, conditions out."""
        index: LayoutIndex = context["layout"]
        before = index.prefix(2)
        joint = JointIndex.of(before, index)
        h = joint.merge(_conditions(context, before), x)
        for block in self.blocks:
            h = block(h, cond, {"layout": joint.index})
        return joint.split(h)[1]

    if TYPE_CHECKING:

        def __call__(
            self, x: Float[Tensor, "*lead d"], cond: Rows, context: Mapping[str, Any]
        ) -> Float[Tensor, "*lead d"]: ...


class _Attended(nn.Module):
    """Blocks whose tokens attend to their conditions."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Float[Tensor, "*lead d"], cond: Rows, context: Mapping[str, Any]) -> Float[Tensor, "*lead d"]:
        """The blocks, with the conditions as their text."""
        index: LayoutIndex = context["layout"]
        text_layout = index.prefix(2)
        given = {"layout": index, "text": _conditions(context, text_layout), "text_layout": text_layout}
        for block in self.blocks:
            x = block(x, cond, given)
        return x

    if TYPE_CHECKING:

        def __call__(
            self, x: Float[Tensor, "*lead d"], cond: Rows, context: Mapping[str, Any]
        ) -> Float[Tensor, "*lead d"]: ...


def _plain(config: DiTConfig, pattern: Pattern, **make: Any) -> tuple[Branch, Branch]:
    """The branches of a ViT."""
    attention = Branch(
        Attention(config.dim, config.heads, pattern=pattern, **make),
        LayerNorm(config.dim, config.eps, **make),
        takes=("layout",),
    )
    mlp = Branch(MLP(config.dim, config.mlp_dim, **make), LayerNorm(config.dim, config.mlp_eps, **make))
    return attention, mlp


def _conditions(context: Mapping[str, Any], layout: LayoutIndex) -> Float[Tensor, "*lead d"]:
    """The embedded noise level and class of each sample, as tokens where ``layout`` has them."""
    time, label = context["time"].values, context["label"].values
    if len(time) not in (1, len(label)):
        raise ValueError(f"t has {len(time)} noise levels, but conditions are tokens of {len(label)} samples")
    return torch.stack([time.expand_as(label), label], dim=1).reshape(*layout.shape, -1)
