"""Multi-step solvers in one evaluation a step: DPM-Solver++ 2M and 3M, its SDE variant, and DEIS.

All are exponential Adams-Bashforth methods: a polynomial through the last predictions, integrated along
log(alpha/sigma); see :mod:`tubelet.diffusion.samplers.exponential`. The history is a tuple of what was predicted where,
newest first. Levels may differ from row to row: each row uses what it knows. Shapes: ``(*lead, c)``.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from tubelet.diffusion.process import Process
from tubelet.diffusion.samplers.exponential import Node, halved, moments, node, weights
from tubelet.diffusion.samplers.renewal import draw
from tubelet.diffusion.samplers.rows import Mark, combine, data_and_noise, ends, hold, predicted, renewed, step_size
from tubelet.layout import Rows
from tubelet.protocols import Denoiser

__all__ = ["ExponentialAdams", "Past", "deis", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m", "earlier_nodes"]

State = Float[Tensor, "*lead c"]
Noise = Iterator[Float[Tensor, "*lead c"]]
Through = Literal["x0", "eps"]


class Past(NamedTuple):
    """What was predicted at an earlier level, data or noise; a history is a tuple of these, newest first.

    Example:
        >>> from tubelet.diffusion import RectifiedFlow
        >>> from tubelet.diffusion.samplers.rows import mark
        >>> Past(mark(RectifiedFlow(), Rows(torch.tensor([0.5]))), torch.zeros(2, 1)).value.shape
        torch.Size([2, 1])
    """

    at: Mark
    value: Float[Tensor, "*lead c"]
    through: Through = "x0"


@dataclass(frozen=True, eq=False)
class ExponentialAdams:
    """A polynomial through the last ``order`` predictions, integrated along log(alpha/sigma).

    Where a step ends on clean data it is of order 1, since log(alpha/sigma) is infinite there.

    Args:
        order: how many predictions are used, 1 to 3; a run begins with fewer.
        through: what the polynomial goes through: the data, or the noise.
        exact: whether it is integrated exactly. The published DPM-Solvers take half of the first moment for a line, and
            half of the second moment for a parabola, which leaves 3M at order 2.
        eta: 0 solves the ordinary equation, 1 the stochastic one; noise of deviation
            ``sigma_s·sqrt(1 - exp(-2·eta²·h))`` is fresh.
        noise: where fresh noise comes from, such as :func:`~tubelet.diffusion.noise_stream`.

    Raises:
        ValueError: ``order`` is not 1 to 3, ``through`` is neither, ``eta`` is negative or not finite, above 0 without
            ``noise``, or above 0 with a polynomial through the noise; at the call, the history is another solver's.

    Example:
        >>> from tubelet.diffusion import sample
        >>> process, solver = Process(prediction="x0"), ExponentialAdams(2)
        >>> sample(lambda x, t: 0 * x + 2, torch.zeros(1, 1), process.times(3), process=process, step=solver)
        tensor([[2.]])
    """

    order: int = 2
    through: Through = "x0"
    exact: bool = False
    eta: float = 0.0
    noise: Noise | None = None

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3):
            raise ValueError(f"order must be 1, 2 or 3, got {self.order}")
        if self.through not in get_args(Through):
            raise ValueError(f"through must be one of {get_args(Through)}, got {self.through!r}")
        if not 0 <= self.eta < math.inf:
            raise ValueError(f"eta must be finite and not negative, got {self.eta}")
        if self.eta > 0 and (self.noise is None or self.through == "eps"):
            raise ValueError(
                f"eta={self.eta} needs noise and a polynomial through x0, got {self.noise}, {self.through!r}"
            )

    def step(
        self, denoiser: Denoiser, x: State, t: Rows, s: Rows, process: Process, history: tuple[Past, ...] | None = None
    ) -> tuple[State, tuple[Past, ...]]:
        """The state at ``s``, and the history for the next step."""
        self._check(history)
        here, there = ends(process.path, t, s)
        prediction = predicted(denoiser, x, t)
        x0, eps = data_and_noise(process, t, here)
        own = x0 if self.through == "x0" else eps
        now = Past(here, combine(t, own, [x, prediction]), self.through)
        past = (now, *(history or ()))[: self.order]

        h = step_size(here, there)
        earlier = self._earlier(h, there, past)
        kept = there.sigma * (-(self.eta**2) * h).exp() if self.eta else there.sigma
        factors = [there.alpha * x0[i] + kept * eps[i] for i in (0, 1)]
        if earlier:
            total = sum(earlier[1:], earlier[0])
            factors = [factor - total * of_own for factor, of_own in zip(factors, own, strict=True)]
        values = [x, prediction]
        if self.noise is not None and self.eta:
            factors.append(there.sigma * renewed(self.eta**2 * h))
            values.append(draw(self.noise, x))
        new = combine(t, [*factors, *earlier], [*values, *(each.value for each in past[1:])])
        return hold(x, new, t, s), past[: self.order - 1]

    def _check(self, history: Any) -> None:
        if type(history or ()) is not tuple:
            raise ValueError(
                f"history must be a tuple of Past, of a solver like this one, got {type(history).__name__}"
            )
        if other := [past.through for past in history or () if past.through != self.through]:
            raise ValueError(f"history holds predictions of {other[0]}, but this solver goes through {self.through}")

    def _earlier(self, h: Tensor, there: Mark, past: tuple[Past, ...]) -> list[Tensor]:
        """The weights of the earlier predictions; each is taken from the present one's."""
        if len(past) == 1:
            return []
        nodes = earlier_nodes(h, past[0].at, past[1:])
        growth, gain = ((1 + self.eta**2) * h, there.alpha) if self.through == "x0" else (-h, there.sigma)
        moment = moments(torch.where(nodes[0].use, growth, 1.0), len(nodes))
        if not self.exact:
            moment = halved(moment, nodes, moment[0] / 2)
            moment[2:] = [each / 2 for each in moment[2:]]
        return [gain * weight for weight in weights(moment, nodes)]


