"""The host side of norm + SiLU + padding: outputs, sizes and launches. Nothing here waits for the device.

Bytes moved, of ``n`` numbers in 2 bytes (padding beside them is little): the RMS norm reads x and writes the padded
frames, ``4·n``; its backward reads x and the gradient and writes dx, ``6·n``. Statistics of groups take a pass of their
own: ``6·n`` and ``10·n``.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tubelet.kernels._launching import Launcher, Sizes, launch, power_of_two
from tubelet.kernels._tuning import choose

__all__ = [
    "LARGEST",
    "Padding",
    "Shape",
    "backward",
    "dense_frames",
    "empty",
    "fixed_backward",
    "fixed_forward",
    "forward",
    "last",
    "name",
    "statistics",
]

LARGEST = 1024
"""The most channels of an RMS norm, which one program holds in registers."""
_TILE = 4096
"""Numbers that a program handles at once."""
_ENOUGH = 2048
"""Programs that keep the largest GPUs busy."""


@dataclass(frozen=True)
class Padding:
    """Frames before the others and what they are, positions on each side of a frame and what they are.

    Example:
        >>> Padding(frames=2, copies=True, rows=0, columns=0, replicate=False).frames
        2
    """

    frames: int
    copies: bool
    rows: int
    columns: int
    replicate: bool


@dataclass(frozen=True)
class Shape:
    """How channels share statistics: ``group`` of them, of one frame or of all; 0 is the RMS norm of a position.

    Example:
        >>> Shape(group=4, per_frame=True).instances((2, 8, 3, 5, 5))
        6
    """

    group: int
    per_frame: bool

    def instances(self, shape: tuple[int, ...]) -> int:
        """How many times a group has statistics in ``(b, c, t, h, w)``."""
        return shape[0] * shape[2] if self.per_frame else shape[0]


def forward(
    x: Tensor,
    state: Tensor | None,
    stats: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    shape: Shape,
    padding: Padding,
    eps: float,
    launcher: Launcher = launch,
    sizes: Sizes | None = None,
) -> Tensor:
    """``silu(norm(x))`` behind the frames before it and inside its borders, in the memory format of ``x``.

    ``x`` and ``state`` have dense frames (:func:`dense_frames`); ``stats`` are those of groups.

    Example:
        >>> x, padding = torch.ones(1, 8, 3, 5, 5), Padding(2, True, 1, 1, False)
        >>> ignored = lambda kernel, grid, arguments, warps: None
        >>> forward(x, None, None, None, None, Shape(0, True), padding, 1e-6, ignored).shape
        torch.Size([1, 8, 5, 7, 7])
    """
    from tubelet.kernels._padded import kernel

    b, c, t, h, w = x.shape
    sides = (t + padding.frames, h + 2 * padding.rows, w + 2 * padding.columns)
    out = empty(x, (b, c, *sides))
    sizes = sizes or choose(name("forward", x, shape), x.device, c, x.dtype, fixed_forward(x, shape))
    tile = {"POSITIONS": sizes.tokens, "CHANNELS": _channels(x, whole=not shape.group)}
    arguments = {
        "X": x,
        "STATE": state,
        "OUT": out,
        "STATS": stats,
        "WEIGHT": weight,
        "BIAS": bias,
        "frames": t,
        "before": padding.frames,
        "height": h,
        "width": w,
        **_strides("x", x),
        **_strides("state", x if state is None else state),
        **_strides("out", out),
        "eps": eps,
        **_constants(c, shape, padding),
        **tile,
    }
    grid = (-(-sides[1] * sides[2] // tile["POSITIONS"]), b * sides[0], -(-c // tile["CHANNELS"]))
    if out.numel():
        launcher(kernel.forward, grid, arguments, sizes.warps)
    return out


def statistics(x: Tensor, shape: Shape, eps: float, launcher: Launcher = launch) -> Tensor:
    """Mean and 1/deviation of every group ``(instances, c / group, 2)``.

    Example:
        >>> statistics(torch.ones(2, 8, 3, 5, 5), Shape(4, True), 1e-6, lambda *launched: None).shape
        torch.Size([6, 2, 2])
    """
    from tubelet.kernels._padded import kernel

    b, c, t, h, w = x.shape
    sizes = _sizes(x, False, _TILE, 512)
    tile = {"POSITIONS": sizes.tokens, "CHANNELS": _channels(x, whole=False)}
    blocks = -(-c // tile["CHANNELS"])
    tiles, chunks = _walk(h * w, tile["POSITIONS"], b * t * blocks)
    parts = x.new_empty(2, b * t, chunks, c, dtype=torch.float32)
    instances = shape.instances(x.shape)
    stats = x.new_empty(instances, c // shape.group, 2, dtype=torch.float32)
    arguments = {"X": x, "PARTS": parts, "frames": t, "positions": h * w, "tiles": tiles, **_strides("x", x)}
    own = chunks if shape.per_frame else chunks * t
    members = power_of_two(shape.group)
    merged = {
        "PARTS": parts,
        "STATS": stats,
        "slots": b * t * chunks,
        "own": own,
        "chunks": chunks,
        "chunk": tiles * tile["POSITIONS"],
        "positions": h * w,
        "numbers": float(_numbers(x, shape)),
        "eps": eps,
        "C": c,
        "GROUP": shape.group,
        "PARTS_AT_ONCE": max(1, 1024 // members),
        "CHANNELS": members,
    }
    if x.numel():
        launcher(kernel.statistics, (chunks, b * t, blocks), {**arguments, "C": c, **tile}, sizes.warps)
        launcher(kernel.merge, (instances, c // shape.group), merged, 4)
    return stats


def backward(
    grad: Tensor,
    x: Tensor,
    stats: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    shape: Shape,
    padding: Padding,
    eps: float,
    launcher: Launcher = launch,
    sizes: Sizes | None = None,
) -> tuple[Tensor, Tensor]:
    """The gradient of x, and by channel the sums of the norm's gradient, alone and times normed x ``(2, c)``.

    ``grad`` is that of the padded frames, which are dense. Copies of the first frame and edges give theirs to what they
    show; zeros and a state have none of x.

    Example:
        >>> x, padding = torch.ones(1, 8, 3, 5, 5), Padding(0, True, 0, 0, False)
        >>> ignored = lambda kernel, grid, arguments, warps: None
        >>> [each.shape for each in backward(x, x, None, None, None, Shape(0, True), padding, 1e-6, ignored)]
        [torch.Size([1, 8, 3, 5, 5]), torch.Size([2, 8])]
    """
    from tubelet.kernels._padded import kernel

    b, c, t, h, w = x.shape
    sizes = sizes or choose(name("backward", x, shape), x.device, c, x.dtype, fixed_backward(x, shape, padding))
    tile = {"POSITIONS": sizes.tokens, "CHANNELS": _channels(x, whole=not shape.group)}
    blocks = -(-c // tile["CHANNELS"])
    tiles, chunks = _walk(h * w, tile["POSITIONS"], b * t * blocks)
    dx, sums = empty(x, x.shape), x.new_empty(2, b * t, chunks, c, dtype=torch.float32)
    arguments: dict[str, Any] = {
        "GRAD": grad,
        "X": x,
        "STATS": stats,
        "WEIGHT": weight,
        "BIAS": bias,
        "frames": t,
        "before": padding.frames,
        "height": h,
        "width": w,
        "tiles": tiles,
        **_strides("grad", grad),
        **_strides("x", x),
        **_strides("dx", dx),
        "eps": eps,
        **_constants(c, shape, padding),
        **tile,
    }
    grid, warps = (chunks, b * t, blocks), sizes.warps
    if not x.numel():
        return dx, sums.new_zeros(2, c)
    if not shape.group:
        launcher(kernel.backward, grid, {**arguments, "DX": dx, "SUMS": sums, "MEANS": None}, warps)
        return dx, sums.sum((1, 2))
    launcher(kernel.backward, grid, {**arguments, "DX": None, "SUMS": sums, "MEANS": None}, warps)
    by_instance = sums.view(2, shape.instances(x.shape), -1, c).sum(2)
    weighted = by_instance if weight is None else by_instance * weight
    by_group = weighted.view(2, len(by_instance[0]), -1, shape.group).sum(-1)
    means = by_group.movedim(0, -1).contiguous() / _numbers(x, shape)
    launcher(kernel.backward, grid, {**arguments, "DX": dx, "SUMS": None, "MEANS": means}, warps)
    return dx, by_instance.sum(1)


def name(direction: str, x: Tensor, shape: Shape) -> str:
    """Of a measured choice, which depends on the norm and on the memory format.

    Example:
        >>> name("forward", torch.ones(1, 8, 3, 5, 5), Shape(0, True))
        'padded_rms_first_forward'
    """
    return f"padded_{'group' if shape.group else 'rms'}_{'last' if last(x) else 'first'}_{direction}"


def fixed_forward(x: Tensor, shape: Shape) -> Sizes:
    """Positions of a tile of 4,096 numbers, 16 a thread; twice as many numbers where positions lie end to end.

    Example:
        >>> fixed_forward(torch.ones(1, 96, 3, 5, 5), Shape(0, True))
        Sizes(tokens=64, warps=16)
    """
    return _sizes(x, not shape.group, _TILE, 512)


def fixed_backward(x: Tensor, shape: Shape, padding: Padding) -> Sizes:
    """Half as many numbers, 8 a thread; as many where a program needs all channels and would have few positions.

    Example:
        >>> x = torch.ones(1, 96, 3, 5, 5).to(memory_format=torch.channels_last_3d)
        >>> fixed_backward(x, Shape(0, True), Padding(0, True, 0, 0, False))
        Sizes(tokens=16, warps=8)
    """
    few = _channels(x, whole=True) == LARGEST or not (last(x) or padding.replicate)
    if shape.group or not few:
        return _sizes(x, not shape.group, _TILE // 2, 256)
    return _sizes(x, True, _TILE, 512)


def dense_frames(x: Tensor, like: Tensor | None = None) -> Tensor:
    """``x (b, c, t, h, w)`` whose frames' positions lie at one distance; others are copied in the format of ``like``.

    Example:
        >>> dense_frames(torch.ones(1, 2, 3, 4, 5)[..., 1:]).stride(3)
        4
    """
    if x.shape[3] == 1 or x.shape[4] == 1 or x.stride(3) == x.shape[4] * x.stride(4):
        return x
    by_channel = last(x if like is None else like)
    return x.contiguous(memory_format=torch.channels_last_3d if by_channel else torch.contiguous_format)


def last(x: Tensor) -> bool:
    """Whether channels lie end to end.

    Example:
        >>> last(torch.ones(1, 2, 3, 4, 5)), last(torch.ones(1, 2, 3, 4, 5).to(memory_format=torch.channels_last_3d))
        (False, True)
    """
    return x.stride(1) == 1 and not x.is_contiguous()


def empty(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Memory of a shape in the format, dtype and device of ``x``.

    Example:
        >>> empty(torch.ones(1, 2, 3, 4, 5), (1, 2, 5, 4, 5)).shape
        torch.Size([1, 2, 5, 4, 5])
    """
    layout = torch.channels_last_3d if last(x) else torch.contiguous_format
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)


