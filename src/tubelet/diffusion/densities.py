"""Densities: how training times are drawn, before the warp. Times of any shape in [0, 1], float64.

Each is a map of uniform numbers; ``base`` says where those come from, such as :func:`stratified`. 0 is data, 1 noise.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from tubelet.diffusion.conventions import time_of_ratio
from tubelet.protocols import Path

__all__ = ["Density", "cosmap", "discrete", "log_normal", "logit_normal", "mode", "stratified", "uniform"]


@runtime_checkable
class Density(Protocol):
    """Draws even (unwarped) training times in [0, 1], in float64 on the generator's device.

    Example:
        >>> from tubelet.diffusion import Process
        >>> def half(shape, generator=None):
        ...     return torch.full(shape, 0.5, dtype=torch.float64)
        >>> Process(density=half).draw_times(2)
        tensor([0.5000, 0.5000])
    """

    def __call__(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Float[Tensor, "..."]:
        """Times of the given shape."""
        ...


def uniform(shape: tuple[int, ...], generator: torch.Generator | None = None) -> Float[Tensor, "..."]:
    """Times uniform on [0, 1).

    Example:
        >>> bool((uniform((100,)) < 1).all())
        True
    """
    return torch.rand(shape, generator=generator, dtype=torch.float64, device=_device(generator))


def stratified(shape: tuple[int, ...], generator: torch.Generator | None = None) -> Float[Tensor, "..."]:
    """Uniform times, one in each of as many equal parts of [0, 1) as there are times, in random order.

    Each time alone is uniform; together they cover the interval, which lowers the variance of a batch's loss (in the
    spirit of the low-discrepancy sampler of arXiv:2107.00630).

    Example:
        >>> times = stratified((4,), torch.Generator().manual_seed(0))
        >>> times.sort().values.mul(4).floor()
        tensor([0., 1., 2., 3.], dtype=torch.float64)
    """
    count = math.prod(shape)
    order = torch.randperm(count, generator=generator, device=_device(generator))
    return ((order + uniform((count,), generator)) / max(count, 1)).reshape(shape)


def logit_normal(mean: float = 0.0, std: float = 1.0, base: Density = uniform) -> Density:
    """Times ``sigmoid(z)`` with ``z`` normal, dense in the middle (arXiv:2403.03206, equation 19).

    Raises:
        ValueError: ``std`` is not positive and finite, or ``mean`` not finite.

    Example:
        >>> times = logit_normal()((1000,), torch.Generator().manual_seed(0))
        >>> bool((times.median() - 0.5).abs() < 0.05)
        True
    """
    _check_normal(mean, std)
    return partial(_mapped, base=base, quantile=partial(_sigmoid_normal, mean=mean, std=std))


def mode(scale: float = 1.29, base: Density = uniform) -> Density:
    """Times ``1 - u - scale·(cos²(u·π/2) - 1 + u)``: heavy tails, and a mode in the middle (arXiv:2403.03206, eq. 20).

    Raises:
        ValueError: ``scale`` is outside [-1, 2/(π - 2)], where the map would not be monotone.

    Example:
        >>> mode()((2,), torch.Generator().manual_seed(0)).shape
        torch.Size([2])
    """
    if not -1 <= scale <= 2 / (math.pi - 2):
        raise ValueError(f"scale must lie in [-1, {2 / (math.pi - 2):.4f}], got {scale}")
    return partial(_mapped, base=base, quantile=partial(_mode, scale=scale))


def cosmap(base: Density = uniform) -> Density:
    """Times ``1 - 1/(tan(u·π/2) + 1)``: the cosine schedule's levels on the straight path (arXiv:2403.03206, eq. 21).

    Example:
        >>> cosmap()((2,), torch.Generator().manual_seed(0)).shape
        torch.Size([2])
    """
    return partial(_mapped, base=base, quantile=_cosmap)


def log_normal(path: Path, mean: float = -1.2, std: float = 1.2, base: Density = uniform) -> Density:
    """Times at which ``log(sigma/alpha)`` is normal: EDM's training levels, on any path (arXiv:2206.00364, table 1).

    Levels beyond the path's last become 1. On rectified flow this is :func:`logit_normal`.

    Raises:
        ValueError: ``std`` is not positive and finite, or ``mean`` not finite.

    Example:
        >>> from tubelet.diffusion import EDM
        >>> times = log_normal(EDM(80.0))((1000,), torch.Generator().manual_seed(0))
        >>> round(float((80 * times).log().median()), 1)
        -1.2
    """
    _check_normal(mean, std)
    return partial(_mapped, base=base, quantile=partial(_log_normal, path=path, mean=mean, std=std))


def discrete(steps: int, base: Density = uniform) -> Density:
    """Times uniform on the ``steps`` places ``1/N, 2/N, ..., 1`` of a discrete path, as DDPM and DiT train.

    Raises:
        ValueError: ``steps`` is smaller than 1.

    Example:
        >>> sorted(set(discrete(4)((100,), torch.Generator().manual_seed(0)).tolist()))
        [0.25, 0.5, 0.75, 1.0]
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    return partial(_mapped, base=base, quantile=partial(_discrete, steps=steps))


def _mapped(
    shape: tuple[int, ...],
    generator: torch.Generator | None = None,
    *,
    base: Density,
    quantile: Callable[[Tensor], Tensor],
) -> Tensor:
    return quantile(base(shape, generator=generator))


def _sigmoid_normal(u: Tensor, mean: float, std: float) -> Tensor:
    return torch.sigmoid(mean + std * torch.special.ndtri(u))


def _mode(u: Tensor, scale: float) -> Tensor:
    return 1 - u - scale * (torch.cos(u * (math.pi / 2)) ** 2 - 1 + u)


def _cosmap(u: Tensor) -> Tensor:
    return 1 - 1 / (torch.tan(u * (math.pi / 2)) + 1)


def _log_normal(u: Tensor, path: Path, mean: float, std: float) -> Tensor:
    return time_of_ratio(path, torch.exp(mean + std * torch.special.ndtri(u)))


def _discrete(u: Tensor, steps: int) -> Tensor:
    return ((u * steps).floor().clamp(max=steps - 1) + 1) / steps


def _check_normal(mean: float, std: float) -> None:
    if not 0 < std < math.inf:
        raise ValueError(f"std must be above 0 and finite, got {std}")
    if not math.isfinite(mean):
        raise ValueError(f"mean must be finite, got {mean}")


def _device(generator: torch.Generator | None) -> torch.device:
    return torch.device("cpu") if generator is None else generator.device
