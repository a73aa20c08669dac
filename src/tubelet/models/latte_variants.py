"""Latte's four ways to arrange attention over space and over time (Ma et al., 2024, arXiv:2401.03048, section 3.1).

- ``"interleaved"`` (variant 1): blocks over space and blocks over time in turn;
- ``"late_fusion"`` (variant 2): the first half of the blocks over space, the second over time;
- ``"decomposed"`` (variant 3): each block attends over space, then over time;
- ``"half_heads"`` (variant 4): half of the heads of each block attend over space, half over time. The sum of two
  projected halves is one projection of both, so this is ViViT's split of the heads.

An arrangement is a list of words, from which the blocks are built; no block knows of it. Blocks or attentions over time
alone can be passed by, as images do in joint training with videos; in split heads an image's token attends to itself.

Shapes: ``(*lead, d)``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tubelet.attention import Attention, HeadSplit
from tubelet.blocks import Branch, TransformerBlock
from tubelet.conditioning import ModulationSlice
from tubelet.layout import Rows
from tubelet.mlp import MLP
from tubelet.norms import LayerNorm
from tubelet.protocols import Pattern

__all__ = ["LatteArrangement", "LatteVariant", "latte_arrangement", "latte_blocks"]

LatteVariant = Literal["interleaved", "late_fusion", "decomposed", "half_heads"]
"""A variant of Latte, by its name. Example: ``"interleaved"``."""

Over = Literal["space", "time", "both"]


@dataclass(frozen=True)
class LatteArrangement:
    """What the blocks attend over: ``blocks[i]`` lists the self-attentions of block ``i`` in order.

    Example:
        >>> latte_arrangement("decomposed", 2).blocks
        (('space', 'time'), ('space', 'time'))
    """

    blocks: tuple[tuple[Over, ...], ...]

    @property
    def before_time(self) -> int:
        """How many blocks come before the first that attends over time."""
        return next(i for i, block in enumerate(self.blocks) if block != ("space",))

    @property
    def parts(self) -> int:
        """Rows of modulation in a block: shift, scale and gate of each self-attention and of the MLP."""
        return 3 * (len(self.blocks[0]) + 1)


def latte_arrangement(variant: LatteVariant, depth: int) -> LatteArrangement:
    """The arrangement of a variant with ``depth`` blocks in all.

    Raises:
        ValueError: the variant is unknown, or has as many blocks over space as over time and ``depth`` is odd.

    Example:
        >>> latte_arrangement("late_fusion", 4).blocks, latte_arrangement("late_fusion", 4).before_time
        ((('space',), ('space',), ('time',), ('time',)), 2)
    """
    if variant not in get_args(LatteVariant):
        raise ValueError(f"variant must be one of {get_args(LatteVariant)}, got {variant!r}")
    if variant in ("interleaved", "late_fusion") and depth % 2:
        raise ValueError(f"depth must be even for variant={variant!r}, half over space and half over time, got {depth}")
    blocks: dict[LatteVariant, tuple[tuple[Over, ...], ...]] = {
        "interleaved": (("space",), ("time",)) * (depth // 2),
        "late_fusion": (("space",),) * (depth // 2) + (("time",),) * (depth // 2),
        "decomposed": (("space", "time"),) * depth,
        "half_heads": (("both",),) * depth,
    }
    return LatteArrangement(blocks[variant])


def latte_blocks(
    arranged: LatteArrangement,
    dim: int,
    heads: int,
    *,
    spatial: Pattern,
    temporal: Pattern,
    modulation: Callable[[int], nn.Module],
    cross: Callable[[], nn.Module] | None = None,
    eps: float = 1e-6,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.ModuleList:
    """The blocks of an arrangement: modulated self-attentions, each over space followed by cross-attention, and an MLP.

    Args:
        arranged: which block attends over what.
        dim, heads: width of the tokens, and heads of each attention.
        spatial, temporal: the patterns over space and over time; heads that are split have half of each.
        modulation: makes the source of one block from its number of parts.
        cross: makes a cross-attention; None for blocks without. It has neither norm nor gate.
        eps: of the norms.

    Returns:
        Blocks that take ``layout`` and ``moving`` from the context, and with a cross-attention ``text`` and
        ``text_layout``. What attends over time alone leaves the tokens as they are where ``moving``, a mask
        ``(*lead, 1)``, is false.

    Example:
        >>> from tubelet.attention import Spatial, Temporal
        >>> from tubelet.conditioning import AdaLNSingle
        >>> blocks = latte_blocks(
        ...     latte_arrangement("decomposed", 2), 8, 2, spatial=Spatial(), temporal=Temporal(),
        ...     modulation=lambda parts: AdaLNSingle(8, parts),
        ... )
        >>> blocks[0].modulation.table.shape
        torch.Size([9, 8])
    """
    made: dict[str, Any] = {"device": device, "dtype": dtype}

    def norm() -> LayerNorm:
        return LayerNorm(dim, eps, affine=False, **made)

    def block(over: tuple[Over, ...]) -> nn.Module:
        branches: list[nn.Module] = []
        for i, axis in enumerate(over):
            inner = Attention(dim, heads, pattern=_pattern(axis, heads, spatial, temporal), **made)
            branch = Branch(inner, norm(), modulation=ModulationSlice(dim, 3 * i), takes=("layout",))
            branches.append(_Moving(branch) if axis == "time" and len(over) > 1 else branch)
            if axis != "time" and cross is not None:
                branches.append(Branch(cross(), takes=("text", "layout", "text_layout")))
        branches.append(Branch(MLP(dim, **made), norm(), modulation=ModulationSlice(dim, 3 * len(over))))
        whole = TransformerBlock(branches, modulation(arranged.parts))
        return _Moving(whole) if over == ("time",) else whole

    return nn.ModuleList(map(block, arranged.blocks))


def _pattern(over: Over, heads: int, spatial: Pattern, temporal: Pattern) -> Pattern:
    if over == "both":
        return HeadSplit((spatial, temporal), (heads // 2, heads // 2))
    return spatial if over == "space" else temporal


class _Moving(nn.Module):
    """A block or a branch for the tokens of videos: those of still images stay as they are."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(
        self, x: Float[Tensor, "*lead d"], cond: Rows | None, context: Mapping[str, Any]
    ) -> Float[Tensor, "*lead d"]:
        """The inner result where ``context["moving"]`` is true, else ``x``."""
        return torch.where(context["moving"], self.inner(x, cond, context), x)

    if TYPE_CHECKING:

        def __call__(
            self, x: Float[Tensor, "*lead d"], cond: Rows | None, context: Mapping[str, Any]
        ) -> Float[Tensor, "*lead d"]: ...
