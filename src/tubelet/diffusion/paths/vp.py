"""Variance-preserving paths through a discrete table of ``alpha²``, as in DDPM (Ho et al., 2020, arXiv:2006.11239).

Any shape of ``t`` in [0, 1] is accepted and kept.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tubelet.protocols import Path

__all__ = ["VP"]


@dataclass(frozen=True, eq=False)
class VP:
    """A variance-preserving path through a table: index ``i`` of ``alphas_cumprod`` (alpha²) sits at ``t = (i + 1)/N``.

    Between two indices the log signal-to-noise ratio ``log(alpha²/sigma²)`` is linear in ``t``. It is infinite at both
    ends of the whole interval (``alpha(0) = 1``; zero terminal SNR); there the angle ``atan2(sigma, alpha)`` is linear
    instead: the factors reach 1 and 0 exactly and keep finite derivatives. At an index the derivative is the one from
    below, where sampling goes. The table and all arithmetic are float64; results have the dtype of ``t``.

    Args:
        alphas_cumprod: ``alpha²`` per index, decreasing, in (0, 1); the last may be 0 (zero terminal SNR).

    Raises:
        ValueError: ``alphas_cumprod`` has under two entries, leaves [0, 1), or does not decrease strictly.

    Example:
        >>> path = VP.linear()
        >>> t = path.time(torch.tensor([499, 999]))
        >>> path.alpha(t) ** 2
        tensor([7.8587e-02, 4.0358e-05])
    """

    alphas_cumprod: Float[Tensor, " n"]

    def __post_init__(self) -> None:
        table = self.alphas_cumprod.double()
        if table.ndim != 1 or table.numel() < 2:
            raise ValueError(f"alphas_cumprod needs at least 2 entries on one axis, got shape {tuple(table.shape)}")
        if not 0 <= float(table[-1]) < float(table[0]) < 1:
            raise ValueError(f"alphas_cumprod must run from below 1 to at least 0, got {table[0]} and {table[-1]}")
        steps = table.diff()
        if not bool((steps < 0).all()):
            i = int(steps.argmax())
            raise ValueError(f"alphas_cumprod must decrease, got {table[i]} and {table[i + 1]} at {i} and {i + 1}")
        object.__setattr__(self, "alphas_cumprod", table)

    @classmethod
    def from_betas(cls, betas: Float[Tensor, " n"]) -> "VP":
        """The path of ``alpha²[i] = Π (1 - beta[j]), j ≤ i`` (arXiv:2006.11239, equation 4).

        Example:
            >>> VP.from_betas(torch.tensor([0.5, 0.5])).alphas_cumprod
            tensor([0.5000, 0.2500], dtype=torch.float64)
        """
        return cls(torch.cumprod(1 - betas.double(), dim=0))

    @classmethod
    def linear(cls, steps: int = 1000, start: float = 1e-4, end: float = 0.02) -> "VP":
        """Betas linear from ``start`` to ``end``: DDPM, ADM, DiT.

        Example:
            >>> VP.linear(10).steps
            10
        """
        return cls.from_betas(torch.linspace(start, end, steps, dtype=torch.float64))

    @classmethod
    def scaled_linear(cls, steps: int = 1000, start: float = 0.00085, end: float = 0.012) -> "VP":
        """Betas whose square roots are linear; the defaults are Stable Diffusion's (latent diffusion: 0.0015, 0.0195).

        Example:
            >>> round(float(VP.scaled_linear().alphas_cumprod[499]), 6)
            0.27767
        """
        return cls.from_betas(torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2)

    @classmethod
    def cosine(cls, steps: int = 1000, offset: float = 0.008, max_beta: float = 0.999) -> "VP":
        """``alpha²`` proportional to ``cos²((t + offset)/(1 + offset)·π/2)``, betas capped (arXiv:2102.09672, eq. 17).

        Example:
            >>> round(float(VP.cosine().alphas_cumprod[499]), 6)
            0.493844
        """
        t = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        signal = torch.cos((t + offset) / (1 + offset) * (math.pi / 2)) ** 2
        return cls.from_betas((1 - signal[1:] / signal[:-1]).clamp(max=max_beta))

    @classmethod
    def sigmoid(cls, steps: int = 1000, start: float = -3.0, end: float = 3.0, tau: float = 1.0) -> "VP":
        """``alpha²`` falls along a sigmoid from ``start`` to ``end``, scaled to 1 and exactly 0 (arXiv:2212.11972).

        Raises:
            ValueError: not ``start < end``, or ``tau`` is not positive.

        Example:
            >>> VP.sigmoid(4).alphas_cumprod
            tensor([0.8509, 0.5000, 0.1491, 0.0000], dtype=torch.float64)
        """
        if not (start < end and tau > 0):
            raise ValueError(f"start must be below end and tau above 0, got {start}, {end} and {tau}")
        curve = torch.sigmoid(torch.linspace(start, end, steps + 1, dtype=torch.float64) / tau)
        return cls((curve[-1] - curve[1:]) / (curve[-1] - curve[0]))

    @classmethod
    def sigmoid_betas(cls, steps: int = 1000, start: float = 1e-4, end: float = 0.02, width: float = 6.0) -> "VP":
        """Betas that rise along a sigmoid of ``[-width, width]`` (GeoDiff, arXiv:2203.02923; diffusers' "sigmoid").

        Example:
            >>> round(float(VP.sigmoid_betas().alphas_cumprod[499]), 6)
            0.301931
        """
        curve = torch.sigmoid(torch.linspace(-width, width, steps, dtype=torch.float64))
        return cls.from_betas(start + (end - start) * curve)

    @classmethod
    def tabulated(cls, path: Path, steps: int = 1000) -> "VP":
        """The table of any path's signal-to-noise ratios at the times ``(i + 1)/N``.

        Example:
            >>> from tubelet.diffusion import RectifiedFlow
            >>> VP.tabulated(RectifiedFlow(), 4).alphas_cumprod
            tensor([0.9000, 0.5000, 0.1000, 0.0000], dtype=torch.float64)
        """
        t = torch.arange(1, steps + 1, dtype=torch.float64) / steps
        signal, noise = path.alpha(t) ** 2, path.sigma(t) ** 2
        return cls(signal / (signal + noise))

    @property
    def steps(self) -> int:
        """The number of indices, ``N``."""
        return self.alphas_cumprod.numel()

    def zero_terminal_snr(self) -> "VP":
        """This path with alpha shifted and scaled so that the last index is pure noise (arXiv:2305.08891, algorithm 1).

        Example:
            >>> path = VP.linear().zero_terminal_snr()
            >>> float(path.alphas_cumprod[-1]), round(float(path.alphas_cumprod[499]), 6)
            (0.0, 0.076029)
        """
        alpha = self.alphas_cumprod.sqrt()
        return VP(((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])) ** 2)

    def shifted(self, scale: float) -> "VP":
        """This path with every signal-to-noise ratio divided by ``scale`` (CogVideoX's ``snr_shift_scale``).

        The table then holds the shift, and a process on it needs no warp.

        Raises:
            ValueError: ``scale`` is not positive and finite.

        Example:
            >>> VP(torch.tensor([0.75, 0.5])).shifted(3.0).alphas_cumprod
            tensor([0.5000, 0.2500], dtype=torch.float64)
        """
        if not 0 < scale < math.inf:
            raise ValueError(f"scale must be above 0 and finite, got {scale}")
        return VP(self.alphas_cumprod / (scale + (1 - scale) * self.alphas_cumprod))

    def time(self, index: Int[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """The time of an index, ``(index + 1)/N``, in the default dtype.

        Example:
            >>> VP.linear(4).time(torch.tensor([0, 3]))
            tensor([0.2500, 1.0000])
        """
        return (index + 1) / self.steps

    def index(self, t: Float[Tensor, "*s"]) -> Int[Tensor, "*s"]:
        """The index nearest to each time; clean data (``t = 0``) gets index 0.

        Example:
            >>> VP.linear(4).index(torch.tensor([0.0, 0.25, 0.6, 1.0]))
            tensor([0, 0, 1, 3])
        """
        return ((t * self.steps).round().long() - 1).clamp(0, self.steps - 1)

    def alpha(self, t: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """The factor of the data."""
        return self._factors(t)[0].to(t.dtype)

    def sigma(self, t: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """The factor of the noise."""
        return self._factors(t)[1].to(t.dtype)

    def alpha_dot(self, t: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """The derivative of alpha, ``-sigma·angle'``."""
        _, sigma, speed = self._factors(t)
        return (-sigma * speed).to(t.dtype)

    def sigma_dot(self, t: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """The derivative of sigma, ``alpha·angle'``."""
        alpha, _, speed = self._factors(t)
        return (alpha * speed).to(t.dtype)

    def _factors(self, t: Float[Tensor, "*s"]) -> tuple[Tensor, Tensor, Tensor]:
        """Alpha, sigma and the derivative of the angle ``atan2(sigma, alpha)``, in float64."""
        table = self.alphas_cumprod.to(t.device, non_blocking=True)
        place = self._place(t)
        low = (place.ceil() - 1).clamp(0, self.steps - 2).long()
        before, after = table[low], table[low + 1]
        start, end = _log_snr(before), _log_snr(torch.where(after > 0, after, before))
        ratio = start + (place - low) * (end - start)
        alpha, sigma = torch.sigmoid(ratio).sqrt(), torch.sigmoid(-ratio).sqrt()
        speed = alpha * sigma * (start - end) * (self.steps / 2)

        first = torch.acos(table[0].sqrt())
        angle = first * (place + 1)
        head = place <= 0
        last = torch.asin(before.sqrt())
        rest = last * (low + 1 - place)
        tail = (after == 0) & ~head
        alpha = torch.where(head, angle.cos(), torch.where(tail, rest.sin(), alpha))
        sigma = torch.where(head, angle.sin(), torch.where(tail, rest.cos(), sigma))
        speed = torch.where(head, first, torch.where(tail, last, speed / self.steps)) * self.steps
        return alpha, sigma, speed

    def _place(self, t: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """Where ``t`` lies on the table, in float64: an index itself within 4 ulp of it; the slope is N throughout."""
        scaled = t.double() * self.steps
        near = scaled.detach().round()
        gap = near - scaled.detach()
        exact = gap.abs() <= 4 * torch.finfo(t.dtype).eps * scaled.detach().abs()
        return scaled + torch.where(exact, gap, 0) - 1


def _log_snr(signal: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """``log(alpha²/sigma²)`` of ``alpha²``."""
    return signal.log() - torch.log1p(-signal)
