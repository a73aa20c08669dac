"""Steps that add noise back: ancestral Euler, and EDM's churn around any step. Shapes: ``(*lead, c)``.

- Ancestral: Euler to a level below the wanted one, then noise up to it (k-diffusion's ``euler_ancestral``).
- Churn: noise up to a level above the present one, then a step from there (Karras et al., 2022, arXiv:2206.00364,
  algorithm 2, where the step is Heun's).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tubelet.diffusion.conventions import noise_ratio, time_of_ratio
from tubelet.diffusion.process import Process
from tubelet.diffusion.samplers.loop import one_step
from tubelet.diffusion.samplers.renewal import draw
from tubelet.diffusion.samplers.rows import (
    check_rows,
    combine,
    ends,
    hold,
    predicted,
    quotient,
    renewed,
    step_size,
    velocity,
)
from tubelet.layout import Rows
from tubelet.protocols import Denoiser, Path, SamplerStep

__all__ = ["Churned", "ancestral_step", "renoise"]

State = Float[Tensor, "*lead c"]
Noise = Iterator[Float[Tensor, "*lead c"]]


def renoise(x: State, t: Rows, u: Rows, path: Path, fresh: State, scale: float = 1.0) -> State:
    """The state at a higher level: ``alpha_u/alpha_t·x`` and fresh noise that makes the deviation ``sigma_u``.

    Args:
        x: the state at ``t``.
        t: noise levels of ``x``.
        u: noise levels of the result, at least ``t``; where they are equal ``x`` is kept bit for bit.
        path: alpha and sigma.
        fresh: standard normal noise of the shape of ``x``.
        scale: multiplies the fresh noise (EDM's ``S_noise``).

    Raises:
        ValueError: ``fresh`` has another shape than ``x``.

    Example:
        >>> from tubelet.diffusion import RectifiedFlow
        >>> clean, half = Rows(torch.tensor([0.0])), Rows(torch.tensor([0.5]))
        >>> renoise(torch.full((1, 1), 4.0), clean, half, RectifiedFlow(), torch.ones(1, 1))
        tensor([[2.5000]])
    """
    if fresh.shape != x.shape:
        raise ValueError(f"fresh has shape {tuple(fresh.shape)}, but x has {tuple(x.shape)}")
    low, high = ends(path, t, u)
    deviation = scale * high.sigma * renewed(step_size(high, low))
    return hold(x, combine(t, [quotient(high.alpha, low.alpha), deviation], [x, fresh]), t, u)


def ancestral_step(
    denoiser: Denoiser, x: State, t: Rows, s: Rows, process: Process, *, noise: Noise, eta: float = 1.0
) -> State:
    """One ancestral Euler step: to time ``s·(1 + eta·(s/t - 1))``, then noise up to ``s``.

    Args:
        denoiser: predicts from a state and its noise levels.
        x: the state at ``t``.
        t: noise levels of ``x``.
        s: noise levels of the result, at most ``t``.
        process: what the prediction means.
        noise: where fresh noise comes from, such as :func:`~tubelet.diffusion.noise_stream`.
        eta: 0 for Euler's method, 1 for the most noise.

    Raises:
        ValueError: ``eta`` is outside [0, 1], or what is predicted or drawn has not the shape of ``x``.

    Example:
        >>> t, s = Rows(torch.tensor([1.0])), Rows(torch.tensor([0.5]))
        >>> ancestral_step(lambda x, t: x, torch.ones(1, 1), t, s, Process(), noise=iter([torch.zeros(1, 1)]))
        tensor([[0.1667]])
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in [0, 1], got {eta}")
    check_rows(t, s)
    begin, end = t.values.double(), s.values.double()
    down = Rows(end * (1 + eta * (quotient(end, begin) - 1)), t.index, t.owner)
    of_x, of_prediction = velocity(process, t)
    step = down.values - begin
    low, high = ends(process.path, down, Rows(end, s.index))
    ratio = quotient(high.alpha, low.alpha)
    factors = [ratio * (1 + step * of_x), ratio * step * of_prediction, high.sigma * renewed(step_size(high, low))]
    return hold(x, combine(t, factors, [x, predicted(denoiser, x, t), draw(noise, x)]), t, s)


@dataclass(frozen=True, eq=False)
class Churned:
    """A step begun from a noisier level: sigma/alpha first grows by the factor ``1 + amount``, by fresh noise.

    With :func:`heun_step` on EDM's path this is EDM's stochastic sampler.

    Args:
        within: the step that is made from there.
        amount: EDM's gamma, ``min(S_churn/steps, sqrt(2) - 1)``. Where the path has no level so high, its last is used.
        noise: where fresh noise comes from, such as :func:`~tubelet.diffusion.noise_stream`.
        low: the lowest time at which noise is added.
        high: the highest time at which noise is added.
        scale: multiplies the fresh noise (EDM's ``S_noise``).

    Raises:
        ValueError: ``within`` is no one-step method, ``amount`` is negative or not finite, or ``low`` above ``high``.

    Example:
        >>> from tubelet.diffusion import euler_step
        >>> step = Churned(euler_step, 0.5, iter([torch.zeros(1, 1)]))
        >>> t, s = Rows(torch.tensor([0.5])), Rows(torch.tensor([0.0]))
        >>> step(lambda x, t: 0 * x, torch.ones(1, 1), t, s, Process())
        tensor([[0.8000]])
    """

    within: SamplerStep
    amount: float
    noise: Noise
    low: float = 0.0
    high: float = 1.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        one_step("within", self.within)
        if not 0 <= self.amount < math.inf:
            raise ValueError(f"amount must be finite and not negative, got {self.amount}")
        if not self.low <= self.high:
            raise ValueError(f"low must not be above high, got {self.low} and {self.high}")

    def __call__(self, denoiser: Denoiser, x: State, t: Rows, s: Rows, process: Process) -> State:
        """Noise up, then the step."""
        up = Rows(self._raised(t.values, s.values, process.path), t.index, t.owner)
        noisy = renoise(x, t, up, process.path, draw(self.noise, x), self.scale)
        return self.within(denoiser, noisy, up, s, process)

    def _raised(self, t: Tensor, s: Tensor, path: Path) -> Tensor:
        """The times to begin from; those of rows that stay do not move."""
        raised = time_of_ratio(path, (1 + self.amount) * noise_ratio(path, t.double()))
        moving = (t >= self.low) & (t <= self.high) & (t != s)
        return torch.where(moving, torch.maximum(raised.to(t.dtype), t), t)
