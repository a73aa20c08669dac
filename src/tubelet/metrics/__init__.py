"""How near videos are to videos: PSNR, SSIM and LPIPS of pairs, the Fréchet video distance (FVD) of sets.

Videos are ``(b, c, t, h, w)`` in [-1, 1]. What compares pairs gives one number a video and has gradients; ``1 - ssim``
and LPIPS serve as training losses. The networks of LPIPS and FVD are plain modules, and :func:`load_weights` reads
their published weights from safetensors files that ``scripts/metric_weights.py`` makes.
"""

from tubelet.metrics.frames import psnr, ssim
from tubelet.metrics.frechet import Gaussian, frechet_distance, fvd, video_features
from tubelet.metrics.i3d import I3D
from tubelet.metrics.lpips import LPIPS, VGG16
from tubelet.metrics.published import i3d_tensors, lpips_tensors, read_arrays
from tubelet.metrics.weights import load_weights

__all__ = [
    "I3D",
    "LPIPS",
    "VGG16",
    "Gaussian",
    "frechet_distance",
    "fvd",
    "i3d_tensors",
    "load_weights",
    "lpips_tensors",
    "psnr",
    "read_arrays",
    "ssim",
    "video_features",
]
