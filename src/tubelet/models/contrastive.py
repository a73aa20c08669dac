"""Two towers and one space: the contrastive head of CLIP (Radford et al., 2021, arXiv:2103.00020) on packed batches.

A vector of an image or video and one of its text, from any towers, are projected to a common width and to length one;
the loss is the cross-entropy of finding each sample's text among all texts and its image among all images, by cosines
times a learned scale. NaViT (arXiv:2307.06304, section 2.2) trains so on packs, which hold differing numbers of
samples: rows of no sample take no part.

Shapes: ``s`` samples, vectors ``(s, d)`` and ``(s, e)``.
"""

import math
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ContrastiveHead", "contrastive_loss"]


def contrastive_loss(
    images: Float[Tensor, "s d"],
    texts: Float[Tensor, "s d"],
    scale: Float[Tensor, ""] | float,
    real: Bool[Tensor, " s"] | None = None,
) -> Float[Tensor, ""]:
    """The mean cross-entropy of matching each image to its text and each text to its image.

    Args:
        images, texts: embeddings of the same samples, row by row, usually of length one.
        scale: what the inner products are multiplied by, positive: the inverse of a temperature.
        real: which rows hold a sample; None means all. The others may hold anything.

    Returns:
        The mean of both directions over the samples, in float32 or better; 0 for one sample, and for none, with
        gradients of 0.

    Raises:
        ValueError: embeddings of different shapes, or flags of other rows or that are not True or False.

    Example:
        >>> same = torch.eye(3)
        >>> round(contrastive_loss(same, same, 10.0).item(), 5)
        9e-05
    """
    if images.shape != texts.shape or images.ndim != 2:
        raise ValueError(f"images and texts must be the same samples, got {tuple(images.shape)}, {tuple(texts.shape)}")
    _check_real(real, images.shape[0])
    wide = torch.promote_types(images.dtype, torch.float32)
    real = torch.ones(images.shape[0], dtype=torch.bool, device=images.device) if real is None else real
    images, texts = (torch.where(real[:, None], each, 0).to(wide) for each in (images, texts))
    scores = torch.where(real[:, None] & real, scale * images @ texts.T, -torch.inf)
    scores = torch.where(torch.eye(len(real), dtype=torch.bool, device=real.device) & ~real, 0.0, scores)
    targets = torch.arange(len(real), device=real.device)
    both = F.cross_entropy(scores, targets, reduction="none") + F.cross_entropy(scores.T, targets, reduction="none")
    return torch.where(real, both, 0).sum() / (2 * real.sum()).clamp(min=1)


def _check_real(real: Tensor | None, rows: int) -> None:
    if real is None:
        return
    if real.dtype != torch.bool:
        raise ValueError(f"real must be flags of {torch.bool}, got {real.dtype} for {rows} rows")
    if real.shape != (rows,):
        raise ValueError(f"real has shape {tuple(real.shape)}, but there are {rows} rows")


class ContrastiveHead(nn.Module):
    """Vectors of two towers to unit vectors of one width, and a learned scale of their cosines.

    Args:
        dim: width of the images' vectors.
        text_dim: width of the texts' vectors.
        width: of the common space.
        temperature: where the scale starts, as its inverse (CLIP: 0.07); it stays at most 100.

    Raises:
        ValueError: ``temperature`` is not positive; at the call, vectors of other widths or of other samples, or
            flags as :func:`contrastive_loss` refuses them.

    Example:
        >>> head = ContrastiveHead(32, text_dim=16, width=8)
        >>> images, texts = head(torch.randn(5, 32), torch.randn(5, 16))
        >>> images.shape, contrastive_loss(images, texts, head.scale).shape
        (torch.Size([5, 8]), torch.Size([]))
    """

    def __init__(
        self,
        dim: int,
        text_dim: int,
        width: int,
        *,
        temperature: float = 0.07,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature} for width={width}")
        self.temperature = temperature
        self.image_proj = nn.Linear(dim, width, bias=False, device=device, dtype=dtype)
        self.text_proj = nn.Linear(text_dim, width, bias=False, device=device, dtype=dtype)
        self.log_scale = nn.Parameter(torch.empty((), device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal projections of deviation ``1/sqrt(width of the tower)``; the scale at its start."""
        for proj in (self.image_proj, self.text_proj):
            nn.init.normal_(proj.weight, std=proj.in_features**-0.5)
        nn.init.constant_(self.log_scale, -math.log(self.temperature))

    @property
    def scale(self) -> Float[Tensor, ""]:
        """What cosines are multiplied by, at most 100."""
        return self.log_scale.exp().clamp(max=100.0)

    def forward(
        self,
        images: Float[Tensor, "s d"],
        texts: Float[Tensor, "s e"],
        real: Bool[Tensor, " s"] | None = None,
    ) -> tuple[Float[Tensor, "s w"], Float[Tensor, "s w"]]:
        """Unit vectors of the images and of the texts; rows of zeros stay so.

        ``real`` says which rows hold a sample, None that all do. The others may hold anything and become zeros; without
        it a NaN in them would reach the gradients of the projections, whatever the loss leaves out.
        """
        for name, vectors, proj in (("images", images, self.image_proj), ("texts", texts, self.text_proj)):
            if vectors.shape[-1] != proj.in_features:
                raise ValueError(f"{name} has width {vectors.shape[-1]}, but the head was made for {proj.in_features}")
        if images.shape[:1] != texts.shape[:1]:
            raise ValueError(f"images has {images.shape[0]} samples, but texts has {texts.shape[0]}")
        _check_real(real, images.shape[0])
        if real is not None:  # where, not times: zeros that NaN cannot pass, in gradients neither
            images, texts = (torch.where(real[:, None], each, 0) for each in (images, texts))
        return F.normalize(self.image_proj(images), dim=-1), F.normalize(self.text_proj(texts), dim=-1)

    if TYPE_CHECKING:

        def __call__(
            self,
            images: Float[Tensor, "s d"],
            texts: Float[Tensor, "s e"],
            real: Bool[Tensor, " s"] | None = None,
        ) -> tuple[Float[Tensor, "s w"], Float[Tensor, "s w"]]: ...
