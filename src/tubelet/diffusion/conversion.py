"""A model used otherwise than it was trained: on another path, without its variance.

Shapes: patches ``(*lead, c)``, noise levels as ``Rows``.
"""

from jaxtyping import Float
from torch import Tensor

from tubelet.diffusion.conventions import noise_ratio, time_of_ratio
from tubelet.diffusion.predictions import coefficients, from_x0_eps
from tubelet.diffusion.process import Process
from tubelet.layout import Rows
from tubelet.protocols import Denoiser

__all__ = ["converted", "without_variance"]


def converted(denoiser: Denoiser, trained: Process, wanted: Process) -> Denoiser:
    """A denoiser for the path and prediction of ``wanted`` from one for those of ``trained``.

    The state is scaled to the point of the trained path with the same noise-to-signal ratio, and the data and noise
    that the prediction implies are expressed anew. So a model with ``v`` on a table samples along rectified flow or
    EDM's path, say. Where the trained path ends at less noise than asked for, its last time is used.

    Example:
        >>> import torch
        >>> from tubelet.diffusion import VP
        >>> noise_of = lambda x, t: 0.5 * x
        >>> flow = converted(noise_of, Process(path=VP.linear(), prediction="eps"), Process())
        >>> flow(torch.ones(2, 1), Rows(torch.tensor([0.5]))).shape
        torch.Size([2, 1])
    """

    def denoise(x: Float[Tensor, "*lead c"], t: Rows) -> Float[Tensor, "*lead c"]:
        at = coefficients(wanted.path, t, x)
        own = t.map(lambda time: time_of_ratio(trained.path, noise_ratio(wanted.path, time)))
        there = coefficients(trained.path, own, x)
        scale = there.alpha.hypot(there.sigma) / at.alpha.hypot(at.sigma)
        state = (scale * x).to(x.dtype)
        x0, eps = trained.split(denoiser(state, own), state, own)
        return from_x0_eps(wanted.prediction, x0, eps, at).to(x.dtype)

    return denoise


def without_variance(denoiser: Denoiser) -> Denoiser:
    """The prediction alone of a model that predicts more numbers than the state has, such as DiT's learned variance.

    The numbers of the variance stand behind those of the prediction. Every sampler takes the result, outside of any
    guidance; :func:`ddpm_step` with ``variance="learned_range"`` and :func:`hybrid_loss` take the model itself.

    Example:
        >>> import torch
        >>> dit = lambda x, t: torch.cat([2 * x, 0 * x], dim=-1)
        >>> without_variance(dit)(torch.ones(1, 2), Rows(torch.tensor([0.5])))
        tensor([[2., 2.]])
    """

    def denoise(x: Float[Tensor, "*lead c"], t: Rows) -> Float[Tensor, "*lead c"]:
        return denoiser(x, t)[..., : x.shape[-1]]

    return denoise
