"""Streaming layers that know a noise level: the parts of a decoder that takes the last step of diffusion itself.

Norms are shifted and scaled by numbers made of the time, ``norm(x) · (1 + scale) + shift``, as in adaLN
(arXiv:2212.09748); LTX-Video's decoder is such a one (arXiv:2501.00103, section 2). A layer is called as
``layer(x, state, time)``; times are numbers from 0, clean, to 1, one a sample.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tubelet.vae.blockwise import Pieces
from tubelet.vae.causal import State
from tubelet.vae.chains import in_blocks, reset, stepped
from tubelet.vae.courses import Step
from tubelet.vae.normed_pieces import activated, normed_pieces

__all__ = ["ModulatedConv", "ShiftsAndScales", "TimedBlock", "TimedDecoder", "TimedHead", "TimedStage"]

Device = torch.device | str | None


class ModulatedConv(nn.Module):
    """``conv(silu(norm(x) · (1 + scale) + shift))``, with the state of the convolution.

    Example:
        >>> from tubelet.vae import CausalConv3d, ChannelNorm
        >>> layer, number = ModulatedConv(ChannelNorm(2), CausalConv3d(2, 4)), torch.zeros(1, 2, 1, 1, 1)
        >>> layer(torch.zeros(1, 2, 3, 4, 4), None, number, number)[0].shape
        torch.Size([1, 4, 3, 4, 4])
    """

    def __init__(self, norm: nn.Module, conv: nn.Module) -> None:
        super().__init__()
        self.norm, self.conv = norm, conv

    def reset_parameters(self) -> None:
        """Draw both anew."""
        reset(self)

    def forward(
        self,
        x: Float[Tensor, "b c t h w"],
        state: Any,
        shift: Float[Tensor, "b c 1 1 1"],
        scale: Float[Tensor, "b c 1 1 1"],
    ) -> tuple[Float[Tensor, "b d t h w"], Any]:
        """The next frames and the state of the convolution."""
        if (conv := in_blocks(self.norm, self.conv, x, shift, scale)) is not None:
            normed, factor = normed_pieces(self.norm, x), 1 + scale
            modulated = activated(lambda *place: _modulated(normed, factor, shift, *place))
            y, state = conv.convolve(modulated, x, state)
            return y, state
        y, state = self.conv(self.activated(x, shift, scale), state)
        return y, state

    def activated(
        self, x: Float[Tensor, "b c t h w"], shift: Float[Tensor, "b c 1 1 1"], scale: Float[Tensor, "b c 1 1 1"]
    ) -> Float[Tensor, "b c t h w"]:
        """What is convolved."""
        return F.silu(self.norm(x) * (1 + scale) + shift)

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, state: Any, shift: Tensor, scale: Tensor) -> tuple[Tensor, Any]: ...


def _modulated(pieces: Pieces, factor: Tensor, shift: Tensor, *place: int) -> Tensor:
    return pieces(*place).mul_(factor).add_(shift)


class ShiftsAndScales(nn.Module):
    """Rows of numbers plus a learned table, as ``count`` shifts and scales in turn.

    Example:
        >>> [part.shape for part in ShiftsAndScales(2, 8)(torch.zeros(3, 16))]
        [torch.Size([3, 8, 1, 1, 1]), torch.Size([3, 8, 1, 1, 1])]
    """

    def __init__(self, count: int, channels: int, *, device: Device = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(count, channels, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal, of variance one over the channels."""
        nn.init.normal_(self.table, std=self.table.shape[1] ** -0.5)

    def forward(self, rows: Float[Tensor, "b n"]) -> tuple[Tensor, ...]:
        """Each ``(b, channels, 1, 1, 1)``."""
        numbers = rows.reshape(-1, *self.table.shape) + self.table
        return numbers[..., None, None, None].unbind(1)

    if TYPE_CHECKING:

        def __call__(self, rows: Tensor) -> tuple[Tensor, ...]: ...


