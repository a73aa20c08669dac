"""The variational bound of learned variances, and DiT's loss: squared error plus bound (Nichol and Dhariwal, 2021).

The bound of one step is a divergence between two normals, or at the last step, which ends on clean data, the likelihood
of data in bins of 8-bit pictures scaled to [-1, 1] (arXiv:2006.11239, section 3.3; latents are treated alike, as the
authors of DiT do). All in bits per number. Shapes: patches ``(*lead, c)`` to one number a token ``(*lead)``.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tubelet.diffusion.losses import masked_mean
from tubelet.diffusion.posteriors import Posterior, learned_range, posterior
from tubelet.diffusion.predictions import level
from tubelet.diffusion.process import Process
from tubelet.layout import Rows

__all__ = ["bin_log_likelihood", "hybrid_loss", "normal_kl", "vlb"]

_BIN = 1 / 255
"""Half the width of a bin: 256 values from -1 to 1."""


def normal_kl(
    mean: Float[Tensor, "*s"], log_variance: Float[Tensor, "..."], mean2: Float[Tensor, "*s"], log2: Float[Tensor, "*s"]
) -> Float[Tensor, "*s"]:
    """The Kullback-Leibler divergence of one normal from another, elementwise, in nats.

    Example:
        >>> normal_kl(torch.zeros(1), torch.zeros(1), torch.ones(1), torch.zeros(1))
        tensor([0.5000])
    """
    gap = log_variance - log2
    return (gap.exp() - 1 - gap + (mean - mean2) ** 2 * (-log2).exp()) / 2


def bin_log_likelihood(
    x: Float[Tensor, "*s"], mean: Float[Tensor, "*s"], log_variance: Float[Tensor, "*s"]
) -> Float[Tensor, "*s"]:
    """The log-probability, in nats, that a normal gives to the bin of ``x``; the outermost bins reach to infinity.

    The normal's distribution function is approximated by a tanh, and no probability counts as below 1e-12, as in
    DiT's published code.

    Example:
        >>> bin_log_likelihood(torch.zeros(1), torch.zeros(1), torch.tensor([-20.0])).exp().round(decimals=3)
        tensor([1.])
    """
    inverse = (-log_variance / 2).exp()
    above, below = _cdf((x - mean + _BIN) * inverse), _cdf((x - mean - _BIN) * inverse)
    share = torch.where(x < -0.999, above, torch.where(x > 0.999, 1 - below, above - below))
    return share.clamp(min=1e-12).log()


def vlb(
    process: Process,
    prediction: Float[Tensor, "*lead c"],
    share: Float[Tensor, "*lead c"],
    x0: Float[Tensor, "*lead c"],
    noise: Float[Tensor, "*lead c"],
    t: Rows,
    steps: int,
) -> Float[Tensor, "*lead"]:
    """The bound's term of one step of ``1/steps`` down from each level, in bits per number.

    Args:
        process: path and prediction.
        prediction: the network's output at ``noise(x0, noise, t)``.
        share: its choice of variance, see :func:`~tubelet.diffusion.learned_range`. At the last step the lower end,
            which would be minus infinity, is that of the step before.
        x0: data.
        noise: the noise that was mixed in.
        t: noise levels above 0, such as those of an index.
        steps: into how many steps [0, 1] is cut.

    Raises:
        ValueError: ``steps`` is below 2, ``t`` holds integers, or shapes differ.

    Example:
        >>> from tubelet.diffusion import VP
        >>> process = Process(path=VP.linear(), prediction="x0")
        >>> x0, noise, t = torch.zeros(1, 2), torch.ones(1, 2), Rows(torch.tensor([0.5]))
        >>> vlb(process, x0, -torch.ones(1, 2), x0, noise, t, 1000)
        tensor([0.])
    """
    here, there, at = _bounds(process, t, steps, x0)
    if share.shape != x0.shape:
        raise ValueError(f"x0 has shape {tuple(x0.shape)}, but share has {tuple(share.shape)}")
    wide = at.high.dtype
    state = process.noise(x0.to(wide), noise.to(wide), here)
    guess, _ = process.split(prediction.to(wide), state, here)
    mean, variance = at.mean(state, guess.to(wide)), learned_range(share.to(wide), at.low, at.high)
    divergence = normal_kl(at.mean(state, x0.to(wide)), at.low, mean, variance)
    likelihood = bin_log_likelihood(x0.to(wide), mean, variance)
    last = level(there, x0) == 0
    return torch.where(last, -likelihood, divergence).mean(dim=-1) / math.log(2)


def hybrid_loss(
    process: Process,
    output: Float[Tensor, "*lead c2"],
    x0: Float[Tensor, "*lead c"],
    noise: Float[Tensor, "*lead c"],
    t: Rows,
    steps: int,
    mask: Bool[Tensor, "*lead"] | None = None,
    *,
    bound: float = 1.0,
) -> Float[Tensor, ""]:
    """DiT's loss: the process's loss of the prediction, plus the bound, which trains the variance alone.

    Args:
        process: path, prediction and weight; the weight is the squared error's.
        output: the prediction, and behind it the choice of variance, as DiT gives them.
        x0: data.
        noise: the noise that was mixed in.
        t: noise levels above 0.
        steps: into how many steps [0, 1] is cut; 1000.
        mask: True where a token counts.
        bound: the factor of the bound's term of one step (1 is 0.001 times the whole bound of 1000 steps,
            arXiv:2102.09672, section 3.1).

    Raises:
        ValueError: ``output`` is not twice as wide as ``x0``, or as for :func:`vlb`.

    Example:
        >>> from tubelet.diffusion import VP
        >>> process = Process(path=VP.linear(), prediction="eps")
        >>> x0, noise, t = torch.zeros(1, 2), torch.ones(1, 2), Rows(torch.tensor([0.5]))
        >>> hybrid_loss(process, torch.cat([noise, -torch.ones(1, 2)], dim=-1), x0, noise, t, 1000).abs() < 1e-6
        tensor(True)
    """
    if output.shape[-1] != 2 * x0.shape[-1]:
        raise ValueError(f"output has {output.shape[-1]} numbers a token, expected twice the {x0.shape[-1]} of x0")
    prediction, share = output.chunk(2, dim=-1)
    error = process.loss(prediction, x0, noise, t, mask)
    if mask is not None:
        held = mask[..., None]
        share, x0, noise = (torch.where(held, part, 0) for part in (share, x0, noise))
        prediction = torch.where(held, prediction, 0)
    term = vlb(process, prediction.detach(), share, x0, noise, t, steps)
    return error + bound * masked_mean(term, mask)


def _bounds(process: Process, t: Rows, steps: int, like: Tensor) -> tuple[Rows, Rows, Posterior]:
    """The levels on the cut interval, one step further down, and the posterior between with a finite lower variance."""
    if steps < 2:
        raise ValueError(
            f"steps must be at least 2, as the last step's lower variance is the one before's, got {steps}"
        )
    if not t.values.is_floating_point():
        raise ValueError(f"t must be floating-point, got {t.values.dtype}")
    place = t.values.double() * steps
    near = place.round()
    exact = (near - place).abs() <= 4 * torch.finfo(t.values.dtype).eps * place
    place = torch.where(exact, near, place).clamp(min=1)
    here, there, above = (Rows(p / steps, t.index) for p in (place, place - 1, place + 1))
    at = posterior(process.path, here, there, like)
    earlier = posterior(process.path, above.map(lambda time: time.clamp(max=1)), here, like)
    return here, there, at._replace(low=torch.where(level(there, like) == 0, earlier.low, at.low))


def _cdf(x: Tensor) -> Tensor:
    return (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2
