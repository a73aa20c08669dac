"""Video to video: a start between data and noise (SDEdit), or the noise that a video came from (inversion).

SDEdit (Meng et al., 2022, arXiv:2108.01073, algorithm 1) adds noise up to some level and samples from there: the more,
the freer. Inversion runs the sampling equation backward (DDIM: Song et al., 2021, arXiv:2010.02502, section 4.3; flows
likewise) to noise from which the same prompt makes the same video, and another prompt a similar one.

Shapes: ``(*lead, c)``.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from tubelet.diffusion.process import Process
from tubelet.diffusion.samplers import euler_step, sample
from tubelet.layout import Rows
from tubelet.protocols import Denoiser, SamplerStep, Solver

__all__ = ["edit_start", "edit_times", "invert"]


def edit_times(process: Process, steps: int, strength: float) -> Float[Tensor, " s"]:
    """The sampling times of an edit: even from ``strength`` to 0, then warped; ``ceil(strength·steps)`` steps.

    At strength 1 they are ``process.times(steps)``; at strength 0 there is the one time 0, over which
    :func:`tubelet.diffusion.sample` makes no step.

    Raises:
        ValueError: ``steps`` is smaller than 1, or ``strength`` outside [0, 1].

    Example:
        >>> edit_times(Process(), steps=4, strength=0.5), edit_times(Process(), 4, 0.0)
        (tensor([0.5000, 0.2500, 0.0000]), tensor([0.]))
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must lie in [0, 1], got {strength}")
    count = math.ceil(strength * steps * (1 - 1e-12))  # 0.28·25 is a little above 7
    even = torch.linspace(strength, 0, count + 1, dtype=torch.float64)
    return process.warp(even).float()


def edit_start(
    x0: Float[Tensor, "*lead c"], noise: Float[Tensor, "*lead c"], times: Float[Tensor, " s"], process: Process
) -> Float[Tensor, "*lead c"]:
    """The data at the first of the times: where an edit's sampling starts.

    Example:
        >>> process = Process()
        >>> edit_start(torch.zeros(2, 1), torch.ones(2, 1), edit_times(process, 4, 0.5), process).tolist()
        [[0.5], [0.5]]
    """
    return process.noise(x0, noise, Rows(times[:1].to(x0)))


def invert(
    denoiser: Denoiser,
    x0: Float[Tensor, "*lead c"],
    times: Float[Tensor, " s"],
    *,
    process: Process,
    step: SamplerStep | Solver = euler_step,
    rows: Callable[[Tensor], Rows] | None = None,
) -> Float[Tensor, "*lead c"]:
    """The state at ``times[0]`` that sampling over the times leads to the data: sampling from the last to the first.

    Where the path knows no noise in clean data but the network predicts some (``eps``), the first step is blind to it;
    end the times a little above 0 then.

    Args:
        denoiser: predicts what ``process.prediction`` names; guidance is rarely invertible.
        x0: data, the state at ``times[-1]``.
        times: noise levels in order, as for sampling.
        process: path and prediction.
        step: a deterministic step: of ``euler_step`` the error falls with the number of steps, faster with
            ``heun_step``.
        rows: the noise levels of all tokens at one time.

    Example:
        >>> from tubelet.diffusion import heun_step
        >>> process, denoiser = Process(), lambda x, t: x / 2
        >>> start = invert(denoiser, torch.ones(1, 1), process.times(20), process=process, step=heun_step)
        >>> sample(denoiser, start, process.times(20), process=process, step=heun_step).round(decimals=3)
        tensor([[1.]])
    """
    return sample(denoiser, x0, times.flip(0), process=process, step=step, rows=rows)