class TimedBlock(nn.Module):
    """A residual block of two convolutions, each after a norm that is shifted and scaled.

    Example:
        >>> from tubelet.vae import CausalConv3d, ChannelNorm
        >>> halves = [ModulatedConv(ChannelNorm(8), CausalConv3d(8, 8)) for _ in range(2)]
        >>> block = TimedBlock(ShiftsAndScales(4, 8), *halves)
        >>> block(torch.zeros(1, 8, 3, 4, 4), None, torch.zeros(1, 32))[0].shape
        torch.Size([1, 8, 3, 4, 4])
    """

    def __init__(self, table: nn.Module, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.table, self.first, self.second = table, first, second

    def reset_parameters(self) -> None:
        """Draw all parts anew."""
        reset(self)

    def forward(
        self, x: Float[Tensor, "b c t h w"], state: State | None, rows: Float[Tensor, "b n"]
    ) -> tuple[Float[Tensor, "b c t h w"], State]:
        """The next frames, with the rows that the time gives."""
        return stepped(self, [self.first, self.second], state or (None, None), state is None, x, rows)

    def walk(self, step: Step, start: bool, x: Tensor, rows: Tensor) -> Tensor:
        """See :class:`tubelet.vae.courses.Tree`."""
        return x + self.branch(step, x, rows)

    def branch(self, step: Step, x: Tensor, rows: Tensor) -> Tensor:
        """What is added to the frames; each convolution runs once, by ``step``."""
        shift, scale, later_shift, later_scale = self.table(rows)
        return step(self.second, step(self.first, x, shift, scale), later_shift, later_scale)

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, state: State | None, rows: Tensor) -> tuple[Tensor, State]: ...


class TimedStage(nn.Module):
    """A change of scale, then blocks (`TimedBlock`) that share what is made of the time.

    Args:
        time: from times ``(b,)`` to the rows of the blocks, such as :class:`tubelet.conditioning.TimestepEmbedding`.
        change: a streaming layer.
        blocks: the blocks.

    Example:
        >>> from tubelet.conditioning import TimestepEmbedding
        >>> from tubelet.vae import PerFrame
        >>> stage = TimedStage(TimestepEmbedding(32), PerFrame(nn.Identity()), [])
        >>> stage(torch.zeros(1, 8, 3, 4, 4), None, torch.zeros(1))[0].shape
        torch.Size([1, 8, 3, 4, 4])
    """

    def __init__(self, time: nn.Module, change: nn.Module, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.time, self.change, self.blocks = time, change, nn.ModuleList(blocks)

    def reset_parameters(self) -> None:
        """Draw all parts anew."""
        for part in (self.time, self.change, *self.blocks):
            if next(part.parameters(), None) is not None:
                part.reset_parameters()

    def forward(
        self, x: Float[Tensor, "b c t h w"], state: State | None, time: Float[Tensor, " b"]
    ) -> tuple[Float[Tensor, "b d t2 h2 w2"], State]:
        """The next frames at these times."""
        layers = [self.change, *self.blocks]
        return stepped(self, layers, [None] * len(layers) if state is None else state, state is None, x, time)

    def walk(self, step: Step, start: bool, x: Tensor, time: Tensor) -> Tensor:
        """See :class:`tubelet.vae.courses.Tree`."""
        rows, x = self.time(time), step(self.change, x)
        for block in self.blocks:
            x = step(block, x, rows)
        return x

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, state: State | None, time: Tensor) -> tuple[Tensor, State]: ...


