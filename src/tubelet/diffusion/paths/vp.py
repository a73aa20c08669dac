"""Variance-preserving paths through a discrete table of ``alpha²``, as in DDPM (Ho et al., 2020, arXiv:2006.11239).

Any shape of ``t`` in [0, 1] is accepted and kept.
"""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tubelet.diffusion._host import readable
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
    _spans: "_Spans" = field(init=False, repr=False)

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
        object.__setattr__(self, "_spans", _spans(table))

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
        """The time of an index, ``(index + 1)/N``, in the default dtype; index -1 is clean data.

        Raises:
            ValueError: an index above N - 1, or below -1 (looked at on the CPU only).

        Example:
            >>> VP.linear(4).time(torch.tensor([0, 3]))
            tensor([0.2500, 1.0000])
        """
        numbers = torch.as_tensor(index)
        if readable(numbers) and not bool(((numbers >= -1) & (numbers < self.steps)).all()):
            raise ValueError(f"index must be from 0 to {self.steps - 1}, got {numbers.tolist()}")
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
        return self._within(t).alpha().to(t.dtype)

    def sigma(self, t: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """The factor of the noise."""
        return self._within(t).sigma().to(t.dtype)

    def alpha_dot(self, t: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """The derivative of alpha, ``-sigma·angle'``."""
        span = self._within(t)
        return (-span.sigma() * span.turn() * self.steps).to(t.dtype)

    def sigma_dot(self, t: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """The derivative of sigma, ``alpha·angle'``."""
        span = self._within(t)
        return (span.alpha() * span.turn() * self.steps).to(t.dtype)

    def time_of_ratio(self, ratio: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """The time at which ``sigma/alpha`` is ``ratio``; 1 where there is none so large."""
        wide, spans = ratio.double(), self._spans_on(ratio.device)
        value = -2 * wide.log()
        number = torch.searchsorted(spans.ends, -value).clamp(max=self.steps - 1)
        value = torch.where(number == 0, torch.atan(wide), torch.where(spans.tail[number], torch.atan(1 / wide), value))
        place = number + (value - spans.start[number]) / spans.slope[number]
        return (place / self.steps).clamp(max=1).to(ratio.dtype)

    def _within(self, t: Float[Tensor, "*s"]) -> "_Span":
        """The span from index to index that holds ``t``, and the place in it."""
        spans = self._spans_on(t.device)
        place = self._place(t)
        number = place.ceil().clamp(1, self.steps).long() - 1
        slope = spans.slope[number]
        return _Span(spans.start[number] + (place - number) * slope, slope, number == 0, spans.tail[number])

    def _spans_on(self, device: torch.device) -> "_Spans":
        if self._spans.start.device == device:
            return self._spans
        return _Spans(*(table.to(device, non_blocking=True) for table in self._spans))

    def _place(self, t: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """How many indices lie below ``t``, in float64: whole within 4 ulp of an index; the slope is N throughout."""
        scaled = t.double() * self.steps
        fixed = scaled.detach()
        near = fixed.round()
        gap = near - fixed
        return scaled + gap * (gap.abs() <= 4 * torch.finfo(t.dtype).eps * near)


class _Spans(NamedTuple):
    """What is linear from each index to the next, the first from ``t = 0``.

    At the head it is the angle from pure data, at the tail the angle from pure noise, elsewhere the log ratio of data
    to noise. ``ends`` are the log ratios of noise to data where the spans end.
    """

    start: Tensor
    slope: Tensor
    tail: Tensor
    ends: Tensor


class _Span(NamedTuple):
    """Times on their spans, in float64: the value of what is linear there, its growth on the span, and which it is."""

    value: Tensor
    slope: Tensor
    head: Tensor
    tail: Tensor

    def alpha(self) -> Tensor:
        middle = torch.sigmoid(self.value).sqrt()
        return torch.where(self.head, self.value.cos(), torch.where(self.tail, self.value.sin(), middle))

    def sigma(self) -> Tensor:
        middle = torch.sigmoid(-self.value).sqrt()
        return torch.where(self.head, self.value.sin(), torch.where(self.tail, self.value.cos(), middle))

    def turn(self) -> Tensor:
        """The growth of the angle ``atan2(sigma, alpha)`` over the span, at the place."""
        middle = -(torch.sigmoid(self.value) * torch.sigmoid(-self.value)).sqrt() / 2
        return self.slope * torch.where(self.head, 1.0, torch.where(self.tail, -1.0, middle))


def _spans(signal: Float[Tensor, " n"]) -> _Spans:
    ratio = _log_snr(signal)
    first, before_last = torch.acos(signal[:1].sqrt()), torch.asin(signal[-2:-1].sqrt())
    start, slope = torch.cat([torch.zeros_like(first), ratio[:-1]]), torch.cat([first, ratio.diff()])
    tail = torch.cat([torch.zeros_like(first, dtype=torch.bool), ratio[1:].isinf()])
    return _Spans(torch.where(tail, before_last, start), torch.where(tail, -before_last, slope), tail, -ratio)


def _log_snr(signal: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """``log(alpha²/sigma²)`` of ``alpha²``."""
    return signal.log() - torch.log1p(-signal)
