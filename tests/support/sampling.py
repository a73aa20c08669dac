"""What samplers are tested on: a perfect denoiser of a Gaussian mixture, and diffusers' schedulers on equal levels."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tubelet.diffusion import Process, from_x0_eps, level, one_row
from tubelet.diffusion.predictions import Coefficients
from tubelet.layout import Rows
from tubelet.protocols import Denoiser, Path

__all__ = ["KINDS", "Exploding", "distance", "drive", "fresh", "gaussian", "mixture", "randn", "ratios"]

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


@dataclass(frozen=True)
class Exploding:
    """``alpha = 1``, ``sigma = end·t``: the path on which time is k-diffusion's sigma."""

    end: float = 50.0

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.end * t

    def alpha_dot(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def sigma_dot(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.end)


def drive(scheduler: Any, denoiser: Denoiser, start: Tensor, times: Tensor, sigmas: Tensor, **options: Any) -> Tensor:
    """What a scheduler of diffusers' makes of ``start`` in its own loop, on given levels.

    Args:
        scheduler: theirs; its sigmas are replaced, so that both sides see the same ones in float64.
        denoiser: ours.
        start: the state at ``times[0]``.
        times: the time of each call, and that of the result.
        sigmas: theirs at ``times``.
        options: of their ``step``; an iterator is asked for one value a step.
    """
    scheduler.set_timesteps(len(times) - 1)
    scheduler.sigmas, scheduler.timesteps = sigmas, torch.arange(len(times) - 1, dtype=torch.float64)
    x = start
    for label, time in zip(scheduler.timesteps, times, strict=False):
        drawn = {name: next(each) if isinstance(each, Iterator) else each for name, each in options.items()}
        x = scheduler.step(denoiser(x, one_row(time)), label, x, **drawn).prev_sample
    return x
