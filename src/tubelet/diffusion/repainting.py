"""Known tokens for denoisers that were never trained with any: replacement, and RePaint's resampling.

Before each step the known tokens become their values at the noise level of all others, by fresh noise (Song et al.,
2021, arXiv:2011.13456, appendix I.2). The rest then fits them only loosely, so that RePaint (Lugmayr et al., 2022,
arXiv:2201.09865, algorithm 1) goes back by the noise of the step and makes it again, several times.

Shapes: ``(*lead, c)``.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tubelet.diffusion._host import readable
from tubelet.diffusion.known import Known
from tubelet.diffusion.predictions import level
from tubelet.diffusion.process import Process
from tubelet.diffusion.samplers import euler_step, renoise
from tubelet.diffusion.samplers.loop import one_step
from tubelet.diffusion.samplers.renewal import draw
from tubelet.layout import Rows
from tubelet.protocols import Denoiser, SamplerStep

__all__ = ["Repainted"]


@dataclass(frozen=True, eq=False)
class Repainted:
    """A step whose known tokens follow their noised values; at the end of a run they are the values, bit for bit.

    All tokens share one noise level, so ``rows=known.levels`` is not for this step.

    Args:
        known: which tokens, and their values.
        noise: where fresh noise comes from, such as :func:`~tubelet.diffusion.noise_stream`.
        within: how one step is made.
        repeats: how often each step is made, with the noise of the step added back between. RePaint jumps back by ten
            steps at a time, ten times; here a jump is one step.

    Raises:
        ValueError: ``within`` is no one-step method, ``repeats`` is smaller than 1, or ``known`` at another noise level
            than 0; at the call, noise has another shape than the state, or a known token stays at its level (seen on
            the CPU only).

    Example:
        >>> from tubelet.diffusion import Process, noise_stream, sample
        >>> from tubelet.layout import Grid, TokenLayout
        >>> layout, process = TokenLayout.packed([Grid(2, 1, 1)]), Process()
        >>> known = Known(layout.rows(torch.tensor([True, False]), "frame"), torch.full((2, 1), 7.0))
        >>> step = Repainted(known, noise_stream(layout, 1, seeds=[0]), repeats=2)
        >>> to_mean = lambda x, t: (x - x.mean()) / t.values
        >>> sample(to_mean, torch.zeros(2, 1), process.times(50), process=process, step=step)[0]
        tensor([7.])
    """

    known: Known
    noise: Iterator[Float[Tensor, "*lead c"]]
    within: SamplerStep = euler_step
    repeats: int = 1

    def __post_init__(self) -> None:
        one_step("within", self.within)
        if self.known.noise_level:
            raise ValueError(f"known must be at noise level 0 to be repainted, got {self.known.noise_level}")
        if self.repeats < 1:
            raise ValueError(f"repeats must be at least 1, got {self.repeats}")

    def __call__(
        self, denoiser: Denoiser, x: Float[Tensor, "*lead c"], t: Rows, s: Rows, process: Process
    ) -> Float[Tensor, "*lead c"]:
        """The state at ``s``, its known tokens at ``s`` too."""
        self._check_moving(t, s)
        for _ in range(self.repeats - 1):
            there = self._made(denoiser, x, t, s, process)
            x = renoise(there, s, t, process.path, draw(self.noise, x))
        return self._at(self._made(denoiser, x, t, s, process), s, process)

    def _check_moving(self, t: Rows, s: Rows) -> None:
        """A known token that stays would be held, not repainted."""
        if not readable(t.values):
            return
        stays = level(Rows(t.values == s.values, t.index), self.known.values)[..., 0]
        if bool((stays & self.known.tokens).any()):
            raise ValueError("a known token stays at its level: sample without rows=known.levels, at one level for all")

    def _made(self, denoiser: Denoiser, x: Tensor, t: Rows, s: Rows, process: Process) -> Tensor:
        return self.within(denoiser, self._at(x, t, process), t, s, process)

    def _at(self, x: Tensor, t: Rows, process: Process) -> Tensor:
        """``x`` with the known values at level ``t``."""
        values = process.noise(self.known.values.to(x.dtype), draw(self.noise, x), t)
        return torch.where(self.known.tokens[..., None], values, x)
