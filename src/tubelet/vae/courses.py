"""A video's way through a tree of streaming layers, with no more state than the way still needs.

Called as modules, layers give their states back, and a tree of them holds those of all its leaves until it returns, the
old beside the new. A `Course` keeps the state of each leaf itself, replaces it as soon as the leaf is done, and keeps
none where no chunk follows: a video that goes through whole leaves none behind.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch  # noqa: F401 - the examples use it
from torch import Tensor, nn

__all__ = ["Course", "InTurn", "Tree"]

Step = Callable[..., Tensor]
"""``step(layer, x, *context)`` runs a layer that another is made of, wherever its state may be."""


@runtime_checkable
class InTurn(Protocol):
    """A tree that is others one after the other.

    Example:
        >>> from tubelet.vae import Chain
        >>> isinstance(Chain(), InTurn)
        True
    """

    def in_turn(self) -> list[nn.Module]:
        """These."""
        ...


@runtime_checkable
class Tree(Protocol):
    """A streaming layer that is made of others, and how its input goes through them.

    Example:
        >>> from tubelet.vae import Chain, Residual
        >>> isinstance(Residual(Chain()), Tree)
        True
    """

    def walk(self, step: Step, start: bool, x: Tensor, *context: Any) -> Tensor:
        """The result; each inner layer runs once, by ``step``, and ``start`` says that the video begins here."""
        ...


@dataclass
class Course:
    """One video on its way through streaming layers, chunk by chunk.

    Layers with hooks run as the modules they are, their inner ones included.

    Example:
        >>> from tubelet.vae import CausalConv3d, Chain
        >>> layers, x = Chain(CausalConv3d(2, 4), CausalConv3d(4, 3)), torch.randn(1, 2, 5, 4, 4)
        >>> course = Course(layers)
        >>> parts = [course(x[:, :, :2]), course(x[:, :, 2:], last=True)]
        >>> torch.allclose(torch.cat(parts, 2), layers(x)[0], atol=1e-6), course.states
        (True, {})
    """

    layer: nn.Module
    start: bool = True
    states: dict[nn.Module, Any] = field(default_factory=dict)

    def __call__(self, x: Tensor, *, last: bool = False) -> Tensor:
        """What the next frames give; after the last ones, nothing is kept."""
        y = self._step(last, self.layer, x)
        self.start = last
        return y

    def _step(self, last: bool, layer: nn.Module, x: Tensor, *context: Any) -> Tensor:
        """Through one layer, of which chains lie open here: a call of a chain would hold its input to the end."""
        waiting = [layer]
        while waiting:
            layer = waiting.pop()
            if _hooked(layer) or not isinstance(layer, (InTurn, Tree)):
                x, state = layer(x, self.states.pop(layer, None), *context)
                if not last:
                    self.states[layer] = state
            elif isinstance(layer, InTurn):
                waiting += reversed(layer.in_turn())
            else:
                x = layer.walk(lambda inner, y, *more: self._step(last, inner, y, *more), self.start, x, *context)
        return x


def _hooked(layer: nn.Module) -> bool:
    return bool(layer._forward_hooks or layer._forward_pre_hooks)
