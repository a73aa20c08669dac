"""Dynamic thresholding: predicted data that leave their range are squeezed back into it (Imagen, arXiv:2205.11487)."""

import math
from functools import partial

from torch import Tensor

from tubelet.diffusion.guidance.guided import Guided
from tubelet.diffusion.guidance.spaces import in_space
from tubelet.diffusion.guidance.statistics import PerSample
from tubelet.diffusion.process import Process
from tubelet.layout import Rows
from tubelet.protocols import Denoiser

__all__ = ["dynamic_threshold"]


def dynamic_threshold(
    denoiser: Denoiser,
    process: Process,
    *,
    quantile: float = 0.995,
    limit: float = 1.0,
    highest: float = math.inf,
    samples: PerSample | None = None,
) -> Denoiser:
    """Predicted data clipped to ``[-s, s]`` and multiplied by ``limit/s``, with ``s`` a quantile of their absolutes.

    ``s`` is that of each sample, and at least ``limit``: what lies inside the range stays. Saharia et al., 2022,
    arXiv:2205.11487, section 2.3. It acts on the data x0, whatever the denoiser predicts.

    Args:
        denoiser: what is thresholded, such as a guided one.
        process: what it predicts.
        quantile: which quantile, in [0, 1].
        limit: the data lie in ``[-limit, limit]``.
        highest: the most that ``s`` may be; ``limit`` makes it plain clipping.
        samples: where the samples lie; None for a dense batch, one sample, or a packed axis without padding whose noise
            levels are rows of its layout.

    Raises:
        ValueError: ``quantile`` is outside [0, 1], ``limit`` is not positive, or ``highest`` is below it.

    Example:
        >>> import torch
        >>> bright = lambda x, t: torch.tensor([[4.0, -2.0, 0.5]])
        >>> data = dynamic_threshold(bright, Process(prediction="x0"), quantile=0.5)
        >>> data(torch.zeros(1, 3), Rows(torch.tensor([0.5]))).tolist()
        [[1.0, -1.0, 0.25]]
    """
    if not 0 <= quantile <= 1:
        raise ValueError(f"quantile must lie in [0, 1], got {quantile}")
    if not 0 < limit <= highest:
        raise ValueError(f"limit must be positive and at most highest, got limit={limit} and highest={highest}")
    rule = partial(_clipped, quantile=quantile, limit=limit, highest=highest, samples=samples or PerSample())
    return Guided(in_space(rule, process, "x0"), denoiser=denoiser)


def _clipped(
    predictions: tuple[Tensor, ...],
    x: Tensor,
    t: Rows,
    *,
    quantile: float,
    limit: float,
    highest: float,
    samples: PerSample,
) -> Tensor:
    data, samples = predictions[0], samples.at(t)
    side = samples.quantile(data.abs(), quantile).clamp(limit, highest)
    return (data.clamp(-side, side) * (limit / side)).to(data.dtype)
