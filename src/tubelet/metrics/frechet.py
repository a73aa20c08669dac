"""The Fréchet distance of two sets, each taken for a Gaussian, and the video distance made of it.

``d² = |m₁ - m₂|² + tr(C₁ + C₂ - 2 (C₁ C₂)^½)`` (Dowson and Landau, J. Multivariate Analysis 1982). With roots
``Rᵀ R = C`` the eigenvalues of ``C₁ C₂`` are those of the symmetric ``M Mᵀ``, ``M = R₁ R₂ᵀ``, so the trace of its root
is the sum of the singular values of M. The centred features are such a root: no matrix root, no complex numbers, and no
loss of digits where a covariance is singular, as it is with fewer videos than features.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Gaussian", "frechet_distance", "fvd", "video_features"]


@dataclass(frozen=True)
class Gaussian:
    """A mean and a root of a covariance, ``rootᵀ root``, in float64.

    Example:
        >>> normal = Gaussian.fit(torch.tensor([[0.0, 1.0], [2.0, 1.0]]))
        >>> normal.mean.tolist(), (normal.root.T @ normal.root).tolist()
        ([1.0, 1.0], [[2.0, 0.0], [0.0, 0.0]])
    """

    mean: Float[Tensor, " d"]
    root: Float[Tensor, "r d"]

    @classmethod
    def fit(cls, features: Float[Tensor, "n d"]) -> "Gaussian":
        """The Gaussian of the features' mean and unbiased covariance.

        Raises:
            ValueError: fewer than two rows, or numbers that are not finite.

        Example:
            >>> Gaussian.fit(torch.randn(50, 3)).root.shape
            torch.Size([3, 3])
        """
        count, width = features.shape
        if count < 2:
            raise ValueError(f"features must have at least 2 rows for a covariance, got n, d = {(count, width)}")
        if not features.isfinite().all():
            raise ValueError(f"features must be finite, but {int((~features.isfinite()).sum())} numbers are not")
        mean = features.double().mean(0)
        root = (features.double() - mean) / (count - 1) ** 0.5
        return cls(mean, torch.linalg.qr(root).R if count > width else root)


def frechet_distance(p: Gaussian, q: Gaussian) -> Float[Tensor, ""]:
    """Squared Fréchet distance of two Gaussians, in float64.

    Raises:
        ValueError: Gaussians of other widths.

    Example:
        >>> p = Gaussian(torch.zeros(2).double(), torch.eye(2).double())
        >>> q = Gaussian(torch.ones(2).double(), 3 * torch.eye(2).double())
        >>> round(frechet_distance(p, q).item(), 6)  # 2 · (1² + (3 - 1)²)
        10.0
    """
    if p.mean.shape != q.mean.shape:
        raise ValueError(f"p has {len(p.mean)} features, but q has {len(q.mean)}")
    spread = p.root.square().sum() + q.root.square().sum()
    shared: Tensor = torch.linalg.svdvals(p.root @ q.root.T).sum()
    return (p.mean - q.mean).square().sum() + spread - 2 * shared


def video_features(
    network: Callable[[Tensor], Tensor], videos: Iterable[Float[Tensor, "_ _ _ _ _"]], size: int = 224
) -> Float[Tensor, "n d"]:
    """What a network says about batches of videos, without gradients, in float64.

    Args:
        network: ``(b, c, t, size, size)`` in [-1, 1] to ``(b, d)``, such as an :class:`I3D` or its ``features``.
        videos: batches ``(b, c, t, h, w)``, taken one at a time; their shapes may differ.
        size: to which both sides of each frame are resized, bilinearly; smoothed first where they shrink.

    Raises:
        ValueError: no videos, a batch of another rank, a size below 1, or a network that gives no row for each video.

    Example:
        >>> video_features(lambda v: v.mean((2, 3, 4)), [torch.ones(2, 3, 9, 8, 8), torch.ones(1, 3, 9, 4, 8)]).shape
        torch.Size([3, 3])
    """
    with torch.no_grad():
        rows = [_row_each(network, batch, size) for batch in videos]
    if not rows:
        raise ValueError("videos must hold at least one batch, got none")
    return torch.cat(rows)


def _row_each(network: Callable[[Tensor], Tensor], batch: Tensor, size: int) -> Tensor:
    """What a network says of each video of a batch, in float64."""
    if batch.ndim != 5 or size < 1:
        raise ValueError(f"videos must be (b, c, t, h, w) and size positive, got {tuple(batch.shape)} and size {size}")
    rows = network(_resized(batch, size)).double()
    if rows.ndim != 2 or len(rows) != len(batch):
        raise ValueError(f"network must give a row for each of {len(batch)} videos, got shape {tuple(rows.shape)}")
    return rows


def fvd(
    real: Iterable[Float[Tensor, "_ _ _ _ _"]],
    generated: Iterable[Float[Tensor, "_ _ _ _ _"]],
    network: Callable[[Tensor], Tensor],
    size: int = 224,
) -> float:
    """Fréchet video distance of two sets of videos (Unterthiner et al., arXiv:1812.01717); less is nearer.

    The distance of small sets is biased upwards, so compare only numbers of as many videos, of one length.

    Args:
        real: batches ``(b, c, t, h, w)`` in [-1, 1]; two videos or more.
        generated: the same of what is judged.
        network: an :class:`I3D` with published weights, whose logits are compared as in the paper, or its ``features``.
        size: of the frames that the network sees.

    Raises:
        ValueError: fewer than two videos in a set, or features that are not finite.

    Example:
        >>> colours = lambda videos: videos.mean((2, 3, 4))
        >>> real = [torch.rand(8, 3, 9, 4, 4)]
        >>> fvd(real, real, colours, size=8) < 1e-9, round(fvd(real, [v + 1 for v in real], colours, size=8), 6)
        (True, 3.0)
    """
    p, q = (Gaussian.fit(video_features(network, videos, size)) for videos in (real, generated))
    return frechet_distance(p, q).item()


def _resized(videos: Float[Tensor, "b c t h w"], size: int) -> Float[Tensor, "b c t size size"]:
    if videos.shape[-2:] == (size, size):
        return videos
    frames = rearrange(videos, "b c t h w -> (b t) c h w")
    resized = F.interpolate(frames, (size, size), mode="bilinear", antialias=True)
    return rearrange(resized, "(b t) c h w -> b c t h w", b=len(videos))
