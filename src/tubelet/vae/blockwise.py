"""Convolution over time in blocks of a few frames and rows, of an input that is made block by block as well.

What a convolution over time needs beside its input and its result, such as the input behind its norm or copies with
edges around them, is then as large as a block, whatever the length of the video, and stays in the processor's cache.

Two frames after each other share two of their three taps, so four multiplications do for six (Winograd's F(2, 3): Lavin
& Gray, arXiv:1509.09308, section 4.1): with frames a, b, c, d and taps u, v, w,

    y[0] = u·(a - c) + p + q,  y[1] = p - q + w·(d - b),  p = (u + v + w)/2 · (b + c),  q = (u - v + w)/2 · (c - b).

A last frame without another is the first of a pair, of three multiplications. The first frame of a video behind copies
of it, or behind zeros, needs one tap: the sum of all, or the last. Nine causal frames take 17 multiplications for 27.
Equal to the plain convolution but for rounding, about 2.5 times as large in bfloat16. Gradients would keep every block,
so whoever wants them convolves plainly; so do other devices.
"""

from collections.abc import Callable
from functools import cached_property, partial
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tubelet.vae.formats import layout_of
from tubelet.vae.unwatched import plain, unwatched

__all__ = [
    "Pieces",
    "blockwise",
    "convolve_blocks",
    "frame_by_frame",
    "pieces_of_tensor",
    "stepwise",
]

Pieces = Callable[[int, int, int, int], Tensor]
"""Makes ``(b, c, stop - start, bottom - top, w)`` of a video: ``pieces(start, stop, top, bottom)``; fresh or views.

Example:
    >>> pieces: Pieces = pieces_of_tensor(torch.zeros(1, 2, 5, 8, 8))
    >>> pieces(1, 3, 0, 4).shape
    torch.Size([1, 2, 2, 4, 8])
"""

_BLOCK = 2**20  # numbers in a block of input or result: within the second or third level of cache
_CLIP = 2**18  # numbers of several frames, which make a multiplication as fast as those of a block do
_WIDE = 48  # channels from which on a multiplication costs more than the sums that save it
_MANY = 2048  # positions from which on a convolution costs much more than copies of its weights


def pieces_of_tensor(x: Tensor) -> Pieces:
    """Views of a video that is there.

    Example:
        >>> pieces_of_tensor(torch.zeros(1, 2, 5, 8, 8))(0, 2, 3, 4).shape
        torch.Size([1, 2, 2, 1, 8])
    """
    return lambda *place: _cut(x, *place)


def _cut(x: Tensor, start: int, stop: int, top: int, bottom: int) -> Tensor:
    return x[:, :, start:stop, top:bottom]


def blockwise(conv: nn.Conv3d, x: Tensor) -> bool:
    """Whether a convolution over time is done in blocks: on a CPU, without gradients, one output for each position.

    Example:
        >>> conv = nn.Conv3d(2, 2, 3, padding=(0, 1, 1))
        >>> with torch.no_grad():
        ...     blockwise(conv, torch.zeros(1, 2, 5, 32, 32)), blockwise(conv, torch.zeros(1, 2, 5, 8, 8))
        (True, False)
    """
    many = x.shape[0] * prod(x.shape[2:]) >= _MANY
    return many and conv.kernel_size[0] > 1 and plain(conv, x)


def stepwise(conv: nn.Conv3d, x: Tensor) -> bool:
    """Whether a convolution with a stride over space is done frame by frame, so that no copy of the clip is held.

    Example:
        >>> with torch.no_grad():
        ...     stepwise(nn.Conv3d(2, 2, 3, stride=(1, 2, 2)), torch.zeros(1, 2, 5, 64, 64))
        True
    """
    many = x.shape[0] * prod(x.shape[3:]) >= _MANY
    return many and conv.kernel_size[0] > 1 and max(conv.stride[1:]) > 1 and unwatched(conv, x)


