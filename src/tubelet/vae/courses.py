"""A video's way through a tree of streaming layers, with no more state than the way still needs.

Called as modules, layers give their states back, and a tree of them holds those of all its leaves until it returns, the
old beside the new. A `Course` keeps the state of each leaf itself, replaces it as soon as the leaf is done, and keeps
none where no chunk follows: a video that goes through whole leaves none behind. What a sum is of, where only the way
knows it, becomes the sum.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from tubelet.hooks import heard, heard_inside

__all__ = ["Adding", "Course", "InTurn", "Sum", "Tree"]

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


@runtime_checkable
class Sum(Protocol):
    """A tree of two ways for one input, whose results are added.

    Example:
        >>> from tubelet.vae import Chain, Residual
        >>> isinstance(Residual(Chain()), Sum)
        True
    """

    branch: nn.Module
    shortcut: nn.Module


@runtime_checkable
class Adding(Protocol):
    """A streaming layer that can add its result to a tensor piece by piece.

    Example:
        >>> from tubelet.vae import CausalConv3d, ChannelNorm, NormedConv
        >>> isinstance(NormedConv(ChannelNorm(2), CausalConv3d(2, 4)), Adding)
        True
    """

    def adds(self, x: Tensor, *context: Any) -> bool:
        """Whether it can for an input like this."""
        ...

    def add(self, into: Tensor, x: Tensor, state: Any, *context: Any) -> Any:
        """Add what a call would return to ``into``; the state after it."""
        ...


@dataclass
class Course:
    """One video on its way through streaming layers, chunk by chunk.

    Layers with hooks run as the modules they are, their inner ones included. A layer remembers what it was given or
    returned in its state alone: the tensor itself may be changed later.

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
        y, _ = self._step(last, self.layer, x)
        self.start = last
        return y

    def _step(self, last: bool, layer: nn.Module, x: Tensor, *context: Any, own: bool = False) -> tuple[Tensor, bool]:
        """Through one layer, of which chains lie open here: a call of a chain would hold its input to the end.

        ``own``: whether ``x`` may be changed, since nothing else knows it; and the same of the result.
        """
        waiting = [layer]
        while waiting:
            layer, given = waiting.pop(), _place(x)
            if heard(layer) or not isinstance(layer, (InTurn, Tree)):
                x = self._leaf(last, layer, x, *context)
            elif isinstance(layer, InTurn):
                waiting += reversed(layer.in_turn())
                continue
            elif isinstance(layer, Sum):
                x = self._sum(last, layer, x, *context, own=own)
            else:
                x = layer.walk(lambda inner, y, *more: self._step(last, inner, y, *more)[0], self.start, x, *context)
            own = (own or _place(x) != given) and not _known(x, layer)
        return x, own

    def _leaf(self, last: bool, layer: nn.Module, x: Tensor, *context: Any) -> Tensor:
        y: Tensor
        y, state = layer(x, self.states.pop(layer, None), *context)
        self._keep(last, layer, _apart(state, x, y))
        return y

    def _keep(self, last: bool, layer: nn.Module, state: Any) -> None:
        if not last:
            self.states[layer] = state

    def _sum(self, last: bool, layer: Sum, x: Tensor, *context: Any, own: bool) -> Tensor:
        """Both ways; the branch's last layer adds to what came by the shortcut, if nothing else knows that."""
        *first, final = _opened(layer.branch)
        y = x
        for inner in first:
            y, _ = self._step(last, inner, y, *context)
        kept, free = self._step(last, layer.shortcut, x, *context)
        free = free or (own and _place(kept) == _place(x))
        free = free and not heard_inside(layer.branch) and not heard_inside(layer.shortcut)
        free = free and _place(kept) != _place(y) and kept.dtype == y.dtype and not kept.requires_grad
        if free and isinstance(final, Adding) and final.adds(y, *context):
            self._keep(last, final, final.add(kept, y, self.states.pop(final, None), *context))
            return kept
        return kept + self._step(last, final, y, *context)[0]


def _opened(layer: nn.Module) -> list[nn.Module]:
    """The layers of a chain, or one alone."""
    layers = layer.in_turn() if isinstance(layer, InTurn) and not heard(layer) else []
    return layers or [layer]


def _place(x: Tensor) -> int:
    """Where a tensor's numbers lie; views of it lie there as well. Inside ``torch.func`` all is one place."""
    return 0 if torch._C._functorch.is_functorch_wrapped_tensor(x) else int(x.untyped_storage()._cdata)


def _apart(state: Any, *tensors: Tensor) -> Any:
    """A state in memory of its own."""
    places = set(map(_place, tensors))
    return tree_map_only(Tensor, lambda part: part.clone() if _place(part) in places else part, state)


def _known(x: Tensor, layer: nn.Module) -> bool:
    """Whether a hook in a layer may have seen its result, or the layer holds it."""
    held = itertools.chain(layer.parameters(), layer.buffers())
    return heard_inside(layer) or any(_place(tensor) == _place(x) for tensor in held)
