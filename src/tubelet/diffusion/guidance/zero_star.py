"""CFG-Zero*: guidance of flow matching with an optimised scale, and first steps of zero (arXiv:2503.18886)."""

from functools import partial

import torch
from torch import Tensor

from tubelet.diffusion.guidance.guided import Guided
from tubelet.diffusion.guidance.scales import Scale, check_finite, factor
from tubelet.diffusion.guidance.spaces import in_space
from tubelet.diffusion.guidance.statistics import PerSample
from tubelet.diffusion.predictions import coefficients, from_x0_eps, level, to_x0_eps
from tubelet.diffusion.process import Process
from tubelet.layout import Rows
from tubelet.protocols import Denoiser

__all__ = ["cfg_zero_star", "zero_init"]


def cfg_zero_star(
    conditional: Denoiser,
    unconditional: Denoiser,
    scale: Scale,
    process: Process,
    *,
    samples: PerSample | None = None,
) -> Denoiser:
    """Guidance from the unconditional velocity times the factor that brings it nearest to the conditional one.

    ``f·u + scale·(c - f·u)`` with ``f = <c, u>/|u|²`` of each sample (Fan et al., 2025, arXiv:2503.18886,
    section 4.1). It acts on velocities, whatever the denoisers predict. The paper's other half is :func:`zero_init`.

    Args:
        conditional: the denoiser with its condition.
        unconditional: the denoiser without.
        scale: the guidance scale, as in :func:`cfg`.
        process: what they predict.
        samples: where the samples lie; None for a dense batch, one sample, or a packed axis without padding whose noise
            levels are rows of its layout.

    Raises:
        ValueError: ``scale`` is a number that is not finite; at the call, the two predictions differ in shape.

    Example:
        >>> c, u = (lambda x, t: x), (lambda x, t: -2 * x)  # antiparallel: f = -0.5, so f·u = c
        >>> cfg_zero_star(c, u, 5.0, Process())(torch.ones(2, 1), Rows(torch.tensor([0.5]))).tolist()
        [[1.0], [1.0]]
    """
    check_finite(scale=scale)
    rule = partial(_projected, scale=scale, samples=samples or PerSample())
    return Guided(in_space(rule, process, "velocity"), conditional=conditional, unconditional=unconditional)


def zero_init(denoiser: Denoiser, process: Process, above: float) -> Denoiser:
    """A velocity of 0 at noise levels above ``above``: the first steps of a sampler change nothing.

    Where a model is not yet good at pure noise, no step is better than a wrong one (arXiv:2503.18886, section 4.2).
    With ``float(times[k])`` it is the first ``k`` steps; the paper has 4 % of them.

    Args:
        denoiser: predicts at the other levels.
        process: what it predicts.
        above: the highest level at which the prediction stands.

    Raises:
        ValueError: ``above`` is NaN.

    Example:
        >>> still = zero_init(lambda x, t: x, Process(), above=0.9)
        >>> still(torch.ones(2, 1), Rows(torch.tensor([1.0, 0.9]), torch.tensor([0, 1]))).tolist()
        [[0.0], [1.0]]
    """
    if above != above:
        raise ValueError(f"above must be a noise level, got {above}")
    return Guided(partial(_still, process=process, above=above), denoiser=denoiser)


def _projected(predictions: tuple[Tensor, ...], x: Tensor, t: Rows, *, scale: Scale, samples: PerSample) -> Tensor:
    (conditional, unconditional), samples = predictions, samples.at(t)
    size = samples.dot(unconditional, unconditional)
    optimal = samples.dot(conditional, unconditional) / torch.where(size > 0, size, 1)
    base = optimal * unconditional
    return (base + factor(scale, t, base) * (conditional - base)).to(conditional.dtype)


def _still(predictions: tuple[Tensor, ...], x: Tensor, t: Rows, *, process: Process, above: float) -> Tensor:
    prediction = predictions[0]
    at = coefficients(process.path, t, x)
    still = from_x0_eps(process.prediction, *to_x0_eps("velocity", torch.zeros_like(x), x, at), at)
    first = level(t.map(lambda values: values > above), prediction)
    return torch.where(first, still.to(prediction.dtype), prediction)
