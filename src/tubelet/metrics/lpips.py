"""LPIPS: distance of frames in the features of a network that was trained to name what images show.

Zhang, Isola, Efros, Shechtman and Wang, *The Unreasonable Effectiveness of Deep Features as a Perceptual Metric*,
arXiv:1801.03924. The network is VGG16 (arXiv:1409.1556, configuration D) without its fully connected layers.
"""

from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["LPIPS", "VGG16", "VGG_SIDE"]

_WIDTHS, _DEPTHS = (64, 128, 256, 512, 512), (2, 2, 3, 3, 3)
VGG_SIDE = 2 ** (len(_DEPTHS) - 1)
"""The least side of images in pixels: each stage but the first halves it."""
_MEAN, _DEVIATION = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_EPS = 1e-10


class VGG16(nn.Module):
    """The 13 convolutions of VGG16 in five stages; each stage halves the sides of the one before.

    Args:
        widths: channels of the five stages.

    Returns:
        What each stage ends with, ``(n, widths[i], h / 2^i, w / 2^i)`` rounded down.

    Raises:
        ValueError: not five widths, or sides below 16 pixels.

    Example:
        >>> [tuple(f.shape[1:]) for f in VGG16((4, 4, 8, 8, 8))(torch.zeros(1, 3, 16, 20))]
        [(4, 16, 20), (4, 8, 10), (8, 4, 5), (8, 2, 2), (8, 1, 1)]
    """

    def __init__(self, widths: Sequence[int] = _WIDTHS) -> None:
        super().__init__()
        if len(widths) != len(_DEPTHS):
            raise ValueError(f"widths must be {len(_DEPTHS)} numbers, one a stage, not {tuple(widths)}")
        inputs = (3, *widths[:-1])
        self.stages = nn.ModuleList(map(_stage, range(len(_DEPTHS)), inputs, widths, _DEPTHS))

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> list[Float[Tensor, "n _ _ _"]]:
        if min(images.shape[-2:]) < VGG_SIDE:
            raise ValueError(f"VGG16 needs sides of at least {VGG_SIDE} pixels, got h, w = {tuple(images.shape[-2:])}")
        features = [images]
        for stage in self.stages:
            features.append(stage(features[-1]))
        return features[1:]


def _stage(index: int, inputs: int, width: int, depth: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.MaxPool2d(2)] if index else []
    for i in range(depth):
        layers += [nn.Conv2d(width if i else inputs, width, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers)


class LPIPS(nn.Module):
    """Perceptual distance of each video, averaged over its frames; 0 where they are equal.

    The features of each stage are made unit vectors over the channels. Their squared differences are weighted by
    channel, summed over channels, averaged over places, and added up over stages (equation 1). The distance has
    gradients in both videos, also where features vanish. :func:`load_weights` freezes the network.

    Args:
        widths: channels of the stages of :class:`VGG16`.

    Raises:
        ValueError: other shapes, not 3 channels, or sides below 16 pixels.

    Example:
        >>> lpips = LPIPS((4, 4, 8, 8, 8))  # LPIPS() for the published weights
        >>> x, y = torch.rand(2, 2, 3, 5, 16, 16) * 2 - 1
        >>> distance = lpips(x, y)
        >>> distance.shape, bool((distance > 0).all()), lpips(x, x).tolist()
        (torch.Size([2]), True, [0.0, 0.0])
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, widths: Sequence[int] = _WIDTHS) -> None:
        super().__init__()
        self.trunk = VGG16(widths)
        self.heads = nn.ParameterList(torch.rand(width) for width in widths)
        self.register_buffer("mean", torch.tensor(_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(_DEVIATION).view(3, 1, 1), persistent=False)

    def forward(self, x: Float[Tensor, "b c t h w"], y: Float[Tensor, "b c t h w"]) -> Float[Tensor, " b"]:
        if x.shape != y.shape or x.ndim != 5 or x.shape[1] != 3:
            raise ValueError(f"x and y must share one shape (b, 3, t, h, w), got {tuple(x.shape)} and {tuple(y.shape)}")
        pairs = zip(self._features(x), self._features(y), self.heads, strict=True)
        stages = torch.stack([(head * (p - q).square().mean((2, 3))).sum(1) for p, q, head in pairs])
        return rearrange(stages.sum(0), "(b t) -> b t", b=len(x)).mean(1)

    def _features(self, video: Tensor) -> list[Tensor]:
        frames = (rearrange(video, "b c t h w -> (b t) c h w") - self.mean) / self.deviation
        wide = torch.promote_types(video.dtype, torch.float32)
        return [F.normalize(feature.to(wide), dim=1, eps=_EPS) for feature in self.trunk(frames)]