def earlier_nodes(h: Float[Tensor, " r"], here: Mark, past: Sequence[Past]) -> list[Node]:
    """The nodes of a step of size ``h`` from ``here``: its begin, and those of the past.

    Example:
        >>> from tubelet.diffusion import RectifiedFlow
        >>> from tubelet.diffusion.samplers.rows import mark
        >>> before, here = (mark(RectifiedFlow(), Rows(torch.tensor([t]))) for t in (0.5, 0.25))
        >>> nodes = earlier_nodes(step_size(before, here), here, [Past(before, torch.zeros(1, 1))])
        >>> [round(float(each.u)) for each in nodes]
        [0, -1]
    """
    moving = (h != 0) & (h.abs() < math.inf)
    nodes, safe = [Node(torch.zeros_like(h), moving)], None
    for each in past:
        safe = torch.where(moving, h, 1.0) if safe is None else safe
        nodes.append(node(safe, step_size(here, each.at), nodes[-1]))
    return nodes


def dpmpp_2m(*, exact: bool = False) -> ExponentialAdams:
    """DPM-Solver++(2M) (arXiv:2211.01095, algorithm 2).

    Example:
        >>> dpmpp_2m().order
        2
    """
    return ExponentialAdams(2, exact=exact)


def dpmpp_3m(*, exact: bool = False) -> ExponentialAdams:
    """DPM-Solver++(3M) as published code has it, which converges with order 2; with order 3 where it is ``exact``.

    Example:
        >>> dpmpp_3m().order
        3
    """
    return ExponentialAdams(3, exact=exact)


def dpmpp_2m_sde(noise: Noise, *, eta: float = 1.0, exact: bool = False) -> ExponentialAdams:
    """SDE-DPM-Solver++(2M) (arXiv:2211.01095, appendix B).

    Example:
        >>> dpmpp_2m_sde(iter([])).eta
        1.0
    """
    return ExponentialAdams(2, eta=eta, noise=noise, exact=exact)


def deis(order: int = 3) -> ExponentialAdams:
    """DEIS with a polynomial in log(sigma/alpha) through the noise (Zhang and Chen, 2023, arXiv:2204.13902, table 2).

    Example:
        >>> deis().through
        'eps'
    """
    return ExponentialAdams(order, through="eps", exact=True)
