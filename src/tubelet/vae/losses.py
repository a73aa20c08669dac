"""What an autoencoder is trained on: pixel reconstruction and the divergence of its posterior.

``loss = reconstruction_loss(decoded, video) + beta · kl_loss(posterior)`` with a small beta (1e-6 … 1e-3) gives latents
that keep their detail and stay near unit scale, as in latent diffusion (arXiv:2112.10752, appendix G).
"""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from tubelet.vae.posterior import DiagonalGaussian

__all__ = ["kl_loss", "reconstruction_loss"]


def reconstruction_loss(
    decoded: Float[Tensor, "b c t h w"], video: Float[Tensor, "b c t h w"], l1: float = 0.5
) -> Float[Tensor, ""]:
    """``l1 · mean|decoded - video| + (1 - l1) · mean(decoded - video)²`` over all pixels.

    The absolute part sharpens edges, the squared part is what PSNR measures.

    Raises:
        ValueError: ``l1`` outside [0, 1], or other shapes.

    Example:
        >>> import torch
        >>> reconstruction_loss(torch.ones(1, 1, 1, 2, 2), -torch.ones(1, 1, 1, 2, 2)).item()
        3.0
    """
    if not 0.0 <= l1 <= 1.0:
        raise ValueError(f"l1 must lie in [0, 1], not {l1}")
    if decoded.shape != video.shape:
        raise ValueError(f"decoded has shape {tuple(decoded.shape)}, but video has {tuple(video.shape)}")
    return l1 * F.l1_loss(decoded, video) + (1.0 - l1) * F.mse_loss(decoded, video)


def kl_loss(posterior: DiagonalGaussian) -> Float[Tensor, ""]:
    """Divergence of the posterior from the standard normal: nats per latent number, averaged over the batch.

    Example:
        >>> import torch
        >>> kl_loss(DiagonalGaussian(2 * torch.ones(1, 4, 1, 2, 2), torch.zeros(1, 4, 1, 2, 2))).item()
        2.0
    """
    return posterior.kl().sum() / posterior.mean.numel()
