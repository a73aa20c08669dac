"""What samplers are tested on: a perfect denoiser of a Gaussian mixture, and diffusers' schedulers on the same levels."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from tubelet.diffusion import Process, from_x0_eps, level, one_row
from tubelet.diffusion.predictions import Coefficients
from tubelet.layout import Rows
from tubelet.protocols import Denoiser, Path

__all__ = ["KINDS", "distance", "drive", "fresh", "gaussian", "mixture", "randn", "ratios"]

KINDS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction", "velocity": "flow_prediction"}
"""Diffusers' names of predictions."""


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def fresh(*shape: int, seed: int = 100) -> Iterator[Tensor]:
    """Endless noise in float64."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randn(*shape, generator=generator, dtype=torch.float64)


def distance(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def ratios(path: Path, times: Tensor) -> Tensor:
    return path.sigma(times.double()) / path.alpha(times.double())


def mixture(
    process: Process,
    means: Sequence[float] = (-1.0, 0.6),
    shares: Sequence[float] = (0.3, 0.7),
    std: float = 0.35,
) -> Denoiser:
    """The perfect denoiser of data whose entries are drawn from a mixture of Gaussians; bounded for bounded states."""
    mean, share = (torch.tensor(v, dtype=torch.float64) for v in (means, shares))

    def denoiser(x: Tensor, t: Rows) -> Tensor:
        times = t.values.double()
        path = process.path
        at = Coefficients(
            *(level(Rows(f(times), t.index), x) for f in (path.alpha, path.sigma, path.alpha_dot, path.sigma_dot))
        )
        state = x.double()[..., None]
        alpha, sigma = at.alpha[..., None], at.sigma[..., None]
        variance = alpha**2 * std**2 + sigma**2
        surprise = (state - alpha * mean) / variance
        weight = torch.softmax(share.log() - (state - alpha * mean) ** 2 / (2 * variance), dim=-1)
        x0 = (weight * (mean + alpha * std**2 * surprise)).sum(-1)
        eps = (weight * sigma * surprise).sum(-1)
        return from_x0_eps(process.prediction, x0, eps, at).to(x.dtype)

    return denoiser


def gaussian(process: Process, mean: float, std: float) -> Denoiser:
    """The perfect denoiser of one Gaussian."""
    return mixture(process, (mean,), (1.0,), std)


def drive(
    scheduler: Any,
    denoiser: Denoiser,
    start: Tensor,
    times: Tensor,
    sigmas: Tensor | None = None,
    evaluations: Callable[[int], Tensor] | None = None,
    **options: Any,
) -> Tensor:
    """What a scheduler of diffusers' makes of ``start``, asked on the very levels of ``times``.

    ``sigmas`` replace its own; ``evaluations`` gives the time of each call where they are not those of ``times``.
    """
    scheduler.set_timesteps(len(times) - 1)
    if sigmas is not None:
        scheduler.sigmas = sigmas
        scheduler.timesteps = torch.arange(len(sigmas) - 1)
    x = start
    for i, label in enumerate(scheduler.timesteps):
        time = times[i] if evaluations is None else evaluations(i)
        x = scheduler.step(denoiser(x, one_row(time)), label, x, **options).prev_sample
    return x
