"""By how much a video autoencoder shrinks time and space, and what sizes follow.

``T = first + temporal·(t - 1)`` frames are t latent frames; where ``first`` is 1, the first frame stands alone.
``H = spatial·h``, ``W = spatial·w``.
"""

from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from tubelet.layout import Grid

__all__ = ["Factors"]


@dataclass(frozen=True)
class Factors:
    """Frames to one latent frame after the first, and pixels to one latent position along height and width.

    ``first`` frames are the first latent frame: one, or ``temporal`` where the first frame has no place of its own.

    Example:
        >>> Factors(4, 8).latent_grid(17, 32, 48), Factors(4, 8).video_size(Grid(5, 4, 6))
        (Grid(t=5, h=4, w=6), (17, 32, 48))
        >>> Factors(4, 8, first=4).latent_grid(16, 32, 48)
        Grid(t=4, h=4, w=6)
    """

    temporal: int
    spatial: int
    first: int = field(default=1, repr=False)

    def latent_grid(self, frames: int, height: int, width: int) -> Grid:
        """The latent sides of a video.

        Raises:
            ValueError: frames other than ``first + temporal·k``, or sides that ``spatial`` does not divide.
        """
        self.check(frames, height, width, start=True)
        return Grid(1 + (frames - self.first) // self.temporal, height // self.spatial, width // self.spatial)

    def video_size(self, grid: Grid) -> tuple[int, int, int]:
        """Frames, height and width of the video of a latent grid."""
        return self.first + self.temporal * (grid.t - 1), self.spatial * grid.h, self.spatial * grid.w

    def check(self, frames: int, height: int, width: int, *, start: bool) -> None:
        """Whether these frames can begin a video (``start``) or go on with one.

        Raises:
            ValueError: frames other than ``first + temporal·k`` at the start and ``temporal·k`` after it, or sides that
                ``spatial`` does not divide.

        Example:
            >>> Factors(4, 8).check(8, 16, 16, start=False)
        """
        grouped = frames - self.first * start
        if frames < 1 or grouped < 0 or grouped % self.temporal:
            form = f"{self.first} + {self.temporal}·k" if start else f"{self.temporal}·k"
            raise ValueError(f"frames must be {form}, not {frames} (temporal factor {self.temporal})")
        for name, side in (("height", height), ("width", width)):
            if side < 1 or side % self.spatial:
                raise ValueError(f"{name} must be a multiple of the spatial factor {self.spatial}, not {side}")

    def padded(self, video: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t2 h2 w2"]:
        """A video of any size, its last frame, row and column repeated until the factors divide it.

        What decodes from it, cut back to ``[:, :, :t, :h, :w]``, has the size of the original.

        Raises:
            ValueError: another rank, or nothing to repeat.

        Example:
            >>> import torch
            >>> Factors(4, 8).padded(torch.zeros(1, 3, 4, 13, 16)).shape
            torch.Size([1, 3, 5, 16, 16])
        """
        if video.ndim != 5 or not video.numel():
            raise ValueError(f"video must be (b, c, t, h, w) and not empty, got shape {tuple(video.shape)}")
        frames, height, width = video.shape[2:]
        return F.pad(
            video,
            (0, -width % self.spatial, 0, -height % self.spatial, 0, (self.first - frames) % self.temporal),
            mode="replicate",
        )


def check_channels(name: str, x: Tensor, channels: int) -> None:
    """Whether a video or its latents have the axes and channels that an autoencoder takes.

    Raises:
        ValueError: another rank or channel count, no sample or no frame, or numbers that are not floating point.
    """
    if x.ndim != 5:
        raise ValueError(f"{name} must be (b, c, t, h, w), got shape {tuple(x.shape)}")
    if x.shape[1] != channels:
        raise ValueError(f"{name} must have {channels} channels, not {x.shape[1]}")
    if x.shape[2] < 1:
        raise ValueError(f"{name} must have at least one frame, not {x.shape[2]}")
    if not x.shape[0]:
        raise ValueError(f"{name} must have at least one sample, got shape {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"{name} must be floating point, got {x.dtype}")


def check_scales(config: Any) -> None:
    """Whether a config of equal depth and groups at all scales makes an autoencoder.

    Raises:
        ValueError: a size or factor that is not positive, widths that the groups do not divide, or more halvings of
            time than changes of scale.
    """
    for name in ("in_channels", "latent_channels", "depth", "groups", "scaling_factor"):
        if getattr(config, name) <= 0:
            raise ValueError(f"{name} must be positive, not {getattr(config, name)}")
    if not config.widths or any(width < 1 or width % config.groups for width in config.widths):
        raise ValueError(f"widths {config.widths} must be positive multiples of groups {config.groups}")
    if not 0 <= config.time_halvings < len(config.widths):
        raise ValueError(f"time_halvings {config.time_halvings} must be fewer than the {len(config.widths)} widths")
