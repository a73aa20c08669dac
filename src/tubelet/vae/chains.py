"""Layers that take the next frames with a state and return both, and what joins them.

A streaming layer is called as ``layer(x, state, *context) -> (y, state)``; ``state`` is None at the start of a video,
and what the previous call returned after it. It is a tensor or a tuple of states: the state of a chain has the chain's
form. The context is what some layers are told besides, such as the latents that are being decoded; a chain hands it to
all its layers, and those that need none pass over it. Activations are ``(b, c, t, h, w)``.
"""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tubelet.hooks import heard, heard_inside
from tubelet.vae.blockwise import Pieces
from tubelet.vae.causal import State
from tubelet.vae.courses import Step, Tree
from tubelet.vae.normed_pieces import activated, normed_pieces

__all__ = ["Blockwise", "Chain", "Guided", "NormedConv", "PerFrame", "Residual", "SkipFrames"]


class Chain(nn.Module):
    """Streaming layers one after the other, each with its own state; they are named by number or by keyword.

    Raises:
        ValueError: at the call, a state of another number of layers.

    Example:
        >>> from tubelet.vae import CausalConv3d
        >>> chain = Chain(CausalConv3d(2, 4), CausalConv3d(4, 4, (3, 1, 1)))
        >>> y, state = chain(torch.zeros(1, 2, 3, 4, 4))
        >>> y.shape, len(state)
        (torch.Size([1, 4, 3, 4, 4]), 2)
    """

    def __init__(self, *layers: nn.Module, **named: nn.Module) -> None:
        super().__init__()
        for name, layer in ({str(i): layer for i, layer in enumerate(layers)} | named).items():
            if layer in self.children():
                raise ValueError(f"layer {name} stands in the chain before: its states could not be told apart")
            self.add_module(name, layer)

    def reset_parameters(self) -> None:
        """Draw every layer anew."""
        reset(self)

    def forward(
        self, x: Float[Tensor, "b c t h w"], state: State | None = None, *context: Any
    ) -> tuple[Float[Tensor, "b d t2 h2 w2"], State]:
        """The next frames through all layers."""
        layers = list(self.children())
        before = [None] * len(layers) if state is None else state
        if len(before) != len(layers):
            raise ValueError(f"state must hold the states of {len(layers)} layers, not of {len(before)}")
        return stepped(self, layers, before, state is None, x, *context)

    def walk(self, step: Step, start: bool, x: Tensor, *context: Any) -> Tensor:
        """See :class:`tubelet.vae.courses.Tree`."""
        for layer in self.children():
            x = step(layer, x, *context)
        return x

    def in_turn(self) -> list[nn.Module]:
        """The layers; see :class:`tubelet.vae.courses.InTurn`."""
        return list(self.children())

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, state: State | None = None, *context: Any) -> tuple[Tensor, State]: ...


