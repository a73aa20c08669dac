"""A video's way through layers that see later frames, chunk by chunk: a frame comes out when all that it sees is there.

A convolution that sees one frame on either side gives a chunk's frames but the last, which waits for the next chunk;
at the end of the video it meets what stands behind one. So a deep decoder is late by as many frames as it looks ahead,
no frame is computed twice, and chunk by chunk is the whole. Where two ways join, the frames of the earlier one wait.
What waits is the state; its size does not grow with the video.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tubelet.hooks import heard
from tubelet.vae.causal import State
from tubelet.vae.chains import NormedConv, Residual
from tubelet.vae.clips import ClipConv3d
from tubelet.vae.courses import Tree
from tubelet.vae.timed import ModulatedConv, TimedBlock

__all__ = ["advance"]


def advance(
    layer: nn.Module, x: Float[Tensor, "b c t h w"], state: State | None, *context: Any, last: bool
) -> tuple[Float[Tensor, "b d t2 h2 w2"] | None, State]:
    """The frames that can be made now that these are there.

    Args:
        layer: streaming layers, among them :class:`tubelet.vae.ClipConv3d`; layers of other kinds that see later frames
            refuse the state that they are given.
        x: the next frames.
        state: what the previous call returned; None at the start of a video.
        context: for the layer.
        last: whether the video ends with these frames.

    Returns:
        The frames, None where all wait; and the state for the next call, empty after the last.

    Raises:
        ValueError: a state of other layers; hooks on a layer that is not called as a whole here.

    Example:
        >>> from tubelet.vae import Chain
        >>> layers, x = Chain(ClipConv3d(2, 4), ClipConv3d(4, 3)), torch.randn(1, 2, 5, 4, 4)
        >>> head, state = advance(layers, x[:, :, :3], None, last=False)
        >>> tail, state = advance(layers, x[:, :, 3:], state, last=True)
        >>> head.shape[2], tail.shape[2], torch.allclose(torch.cat([head, tail], 2), layers(x)[0], atol=1e-6)
        (1, 4, True)
    """
    modules = list(layer.modules())
    held = [None] * len(modules) if state is None else list(state)
    if len(held) != len(modules):
        raise ValueError(f"state must hold the states of {len(modules)} modules, not of {len(held)}")
    states = {module: own for module, own in zip(modules, held, strict=True) if own is not None}
    way = _Way(states, state is None, last)
    y = _some(way.step, layer, x, *context)
    return y, () if last else tuple(states.get(module) for module in modules)


class _NoFrameError(Exception):
    """A layer gives no frame yet, so those behind it have nothing to do."""


@dataclass(frozen=True)
class _Way:
    """One chunk on its way; ``states`` are replaced as it goes."""

    states: dict[nn.Module, Any]
    start: bool
    last: bool

    def step(self, layer: nn.Module, x: Tensor, *context: Any) -> Tensor:
        """The frames that a layer makes."""
        if isinstance(layer, (Tree, ModulatedConv, NormedConv, ClipConv3d)) and heard(layer):
            raise ValueError(f"a hook on {type(layer).__name__} would not hear frames that wait; decode it whole")
        if isinstance(layer, Residual):
            return self._sum(layer, *(_some(self.step, way, x, *context) for way in (layer.branch, layer.shortcut)))
        if isinstance(layer, TimedBlock):
            return self._sum(layer, _some(layer.branch, self.step, x, *context), x)
        if isinstance(layer, ModulatedConv):
            return self.step(layer.conv, layer.activated(x, *context))
        if isinstance(layer, NormedConv):
            return self.step(layer.conv, F.silu(layer.norm(x, *context)))
        if isinstance(layer, Tree):
            return layer.walk(self.step, self.start, x, *context)
        if isinstance(layer, ClipConv3d):
            y, self.states[layer] = layer.ahead(x, self.states.get(layer), last=self.last)
        else:
            y, self.states[layer] = layer(x, self.states.get(layer), *context)
        if y is None or not y.shape[2]:
            raise _NoFrameError
        return y

    def _sum(self, layer: nn.Module, *ways: Tensor | None) -> Tensor:
        """The frames that have come on both ways, added; the others wait."""
        waiting = self.states.get(layer, (None, None))
        parts = [_longer(own, more) for own, more in zip(waiting, ways, strict=True)]
        ready = min(0 if part is None else part.shape[2] for part in parts)
        self.states[layer] = tuple(None if part is None else part[:, :, ready:].clone() for part in parts)
        if not ready:
            raise _NoFrameError
        first, second = (part[:, :, :ready] for part in parts if part is not None)
        return first + second


def _some(make: Callable[..., Tensor], *given: Any) -> Tensor | None:
    """The frames that are made, if any are."""
    try:
        return make(*given)
    except _NoFrameError:
        return None


def _longer(waiting: Tensor | None, more: Tensor | None) -> Tensor | None:
    """What has waited and what follows it."""
    if waiting is None or more is None:
        return more if waiting is None else waiting
    return torch.cat([waiting, more], 2)
