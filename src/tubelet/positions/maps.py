"""Where a token stands, if not at its index: coordinate maps, and bases of the frequencies for longer axes.

A map takes coordinates ``(*lead, 3)`` and returns places of the same shape, in float64 where the device has it. Text
keeps its negative frame index. Interpolation is Chen et al., 2023 (arXiv:2306.15595, equation 4); the NTK-aware base
that of YaRN (Peng et al., 2023, arXiv:2309.00071, definition 1), for each axis as in Cosmos (arXiv:2501.03575).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Real
from torch import Tensor

from tubelet.positions.angles import widened

__all__ = ["AreaNormalised", "CentralFit", "FirstPixel", "FrameRate", "Interpolation", "Stretched", "ntk_theta"]


@dataclass(frozen=True)
class Interpolation:
    """Coordinates divided by ``(t, h, w)`` scales, so that a longer axis spans the places of a shorter one (Allegro).

    Raises:
        ValueError: a scale is not positive.

    Example:
        >>> Interpolation((1.0, 2.0, 2.0))(torch.tensor([[3, 4, 5]])).tolist()
        [[3.0, 2.0, 2.5]]
    """

    scale: tuple[float, float, float]

    def __post_init__(self) -> None:
        if min(self.scale) <= 0:
            raise ValueError(f"scale must be positive on each axis, got {self.scale}")

    def __call__(self, coords: Real[Tensor, "*lead 3"]) -> Float[Tensor, "*lead 3"]:
        """Coordinates to places."""
        wide = widened(coords)
        return wide / torch.tensor(self.scale, dtype=wide.dtype, device=wide.device)


@dataclass(frozen=True)
class FrameRate:
    """Frames counted in steps of ``1/base`` seconds: ``t · base / fps`` (Cosmos: base 24).

    Raises:
        ValueError: ``base`` is not positive; at the call, the rates do not broadcast over the tokens.

    Example:
        >>> FrameRate(24.0)(torch.tensor([[3, 4, 5]]), 12.0).tolist()
        [[6.0, 4.0, 5.0]]
    """

    base: float = 24.0

    def __post_init__(self) -> None:
        if self.base <= 0:
            raise ValueError(f"base must be positive, got {self.base}")

    def __call__(self, coords: Real[Tensor, "*lead 3"], fps: Real[Tensor, "..."] | float) -> Float[Tensor, "*lead 3"]:
        """Coordinates to places; ``fps`` is one rate for all or one per token (``layout.rows(...).expand()``)."""
        wide = widened(coords)
        if not isinstance(fps, Tensor) and not fps > 0:
            raise ValueError(f"fps must be positive, got {fps}")
        rate = torch.as_tensor(fps, dtype=wide.dtype, device=wide.device)
        sides = zip(reversed(rate.shape), reversed(wide.shape[:-1]), strict=False)
        if rate.ndim >= wide.ndim or any(side not in (1, own) for side, own in sides):
            raise ValueError(f"fps of shape {tuple(rate.shape)} for tokens {tuple(wide.shape[:-1])}")
        time = wide[..., 0] * (self.base / rate)
        return torch.cat([time.unsqueeze(-1), wide[..., 1:]], dim=-1)


@dataclass(frozen=True)
class FirstPixel:
    """Cells of an autoencoder's latents to the first frame, row and column of pixels in each: ``stride · cell``.

    A causal autoencoder has a single frame in its first cell, so that cell ``t > 0`` begins at ``stride·(t-1) + 1``.

    Args:
        stride: pixels in a cell along ``(t, h, w)`` (LTX-Video: 8, 32, 32).
        causal: the first cell holds one frame.

    Raises:
        ValueError: a stride is not positive.

    Example:
        >>> FirstPixel((8, 32, 32))(torch.tensor([[0, 0, 0], [2, 3, 4]])).tolist()
        [[0.0, 0.0, 0.0], [9.0, 96.0, 128.0]]
    """

    stride: tuple[int, int, int]
    causal: bool = True

    def __post_init__(self) -> None:
        if min(self.stride) < 1:
            raise ValueError(f"stride must be positive on each axis, got {self.stride}")

    def __call__(self, coords: Real[Tensor, "*lead 3"]) -> Float[Tensor, "*lead 3"]:
        """Coordinates of cells to those of pixels."""
        wide = widened(coords)
        first = wide * torch.tensor(self.stride, dtype=wide.dtype, device=wide.device)
        late = torch.tensor([self.stride[0] - 1 if self.causal else 0, 0, 0], dtype=wide.dtype, device=wide.device)
        # only where a cell is not the first: text keeps its negative frame
        return torch.where(wide[..., :1] > 0, first - late, first)


@dataclass(frozen=True)
class AreaNormalised:
    """Rows and columns counted from the centre of the grid, which is scaled to one area; frames as they are (Mochi).

    ``h`` becomes ``(h + 1/2 - H/2)·sqrt(area / (H·W))``, and ``w`` alike.

    Raises:
        ValueError: ``area`` is not positive.

    Example:
        >>> AreaNormalised(16.0)(torch.tensor([[3, 0, 1]]), torch.tensor([[5, 2, 2]])).tolist()
        [[3.0, -1.0, 1.0]]
    """

    area: float

    def __post_init__(self) -> None:
        if self.area <= 0:
            raise ValueError(f"area must be positive, got {self.area}")

    def __call__(self, coords: Real[Tensor, "*lead 3"], extent: Real[Tensor, "*lead 3"]) -> Float[Tensor, "*lead 3"]:
        """Coordinates and the sides of their grids to places."""
        wide, sides = widened(coords), widened(extent)[..., 1:].clamp(min=1)  # padding has no grid
        plane = (wide[..., 1:] + 0.5 - sides / 2) * (self.area / sides.prod(dim=-1, keepdim=True)).sqrt()
        return torch.cat([wide[..., :1], plane], dim=-1)


@dataclass(frozen=True)
class CentralFit:
    """Rows and columns of any grid laid over a base grid, centred and as large as fits; frames as they are.

    The sides ``(h, w)`` of a grid are scaled together to the largest whole ``(H, W)`` inside ``base``, which starts at
    ``top = round((base_h - H) / 2)``; row ``i`` of ``h`` stands at ``top + i·step``, the last one at
    ``(top + H)·(h - 1)/h``, and columns alike (HunyuanDiT, arXiv:2405.08748, section 2.1; CogVideoX 1.0).

    Raises:
        ValueError: a side of ``base`` is not positive.

    Example:
        >>> coords, extent = torch.tensor([[3, 0, 1], [3, 1, 3]]), torch.tensor([[5, 2, 4]] * 2)
        >>> CentralFit((8, 8))(coords, extent).tolist()
        [[3.0, 2.0, 2.0], [3.0, 3.0, 6.0]]
    """

    base: tuple[int, int]

    def __post_init__(self) -> None:
        if min(self.base) < 1:
            raise ValueError(f"base must be positive on both axes, got {self.base}")

    def __call__(self, coords: Real[Tensor, "*lead 3"], extent: Real[Tensor, "*lead 3"]) -> Float[Tensor, "*lead 3"]:
        """Coordinates and the sides of their grids to places."""
        wide, (_, h, w) = widened(coords), widened(extent).clamp(min=1).unbind(-1)  # padding has no grid
        base_h, base_w = self.base
        tall = h / w > base_h / base_w
        rows = torch.where(tall, float(base_h), (base_w / w * h).round())
        columns = torch.where(tall, (base_h / h * w).round(), float(base_w))
        places = (_spread(wide[..., 1], h, rows, base_h), _spread(wide[..., 2], w, columns, base_w))
        return torch.stack([wide[..., 0], *places], dim=-1)


def _spread(index: Tensor, side: Tensor, fitted: Tensor, base: int) -> Tensor:
    """The places of ``index < side`` over a centred part ``fitted`` of ``base``."""
    start = ((base - fitted) / 2).round()
    last = (start + fitted) * (side - 1) / side
    return start + index * (last - start) / (side - 1).clamp(min=1)


@dataclass(frozen=True)
class Stretched:
    """Rows and columns spread over the same places in every grid, whatever its sides; frames too, where asked.

    ``h`` becomes ``h·sides[0] / H``, and ``w`` alike with ``sides[1]`` (PixArt-alpha, Latte). Sides of 1 are NaViT's
    fractional coordinates (arXiv:2307.06304, section 2.1).

    Args:
        sides: places of the rows and of the columns.
        time: places of the frames, ``t·time / T``; None leaves frames as they are.

    Raises:
        ValueError: a side is not positive.

    Example:
        >>> Stretched((4.0, 4.0))(torch.tensor([[3, 1, 1]]), torch.tensor([[5, 2, 8]])).tolist()
        [[3.0, 2.0, 0.5]]
        >>> Stretched((1.0, 1.0), time=1.0)(torch.tensor([[3, 1, 1]]), torch.tensor([[4, 2, 8]])).tolist()
        [[0.75, 0.5, 0.125]]
    """

    sides: tuple[float, float]
    time: float | None = None

    def __post_init__(self) -> None:
        if min(self.sides) <= 0:
            raise ValueError(f"sides must be positive, got {self.sides}")
        if self.time is not None and self.time <= 0:
            raise ValueError(f"time must be positive, got {self.time} beside sides={self.sides}")

    def __call__(self, coords: Real[Tensor, "*lead 3"], extent: Real[Tensor, "*lead 3"]) -> Float[Tensor, "*lead 3"]:
        """Coordinates and the sides of their grids to places."""
        wide, own = widened(coords), widened(extent).clamp(min=1)  # padding has no grid
        plane = wide[..., 1:] * torch.tensor(self.sides, dtype=wide.dtype, device=wide.device) / own[..., 1:]
        frame = wide[..., :1] if self.time is None else wide[..., :1] * self.time / own[..., :1]
        return torch.cat([frame, plane], dim=-1)


def ntk_theta(
    axes: tuple[int, int, int], factors: tuple[float, float, float], theta: float = 10000.0
) -> tuple[float, float, float]:
    """The base of each axis' frequencies for an axis ``factor`` times as long: ``theta · factor^(d / (d - 2))``.

    The lowest frequency of the axis falls by the factor, and the highest stays. An axis of one pair has no other.

    Args:
        axes: width of each axis ``(t, h, w)``, as :func:`rope_axes` gives.
        factors: how many times longer each axis is than in training.
        theta: the base without scaling.

    Raises:
        ValueError: a factor is not positive.

    Example:
        >>> ntk_theta((44, 42, 42), (1.0, 1.0, 1.0))
        (10000.0, 10000.0, 10000.0)
    """
    if min(factors) <= 0:
        raise ValueError(f"factors must be positive on each axis, got {factors}")
    t, h, w = (
        theta * factor ** (width / (width - 2) if width > 2 else 0) for width, factor in zip(axes, factors, strict=True)
    )
    return t, h, w
