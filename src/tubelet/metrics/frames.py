"""Distances of pixels and of local structure, frame by frame."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

__all__ = ["psnr", "ssim"]

SSIM_SIDE, _SIGMA = 11, 1.5
"""Side of the window in pixels, and so the least side of a video; its deviation."""
_K1, _K2 = 0.01, 0.03


def psnr(
    x: Float[Tensor, "b c t h w"], y: Float[Tensor, "b c t h w"], limits: tuple[float, float] = (-1.0, 1.0)
) -> Float[Tensor, " b"]:
    """Peak signal-to-noise ratio of each video, ``10 log10(span² / mse)`` in decibels; infinite where they are equal.

    The squared error is averaged over the whole video before the logarithm is taken; the span is that of the limits.

    Args:
        x: videos.
        y: videos of the same shape.
        limits: the darkest and the brightest value that there can be.

    Returns:
        Decibels, in float32 or better.

    Raises:
        ValueError: other shapes, or ``limits`` that do not ascend.

    Example:
        >>> video = torch.zeros(1, 3, 2, 16, 16)
        >>> round(psnr(video, video + 0.2).item(), 4)
        20.0
    """
    x, y, span = _pair(x, y, limits)
    return 10 * torch.log10(span**2 / (x - y).square().mean((1, 2, 3, 4)))


def ssim(
    x: Float[Tensor, "b c t h w"], y: Float[Tensor, "b c t h w"], limits: tuple[float, float] = (-1.0, 1.0)
) -> Float[Tensor, " b"]:
    """Structural similarity of each video: 1 where they are equal, less otherwise.

    Means, variances and the covariance are taken under a Gaussian of 11 × 11 pixels and deviation 1.5 that stays inside
    the frame, with ``C1 = (0.01 span)²`` and ``C2 = (0.03 span)²`` (Wang, Bovik, Sheikh and Simoncelli, *Image Quality
    Assessment*, IEEE TIP 2004, equation 13). The formula is meant for light, so values are counted from the darkest.
    Each channel of each frame is compared alone, then all are averaged.

    Args:
        x: videos.
        y: videos of the same shape.
        limits: the darkest and the brightest value that there can be.

    Returns:
        Similarities, in float32 or better.

    Raises:
        ValueError: other shapes, sides below 11 pixels, or ``limits`` that do not ascend.

    Example:
        >>> video = torch.rand(2, 3, 4, 16, 16)
        >>> ssim(video, video)
        tensor([1., 1.])
    """
    x, y, span = _pair(x, y, limits)
    if min(x.shape[-2:]) < SSIM_SIDE:
        raise ValueError(f"ssim needs sides of at least {SSIM_SIDE} pixels, got h, w = {tuple(x.shape[-2:])}")
    planes = (rearrange(value, "b c t h w -> (b c t) 1 h w") for value in (x, y, x * x, y * y, x * y))
    mx, my, xx, yy, xy = (_blurred(plane) for plane in planes)
    c1, c2 = (_K1 * span) ** 2, (_K2 * span) ** 2
    light = (2 * mx * my + c1) / (mx**2 + my**2 + c1)
    structure = (2 * (xy - mx * my) + c2) / ((xx - mx**2) + (yy - my**2) + c2)
    return rearrange(light * structure, "(b n) 1 h w -> b (n h w)", b=len(x)).mean(1)


def _blurred(planes: Float[Tensor, "n 1 h w"]) -> Float[Tensor, "n 1 i j"]:
    """Means under the Gaussian at each place where it fits; it is a product of two lines."""
    offsets = torch.arange(SSIM_SIDE, device=planes.device, dtype=planes.dtype) - SSIM_SIDE // 2
    line = torch.softmax(-(offsets**2) / (2 * _SIGMA**2), 0)
    return F.conv2d(F.conv2d(planes, line.view(1, 1, -1, 1)), line.view(1, 1, 1, -1))


def _pair(x: Tensor, y: Tensor, limits: tuple[float, float]) -> tuple[Tensor, Tensor, float]:
    """Both above the darkest value, in float32 or better, and the span."""
    if x.shape != y.shape:
        raise ValueError(f"x has shape {tuple(x.shape)}, but y has {tuple(y.shape)}")
    if x.ndim != 5 or not x.numel():
        raise ValueError(f"x and y must be (b, c, t, h, w) and not empty, got shape {tuple(x.shape)}")
    low, high = limits
    if not low < high:
        raise ValueError(f"limits must ascend, not {limits}")
    dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    return x.to(dtype) - low, y.to(dtype) - low, high - low
