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

__all__ = ["Corrected", "Move", "UniPC"]

State = Float[Tensor, "*lead c"]
Variant = Literal["bh1", "bh2"]


class Move(NamedTuple):
    """A step's own numbers, which its correction uses again: factors of the state and of the data, and the nodes.

    Example:
        >>> one = torch.ones(1)
        >>> Move(one, one, one, one, (Node(one, one > 0),)).keep
        tensor([1.])
    """

    h: Float[Tensor, " r"]
    alpha: Float[Tensor, " r"]
    keep: Float[Tensor, " r"]
    gain: Float[Tensor, " r"]
    nodes: tuple[Node, ...]


class Corrected(NamedTuple):
    """UniPC's history: the last state after its correction, what was predicted there and before, and the step from it.

    Example:
        >>> one = torch.ones(1)
        >>> Corrected(torch.zeros(2, 1), (), Move(one, one, one, one, ())).past
        ()
    """

    x: Float[Tensor, "*lead c"]
    past: tuple[Past, ...]
    move: Move


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
        past = (now,) if history is None else (now, *history.past)[: self.order]
        move = _move(here, there, past)
        if history is None:
            factors = [there.alpha * of_x0 + there.sigma * of_eps for of_x0, of_eps in zip(x0, eps, strict=True)]
            return hold(x, combine(t, factors, [x, prediction]), t, s), Corrected(x, past, move)
        base = self._corrected(x, now, t, history)
        new = self._integrated(base, t, past, move)
        return hold(x, new, t, s), Corrected(base, past, move)

    def _corrected(self, x: State, now: Past, t: Rows, history: Corrected) -> State:
        """``x`` by the last step, made anew with the prediction at its end; ``x`` itself in rows that it left."""
        last, *earlier = history.past
        begin, *before = history.move.nodes
        move = history.move._replace(nodes=(begin, Node(torch.ones_like(begin.u), begin.use), *before))
        new = self._integrated(history.x, t, (last, now, *earlier), move)
        return select(Rows(~begin.use, t.index), x, new.to(x.dtype))

    def _integrated(self, x: State, t: Rows, known: tuple[Past, ...], move: Move) -> State:
        """The step from ``x`` where the first of the known predictions was made, by a polynomial through all."""
        moment = moments(move.h, len(move.nodes))
        moment = halved(moment, move.nodes, (move.h if self.variant == "bh1" else moment[0]) / 2)
        others, own = [move.alpha * weight for weight in weights(moment, move.nodes)], move.gain
        for other in others:
            own = own - other
        return combine(t, [move.keep, own, *others], [x, *(each.value for each in known)])


def _move(here: Mark, there: Mark, past: tuple[Past, ...]) -> Move:
    h = step_size(here, there)
    nodes = earlier_nodes(h, here, past[1:])
    keep = quotient(there.sigma, here.sigma)
    gain = there.alpha - keep * here.alpha  # alpha_s·(1 - exp(-h)), also from and to pure noise
    return Move(torch.where(nodes[0].use, h, 1.0), there.alpha, keep, gain, tuple(nodes))
