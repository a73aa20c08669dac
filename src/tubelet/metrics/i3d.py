"""I3D: the network whose logits the Fréchet video distance compares.

Carreira and Zisserman, *Quo Vadis, Action Recognition?*, arXiv:1705.07750, figure 3: Inception-v1 inflated to three
dimensions, trained to name the actions of Kinetics-400. Padding is TensorFlow's "SAME": as many outputs as strides
begun, and where the padding is odd, one more at the end than at the start.

It is here for measuring only: the published batch norms, which are constants then, are part of the convolutions.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["I3D"]

FEATURES = 1024
_LEAST_FRAMES = 9
MIXED = {
    "3b": (192, 64, 96, 128, 16, 32, 32),
    "3c": (256, 128, 128, 192, 32, 96, 64),
    "4b": (480, 192, 96, 208, 16, 48, 64),
    "4c": (512, 160, 112, 224, 24, 64, 64),
    "4d": (512, 128, 128, 256, 24, 64, 64),
    "4e": (512, 112, 144, 288, 32, 64, 64),
    "4f": (528, 256, 160, 320, 32, 128, 128),
    "5b": (832, 256, 160, 320, 32, 128, 128),
    "5c": (832, 384, 192, 384, 48, 128, 128),
}


class I3D(nn.Module):
    """Logits of actions, one row a video; ``features`` gives the 1,024 numbers that they are linear in.

    Args:
        classes: of actions.

    Raises:
        ValueError: not 3 channels, or fewer than 9 frames.

    Example:
        >>> network = I3D()  # FVD gives it frames of 224 × 224 pixels
        >>> video = torch.rand(1, 3, 9, 32, 32) * 2 - 1
        >>> network(video).shape, network.features(video).shape
        (torch.Size([1, 400]), torch.Size([1, 1024]))
    """

    def __init__(self, classes: int = 400) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            Unit(3, 64, 7, stride=2), Pool((1, 3, 3), (1, 2, 2)), Unit(64, 64, 1), Unit(64, 192, 3)
        )
        self.mixed = nn.ModuleDict({name: Inception(*widths) for name, widths in MIXED.items()})
        self.pools = nn.ModuleDict(
            {"3b": Pool((1, 3, 3), (1, 2, 2)), "4b": Pool((3, 3, 3), (2, 2, 2)), "5b": Pool((2, 2, 2), (2, 2, 2))}
        )
        self.head = nn.Linear(FEATURES, classes)

    def forward(self, video: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b classes"]:
        logits: Tensor = self.head(self.features(video))
        return logits

    def features(self, video: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b 1024"]:
        """What the logits are linear in: the last maps, averaged over space and pairs of frames, then over the pairs.

        Example:
            >>> I3D().features(torch.zeros(2, 3, 9, 16, 16)).shape
            torch.Size([2, 1024])
        """
        if video.shape[1] != 3 or video.shape[2] < _LEAST_FRAMES:
            least = f"3 channels and at least {_LEAST_FRAMES} frames"
            raise ValueError(f"video must have {least}, got c, t = {tuple(video.shape[1:3])}")
        x = self.stem(video)
        for name, mixed in self.mixed.items():
            x = mixed(self.pools[name](x) if name in self.pools else x)
        frames = x.mean((3, 4))
        return F.avg_pool1d(frames, 2, stride=1).mean(2)


class Unit(nn.Module):
    """Convolution and ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, kernel, stride)

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b d i j k"]:
        return F.relu(self.conv(_padded(x, self.conv.kernel_size, self.conv.stride)))


class Pool(nn.Module):
    """Largest of each window. What it pools is never negative, so padding with 0 is padding with nothing."""

    def __init__(self, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c i j k"]:
        return F.max_pool3d(_padded(x, self.kernel, self.stride), self.kernel, self.stride)


class Inception(nn.Module):
    """Four branches side by side: 1³; 1³ then 3³, twice; the largest of 3³, then 1³."""

    def __init__(self, inputs: int, direct: int, narrow: int, wide: int, thin: int, broad: int, pooled: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [
                nn.Sequential(Unit(inputs, direct, 1)),
                nn.Sequential(Unit(inputs, narrow, 1), Unit(narrow, wide, 3)),
                nn.Sequential(Unit(inputs, thin, 1), Unit(thin, broad, 3)),
                nn.Sequential(Pool((3, 3, 3), (1, 1, 1)), Unit(inputs, pooled, 1)),
            ]
        )

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b d t h w"]:
        return torch.cat([branch(x) for branch in self.branches], 1)


def _padded(x: Tensor, kernel: Sequence[int], stride: Sequence[int]) -> Tensor:
    pads: list[int] = []
    for n, k, s in reversed(list(zip(x.shape[2:], kernel, stride, strict=True))):
        total = max((-(-n // s) - 1) * s + k - n, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads)