class TimedHead(nn.Module):
    """One `ModulatedConv` with a time of its own.

    Example:
        >>> from tubelet.conditioning import TimestepEmbedding
        >>> from tubelet.vae import CausalConv3d, ChannelNorm
        >>> conv = ModulatedConv(ChannelNorm(8), CausalConv3d(8, 3))
        >>> head = TimedHead(TimestepEmbedding(16), ShiftsAndScales(2, 8), conv)
        >>> head(torch.zeros(1, 8, 3, 4, 4), None, torch.zeros(1))[0].shape
        torch.Size([1, 3, 3, 4, 4])
    """

    def __init__(self, time: nn.Module, table: nn.Module, layer: nn.Module) -> None:
        super().__init__()
        self.time, self.table, self.layer = time, table, layer

    def reset_parameters(self) -> None:
        """Draw all parts anew."""
        reset(self)

    def forward(
        self, x: Float[Tensor, "b c t h w"], state: Any, time: Float[Tensor, " b"]
    ) -> tuple[Float[Tensor, "b d t h w"], Any]:
        """The next frames at these times, and the state of the convolution."""
        y, (state,) = stepped(self, [self.layer], [state], state is None, x, time)
        return y, state

    def walk(self, step: Step, start: bool, x: Tensor, time: Tensor) -> Tensor:
        """See :class:`tubelet.vae.courses.Tree`."""
        return step(self.layer, x, *self.table(self.time(time)))

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, state: Any, time: Tensor) -> tuple[Tensor, Any]: ...


class TimedDecoder(nn.Module):
    """A first layer, stages and a head that know the time, a last layer.

    Times from 0 to 1 are multiplied by the parameter ``time_scale``, at first 1000, before anything is made of them.

    Args:
        embed: the first layer, streaming.
        stages: such as `TimedStage`.
        head: such as `TimedHead`.
        patch: the last layer, streaming.

    Example:
        >>> from tubelet.conditioning import TimestepEmbedding
        >>> from tubelet.vae import CausalConv3d, ChannelNorm, PerFrame
        >>> head = ModulatedConv(ChannelNorm(8), CausalConv3d(8, 3))
        >>> head = TimedHead(TimestepEmbedding(16), ShiftsAndScales(2, 8), head)
        >>> decoder = TimedDecoder(CausalConv3d(4, 8), [], head, PerFrame(nn.Identity()))
        >>> decoder(torch.zeros(2, 4, 3, 4, 4), None, torch.tensor([0.0, 0.05]))[0].shape
        torch.Size([2, 3, 3, 4, 4])
    """

    def __init__(
        self,
        embed: nn.Module,
        stages: Sequence[nn.Module],
        head: nn.Module,
        patch: nn.Module,
        *,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.embed, self.stages, self.head, self.patch = embed, nn.ModuleList(stages), head, patch
        self.time_scale = nn.Parameter(torch.empty((), device=device, dtype=dtype))
        nn.init.constant_(self.time_scale, 1000.0)

    def reset_parameters(self) -> None:
        """Draw all parts anew."""
        nn.init.constant_(self.time_scale, 1000.0)
        for part in (self.embed, *self.stages, self.head):
            part.reset_parameters()

    def forward(
        self, z: Float[Tensor, "b z t h w"], state: State | None = None, time: Float[Tensor, " b"] | None = None
    ) -> tuple[Float[Tensor, "b c t2 h2 w2"], State]:
        """The frames of the next latents; without a time, of clean ones.

        Raises:
            ValueError: a state of another number of layers.
        """
        layers = [self.embed, *self.stages, self.head, self.patch]
        before = [None] * len(layers) if state is None else state
        if len(before) != len(layers):
            raise ValueError(f"state must hold the states of {len(layers)} layers, not of {len(before)}")
        given = () if time is None else (time,)
        return stepped(self, layers, before, state is None, z, *given)

    def walk(self, step: Step, start: bool, z: Tensor, time: Tensor | None = None) -> Tensor:
        """See :class:`tubelet.vae.courses.Tree`."""
        time = self.time_scale * (z.new_zeros(z.shape[0]) if time is None else time)
        x = step(self.embed, z)
        for stage in self.stages:
            x = step(stage, x, time)
        return step(self.patch, step(self.head, x, time))

    if TYPE_CHECKING:

        def __call__(
            self, z: Tensor, state: State | None = None, time: Tensor | None = None
        ) -> tuple[Tensor, State]: ...
