"""Convolutions of repeated positions without the copies: sums of the weights that would meet the same position.

A convolution of three taps over positions that stand twice each sees two different ones: which, and with which sums of
its weights, depends on the phase of the output alone. So each of the ``temporal · spatial²`` phases is a convolution of
two taps along an axis over the positions themselves. Twice the sides take (3/2)² times fewer multiplications, twice the
time as well (3/2)³. Equal to the convolution of the copies but for rounding. Activations are ``(b, c, t, h, w)``.
"""

from itertools import product
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tubelet.vae.blocks import Device
from tubelet.vae.causal import State, copies, follow
from tubelet.vae.formats import layout_of

__all__ = ["RepeatConv3d", "RepeatFrames", "convolve_repeated"]


class RepeatConv3d(nn.Module):
    """Each position ``temporal × spatial × spatial`` times, then a convolution that is causal in time.

    The first frame of a video stands once; before it stand copies of it.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        temporal: how often each later frame stands.
        spatial: how often each position stands along height and width.
        kernel: odd sizes over height and width, any size over time, as ``(t, h, w)``.
        edges: what stands round a frame, ``"zeros"`` or its own edge, ``"replicate"``.

    Raises:
        ValueError: repeats or a kernel that are not positive, or a kernel that is even over space.

    Example:
        >>> conv = RepeatConv3d(2, 3, temporal=2, spatial=2)
        >>> y, state = conv(torch.zeros(1, 2, 3, 4, 5))
        >>> y.shape, state.shape
        (torch.Size([1, 3, 5, 8, 10]), torch.Size([1, 2, 1, 4, 5]))
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        temporal: int,
        spatial: int,
        kernel: tuple[int, int, int] = (3, 3, 3),
        *,
        edges: Literal["zeros", "replicate"] = "zeros",
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if min(temporal, spatial) < 1:
            raise ValueError(f"temporal and spatial must be at least 1, got {temporal} and {spatial}")
        if min(kernel) < 1 or kernel[1] % 2 == 0 or kernel[2] % 2 == 0:
            raise ValueError(f"kernel must be positive and odd over height and width, not {kernel}")
        self.repeats, self.edges = (temporal, spatial, spatial), edges
        self.conv = nn.Conv3d(in_channels, out_channels, kernel, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        self.conv.reset_parameters()

    def forward(
        self, x: Float[Tensor, "b c t h w"], state: Float[Tensor, "b c s h w"] | None = None, *_: Any
    ) -> tuple[Float[Tensor, "b d t2 h2 w2"], Float[Tensor, "b c s h w"]]:
        """The next frames, and the last of those that the next call needs.

        Raises:
            ValueError: a state of another number of frames than the kernel reaches back.
        """
        past = -_phases(self.conv.kernel_size[0], self.conv.kernel_size[0] - 1, self.repeats[0])[0][0]
        start = state is None
        if state is None:
            state = copies(x[:, :, :1], past)
        elif state.shape[2] != past:
            raise ValueError(f"state must hold {past} frames, not {state.shape[2]}")
        x = follow(state, x) if past else x
        y = convolve_repeated(x, self.conv, self.repeats, self.edges)
        return y[:, :, self.repeats[0] - 1 :] if start else y, x[:, :, x.shape[2] - past :].clone()

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, state: Tensor | None = None, *_: Any) -> tuple[Tensor, Tensor]: ...


class RepeatFrames(nn.Module):
    """Each frame ``times`` times, but for the first of a video, which stands once.

    Example:
        >>> RepeatFrames(2)(torch.arange(3.0).reshape(1, 1, 3, 1, 1))[0].flatten().tolist()
        [0.0, 1.0, 1.0, 2.0, 2.0]
    """

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def forward(
        self, x: Float[Tensor, "b c t h w"], state: State | None = None, *_: Any
    ) -> tuple[Float[Tensor, "b c t2 h w"], State]:
        """The next frames; there is nothing to carry on."""
        alone = int(state is None)
        frames = torch.split(x, 1, 2)
        return torch.cat([*frames[:alone], *(frame for frame in frames[alone:] for _ in range(self.times))], 2), ()

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, state: State | None = None, *_: Any) -> tuple[Tensor, State]: ...


def convolve_repeated(
    x: Float[Tensor, "b c t h w"], conv: nn.Conv3d, repeats: tuple[int, int, int], edges: str = "zeros"
) -> Float[Tensor, "b d t2 h2 w2"]:
    """The convolution of copies of each position, ``repeats`` of them along each axis.

    ``x`` begins with as many frames as the kernel reaches back; its edges over space are added here.

    Example:
        >>> conv = nn.Conv3d(2, 3, (1, 3, 3), padding=(0, 1, 1))
        >>> x = torch.randn(1, 2, 1, 4, 5)
        >>> expected = conv(x.repeat_interleave(2, 3).repeat_interleave(2, 4))
        >>> torch.allclose(convolve_repeated(x, conv, (1, 2, 2)), expected, atol=1e-5)
        True
    """
    kernel = conv.kernel_size
    axes = [_phases(k, k - 1 if i == 0 else k // 2, repeats[i]) for i, k in enumerate(kernel)]
    before = [-axis[0][0] for axis in axes]
    behind = [max(first + sums.shape[0] for first, sums in axis) - 1 for axis in axes]
    sides = (x.shape[2] - before[0], *x.shape[3:])
    last = layout_of(x) == torch.channels_last_3d
    pads = (before[2], behind[2], before[1], behind[1], 0, 0)
    x = F.pad(x, pads, mode="constant" if edges == "zeros" else edges)
    b, c, shape = x.shape[0], conv.out_channels, [n * side for n, side in zip(repeats, sides, strict=True)]
    y = x.new_empty(b, *shape, c).movedim(-1, 1) if last else x.new_empty(b, c, *shape)  # with axes of `torch.func`
    for i, j, k in product(*map(range, repeats)):
        chosen = [axis[phase] for axis, phase in zip(axes, (i, j, k), strict=True)]
        weight = _mixed(conv.weight, [sums for _, sums in chosen])
        part = x
        for axis, (first, sums) in enumerate(chosen):
            part = part.narrow(2 + axis, before[axis] + first, sides[axis] + sums.shape[0] - 1)
        y[:, :, i :: repeats[0], j :: repeats[1], k :: repeats[2]] = F.conv3d(part, weight, conv.bias)
    return y


def _mixed(weight: Tensor, sums: list[Tensor]) -> Tensor:
    """A kernel whose taps along each axis are sums of those of another."""
    mixing = torch.kron(torch.kron(sums[0], sums[1]), sums[2]).to(weight)
    return (weight.flatten(2) @ mixing.T).reshape(*weight.shape[:2], *(each.shape[0] for each in sums))


def _phases(kernel: int, before: int, repeats: int) -> list[tuple[int, Tensor]]:
    """For each phase of an axis: where its first tap lies, and which of the kernel's taps each of its own sums."""
    phases = []
    for phase in range(repeats):
        places = [(phase + tap - before) // repeats for tap in range(kernel)]
        sums = torch.tensor([[float(place == own) for place in places] for own in range(places[0], places[-1] + 1)])
        phases.append((places[0], sums))
    return phases