class PerFrame(nn.Module):
    """A module that treats each frame alone, or whole groups of frames, as a streaming layer; its state is empty.

    Example:
        >>> PerFrame(nn.SiLU())(torch.zeros(1, 2, 3, 4, 4))[1]
        ()
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def reset_parameters(self) -> None:
        """Draw the module anew."""
        reset(self)

    def forward(
        self, x: Float[Tensor, "b c t h w"], state: State | None = None, *context: Any
    ) -> tuple[Float[Tensor, "b d t2 h2 w2"], State]:
        """``inner(x)``."""
        return self.inner(x), ()

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, state: State | None = None, *context: Any) -> tuple[Tensor, State]: ...


@runtime_checkable
class Blockwise(Protocol):
    """A streaming convolution that can take its input piece by piece.

    Example:
        >>> from tubelet.vae import CausalConv3d
        >>> isinstance(CausalConv3d(1, 1), Blockwise)
        True
    """

    def blockwise(self, x: Tensor) -> bool:
        """Whether it does so for an input like this."""
        ...

    def convolve(self, pieces: Pieces, like: Tensor, state: Any, into: Tensor | None = None) -> tuple[Tensor, Any]:
        """The next frames, made by ``pieces``, and the state; with ``into``, that is what they are added to."""
        ...


def convolved(norm: nn.Module, conv: nn.Module, x: Float[Tensor, "b c t h w"], state: Any, *context: Any) -> Any:
    """``conv(silu(norm(x)))`` and the state of the convolution.

    What :func:`tubelet.fused.use_kernels` replaces by one kernel and the convolution.

    Example:
        >>> from tubelet.vae import CausalConv3d, ChannelNorm
        >>> convolved(ChannelNorm(2), CausalConv3d(2, 4), torch.zeros(1, 2, 3, 4, 4), None)[0].shape
        torch.Size([1, 4, 3, 4, 4])
    """
    normed = norm(x, *context)
    alone = normed is not x and not normed.requires_grad and not heard_inside(norm)  # a hook may keep what it has seen
    return conv(F.silu(normed, inplace=alone), state)


class NormedConv(nn.Module):
    """``conv(silu(norm(x)))``, with the state of the convolution.

    Args:
        norm: of the channels of each position, such as `tubelet.vae.ChannelNorm`.
        conv: a streaming convolution.

    Example:
        >>> from tubelet.vae import CausalConv3d, ChannelNorm
        >>> NormedConv(ChannelNorm(2), CausalConv3d(2, 4))(torch.zeros(1, 2, 3, 4, 4))[0].shape
        torch.Size([1, 4, 3, 4, 4])
    """

    convolved: Callable[..., Any] = staticmethod(convolved)

    def __init__(self, norm: nn.Module, conv: nn.Module) -> None:
        super().__init__()
        self.norm, self.conv = norm, conv

    def reset_parameters(self) -> None:
        """Draw both anew."""
        reset(self)

    def forward(
        self, x: Float[Tensor, "b c t h w"], state: Any = None, *context: Any
    ) -> tuple[Float[Tensor, "b d t2 h2 w2"], Any]:
        """The next frames and the state of the convolution; the norm alone is told the context.

        A convolution that works in blocks is given the normed frames as it asks for them.
        """
        if (conv := in_blocks(self.norm, self.conv, x, *context)) is not None:
            y, state = conv.convolve(activated(normed_pieces(self.norm, x, *context)), x, state)
            return y, state
        y, state = self.convolved(self.norm, self.conv, x, state, *context)
        return y, state

    def adds(self, x: Float[Tensor, "b c t h w"], *context: Any) -> bool:
        """Whether the convolution works in blocks; see :class:`tubelet.vae.courses.Adding`."""
        return in_blocks(self.norm, self.conv, x, *context) is not None

    def add(self, into: Float[Tensor, "b d t h w"], x: Float[Tensor, "b c t h w"], state: Any, *context: Any) -> Any:
        """Add what `forward` would return to ``into``, a block at a time; the state of the convolution."""
        pieces = activated(normed_pieces(self.norm, x, *context))
        return self.conv.convolve(pieces, x, state, into)[1]  # type: ignore[operator]

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, state: Any = None, *context: Any) -> tuple[Tensor, Any]: ...


class Residual(nn.Module):
    """``shortcut(x) + branch(x)``, two streaming layers side by side.

    Args:
        branch: what is added.
        shortcut: what it is added to; None for ``x`` itself.

    Example:
        >>> from tubelet.vae import CausalConv3d
        >>> y, state = Residual(CausalConv3d(2, 2))(torch.zeros(1, 2, 3, 4, 4))
        >>> state[0].shape, state[1]
        (torch.Size([1, 2, 2, 4, 4]), ())
    """

    def __init__(self, branch: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = PerFrame(nn.Identity()) if shortcut is None else shortcut

    def reset_parameters(self) -> None:
        """Draw both anew."""
        reset(self)

    def forward(
        self, x: Float[Tensor, "b c t h w"], state: State | None = None, *context: Any
    ) -> tuple[Float[Tensor, "b d t2 h2 w2"], State]:
        """The sum, and the states of the branch and of the shortcut."""
        before = (None, None) if state is None else state
        return stepped(self, [self.branch, self.shortcut], before, state is None, x, *context)

    def walk(self, step: Step, start: bool, x: Tensor, *context: Any) -> Tensor:
        """See :class:`tubelet.vae.courses.Tree`."""
        y = step(self.branch, x, *context)
        return step(self.shortcut, x, *context) + y

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, state: State | None = None, *context: Any) -> tuple[Tensor, State]: ...


class Guided(nn.Module):
    """A streaming layer that is told its own input as context: ``inner(x, state, x, start)``.

    ``start`` says that the first frame of ``x`` is the first of its video.

    Example:
        >>> from tubelet.vae import CausalConv3d, SpatialNorm
        >>> norm = SpatialNorm(nn.GroupNorm(1, 2), channels=2, latent_channels=2)
        >>> Guided(NormedConv(norm, CausalConv3d(2, 4)))(torch.zeros(1, 2, 3, 4, 4))[0].shape
        torch.Size([1, 4, 3, 4, 4])
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def reset_parameters(self) -> None:
        """Draw the layer anew."""
        reset(self)

    def forward(self, x: Float[Tensor, "b c t h w"], state: Any = None) -> tuple[Float[Tensor, "b d t2 h2 w2"], Any]:
        """The next frames and the state of the layer."""
        y, after = self.inner(x, state, x, state is None)
        return y, after

    def walk(self, step: Step, start: bool, x: Tensor) -> Tensor:
        """See :class:`tubelet.vae.courses.Tree`."""
        return step(self.inner, x, x, start)

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]: ...


