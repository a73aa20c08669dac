"""A denoiser computed from the predictions of others, each of which is called once however often it occurs.

Every guidance here is a :class:`Guided`: a rule and its inputs, which may be guided in turn. So
``rescale(cfg(c, u, 7.5), c, 0.7)`` asks ``c`` once. Shapes: ``*lead`` tokens, ``c`` numbers of the state, ``p`` of a
prediction.
"""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from tubelet.layout import Rows
from tubelet.protocols import Denoiser

__all__ = ["Guided", "Rule"]

Rule = Callable[[tuple[Tensor, ...], Tensor, Rows], Tensor]
"""Predictions of one shape, the state and its noise levels to one prediction. Example: ``lambda p, x, t: p[0]``."""

Joint = Callable[[Tensor, Rows], Tensor]
Step = tuple[Callable[..., Tensor], tuple[int, ...]]


class Guided:
    """The denoiser ``rule(predictions, x, t)`` of named inputs, in their order.

    An input that occurs several times, inside guided inputs too, is called once. (Inputs are told apart by identity:
    what is hidden inside another function is not seen.) What a prediction holds beyond the width of the state, such as
    a learned variance, is never guided: it is that of the first input.

    Args:
        rule: how the predictions become one.
        inputs: the denoisers; errors call them by these names.

    Raises:
        ValueError: at the call, two inputs give predictions of different shapes.

    Example:
        >>> plain = lambda x, t: 2 * x
        >>> double = Guided(lambda predictions, x, t: predictions[0] + predictions[1], a=plain, b=plain)
        >>> double(torch.ones(2, 1), Rows(torch.tensor([0.5]))).tolist()
        [[4.0], [4.0]]
    """

    def __init__(self, rule: Rule, **inputs: Denoiser) -> None:
        self.rule = rule
        self.inputs: Mapping[str, Denoiser] = inputs
        self._steps: list[Step] = []
        _plan(self, self._steps, {})

    def __call__(self, x: Float[Tensor, "*lead c"], t: Rows) -> Float[Tensor, "*lead p"]:
        """The prediction."""
        done: list[Tensor] = []
        for run, places in self._steps:
            done.append(run(x, t, *(done[place] for place in places)))
        return done[-1]

    def combine(self, x: Tensor, t: Rows, *predictions: Tensor) -> Tensor:
        """The prediction, from those of the inputs."""
        first, width = predictions[0], x.shape[-1]
        for name, prediction in zip(self.inputs, predictions, strict=True):
            if prediction.shape != first.shape:
                named = next(iter(self.inputs))
                raise ValueError(f"{named} gives shape {tuple(first.shape)}, but {name} {tuple(prediction.shape)}")
        guided = self.rule(tuple(prediction[..., :width] for prediction in predictions), x, t)
        if first.shape[-1] <= width:
            return guided
        return torch.cat([guided, first[..., width:].to(guided.dtype)], dim=-1)


class Part:
    """The denoiser whose prediction is one of several that a joint call gives, stacked on a new first axis."""

    def __init__(self, joint: Joint, number: int) -> None:
        self.inputs, self.number = {"joint": joint}, number

    def __call__(self, x: Float[Tensor, "*lead c"], t: Rows) -> Float[Tensor, "*lead p"]:
        """The prediction."""
        return self.combine(x, t, self.inputs["joint"](x, t))

    def combine(self, x: Tensor, t: Rows, *predictions: Tensor) -> Tensor:
        """The prediction, from the stacked ones."""
        return predictions[0][self.number]


def _plan(denoiser: Joint, steps: list[Step], places: dict[int, int]) -> int:
    """Append the steps that a denoiser needs and then its own, each once; the place of its own."""
    if id(denoiser) not in places:
        inputs = denoiser.inputs.values() if isinstance(denoiser, Guided | Part) else ()
        needed = tuple(_plan(each, steps, places) for each in inputs)
        steps.append((denoiser.combine if isinstance(denoiser, Guided | Part) else denoiser, needed))
        places[id(denoiser)] = len(steps) - 1
    return places[id(denoiser)]
