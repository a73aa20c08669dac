"""Less order in the last steps, as published multi-step samplers have it. Shapes: ``(*lead, c)``."""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from tubelet.diffusion.process import Process
from tubelet.diffusion.samplers.multistep import ExponentialAdams
from tubelet.diffusion.samplers.unipc import UniPC
from tubelet.layout import Rows
from tubelet.protocols import Denoiser

__all__ = ["Tapered", "TaperedHistory"]


class TaperedHistory(NamedTuple):
    """How many steps of a tapered run are made, and what its solver remembers.

    Example:
        >>> TaperedHistory(3, None).number
        3
    """

    number: int
    history: Any


@dataclass(frozen=True)
class Tapered:
    """A solver whose order is at most the number of steps that are left: 2 in the last but one, 1 in the last.

    So diffusers' ``lower_order_final`` has it, by default: of UniPC always, of DPM-Solver++ and DEIS in runs of less
    than 15 steps. The last steps are the largest in log(alpha/sigma), and few steps make high orders oscillate there.

    Args:
        solver: of order 2 or 3; it is asked as one of less order at the end.
        steps: of the whole run.

    Raises:
        ValueError: ``steps`` is smaller than 1; at the call, the run has more.

    Example:
        >>> from tubelet.diffusion import Process, sample
        >>> import torch
        >>> process = Process(prediction="x0")
        >>> step = Tapered(UniPC(3), steps=4)
        >>> sample(lambda x, t: 0 * x + 2, torch.zeros(1, 1), process.times(4), process=process, step=step)
        tensor([[2.]])
    """

    solver: ExponentialAdams | UniPC
    steps: int

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")

    def step(
        self,
        denoiser: Denoiser,
        x: Float[Tensor, "*lead c"],
        t: Rows,
        s: Rows,
        process: Process,
        history: TaperedHistory | None = None,
    ) -> tuple[Float[Tensor, "*lead c"], TaperedHistory]:
        """The state at ``s``, and the history for the next step."""
        if history is not None and not isinstance(history, TaperedHistory):
            raise ValueError(f"history must be that of a tapered run, got {type(history).__name__}")
        number, inner = history or TaperedHistory(0, None)
        if number >= self.steps:
            raise ValueError(f"the run is tapered to steps={self.steps}, but has more")
        solver = replace(self.solver, order=min(self.solver.order, self.steps - number))
        x, inner = solver.step(denoiser, x, t, s, process, inner)
        return x, TaperedHistory(number + 1, inner)