def convolve_blocks(
    conv: nn.Conv3d,
    pieces: Pieces,
    frames: int,
    like: Tensor,
    first: Tensor | None = None,
    into: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The convolution of frames that are made piece by piece, and the last ``kt - 1`` of these.

    Args:
        conv: of ``kt`` taps over time; its padding over space is added here, that over time is in the pieces.
        pieces: of the input, ``frames + kt - 1`` frames.
        frames: of the result.
        like: a tensor of the input's batch, height and width, whose dtype and memory format the result has.
        first: the one tap that the first frame needs, in the place of all, as a kernel of one frame.
        into: what each block is added to when it is made, the result; no piece may lie in it. None for nothing.

    Raises:
        ValueError: ``into`` has another shape than the result.

    Example:
        >>> conv, x = nn.Conv3d(2, 3, 3, padding=(0, 1, 1)), torch.randn(1, 2, 5, 8, 8)
        >>> with torch.no_grad():
        ...     y, last = convolve_blocks(conv, pieces_of_tensor(x), 3, x)
        ...     torch.allclose(y, conv(x), atol=1e-5), torch.equal(last, x[:, :, 3:])
        (True, True)
    """
    (b, _, _, h, w), past = like.shape, conv.kernel_size[0] - 1
    layout, shape = layout_of(like), (b, conv.out_channels, frames, h, w)
    if into is not None and into.shape != shape:
        raise ValueError(f"into must have the shape {shape} of the result, not {tuple(into.shape)}")
    y = torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout) if into is None else into
    last = torch.empty((b, conv.in_channels, past, h, w), dtype=like.dtype, device=like.device, memory_format=layout)
    taps = 1 if _paired(conv) else conv.kernel_size[0]
    step, rows = _block(b * max(taps * conv.in_channels, conv.out_channels) * w, frames, h)
    compute, put = _Block(conv, first, like), _write if into is None else partial(_add, layout)
    for top in range(0, h, rows):
        bottom, halo = min(top + rows, h), conv.kernel_size[1] // 2
        inner = max(top - halo, 0), min(bottom + halo, h)
        margins = inner[0] - (top - halo), bottom + halo - inner[1]
        out, begin = y[:, :, :, top:bottom], 0
        if first is not None:
            put(out[:, :, :1], partial(compute.alone, pieces(past, past + 1, *inner), margins))
            begin = 1
        held = pieces(begin, begin + past, *inner)
        for start in range(begin, frames, step):
            stop = min(start + step, frames)
            new = pieces(start + past, stop + past, *inner)
            put(out[:, :, start:stop], partial(compute, held, new, margins))
            held = new[:, :, -past:] if new.shape[2] >= past else joined(held, new)[:, :, -past:]
        last[:, :, :, top:bottom] = held[:, :, :, top - inner[0] : bottom - inner[0]]
    return y, last


def _write(out: Tensor, make: Callable[[Tensor], None]) -> None:
    make(out)


def _add(layout: torch.memory_format, out: Tensor, make: Callable[[Tensor], None]) -> None:
    made = torch.empty_like(out, memory_format=layout)
    make(made)
    out.add_(made)


def frame_by_frame(make: Callable[[int], Tensor], frames: int, layout: torch.memory_format) -> Tensor:
    """A video whose frames are made one after the other, so that no more is held than one needs.

    Args:
        make: the frame of a number, ``(b, c, 1, h, w)``.
        frames: how many, at least one.
        layout: memory format of the video.

    Example:
        >>> frame_by_frame(lambda i: torch.full((1, 2, 1, 4, 4), float(i)), 3, torch.contiguous_format)[0, 0, :, 0, 0]
        tensor([0., 1., 2.])
    """
    first = make(0)
    if frames == 1:
        return first
    shape = (*first.shape[:2], frames, *first.shape[3:])
    y = torch.empty(shape, dtype=first.dtype, device=first.device, memory_format=layout)
    y[:, :, :1] = first
    for i in range(1, frames):
        y[:, :, i : i + 1] = make(i)
    return y


def _paired(conv: nn.Conv3d) -> bool:
    """Whether frames go by two."""
    return conv.kernel_size[0] == 3 and min(conv.in_channels, conv.out_channels) >= _WIDE


def _block(numbers: int, frames: int, height: int) -> tuple[int, int]:
    """Frames, an even number, and rows of a block, where a row of a frame has so many numbers."""
    rows = min(max(_BLOCK // numbers, 1), height)
    step = max(_CLIP // (numbers * height), 1) if rows == height else 1
    return 2 * max(min(step, frames + 1) // 2, 1), rows


class _Block:
    """A convolution of blocks, with the kernels that all of them share; a block's frames are a batch of pictures."""

    def __init__(self, conv: nn.Conv3d, first: Tensor | None, like: Tensor) -> None:
        self.conv, self.taps, self.layout = conv, conv.kernel_size[0], layout_of(like)
        self.first = None if first is None else self._flat(first)
        self.kernels = [self._flat(kernel) for kernel in paired_kernels(conv.weight)] if _paired(conv) else None

    @cached_property
    def all(self) -> Tensor:
        """The kernel of all taps."""
        return self._flat(self.conv.weight)

    def __call__(self, held: Tensor, new: Tensor, margins: tuple[int, int], out: Tensor) -> None:
        """The frames of a window that has moved on by ``new``."""
        if self.kernels:
            self._pairs(_strided(held, new), margins, out)
        else:
            seen = joined(held, new)
            frames = [seen[:, :, tap : tap + new.shape[2]] for tap in range(self.taps)]
            out.copy_(self._convolved(frames, margins, self.all))

    def alone(self, x: Tensor, margins: tuple[int, int], out: Tensor) -> None:
        """The first frame, which needs one tap."""
        assert self.first is not None
        out.copy_(self._convolved([x], margins, self.first))

    def _pairs(self, taps: list[Tensor], margins: tuple[int, int], out: Tensor) -> None:
        a, b, c, d = taps
        assert self.kernels is not None
        u, plus, minus, w = self.kernels
        p = self._mixed(torch.add, b, c, margins, plus, self.conv.bias)
        q = self._mixed(torch.sub, c, b, margins, minus)
        even, odd = out[:, :, ::2], out[:, :, 1::2]
        whole = odd.shape[2]  # the last pair may lack its second frame
        torch.add(p, q, out=even)
        torch.sub(p[:, :, :whole], q[:, :, :whole], out=odd)
        del p, q
        even.add_(self._mixed(torch.sub, a, c, margins, u))
        if whole:
            odd.add_(self._mixed(torch.sub, d, b[:, :, :whole], margins, w))

    def _mixed(
        self,
        mix: Callable[..., Tensor],
        x: Tensor,
        y: Tensor,
        margins: tuple[int, int],
        kernel: Tensor,
        bias: Tensor | None = None,
    ) -> Tensor:
        room = _Room(x, 1, margins, self.conv, self.layout)
        mix(x, y, out=room.inside(0))
        return self._convolve(room, kernel, bias)

    def _convolved(self, frames: list[Tensor], margins: tuple[int, int], kernel: Tensor) -> Tensor:
        """Frames of all taps, side by side as channels."""
        room = _Room(frames[0], len(frames), margins, self.conv, self.layout)
        for tap, frame in enumerate(frames):
            room.inside(tap).copy_(frame)
        return self._convolve(room, kernel, self.conv.bias)

    def _convolve(self, room: "_Room", kernel: Tensor, bias: Tensor | None) -> Tensor:
        y = F.conv2d(room.filled(), kernel, bias, padding=(0, 0 if room.side else self.conv.padding[2]))  # type: ignore[arg-type]
        return _films(y, room.frames)

    def _flat(self, kernel: Tensor) -> Tensor:
        """A kernel of pictures, whose channels are those of one tap after the other."""
        flat = torch.channels_last if self.layout == torch.channels_last_3d else torch.contiguous_format
        return kernel.transpose(1, 2).flatten(1, 2).contiguous(memory_format=flat)


class _Room:
    """Pictures with edges that what is put into them lacks: rows, and columns unless they are zeros.

    Args:
        x: a piece of the input.
        taps: how many such pieces lie side by side as channels.
        margins: missing rows above and below.
        conv: whose padding it is.
        layout: memory format.
    """

    def __init__(
        self, x: Tensor, taps: int, margins: tuple[int, int], conv: nn.Conv3d, layout: torch.memory_format
    ) -> None:
        b, self.channels, self.frames, self.height, self.width = x.shape
        self.zeros = conv.padding_mode == "zeros"
        self.side = 0 if self.zeros else int(conv.padding[2])
        self.margins = margins
        shape = (b * self.frames, taps * self.channels, sum(margins) + self.height, self.width + 2 * self.side)
        flat = torch.channels_last if layout == torch.channels_last_3d else torch.contiguous_format
        self.pictures = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=flat)

    def inside(self, tap: int) -> Tensor:
        """Where a tap's frames go, ``(b, c, t, h, w)``."""
        (above, _), c = self.margins, self.channels
        rows, columns = slice(above, above + self.height), slice(self.side, self.side + self.width)
        return _films(self.pictures[:, tap * c : (tap + 1) * c, rows, columns], self.frames)

    def filled(self) -> Tensor:
        """The pictures with their edges: zeros, or copies of what is inside."""
        for axis, (before, behind) in ((2, self.margins), (3, (self.side, self.side))):
            side = self.pictures.shape[axis]
            for start, length, edge in ((0, before, before), (side - behind, behind, side - behind - 1)):
                into = self.pictures.narrow(axis, start, length)
                if length and self.zeros:
                    into.zero_()
                elif length:
                    into.copy_(self.pictures.narrow(axis, edge, 1).expand_as(into))
        return self.pictures


