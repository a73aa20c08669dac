"""Adaptive projected guidance: high scales without oversaturation (APG; Sadat et al., 2024, arXiv:2410.02416)."""

import math
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from tubelet.diffusion.guidance.guided import Guided
from tubelet.diffusion.guidance.scales import Scale, check_finite, factor
from tubelet.diffusion.guidance.spaces import in_space
from tubelet.diffusion.guidance.statistics import PerSample
from tubelet.diffusion.process import Process
from tubelet.layout import Rows
from tubelet.protocols import Denoiser

__all__ = ["Momentum", "apg"]


@dataclass(eq=False)
class Momentum:
    """A running sum of differences, ``average = difference + beta·average``: APG's only state, held by its user.

    It moves on each time the denoiser is asked. Make one for each run of a sampler; save and restore ``average`` to
    pause and resume one.

    Args:
        beta: how much of the past counts; APG has it negative, to push away from the past.
        average: the sum so far; None before the first difference.

    Raises:
        ValueError: ``beta`` is not finite.

    Example:
        >>> momentum = Momentum(-0.5)
        >>> [momentum.update(torch.tensor([[2.0]])).item() for _ in range(3)]
        [2.0, 1.0, 1.5]
    """

    beta: float
    average: Float[Tensor, "*lead c"] | None = None

    def __post_init__(self) -> None:
        check_finite(beta=self.beta)

    def update(self, difference: Float[Tensor, "*lead c"]) -> Float[Tensor, "*lead c"]:
        """Take a difference in, and return the new sum."""
        self.average = difference if self.average is None else difference + self.beta * self.average
        return self.average


def apg(
    conditional: Denoiser,
    unconditional: Denoiser,
    scale: Scale,
    process: Process,
    *,
    parallel: float = 0.0,
    radius: float = math.inf,
    momentum: Momentum | None = None,
    samples: PerSample | None = None,
) -> Denoiser:
    """Guidance whose update is averaged, limited in norm, and freed from what is parallel to the prediction.

    On predicted data: ``d = c - u``, plus its past (``momentum``); shortened to ``radius`` where it is longer; split
    into parts parallel and orthogonal to ``c``; then ``c + (scale - 1)·(orthogonal + parallel·d_parallel)``. Norms and
    projections are those of each sample. Sadat et al., 2024, arXiv:2410.02416, section 4.

    Args:
        conditional: the denoiser with its condition.
        unconditional: the denoiser without.
        scale: the guidance scale, as in :func:`cfg`: 1 is the conditional prediction.
        process: what they predict; the rule acts on data x0, as the paper advises.
        parallel: how much of the parallel part stays, the paper's eta: 0 for none, 1 for all (as in :func:`cfg`).
        radius: the longest norm of the update; the paper has 2.5 to 15.
        momentum: the state of the average; None for no average.
        samples: where the samples lie; None for a dense batch, one sample, or a packed axis without padding whose noise
            levels are rows of its layout.

    Raises:
        ValueError: ``scale`` or ``parallel`` is a number that is not finite, or ``radius`` is not positive; at the
            call, the two predictions differ in shape.

    Example:
        >>> c, u = (lambda x, t: torch.tensor([[1.0, 0.0]])), (lambda x, t: torch.tensor([[0.0, -1.0]]))
        >>> apg(c, u, 3.0, Process(prediction="x0"))(torch.zeros(1, 2), Rows(torch.tensor([0.5]))).tolist()
        [[1.0, 2.0]]
    """
    check_finite(scale=scale, parallel=parallel)
    if not radius > 0:
        raise ValueError(f"radius must be positive, got {radius}")
    rule = partial(
        _projected, scale=scale, parallel=parallel, radius=radius, momentum=momentum, samples=samples or PerSample()
    )
    return Guided(in_space(rule, process, "x0"), conditional=conditional, unconditional=unconditional)


def _projected(
    predictions: tuple[Tensor, ...],
    x: Tensor,
    t: Rows,
    *,
    scale: Scale,
    parallel: float,
    radius: float,
    momentum: Momentum | None,
    samples: PerSample,
) -> Tensor:
    dtype = torch.promote_types(predictions[0].dtype, torch.float32)
    conditional, unconditional = (each.to(dtype) for each in predictions)
    update, samples = conditional - unconditional, samples.at(t)
    if momentum is not None:
        update = momentum.update(update)
    if radius < math.inf:
        update = update * (radius / samples.norm(update).clamp(min=radius))
    size = samples.dot(conditional, conditional)
    along = samples.dot(update, conditional) / torch.where(size > 0, size, 1) * conditional
    update = update - (1 - parallel) * along
    return (conditional + (factor(scale, t, update) - 1) * update).to(predictions[0].dtype)
