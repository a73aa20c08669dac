"""Rescaling: a guided prediction brought back to the deviation of the conditional one (arXiv:2305.08891)."""

from functools import partial

import torch
from torch import Tensor

from tubelet.diffusion.guidance.guided import Guided
from tubelet.diffusion.guidance.statistics import PerSample
from tubelet.layout import Rows
from tubelet.protocols import Denoiser

__all__ = ["rescale"]


def rescale(guided: Denoiser, conditional: Denoiser, amount: float, *, samples: PerSample | None = None) -> Denoiser:
    """The guided prediction times ``amount·std(c)/std(guided) + 1 - amount``, per sample.

    High scales raise the deviation and overexpose. Lin et al., 2024, arXiv:2305.08891, section 3.4, where it acts
    on what the network predicts; the paper's amount is 0.7.

    Args:
        guided: what is rescaled, such as ``cfg(c, u, 7.5)``.
        conditional: its conditional denoiser.
        amount: 0 for none, 1 for all.
        samples: where the samples lie; None for a dense batch, one sample, or a packed axis without padding whose noise
            levels are rows of its layout.

    Raises:
        ValueError: ``amount`` is outside [0, 1].

    Example:
        >>> c, u = (lambda x, t: x), (lambda x, t: 0 * x)
        >>> from tubelet.diffusion import cfg
        >>> rescale(cfg(c, u, 4.0), c, 1.0)(torch.tensor([[1.0, 2.0]]), Rows(torch.tensor([0.5]))).tolist()
        [[1.0, 2.0]]
    """
    if not 0 <= amount <= 1:
        raise ValueError(f"amount must lie in [0, 1], got {amount}")
    rule = partial(_rescaled, amount=amount, samples=samples or PerSample())
    return Guided(rule, guided=guided, conditional=conditional)


def _rescaled(predictions: tuple[Tensor, ...], x: Tensor, t: Rows, *, amount: float, samples: PerSample) -> Tensor:
    (guided, conditional), samples = predictions, samples.at(t)
    have, want = samples.std(guided), samples.std(conditional)
    ratio = torch.where(have > 0, want / torch.where(have > 0, have, 1), 1)  # a constant, or one number, stays
    return ((amount * ratio + (1 - amount)) * guided).to(guided.dtype)