def _films(pictures: Tensor, frames: int) -> Tensor:
    """``(b·t, c, h, w)`` as ``(b, c, t, h, w)``, a view."""
    films: Tensor = torch.unflatten(pictures, 0, (-1, frames))
    return films.transpose(1, 2)


def paired_kernels(weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four kernels of one frame that do the work of three taps for two frames.

    Example:
        >>> [k.flatten().tolist() for k in paired_kernels(torch.tensor([4.0, 2.0, 6.0]).reshape(1, 1, 3, 1, 1))]
        [[4.0], [6.0], [4.0], [6.0]]
    """
    u, v, w = torch.split(weight, 1, 2)
    wide = torch.promote_types(weight.dtype, torch.float32)
    outer, inner = (u.to(wide) + w).mul_(0.5), v.to(wide) * 0.5
    return u, (outer + inner).to(weight.dtype), (outer - inner).to(weight.dtype), w


def joined(held: Tensor, new: Tensor) -> Tensor:
    """Frames after each other, in the memory format of the latter.

    Example:
        >>> joined(torch.zeros(1, 2, 2, 4, 4), torch.zeros(1, 2, 1, 4, 4)).shape
        torch.Size([1, 2, 3, 4, 4])
    """
    shape = (*held.shape[:2], held.shape[2] + new.shape[2], *held.shape[3:])
    both = torch.empty(shape, dtype=new.dtype, device=new.device, memory_format=layout_of(new))
    both[:, :, : held.shape[2]] = held
    both[:, :, held.shape[2] :] = new
    return both


def _strided(held: Tensor, new: Tensor) -> list[Tensor]:
    """What stands at each of the four places of all pairs of frames; the last place lacks one of an odd number."""
    frames = new.shape[2]
    if frames <= 2:
        return [*torch.split(held, 1, 2), new[:, :, :1], new[:, :, 1:]]
    seen, ends = joined(held, new), frames + frames % 2 - 1
    return [seen[:, :, place : place + ends : 2] for place in range(4)]
