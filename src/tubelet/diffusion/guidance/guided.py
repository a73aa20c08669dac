"""A denoiser computed from the predictions of others, each of which is called once however often it occurs.

Every guidance here is a :class:`Guided`: a rule and its inputs, which may be guided in turn. So
``rescale(cfg(c, u, 7.5), c, 0.7)`` asks ``c`` once. Shapes: ``*lead`` tokens, ``p`` numbers a prediction.
"""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from tubelet.layout import Rows
from tubelet.protocols import Denoiser

__all__ = ["Guided", "Rule"]

Rule = Callable[[tuple[Tensor, ...], Tensor, Rows], Tensor]
"""Predictions of one shape, the state and its noise levels to one prediction. Example: ``lambda p, x, t: p[0]``."""


class Guided:
    """The denoiser ``rule(predictions, x, t)`` of named inputs, in their order.

    An input that occurs several times, inside guided inputs too, is called once. (Inputs are told apart by identity:
    what is hidden inside another function is not seen.)

    Args:
        rule: how the predictions become one.
        inputs: the denoisers; errors call them by these names.

    Raises:
        ValueError: at the call, two inputs give predictions of different shapes.

    Example:
        >>> import torch
        >>> plain = lambda x, t: 2 * x
        >>> double = Guided(lambda predictions, x, t: predictions[0] + predictions[1], a=plain, b=plain)
        >>> double(torch.ones(2, 1), Rows(torch.tensor([0.5]))).tolist()
        [[4.0], [4.0]]
    """

    def __init__(self, rule: Rule, **inputs: Denoiser) -> None:
        self.rule, self.inputs = rule, inputs
        self._steps: list[tuple[Denoiser, tuple[int, ...]]] = []
        _plan(self, self._steps, {})

    def __call__(self, x: Float[Tensor, "*lead c"], t: Rows) -> Float[Tensor, "*lead p"]:
        """The prediction."""
        done: list[Tensor] = []
        for source, places in self._steps:
            if isinstance(source, Guided):
                done.append(source._combine(tuple(done[place] for place in places), x, t))
            else:
                done.append(source(x, t))
        return done[-1]

    def _combine(self, predictions: tuple[Tensor, ...], x: Tensor, t: Rows) -> Tensor:
        first = next(iter(self.inputs))
        for name, prediction in zip(self.inputs, predictions, strict=True):
            if prediction.shape != predictions[0].shape:
                raise ValueError(
                    f"{first} gives shape {tuple(predictions[0].shape)}, but {name} {tuple(prediction.shape)}"
                )
        return self.rule(predictions, x, t)


def _plan(denoiser: Denoiser, steps: list[tuple[Denoiser, tuple[int, ...]]], places: dict[int, int]) -> int:
    """Append what is needed for a denoiser and then itself, each once, with the places of its inputs; its own place."""
    if id(denoiser) not in places:
        inputs = denoiser.inputs.values() if isinstance(denoiser, Guided) else ()
        needed = tuple(_plan(each, steps, places) for each in inputs)
        steps.append((denoiser, needed))
        places[id(denoiser)] = len(steps) - 1
    return places[id(denoiser)]
