r"""Exponential moving average of weights (Polyak averaging; used by DDPM, DiT and nearly every diffusion model).

After optimiser update ``n = 0, 1, ...``

.. math:: \bar\theta \leftarrow \beta_n \bar\theta + (1 - \beta_n)\,\theta, \qquad
          \beta_n = \min\left(\beta, \frac{1 + n}{10 + n}\right),

where the warm-up term (TensorFlow's ``ExponentialMovingAverage``) lets short runs forget their random start. Any
other rule is a function of ``n``: :func:`~tubelet.training.power_decay`, whose averages can be combined afterwards. The
average is kept in float32 or wider, since ``1 - β`` of a bfloat16 weight would mostly round to nothing.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["EMA"]


class EMA:
    """A moving average of a model's parameters; buffers stay the model's own.

    Args:
        model: whose parameters to average; several models go into one ``nn.ModuleDict``.
        decay: β in [0, 1), or a function from the number of updates done to ``β_n``.
        warmup: start from ``β_n = (1 + n)/(10 + n)`` instead of β; a function of the updates is taken as it is.

    Raises:
        ValueError: ``decay`` outside [0, 1), a model without parameters, or one that does not match the average.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(model.weight, 0.0)
        >>> ema = EMA(model, decay=0.9, warmup=False)
        >>> _ = nn.init.constant_(model.weight, 1.0)
        >>> ema.update(model)
        >>> with ema.swapped(model):
        ...     round(model.weight.item(), 6)
        0.1
        >>> model.weight.item()
        1.0
    """

    def __init__(
        self, model: nn.Module, decay: float | Callable[[int], float] = 0.9999, *, warmup: bool = True
    ) -> None:
        if not callable(decay) and not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        self.decay = decay
        self.warmup = warmup
        self.updates = 0
        self.average: dict[str, Tensor] = {
            name: p.detach().to(torch.promote_types(p.dtype, torch.float32), copy=True)
            for name, p in model.named_parameters()
        }
        if not self.average:
            raise ValueError(f"{type(model).__name__} has no parameters to average")

    @property
    def current_decay(self) -> float:
        """β_n, the decay that the next update will use."""
        if callable(self.decay):
            return self.decay(self.updates)
        return min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.warmup else self.decay

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards ``model``; call it after every optimiser step."""
        averages, weights = self._pairs(model)
        weights = [w.to(a.dtype) for a, w in zip(averages, weights, strict=True)]
        torch._foreach_lerp_(averages, weights, 1 - self.current_decay)
        self.updates += 1

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Overwrite ``model``'s parameters with the average, in the model's own dtypes."""
        averages, weights = self._pairs(model)
        torch._foreach_copy_(weights, averages)

    @contextmanager
    def swapped(self, model: nn.Module) -> Iterator[nn.Module]:
        """Within the block ``model`` has the averaged weights; afterwards its own again, to the bit."""
        own = [p.detach().clone() for p in self._pairs(model)[1]]
        self.copy_to(model)
        try:
            yield model
        finally:
            torch._foreach_copy_(self._pairs(model)[1], own)

    def state_dict(self) -> dict[str, Any]:
        """The average and the number of updates; ``decay`` and ``warmup`` belong to the constructor."""
        return {"updates": self.updates, "average": dict(self.average)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over another average of the same parameters.

        Raises:
            ValueError: the names or shapes differ from this average's.
        """
        average: Mapping[str, Tensor] = state["average"]
        if (ours := _shapes(self.average)) != (theirs := _shapes(average)):
            raise ValueError(f"state has {len(theirs)} averages, expected {len(ours)}; {_differences(theirs, ours)}")
        for name, value in self.average.items():
            value.copy_(average[name])
        self.updates = int(state["updates"])

    def _pairs(self, model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
        weights = {name: p.detach() for name, p in model.named_parameters()}
        if (ours := _shapes(self.average)) != (theirs := _shapes(weights)):
            raise ValueError(
                f"model has {len(theirs)} parameters, EMA averages {len(ours)}; {_differences(theirs, ours)}"
            )
        return list(self.average.values()), list(weights.values())


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _differences(theirs: Mapping[str, tuple[int, ...]], ours: Mapping[str, tuple[int, ...]]) -> str:
    """Each name whose shapes differ, with both: theirs, then ours."""
    different = [name for name in sorted({**ours, **theirs}) if ours.get(name) != theirs.get(name)]
    shapes = (f"{name} {theirs.get(name, 'missing')}, expected {ours.get(name, 'none')}" for name in different)
    return f"these differ: {'; '.join(shapes)}"
