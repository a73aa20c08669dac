"""What the demo measures of generated videos; :mod:`tubelet.demo.reconstruction` measures the autoencoder.

Shares are given with the lower end of Wilson's 95 % score interval (E. B. Wilson, JASA 1927): of n samples with share p

    lower = (p + z²/2n − z √(p(1−p)/n + z²/4n²)) / (1 + z²/n),  z = 1.96.

Videos are ``(1, t, h, w)`` in [-1, 1], of any sizes in one list.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from tubelet.demo.digits import parse_caption
from tubelet.demo.judge import Judge, direction, ink_centre

__all__ = [
    "Accuracy",
    "Memorised",
    "digit_accuracy",
    "direction_accuracy",
    "diversity",
    "linear_predictor_loss",
    "memorised",
    "wilson_lower",
]

_Z = 1.959964
_CROP = 20


class Accuracy(NamedTuple):
    """A share, the lower end of its 95 % interval, and of how many samples.

    Example:
        >>> Accuracy(0.95, 0.93, 500).lower
        0.93
    """

    value: float
    lower: float
    samples: int


class Memorised(NamedTuple):
    """Shares of samples nearer to the training set than the median held-out clip, and than 95 % of them.

    Held-out clips themselves score 0.5 and 0.05 by construction; more says that samples copy.

    Example:
        >>> Memorised(0.5, 0.05).beyond_median
        0.5
    """

    beyond_median: float
    beyond_fifth_percentile: float


def wilson_lower(successes: int, count: int) -> float:
    """The lower end of Wilson's 95 % interval of a share.

    Raises:
        ValueError: ``count`` is not positive, or ``successes`` not in 0..count.

    Example:
        >>> round(wilson_lower(95, 100), 4)
        0.8882
    """
    if count < 1 or not 0 <= successes <= count:
        raise ValueError(f"successes must be in 0..count and count positive, got successes={successes}, count={count}")
    share, over = successes / count, _Z**2 / count
    spread = math.sqrt(share * (1 - share) * over + over**2 / 4)
    return max(0.0, (share + over / 2 - spread) / (1 + over))


def digit_accuracy(judge: Judge, videos: Sequence[Float[Tensor, "1 _ _ _"]], captions: Sequence[str]) -> Accuracy:
    """The share of videos in which the judge reads the digit that the caption names.

    Raises:
        ValueError: no videos, not one caption each, or a caption outside :data:`~tubelet.demo.digits.PROMPTS`.

    Example:
        >>> digit_accuracy(Judge(width=4).eval(), [torch.zeros(1, 1, 16, 16)], ["a two"]).samples
        1
    """
    _check_captions(videos, captions)
    read = judge.digit(videos).argmax(1).tolist()
    return _accuracy([said == parse_caption(caption)[0] for said, caption in zip(read, captions, strict=True)])


def direction_accuracy(videos: Sequence[Float[Tensor, "1 _ _ _"]], captions: Sequence[str]) -> Accuracy:
    """The share of the videos with a direction in their caption whose ink goes there; what stands still is wrong.

    Raises:
        ValueError: no caption names a direction, not one caption each, or an unknown caption.

    Example:
        >>> from tubelet.demo import digits
        >>> clips = digits.batch("judge", seed=0, start=0, count=20)
        >>> direction_accuracy([c.video for c in clips], [c.caption for c in clips]).value
        1.0
    """
    _check_captions(videos, captions)
    wanted = [parse_caption(caption)[1] for caption in captions]
    if not any(wanted):
        raise ValueError(f"captions must name a direction at least once, got {sorted(set(captions))}")
    return _accuracy([direction(video) == way for video, way in zip(videos, wanted, strict=True) if way])


def diversity(
    features: Float[Tensor, "n d"],
    digits: Int[Tensor, " n"],
    real_features: Float[Tensor, "m d"],
    real_digits: Int[Tensor, " m"],
) -> float:
    """Variance of the judge's features within a digit, over that of real clips; 1 is as varied as the real ones.

    Variances are summed over the features and averaged over the ten digits. The two sets should share one mix of sizes.

    Raises:
        ValueError: a digit with fewer than two samples in either set.

    Example:
        >>> real, digits = torch.randn(60, 4, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 10
        >>> round(diversity(0.5 * real, digits, real, digits), 4)
        0.25
    """
    return _within(features, digits) / _within(real_features, real_digits)


def _within(features: Float[Tensor, "n d"], digits: Int[Tensor, " n"]) -> float:
    counts = digits.bincount(minlength=10)
    if counts.min() < 2:
        raise ValueError(f"diversity needs two samples of each digit, got {counts.tolist()} of 0..9")
    spreads = [features[digits == digit].double().var(dim=0).sum() for digit in range(10)]
    return float(torch.stack(spreads).mean())


def memorised(
    samples: Sequence[Float[Tensor, "1 _ _ _"]],
    train: Sequence[Float[Tensor, "1 _ _ _"]],
    held_out: Sequence[Float[Tensor, "1 _ _ _"]],
) -> Memorised:
    """How many samples are nearer to a training clip than held-out clips are.

    The distance is L2 between middle frames, cut out around the centre of their ink, to the nearest training clip.

    Args:
        samples: generated videos.
        train: renderings of the training digits; several of each, so that a copy has a near one.
        held_out: real clips that were not trained on: the yardstick.

    Raises:
        ValueError: one of the three is empty.

    Example:
        >>> from tubelet.demo import digits
        >>> train = [c.video for c in digits.batch("train", 0, 0, 200)]
        >>> real = [c.video for c in digits.batch("held_out", 0, 0, 50)]
        >>> memorised(train[:50], train, real), memorised(real, train, real).beyond_median
        (Memorised(beyond_median=1.0, beyond_fifth_percentile=1.0), 0.5)
    """
    for name, videos in (("samples", samples), ("train", train), ("held_out", held_out)):
        if not videos:
            raise ValueError(f"{name} must hold at least one video, got {len(videos)}")
    known = _aligned(train)
    near, yardstick = (torch.cdist(_aligned(videos), known).amin(1) for videos in (samples, held_out))
    median, fifth = (yardstick.quantile(share) for share in (0.5, 0.05))
    return Memorised(float((near < median).double().mean()), float((near < fifth).double().mean()))


def _aligned(videos: Sequence[Float[Tensor, "1 _ _ _"]]) -> Float[Tensor, "n p"]:
    """The ink of each middle frame in a square around its centre, flattened."""
    return torch.stack([_aligned_frame(video[:, video.shape[1] // 2]) for video in videos])


def _aligned_frame(frame: Float[Tensor, "1 h w"]) -> Float[Tensor, " p"]:
    offsets = torch.arange(_CROP) - (_CROP - 1) / 2
    y, x = ink_centre(frame[:, None])[0]
    rows, columns = (
        (2 * (place + offsets) + 1) / side - 1 for place, side in zip((y, x), frame.shape[1:], strict=True)
    )
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij")[::-1], dim=-1)
    return F.grid_sample((frame[None] + 1) / 2, grid[None], align_corners=False).flatten()


def linear_predictor_loss(latents: Sequence[Float[Tensor, "_ _ _ _"]], times: Float[Tensor, " k"]) -> float:
    """The loss of the best affine predictor of the velocity that sees each element alone.

    With x_t = (1 − t) x0 + t ε and v = ε − x0, an element of mean m and variance s² is predicted best with the error
    ``s² / ((1 − t)² s² + t²)``. Every grid size, channel and place has its own m and s², fitted on the very latents
    that the loss is taken on, so no such predictor does better on them.

    Args:
        latents: each ``(z, t, h, w)``, scaled as the denoiser sees them.
        times: the noise levels to average over, in (0, 1]; those of the denoiser's own held-out loss.

    Raises:
        ValueError: a time outside (0, 1], or a size that only one latent has.

    Example:
        >>> linear_predictor_loss([torch.ones(16, 1, 2, 2), -torch.ones(16, 1, 2, 2)], torch.tensor([0.5]))
        2.0
    """
    if not bool(((times > 0) & (times <= 1)).all()):
        raise ValueError(f"times must lie in (0, 1], got {times.min().item()}..{times.max().item()}")
    t = times.double()[:, None]
    total, numbers = 0.0, 0
    for shape in dict.fromkeys(latent.shape for latent in latents):
        members = torch.stack([latent for latent in latents if latent.shape == shape]).double()
        if len(members) < 2:
            raise ValueError(f"latents must have each size at least twice, got one of {tuple(shape)}")
        variance = members.var(dim=0, correction=0).flatten()
        error = variance / ((1 - t) ** 2 * variance + t**2)
        total += float(error.mean(0).sum()) * len(members)
        numbers += members.numel()
    return total / numbers


def _accuracy(right: Sequence[bool]) -> Accuracy:
    return Accuracy(sum(right) / len(right), wilson_lower(sum(right), len(right)), len(right))


def _check_captions(videos: Sequence[Tensor], captions: Sequence[str]) -> None:
    if not videos or len(videos) != len(captions):
        raise ValueError(f"captions must be one per video, got {len(captions)} for {len(videos)} videos")
