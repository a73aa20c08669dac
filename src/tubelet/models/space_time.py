"""Joint attention over space and time or one of three ways to factorise it, as patterns of the layers of any model.

ViViT's four models (Arnab et al., 2021, arXiv:2103.15691, section 3.3). As patterns of a stack of blocks that keep all
tokens, three of them are three of Latte's variants (arXiv:2401.03048, section 3.1):

- ``"joint"`` (model 1): every layer attends all tokens of its sample;
- ``"factorised_encoder"`` (model 2): the first half of the blocks attends over space, the second over time;
- ``"factorised_self_attention"`` (model 3): each block attends over space, then over time, with weights for either;
- ``"factorised_dot_product"`` (model 4): half of the heads of each layer attend over space, half over time.
"""

from typing import Literal, get_args

from tubelet.attention import HeadSplit, Joint, Spatial, Temporal
from tubelet.models.latte_variants import LatteVariant, latte_arrangement
from tubelet.protocols import Pattern

__all__ = ["SpaceTime", "space_time"]

SpaceTime = Literal["joint", "factorised_encoder", "factorised_self_attention", "factorised_dot_product"]
"""A way to attend over space and time, by its name. Example: ``"factorised_dot_product"``."""

_LATTE: dict[SpaceTime, LatteVariant] = {
    "factorised_encoder": "late_fusion",
    "factorised_self_attention": "decomposed",
    "factorised_dot_product": "half_heads",
}


def space_time(
    how: SpaceTime,
    depth: int,
    heads: int,
    *,
    spatial: Pattern = Spatial(),  # noqa: B008 - a frozen value
    temporal: Pattern = Temporal(),  # noqa: B008 - a frozen value
) -> tuple[tuple[Pattern, ...], ...]:
    """The patterns of the self-attentions of each block, in order.

    Args:
        how: which of the four.
        depth, heads: number of blocks, and of heads in each attention.
        spatial, temporal: other patterns over space and over time, such as one that is causal.

    Returns:
        A tuple for each block, of one pattern or, where attention is factorised, of two. Where each block has one, a
        finished model attends so by ``set_pattern(model, [one for (one,) in space_time(...)])``.

    Raises:
        ValueError: an unknown way, an odd ``depth`` for the factorised encoder, or odd ``heads`` for the dot product.

    Example:
        >>> space_time("factorised_encoder", 2, 4), len(space_time("factorised_self_attention", 2, 4)[0])
        (((Spatial(),), (Temporal(),)), 2)
    """
    if how not in get_args(SpaceTime):
        raise ValueError(f"how must be one of {get_args(SpaceTime)}, got {how!r}")
    if how == "joint":
        return ((Joint(),),) * depth
    if how == "factorised_encoder" and depth % 2:
        raise ValueError(f"depth must be even for space_time={how!r}, half over space and half over time, got {depth}")
    if how == "factorised_dot_product" and heads % 2:
        raise ValueError(f"heads={heads} do not make two halves for space_time={how!r}")
    split = HeadSplit((spatial, temporal), (max(heads // 2, 1),) * 2)
    over: dict[str, Pattern] = {"space": spatial, "time": temporal, "both": split}
    return tuple(tuple(over[axis] for axis in block) for block in latte_arrangement(_LATTE[how], depth).blocks)
