"""Other projects' names for noise levels.

Two paths meet where their noise-to-signal ratios are equal. So every foreign number is converted by way of
``ratio = sigma/alpha``: it is k-diffusion's and EDM's sigma, and the ``sigmas`` of diffusers' schedulers for
variance-preserving models. ``docs/diffusion.md`` has a table of all conventions.

Shapes: any, kept. Arithmetic is float64; results have the dtype of the argument.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from tubelet.protocols import Path

__all__ = ["Invertible", "log_snr", "noise_ratio", "time_of_log_snr", "time_of_ratio"]

_PARTS, _ROUNDS = 256, 8
"""The unit interval is cut into 256 parts eight times over: to 2⁻⁶⁴, the nearest float64 or closer."""


@runtime_checkable
class Invertible(Protocol):
    """A path that knows its inverse in closed form.

    Example:
        >>> from tubelet.diffusion import RectifiedFlow
        >>> isinstance(RectifiedFlow(), Invertible)
        True
    """

    def time_of_ratio(self, ratio: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """The time of ``sigma/alpha``, from 0 to infinity; 1 where there is none so large."""
        ...


def noise_ratio(path: Path, t: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """``sigma/alpha``: the noise level of the same state scaled so that the data's factor is 1. Infinite at alpha 0.

    Raises:
        ValueError: ``t`` holds integers.

    Example:
        >>> from tubelet.diffusion import RectifiedFlow
        >>> noise_ratio(RectifiedFlow(), torch.tensor([0.0, 0.5, 0.75, 1.0]))
        tensor([0., 1., 3., inf])
    """
    if not t.is_floating_point():
        raise ValueError(f"t must be floating-point, got {t.dtype}")
    wide = t.double()
    return (path.sigma(wide) / path.alpha(wide)).to(t.dtype)


def time_of_ratio(path: Path, ratio: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """The time at which a path has this ``sigma/alpha``, the inverse of :func:`noise_ratio`; 1 where none is so large.

    A path that is :class:`Invertible` tells; in others it is found by comparing, which serves every path whose ratio
    grows. Nothing is read on the host.

    Raises:
        ValueError: ``ratio`` holds integers.

    Example:
        >>> from tubelet.diffusion import RectifiedFlow
        >>> time_of_ratio(RectifiedFlow(), torch.tensor([0.0, 1.0, 3.0, float("inf")]))
        tensor([0.0000, 0.5000, 0.7500, 1.0000])
    """
    if not ratio.is_floating_point():
        raise ValueError(f"ratio must be floating-point, got {ratio.dtype}")
    wide = ratio.double()
    known: Callable[[Tensor], Tensor] | None = getattr(path, "time_of_ratio", None)  # isinstance would cost a step
    if known is not None:
        return known(wide).to(ratio.dtype)
    signal, noise = torch.where(wide.isinf(), 0.0, 1.0), torch.where(wide.isinf(), 1.0, wide)
    signal, noise = signal[..., None], noise[..., None]
    t, width = torch.zeros_like(wide), 1.0
    cuts = torch.arange(1, _PARTS, dtype=torch.float64, device=wide.device)
    for _ in range(_ROUNDS):
        width /= _PARTS
        places = t[..., None] + width * cuts
        below = path.sigma(places) * signal < path.alpha(places) * noise
        t = t + width * below.sum(dim=-1)
    return t.to(ratio.dtype)


def log_snr(path: Path, t: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """``log(alpha²/sigma²)`` (arXiv:2107.00630); DPM-Solver's lambda is half of it. Infinite where a factor is 0.

    Raises:
        ValueError: ``t`` holds integers.

    Example:
        >>> from tubelet.diffusion import RectifiedFlow
        >>> log_snr(RectifiedFlow(), torch.tensor([0.0, 0.5, 1.0]))
        tensor([inf, 0., -inf])
    """
    if not t.is_floating_point():
        raise ValueError(f"t must be floating-point, got {t.dtype}")
    wide = t.double()
    return (2 * (path.alpha(wide).log() - path.sigma(wide).log())).to(t.dtype)


def time_of_log_snr(path: Path, value: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """The inverse of :func:`log_snr`; 1 where the path has none so small.

    Raises:
        ValueError: ``value`` holds integers.

    Example:
        >>> from tubelet.diffusion import RectifiedFlow
        >>> time_of_log_snr(RectifiedFlow(), torch.tensor([float("inf"), 0.0, -float("inf")]))
        tensor([0.0000, 0.5000, 1.0000])
    """
    if not value.is_floating_point():
        raise ValueError(f"value must be floating-point, got {value.dtype}")
    return time_of_ratio(path, (-value.double() / 2).exp()).to(value.dtype)
