"""Resolution sampling: how large a sample is trained, with its aspect ratio kept (NaViT, arXiv:2307.06304, 3.2).

NaViT draws a side from a truncated normal distribution that favours small images and scales the image to the area of a
square of that side: many small samples for throughput, a few large ones for detail.

Generators are named in quotes because ``numpy.random`` is loaded on first use only.
"""

import math
from dataclasses import dataclass

import numpy as np

__all__ = ["ImageSizes", "truncated_normal"]


def truncated_normal(rng: "np.random.Generator", mean: float, deviation: float, low: float, high: float) -> float:
    """One draw of a normal distribution, given that it falls into ``[low, high]``.

    Drawn by rejection, which needs few tries where the interval holds a fair share of the distribution.

    Raises:
        ValueError: ``low`` is above ``high``, or the interval holds less than a thousandth of the distribution.

    Example:
        >>> -1 <= truncated_normal(np.random.default_rng(0), mean=-0.5, deviation=1.0, low=-1.0, high=1.0) <= 1
        True
    """
    if low > high:
        raise ValueError(f"low={low} is above high={high}")
    if deviation == 0 and low <= mean <= high:
        return mean
    below, above = (math.erf((end - mean) / (deviation * math.sqrt(2))) if deviation else 0.0 for end in (low, high))
    if above - below < 2e-3:
        raise ValueError(f"[{low}, {high}] holds hardly any of a normal distribution of {mean} ± {deviation}")
    while True:
        draw = rng.normal(mean, deviation)
        if low <= draw <= high:
            return float(draw)


@dataclass(frozen=True)
class ImageSizes:
    """NaViT's law of resolutions: sides from a truncated normal distribution, mapped to a range of pixels.

    ``u ~ N(mean, deviation)`` given ``-1 <= u <= 1``, and ``side = low + (u + 1)/2 · (high - low)``. The defaults are
    the paper's: sides of 64 to 384 pixels, mean 201 instead of the 224 of a uniform draw.

    Args:
        low, high: the smallest and largest side, in pixels.
        mean, deviation: of the normal distribution, on [-1, 1].

    Raises:
        ValueError: ``low`` is not positive or above ``high``.

    Example:
        >>> sizes = ImageSizes()
        >>> height, width = sizes.size(480, 640, np.random.default_rng(0), patch=(16, 16))
        >>> height % 16, width % 16, 64**2 / 2 < height * width < 2 * 384**2
        (0, 0, True)
    """

    low: int = 64
    high: int = 384
    mean: float = -0.5
    deviation: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high:
            raise ValueError(f"sides must be positive and low at most high, got low={self.low}, high={self.high}")

    def side(self, rng: "np.random.Generator") -> float:
        """One side in ``[low, high]``: the square root of the area that an image is scaled to."""
        u = truncated_normal(rng, self.mean, self.deviation, -1.0, 1.0)
        return self.low + (u + 1) / 2 * (self.high - self.low)

    def size(
        self, height: int, width: int, rng: "np.random.Generator", patch: tuple[int, int] = (1, 1)
    ) -> tuple[int, int]:
        """The size to scale an image or clip of ``height`` by ``width`` pixels to.

        Args:
            height, width: of the original.
            rng: from which the side is drawn.
            patch: height and width of a patch in pixels; the size is rounded to whole patches, at least one.

        Returns:
            ``(height, width)`` whose area is about that of a square of the drawn side, and whose ratio is about the
            original's; exactly so but for the rounding.

        Raises:
            ValueError: a size or a patch below 1.
        """
        if min(height, width, *patch) < 1:
            raise ValueError(f"sizes must be at least 1 pixel, got {height} x {width} and patch={patch}")
        side, ratio = self.side(rng), math.sqrt(height / width)
        rows, columns = (round(length / p) for length, p in zip((side * ratio, side / ratio), patch, strict=True))
        return max(rows, 1) * patch[0], max(columns, 1) * patch[1]