class SkipFrames(nn.Module):
    """The first frames of a video are left out.

    Example:
        >>> skip = SkipFrames(2)
        >>> head, state = skip(torch.zeros(1, 1, 3, 2, 2))
        >>> head.shape[2], skip(torch.zeros(1, 1, 3, 2, 2), state)[0].shape[2]
        (1, 3)
    """

    def __init__(self, frames: int) -> None:
        super().__init__()
        self.frames = frames

    def forward(
        self, x: Float[Tensor, "b c t h w"], state: State | None = None, *_: Any
    ) -> tuple[Float[Tensor, "b c t2 h w"], State]:
        """The next frames, without the first where a video begins."""
        return x[:, :, self.frames :] if state is None else x, ()

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, state: State | None = None, *_: Any) -> tuple[Tensor, State]: ...


def stepped(
    tree: Tree, layers: Sequence[nn.Module], before: Sequence[Any], start: bool, x: Tensor, *context: Any
) -> tuple[Tensor, State]:
    """The next frames through a tree of layers, each of which is given its state from before; and the states after.

    Example:
        >>> from tubelet.vae import CausalConv3d
        >>> conv = CausalConv3d(2, 4)
        >>> y, state = stepped(Chain(conv), [conv], [None], True, torch.zeros(1, 2, 3, 4, 4))
        >>> y.shape, len(state)
        (torch.Size([1, 4, 3, 4, 4]), 1)
    """
    states = dict(zip(layers, before, strict=True))
    y = tree.walk(lambda layer, y, *more: _step(states, layer, y, *more), start, x, *context)
    return y, tuple(states[layer] for layer in layers)


def _step(states: dict[nn.Module, Any], layer: nn.Module, x: Tensor, *context: Any) -> Tensor:
    y: Tensor
    y, states[layer] = layer(x, states[layer], *context)
    return y


def in_blocks(norm: nn.Module, conv: nn.Module, x: Float[Tensor, "b c t h w"], *context: Any) -> Blockwise | None:
    """The convolution, if it can take what a norm makes of ``x`` and a context piece by piece; nothing learns from it.

    Example:
        >>> from tubelet.vae import CausalConv3d, ChannelNorm
        >>> in_blocks(ChannelNorm(2), CausalConv3d(2, 4), torch.zeros(1, 2, 3, 32, 32)) is None  # they learn
        True
    """
    if not isinstance(conv, Blockwise) or heard(conv) or not _own_forward(conv) or not conv.blockwise(x):
        return None
    given = (part for part in context if isinstance(part, Tensor))
    learns = torch.is_grad_enabled() and any(part.requires_grad for part in chain(norm.parameters(), given))
    return None if learns else conv


def _own_forward(conv: nn.Module) -> bool:
    """Whether the class that says how to convolve in blocks says how to convolve, too."""
    kinds = type(conv).__mro__
    return next("convolve" in vars(kind) for kind in kinds if {"forward", "convolve"} & vars(kind).keys())


def reset(module: nn.Module) -> None:
    """Draw the children of a module anew, those that have parameters."""
    for child in module.children():
        if next(child.parameters(), None) is not None:
            child.reset_parameters()  # type: ignore[operator]
