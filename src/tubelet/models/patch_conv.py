"""A convolution over the frames of every sample, on patches as they lie: packed mixtures of sizes without unfolding.

Each patch is given a border of one cell of its eight neighbours' (zeros beyond the edge of the frame) and convolved
alone, which is the convolution of the whole frame. Nothing depends on the sizes, so one compiled graph serves all.
"""

import itertools
import math
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from tubelet.layout import Kind, LayoutIndex
from tubelet.patchify import Patch

__all__ = ["PatchConv"]


class PatchConv(nn.Module):
    """A convolution of 3 by 3 cells with zero padding, frame by frame, from patches to patches.

    Args:
        channels: of a cell, in and out.
        patch: ``(pt, ph, pw)``.

    Raises:
        ValueError: at the call, patches of another width, or a layout of which tokens were dropped.

    Example:
        >>> from tubelet.layout import Grid, TokenLayout
        >>> from tubelet.patchify import fold
        >>> video, conv = torch.randn(2, 3, 1, 8, 4), PatchConv(3, (1, 2, 2))
        >>> got = conv(fold(video, (1, 2, 2)), TokenLayout.dense(2, Grid(1, 4, 2)).on("cpu"))
        >>> torch.allclose(got, fold(conv.conv(video[:, :, 0])[:, :, None], (1, 2, 2)), atol=1e-5)
        True
    """

    def __init__(
        self,
        channels: int,
        patch: Patch,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.patch = patch
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, device=device, dtype=dtype)

    def forward(self, patches: Float[Tensor, "*lead p"], layout: LayoutIndex) -> Float[Tensor, "*lead p"]:
        """``(*lead, pt·ph·pw·c)`` to the same."""
        pt, ph, pw = self.patch
        width = math.prod(self.patch) * self.conv.in_channels
        if patches.shape[-1] != width:
            raise ValueError(f"patches are {patches.shape[-1]} wide, but patch and channels ask for {width}")
        around = _neighbours(patches, layout)
        frames = rearrange(around, "n (a b) (t h w c) -> (n t) c (a h) (b w)", a=3, t=pt, h=ph, w=pw)
        framed = frames[..., ph - 1 : 2 * ph + 1, pw - 1 : 2 * pw + 1]
        out = nn.functional.conv2d(framed, self.conv.weight, self.conv.bias)
        return rearrange(out, "(n t) c h w -> n (t h w c)", t=pt).reshape(patches.shape)

    if TYPE_CHECKING:

        def __call__(self, patches: Float[Tensor, "*lead p"], layout: LayoutIndex) -> Float[Tensor, "*lead p"]: ...


def _neighbours(patches: Tensor, layout: LayoutIndex) -> Float[Tensor, "n 9 p"]:
    """The patch above and left of each token to that below and right of it, row by row; zeros where there is none."""
    if layout.kept is not None:
        raise ValueError(f"layout of {layout.shape} has dropped tokens, so that neighbours are missing")
    coords, extent = layout.coords.reshape(-1, 3), layout.extent.reshape(-1, 3)
    flat, number = patches.reshape(-1, patches.shape[-1]), torch.arange(len(coords), device=coords.device)
    grid = (layout.kind == Kind.GRID).flatten()
    parts = []
    for down, right in itertools.product((-1, 0, 1), repeat=2):
        h, w = coords[:, 1] + down, coords[:, 2] + right
        inside = grid & (h >= 0) & (h < extent[:, 1]) & (w >= 0) & (w < extent[:, 2])
        there = torch.where(inside, number + down * extent[:, 2] + right, number)
        parts.append(torch.where(inside[:, None], flat[there], 0))
    return torch.stack(parts, dim=1)
