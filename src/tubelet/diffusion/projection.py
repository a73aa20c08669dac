"""Predicted data made to agree with what is known: a function from a denoiser to a denoiser.

DDNM (Wang et al., 2023, arXiv:2212.00490, algorithm 1) replaces, at every step, the part of the predicted data that a
measurement determines by the measurement, and needs no training. Its measurements are linear, such as a mask; here any
function of the predicted data may do the replacing. Behind an autoencoder it decodes, puts the known pixels in place
and encodes again, so that what is known need not be whole latent cells.

Shapes: those of the denoiser, ``(*lead, c)``.
"""

from collections.abc import Callable

from torch import Tensor

from tubelet.diffusion.guidance import Guided, in_space
from tubelet.diffusion.process import Process
from tubelet.layout import Rows
from tubelet.protocols import Denoiser

__all__ = ["projected"]


def projected(denoiser: Denoiser, project: Callable[[Tensor], Tensor], process: Process) -> Denoiser:
    """The denoiser whose predicted data are ``project(x0)``; the predicted noise follows from the state.

    Args:
        denoiser: predicts what ``process.prediction`` names.
        project: maps predicted data ``(*lead, c)`` to data of the same shape, such as :meth:`Known.apply`.
        process: path and prediction.

    Raises:
        ValueError: at the call, ``project`` gives another shape.

    Example:
        >>> import torch
        >>> from tubelet.diffusion import sample
        >>> process, right = Process(), torch.tensor([[1.0], [5.0]])
        >>> seven = lambda x0: torch.where(right == 5, 7.0, x0)
        >>> denoiser = projected(lambda x, t: (x - right) / t.values, seven, process)
        >>> sample(denoiser, torch.zeros(2, 1), process.times(4), process=process).tolist()
        [[1.0], [7.0]]
    """

    def agree(predictions: tuple[Tensor, ...], x: Tensor, t: Rows) -> Tensor:
        x0 = project(predictions[0])
        if x0.shape != predictions[0].shape:
            raise ValueError(f"x0 has shape {tuple(predictions[0].shape)}, but the projected x0 has {tuple(x0.shape)}")
        return x0

    return Guided(in_space(agree, process, "x0"), denoiser=denoiser)
