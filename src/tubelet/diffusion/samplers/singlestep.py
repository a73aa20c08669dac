"""DPM-Solver++(2S): order 2 in two evaluations, without a history. Shapes: ``(*lead, c)``."""

import torch
from jaxtyping import Float
from torch import Tensor

from tubelet.diffusion.conventions import time_of_ratio
from tubelet.diffusion.process import Process
from tubelet.diffusion.samplers.rows import combine, data_and_noise, ends, hold, mark, predicted, quotient, step_size
from tubelet.layout import Rows
from tubelet.protocols import Denoiser

__all__ = ["dpmpp_2s_step"]

State = Float[Tensor, "*lead c"]


def dpmpp_2s_step(denoiser: Denoiser, x: State, t: Rows, s: Rows, process: Process, *, share: float = 0.5) -> State:
    """One step of DPM-Solver++(2S) (Lu et al., 2022, arXiv:2211.01095, algorithm 1); two evaluations.

    A step of order 1 (DDIM) reaches a middle, and a line through both predictions of the data the end. Steps from pure
    noise and to clean data, where log(alpha/sigma) is infinite, are of order 1.

    Args:
        denoiser: predicts from a state and its noise levels.
        x: the state at ``t``.
        t: noise levels of ``x``.
        s: noise levels of the result.
        process: what the prediction means.
        share: where the middle lies on the step, in log(alpha/sigma), above 0 and at most 1.

    Raises:
        ValueError: ``share`` is outside (0, 1], or the prediction has not the shape of ``x``.

    Example:
        >>> t, s = Rows(torch.tensor([0.75])), Rows(torch.tensor([0.5]))
        >>> dpmpp_2s_step(lambda x, t: 0 * x, torch.ones(1, 1), t, s, Process(prediction="x0"))
        tensor([[0.6667]])
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must lie in (0, 1], got {share}")
    here, there = ends(process.path, t, s)
    h = step_size(here, there)
    moving = h.isfinite() & (h != 0)
    ratio = (-here.log_ratio - share * torch.where(moving, h, 0.0)).exp()
    between = Rows(torch.where(moving, time_of_ratio(process.path, ratio), t.values.double()), t.index, t.owner)
    middle = mark(process.path, between)

    prediction = predicted(denoiser, x, t)
    x0, eps = data_and_noise(process, t, here)
    first, halfway = (
        [at.alpha * of_x0 + at.sigma * of_eps for of_x0, of_eps in zip(x0, eps, strict=True)] for at in (there, middle)
    )
    reached = hold(x, combine(t, halfway, [x, prediction]), t, s)
    second = predicted(denoiser, reached, between)
    later, _ = data_and_noise(process, between, middle)
    weight = torch.where(moving, there.alpha * -torch.expm1(-h) / (2 * quotient(step_size(here, middle), h)), 0.0)
    factors = [first[0] - weight * x0[0], first[1] - weight * x0[1], weight * later[0], weight * later[1]]
    return hold(x, combine(t, factors, [x, prediction, reached, second]), t, s)
