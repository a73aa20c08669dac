"""Losses beside the reconstruction: latents stay near their codes, and codes are sure each and used all."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

__all__ = ["commitment_loss", "entropy_loss"]


def commitment_loss(latents: Float[Tensor, "*n"], codes: Float[Tensor, "*n"]) -> Float[Tensor, ""]:
    """``mean |latents - codes|²`` per number; the gradient reaches the latents alone (VQ-VAE, arXiv:1711.00937, eq. 3).

    Raises:
        ValueError: other shapes.

    Example:
        >>> commitment_loss(torch.zeros(4, 2), 3 * torch.ones(4, 2)).item()
        9.0
    """
    if latents.shape != codes.shape:
        raise ValueError(f"codes have shape {tuple(codes.shape)}, but latents have {tuple(latents.shape)}")
    return F.mse_loss(latents, codes.detach())


def entropy_loss(
    latents: Float[Tensor, "*n z"], *, temperature: float = 0.01, bits: int | None = None
) -> Float[Tensor, ""]:
    """``E[H(q(x))] - H(E[q(x)])`` in nats for codes of signs (MAGVIT-v2, arXiv:2310.05737, eq. 5).

    ``q(c | x) ∝ exp(-|x - c|² / temperature)`` over all codes c of -1 and 1. The first term makes each latent sure of
    its code, the second uses all codes alike. The first is a sum over channels, exactly; the second takes all ``2^z``
    codes. ``bits`` channels at a time, its sum over the groups is an upper bound that takes ``2^bits`` each.

    Args:
        latents: what :class:`tubelet.vae.quantise.LookupFree` quantises.
        temperature: of the distribution over codes.
        bits: channels of a group, a divisor of z; None for all at once.

    Raises:
        ValueError: a temperature that is not positive, or bits that do not divide the channels.

    Example:
        >>> both = torch.tensor([[1.0], [-1.0]])  # sure of its code, and both used: -log 2
        >>> round(entropy_loss(both).item(), 4)
        -0.6931
    """
    channels = latents.shape[-1]
    bits = channels if bits is None else bits
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, not {temperature}")
    if bits < 1 or channels % bits:
        raise ValueError(f"bits must divide the {channels} channels, not {bits}")
    logits = latents.reshape(-1, channels).to(torch.promote_types(latents.dtype, torch.float32)) * (4 / temperature)
    sure = (F.softplus(logits) - logits * torch.sigmoid(logits)).sum(1).mean()
    used = torch.stack([_entropy(group) for group in torch.split(logits, bits, 1)])
    loss: Tensor = sure - used.sum()
    return loss


def _entropy(logits: Float[Tensor, "n k"]) -> Float[Tensor, ""]:
    """Entropy of the mean, over n, of the products of k independent bits."""
    places = torch.arange(2 ** logits.shape[1], device=logits.device)
    codes = (places[:, None] >> torch.arange(logits.shape[1], device=logits.device)) & 1
    chances = torch.softmax(logits @ codes.T.to(logits.dtype), 1).mean(0)
    entropy: Tensor = -torch.special.xlogy(chances, chances).sum()
    return entropy
