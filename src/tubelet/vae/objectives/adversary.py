"""A discriminator with the losses of its game, and penalties that keep it tame.

The two halves of a step see it from two sides: `Adversary.fooling` has gradients in the decoded video alone,
`Adversary.judging` in the discriminator alone.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tubelet.vae.objectives.adversarial import HINGE, AdversarialLoss, r1_penalty
from tubelet.vae.objectives.checks import check_alike, check_names, check_number
from tubelet.vae.objectives.drawing import Draw, take_frames

__all__ = ["R1", "Adversary", "Judged", "LeCam", "frozen"]

_NUMBERS = ("real", "fake", "game")


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """No parameter of these modules gets gradients inside; afterwards all are as they were.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> with frozen(layer):
        ...     layer(torch.ones(1, 1)).requires_grad
        False
        >>> layer.weight.requires_grad
        True
    """
    held = [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]
    for parameter in held:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in held:
            parameter.requires_grad_(True)


class Judged(NamedTuple):
    """What a penalty of a discriminator may look at.

    Attributes:
        discriminator: gives scores of videos.
        real: videos, without gradients.
        fake: decoded videos, without gradients.
        real_scores: of ``real``.
        fake_scores: of ``fake``.

    Example:
        >>> Judged._fields
        ('discriminator', 'real', 'fake', 'real_scores', 'fake_scores')
    """

    discriminator: nn.Module
    real: Float[Tensor, "b c t h w"]
    fake: Float[Tensor, "b c t h w"]
    real_scores: Float[Tensor, "b ..."]
    fake_scores: Float[Tensor, "b ..."]


class R1(nn.Module):
    """``weight ·`` :func:`r1_penalty` at the real videos.

    Raises:
        ValueError: a weight that is negative or not finite; at the call, as in :func:`r1_penalty`.

    Example:
        >>> R1(10.0).weight
        10.0
    """

    def __init__(self, weight: float) -> None:
        super().__init__()
        check_number("weight", weight)
        self.weight = weight

    def forward(self, judged: Judged) -> Float[Tensor, ""]:
        """The weighted penalty."""
        return self.weight * r1_penalty(judged.discriminator, judged.real)


class LeCam(nn.Module):
    """``weight · (mean (real - fake_mean)² + mean (fake - real_mean)²)`` (LeCam-GAN, arXiv:2104.03310, eq. 4).

    ``real_mean`` and ``fake_mean`` are moving averages of the scores. They change with each call, and are buffers so
    that a run resumes with them.

    Args:
        weight: of the penalty.
        decay: of the averages, in [0, 1).

    Raises:
        ValueError: a weight that is negative or not finite, or a decay outside [0, 1).

    Example:
        >>> lecam = LeCam(1.0, decay=0.0)
        >>> x = torch.zeros(1, 1, 1, 1, 1)
        >>> lecam(Judged(lecam, x, x, x + 1, x - 2)).item()  # (1 + 2)² + (-2 - 1)²
        18.0
    """

    real_mean: Tensor
    fake_mean: Tensor

    def __init__(self, weight: float, decay: float = 0.99) -> None:
        super().__init__()
        check_number("weight", weight)
        check_number("decay", decay, most=1.0, below=True)
        self.weight, self.decay = weight, decay
        self.register_buffer("real_mean", torch.zeros(()))
        self.register_buffer("fake_mean", torch.zeros(()))

    def forward(self, judged: Judged) -> Float[Tensor, ""]:
        """Move the averages, then the weighted penalty."""
        real, fake = judged.real_scores, judged.fake_scores
        with torch.no_grad():
            self.real_mean.lerp_(real.mean().to(self.real_mean), 1 - self.decay)
            self.fake_mean.lerp_(fake.mean().to(self.fake_mean), 1 - self.decay)
        return self.weight * ((real - self.fake_mean).square().mean() + (fake - self.real_mean).square().mean())


class Adversary(nn.Module):
    """A discriminator and its game.

    Args:
        discriminator: videos to scores, such as :class:`PatchDiscriminator`.
        loss: of both sides.
        penalties: by name, of :class:`Judged`: `R1`, `LeCam` or others; they are added to the discriminator's loss.
        draw: which frames are judged, such as ``functools.partial(draw_window, 16)``; None for all.

    Raises:
        ValueError: penalties under names with a dot or those of other numbers, ``real``, ``fake`` and ``game``; at the
            call, videos of two shapes.

    Example:
        >>> from tubelet.vae.objectives import PatchDiscriminator
        >>> adversary = Adversary(PatchDiscriminator(1, 4, n_layers=1), penalties={"r1": R1(10.0)})
        >>> real, fake = torch.randn(2, 1, 1, 3, 16, 16)
        >>> loss, numbers = adversary.judging(real, fake)
        >>> loss.requires_grad, sorted(numbers)
        (True, ['fake', 'game', 'r1', 'real'])
    """

    def __init__(
        self,
        discriminator: nn.Module,
        loss: AdversarialLoss = HINGE,
        *,
        penalties: Mapping[str, nn.Module] | None = None,
        draw: Draw | None = None,
    ) -> None:
        super().__init__()
        self.discriminator, self.loss, self.draw = discriminator, loss, draw
        check_names("penalties", penalties or {}, _NUMBERS)
        self.penalties = nn.ModuleDict(penalties or {})

    def fooling(
        self, decoded: Float[Tensor, "b c t h w"], generator: torch.Generator | None = None
    ) -> Float[Tensor, ""]:
        """The loss of the autoencoder; the discriminator gets no gradients of it."""
        (seen,) = self._seen(generator, decoded)
        with frozen(self.discriminator):
            return self.loss.generator(self.discriminator(seen))

    def judging(
        self,
        video: Float[Tensor, "b c t h w"],
        decoded: Float[Tensor, "b c t h w"],
        generator: torch.Generator | None = None,
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """The loss of the discriminator, of which the autoencoder gets no gradients; it sees the same frames of both.

        Returns:
            The loss with its penalties, and numbers without gradients: the mean scores of ``real`` and ``fake``, the
            loss of the ``game`` and each penalty.
        """
        check_alike(decoded, video)
        real, fake = self._seen(generator, video.detach(), decoded.detach())
        judged = Judged(self.discriminator, real, fake, self.discriminator(real), self.discriminator(fake))
        game = self.loss.discriminator(judged.real_scores, judged.fake_scores)
        penalties: dict[str, Tensor] = {name: penalty(judged) for name, penalty in self.penalties.items()}
        shown = zip(_NUMBERS, (judged.real_scores.mean(), judged.fake_scores.mean(), game), strict=True)
        numbers = {name: value.detach() for name, value in (*shown, *penalties.items())}
        return torch.stack([game, *penalties.values()]).sum(), numbers

    def _seen(self, generator: torch.Generator | None, *videos: Tensor) -> list[Tensor]:
        """The frames that are judged."""
        if self.draw is None:
            return list(videos)
        index = self.draw(videos[0].shape[0], videos[0].shape[2], generator)
        return [take_frames(video, index) for video in videos]
