"""What :class:`tubelet.models.ViViT` is made of: a transformer, ways to read one vector from it, encoders of frames.

An encoder is called as ``encoder(tokens, index)`` and gives a :class:`ViViTEncoding`. Shapes: ``*lead`` tokens, ``s``
samples.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tubelet.layout import JointIndex, LayoutIndex, frames_apart, frames_as_tokens
from tubelet.pooling import mean_pool

__all__ = ["ViViTEncoding"]


class ViViTEncoding(NamedTuple):
    """What an encoder makes of a batch: one vector for each sample, and the tokens that it is read from, normed.

    Example:
        >>> ViViTEncoding(torch.zeros(2, 8), torch.zeros(10, 8)).pooled.shape
        torch.Size([2, 8])
    """

    pooled: Float[Tensor, "s d"]
    tokens: Float[Tensor, "*lead d"]


class Trunk(nn.Module):
    """Positions, blocks and the last norm."""

    def __init__(self, positions: nn.Module, blocks: Sequence[nn.Module], norm: nn.Module) -> None:
        super().__init__()
        self.positions, self.blocks, self.norm = positions, nn.ModuleList(blocks), norm

    def forward(self, h: Float[Tensor, "*lead d"], index: LayoutIndex) -> Float[Tensor, "*lead d"]:
        h = h + self.positions(index.coords)
        for block in self.blocks:
            h = block(h, None, {"layout": index})
        out: Tensor = self.norm(h)
        return out


class AsTheyAre(nn.Module):
    """In the place of a trunk."""

    def forward(self, h: Float[Tensor, "*lead d"], index: LayoutIndex) -> Float[Tensor, "*lead d"]:
        return h


class MeanEncoder(nn.Module):
    """A sample's vector is the mean of its tokens."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, tokens: Float[Tensor, "*lead d"], index: LayoutIndex) -> ViViTEncoding:
        h = self.trunk(tokens, index)
        return ViViTEncoding(mean_pool(h, index), h)


class ClassTokenEncoder(nn.Module):
    """A sample's vector is that of a learned token before its own; zeros where there is no sample."""

    def __init__(self, dim: int, trunk: nn.Module, **make: Any) -> None:
        super().__init__()
        self.token, self.position = (nn.Parameter(torch.empty(dim, **make)) for _ in range(2))
        self.trunk = trunk
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """A token of zeros at a normal place; the trunk initialises itself."""
        nn.init.zeros_(self.token)
        nn.init.normal_(self.position, std=0.02)

    def forward(self, tokens: Float[Tensor, "*lead d"], index: LayoutIndex) -> ViViTEncoding:
        where = index.prefix(1)
        joint = JointIndex.of(where, index)
        first = (self.token + self.position).to(tokens.dtype).expand(*where.shape, -1)
        first, tokens = joint.split(self.trunk(joint.merge(first, tokens), joint.index))
        return ViViTEncoding(
            torch.where(index.seqlens[:, None] > 0, first.reshape(len(index.seqlens), tokens.shape[-1]), 0), tokens
        )


class FrameEncoder(nn.Module):
    """One encoder on each frame alone, another on the frames' vectors; the tokens are the first one's."""

    def __init__(self, spatial: nn.Module, over: nn.Module) -> None:
        super().__init__()
        self.spatial, self.over = spatial, over

    def forward(self, tokens: Float[Tensor, "*lead d"], index: LayoutIndex) -> ViViTEncoding:
        frames, single = frames_apart(index), frames_as_tokens(index)
        each = self.spatial(tokens.reshape(*frames.shape, tokens.shape[-1]), frames)
        whole = self.over(each.pooled.reshape(*single.shape, tokens.shape[-1]), single)
        return ViViTEncoding(whole.pooled, each.tokens.reshape(tokens.shape))
