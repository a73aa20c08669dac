"""What discriminators and autoencoders are trained on: losses of scores, penalties, and the weight between both.

Scores are any tensors that are high where a video looks real. The losses of discriminators are half the sum of their
two means, as in VQGAN and latent diffusion.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from tubelet.vae.objectives.checks import check_number

__all__ = [
    "HINGE",
    "NON_SATURATING",
    "AdversarialLoss",
    "adaptive_weight",
    "hinge_discriminator_loss",
    "hinge_generator_loss",
    "logistic_discriminator_loss",
    "non_saturating_loss",
    "r1_penalty",
]


def hinge_discriminator_loss(real: Float[Tensor, "*n"], fake: Float[Tensor, "*m"]) -> Float[Tensor, ""]:
    """``½ mean max(0, 1 - real) + ½ mean max(0, 1 + fake)`` (Lim & Ye, arXiv:1705.02894).

    Example:
        >>> hinge_discriminator_loss(torch.tensor([0.0, 2.0]), torch.tensor([-3.0])).item()
        0.25
    """
    return 0.5 * (F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean())


def hinge_generator_loss(fake: Float[Tensor, "*n"]) -> Float[Tensor, ""]:
    """``-mean fake`` (Lim & Ye, arXiv:1705.02894).

    Example:
        >>> hinge_generator_loss(torch.tensor([1.0, 3.0])).item()
        -2.0
    """
    return -fake.mean()


def logistic_discriminator_loss(real: Float[Tensor, "*n"], fake: Float[Tensor, "*m"]) -> Float[Tensor, ""]:
    """``-½ mean log σ(real) - ½ mean log σ(-fake)``, the cross-entropy of real and fake (arXiv:1406.2661, eq. 1).

    Example:
        >>> round(logistic_discriminator_loss(torch.zeros(2), torch.zeros(3)).item(), 4)  # ln 2
        0.6931
    """
    return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())


def non_saturating_loss(fake: Float[Tensor, "*n"]) -> Float[Tensor, ""]:
    """``-mean log σ(fake)``: its gradient does not vanish where the discriminator is sure (arXiv:1406.2661, section 3).

    Example:
        >>> round(non_saturating_loss(torch.tensor([-100.0])).item(), 4)
        100.0
    """
    return F.softplus(-fake).mean()


class AdversarialLoss(NamedTuple):
    """The two losses of a game.

    Attributes:
        discriminator: of the scores of real and of fake videos.
        generator: of the scores of fake videos.

    Example:
        >>> HINGE.generator(torch.ones(2)).item()
        -1.0
    """

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]


HINGE = AdversarialLoss(hinge_discriminator_loss, hinge_generator_loss)
"""The hinge. Example: ``HINGE.generator(scores)``."""
NON_SATURATING = AdversarialLoss(logistic_discriminator_loss, non_saturating_loss)
"""Cross-entropy for the discriminator, its mirror for the generator. Example: ``NON_SATURATING.generator(scores)``."""


def r1_penalty(discriminator: Callable[[Tensor], Tensor], real: Float[Tensor, "b ..."]) -> Float[Tensor, ""]:
    """``½ mean_b |∇ D(real_b)|²``, the squared slope of the score at real data (arXiv:1801.04406, equation 9).

    The score of a sample is the mean of its patches'. Gradients reach the discriminator alone.

    Args:
        discriminator: gives each sample one or more scores that depend on no other sample.
        real: a batch of videos.

    Raises:
        ValueError: no sample, numbers that have no gradients, or a discriminator that does not score each sample.

    Example:
        >>> w = torch.tensor([3.0, 4.0])
        >>> r1_penalty(lambda x: x @ w, torch.randn(5, 2)).item()
        12.5
    """
    if not (real.ndim and len(real) and real.is_floating_point()):
        raise ValueError(
            f"real must be a batch of floating-point videos, got {real.dtype} of shape {tuple(real.shape)}"
        )
    with torch.enable_grad():
        real = real.detach().requires_grad_()
        scores = discriminator(real)
        if not (scores.ndim and len(scores) == len(real) and scores.numel() and scores.requires_grad):
            shapes = f"{tuple(scores.shape)} of videos of shape {tuple(real.shape)}"
            raise ValueError(f"discriminator must give scores with gradients for each video, got scores {shapes}")
        (slope,) = torch.autograd.grad(scores.reshape(len(real), -1).mean(1).sum(), real, create_graph=True)
    return 0.5 * slope.square().flatten(1).sum(1).mean()


def adaptive_weight(
    reconstruction: Sequence[Float[Tensor, "..."]],
    adversarial: Sequence[Float[Tensor, "..."]],
    *,
    most: float = 1e4,
    eps: float = 1e-4,
) -> Float[Tensor, ""]:
    """``min(most, |reconstruction| / (|adversarial| + eps))``: with it both pull alike (arXiv:2012.09841, equation 7).

    Args:
        reconstruction: gradients of the reconstruction loss at the decoder's last layer, one tensor a parameter.
        adversarial: gradients of the adversarial loss there.
        most: upper bound.
        eps: added to the norm that divides.

    Returns:
        A number without gradients.

    Raises:
        ValueError: not one gradient for each, none at all, a negative bound, or an ``eps`` that is negative or not
            finite.

    Example:
        >>> adaptive_weight([torch.tensor([3.0, 4.0])], [torch.tensor([0.0, 0.5])], eps=0.0).item()
        10.0
    """
    if not most >= 0:
        raise ValueError(f"most must be at least 0, got {most}")
    check_number("eps", eps)
    if len(reconstruction) != len(adversarial) or not len(reconstruction):
        raise ValueError(
            f"got {len(reconstruction)} gradients of reconstruction and {len(adversarial)} adversarial ones"
        )
    return (_norm(reconstruction) / (_norm(adversarial) + eps)).clamp(max=most)


def _norm(gradients: Sequence[Tensor]) -> Tensor:
    """The length of all gradients as one vector."""
    lengths: list[Tensor] = [torch.linalg.vector_norm(gradient.detach().float()) for gradient in gradients]
    length: Tensor = torch.linalg.vector_norm(torch.stack(lengths))
    return length
