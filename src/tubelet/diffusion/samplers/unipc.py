"""UniPC: a predictor and a corrector of one order more in one evaluation a step (Zhao et al., 2023, arXiv:2302.04867).

The corrector makes the last step anew when the prediction at its end is known; that same prediction then serves the
next step, uncorrected. Both are exponential Adams methods. Shapes: ``(*lead, c)``.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from tubelet.diffusion.process import Process
from tubelet.diffusion.samplers.exponential import Node, halved, moments, weights
from tubelet.diffusion.samplers.multistep import Past, earlier_nodes
from tubelet.diffusion.samplers.rows import (
    Mark,
    combine,
    data_and_noise,
    ends,
    hold,
    predicted,
    quotient,
    select,
    step_size,
)
from tubelet.layout import Rows
from tubelet.protocols import Denoiser

__all__ = ["Corrected", "UniPC"]

State = Float[Tensor, "*lead c"]
Variant = Literal["bh1", "bh2"]


class Corrected(NamedTuple):
    """UniPC's history: the last state after its correction, and what was predicted there and before, newest first.

    Example:
        >>> Corrected(torch.zeros(2, 1), ()).past
        ()
    """

    x: Float[Tensor, "*lead c"]
    past: tuple[Past, ...]


@dataclass(frozen=True)
class UniPC:
    """UniPC of a given order, on the predicted data; one evaluation a step.

    Where a step ends on clean data it is of order 1. Steps may lead towards noise too.

    Args:
        order: of the predictor, 1 to 3; that of a whole run is one more with the corrector. A run begins with less.
        variant: the weight of a line: half the step (``"bh1"``) or half of ``1 - exp(-h)`` (``"bh2"``).

    Raises:
        ValueError: ``order`` is not 1 to 3, or ``variant`` is neither; at the call, the history is another solver's.

    Example:
        >>> from tubelet.diffusion import sample
        >>> process = Process(prediction="x0")
        >>> sample(lambda x, t: 0 * x + 2, torch.zeros(1, 1), process.times(3), process=process, step=UniPC())
        tensor([[2.]])
    """

    order: int = 2
    variant: Variant = "bh2"

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3):
            raise ValueError(f"order must be 1, 2 or 3, got {self.order}")
        if self.variant not in get_args(Variant):
            raise ValueError(f"variant must be one of {get_args(Variant)}, got {self.variant!r}")

    def step(
        self, denoiser: Denoiser, x: State, t: Rows, s: Rows, process: Process, history: Corrected | None = None
    ) -> tuple[State, Corrected]:
        """The state at ``s``, and the history for the next step."""
        if history is not None and not isinstance(history, Corrected):
            raise ValueError(f"history must be UniPC's, Corrected, got {type(history).__name__}")
        here, there = ends(process.path, t, s)
        prediction = predicted(denoiser, x, t)
        x0, eps = data_and_noise(process, t, here)
        now = Past(here, combine(t, x0, [x, prediction]))
        if history is None:
            factors = [there.alpha * of_x0 + there.sigma * of_eps for of_x0, of_eps in zip(x0, eps, strict=True)]
            return hold(x, combine(t, factors, [x, prediction]), t, s), Corrected(x, (now,))
        base = self._corrected(x, now, t, history)
        past = (now, *history.past)[: self.order]
        h = step_size(here, there)
        new = self._integrated(base, h, there, t, past, earlier_nodes(h, here, past[1:]))
        return hold(x, new, t, s), Corrected(base, past)

    def _corrected(self, x: State, now: Past, t: Rows, history: Corrected) -> State:
        """``x`` by the last step, made anew with the prediction at its end; ``x`` itself in rows that it left."""
        last, *earlier = history.past
        h = step_size(last.at, now.at)
        nodes = earlier_nodes(h, last.at, earlier, Node(torch.ones_like(h), torch.ones_like(h, dtype=torch.bool)))
        new = self._integrated(history.x, h, now.at, t, (last, now, *earlier), nodes)
        return select(Rows(~nodes[0].use, t.index), x, new.to(x.dtype))

    def _integrated(
        self, x: State, h: Tensor, there: Mark, t: Rows, known: tuple[Past, ...], nodes: list[Node]
    ) -> State:
        """The step from ``x`` where the first of the known predictions was made, by a polynomial through all."""
        safe = torch.where(nodes[0].use, h, 1.0)
        moment = moments(safe, len(nodes))
        moment = halved(moment, nodes, (safe if self.variant == "bh1" else moment[0]) / 2)
        begin = known[0].at
        keep = quotient(there.sigma, begin.sigma)
        own = there.alpha - keep * begin.alpha  # alpha_s·(1 - exp(-h)), also from and to pure noise
        others = [there.alpha * weight for weight in weights(moment, nodes)]
        for other in others:
            own = own - other
        return combine(t, [keep, own, *others], [x, *(each.value for each in known)])