def _channels(x: Tensor, whole: bool) -> int:
    """Of a tile: all of them where a program needs the ``whole`` of a position."""
    return min(power_of_two(x.shape[1]), LARGEST if whole else 256 if last(x) else 64)


def _sizes(x: Tensor, whole: bool, numbers: int, each: int) -> Sizes:
    """A tile of ``numbers``, ``each`` a warp; twice as many numbers where positions lie end to end, to read sectors."""
    channels = _channels(x, whole)
    positions = max(1, min(128, (1 if last(x) else 2) * numbers // channels))
    return Sizes(positions, max(1, min(16, positions * channels // each)))


def _walk(positions: int, at_once: int, others: int) -> tuple[int, int]:
    """Tiles that a program of the sums walks in turn, and programs of a frame."""
    whole = -(-positions // at_once)
    tiles = max(1, min(32, whole * others // _ENOUGH))
    return tiles, -(-whole // tiles)


def _numbers(x: Tensor, shape: Shape) -> int:
    """How many numbers have one mean."""
    return shape.group * x.shape[3] * x.shape[4] * (1 if shape.per_frame else x.shape[2])


def _strides(name: str, x: Tensor) -> dict[str, int]:
    position = x.stride(4) if x.shape[4] > 1 else x.stride(3)
    return {
        f"{name}_by_sample": x.stride(0),
        f"{name}_by_frame": x.stride(2),
        f"{name}_by_channel": x.stride(1),
        f"{name}_by_position": position,
    }


def _constants(channels: int, shape: Shape, padding: Padding) -> dict[str, int | bool]:
    return {
        "C": channels,
        "GROUP": shape.group,
        "PER_FRAME": shape.per_frame,
        "COPIES": padding.copies,
        "REPLICATE": padding.replicate,
        "ROWS": padding.rows,
        "COLUMNS": padding.columns,
    }
