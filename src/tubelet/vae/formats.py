"""Memory formats: what is made of a video keeps the one that the video has.

A convolution copies an input whose format is not that of its weights, so one change in the middle of a decoder would
be paid for by every layer behind it.
"""

import re

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

__all__ = ["layout_of", "rearranged"]


def layout_of(x: Tensor) -> torch.memory_format:
    """The memory format that what is made of a tensor should have; inside of ``torch.func`` there is but one.

    Example:
        >>> layout_of(torch.zeros(1, 2, 3, 4, 4))
        torch.contiguous_format
    """
    if not torch.compiler.is_compiling() and torch._C._functorch.is_functorch_wrapped_tensor(x):
        return torch.contiguous_format
    last = x.stride(1) == 1 and x.shape[1] > 1 and not x.is_contiguous()
    return torch.channels_last_3d if last else torch.contiguous_format


def rearranged(x: Float[Tensor, "b c t h w"], form: str, **sides: int) -> Float[Tensor, "b d t2 h2 w2"]:
    """``einops.rearrange`` from one video to another, in the memory format of the first.

    Args:
        x: the video.
        form: einops' pattern, with the channels second on both sides.
        **sides: lengths of its axes.

    Example:
        >>> x = torch.zeros(1, 8, 2, 2, 2).to(memory_format=torch.channels_last_3d)
        >>> y = rearranged(x, "b (c ph pw) t h w -> b c t (h ph) (w pw)", ph=2, pw=2)
        >>> y.shape, layout_of(y)
        (torch.Size([1, 2, 2, 4, 4]), torch.channels_last_3d)
    """
    if layout_of(x) == torch.contiguous_format:
        return rearrange(x, form, **sides)
    before, after = (_channels_behind(side) for side in form.split("->"))
    return rearrange(x.movedim(1, -1), f"{before} -> {after}", **sides).contiguous().movedim(-1, 1)


def _channels_behind(side: str) -> str:
    """One side of a pattern, its second axis last."""
    batch, channels, *rest = re.findall(r"\([^)]*\)|\S+", side)
    return " ".join([batch, *rest, channels])
