"""The host side of gate + residual (+ norm + modulate): outputs, sizes and launches. Nothing here waits for the device.

Bytes moved, of ``n·d`` tokens in 2 bytes. Gate + residual alone: the forward reads x and the update and writes y,
``6·n·d``; the backward reads the gradient and the update and writes the update's gradient, ``6·n·d``. With the norm the
forward writes one more, ``8·n·d``; the backward reads two gradients, y and the update, and writes two, ``12·n·d``
(and ``14·n·d`` where rows are so wide that it takes two launches). Its partial sums, written and read in float32, add
``8·n·d/chunk`` each, three of them at most.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tubelet.kernels._launching import Launcher, Sizes, launch, power_of_two
from tubelet.kernels._rows.sums import chunks
from tubelet.kernels._tuning import choose

__all__ = [
    "LARGEST",
    "Given",
    "Normed",
    "backward",
    "fixed_backward",
    "fixed_forward",
    "fixed_gate_backward",
    "fixed_gate_forward",
    "forward",
    "together",
]

LARGEST = 8192
"""The widest row that one program holds in registers."""
_TOGETHER = 4096


@dataclass(frozen=True)
class Given:
    """What both directions read: an update ``(n, d)``, its gate's rows ``(r, d)``, and how tokens find rows.

    Last axes lie dense. Without an index token ``i`` has row ``i // per_row``.

    Example:
        >>> Given(torch.ones(4, 2), None, None, per_row=4, rows=1).rows
        1
    """

    update: Tensor
    gate: Tensor | None
    index: Tensor | None
    per_row: int
    rows: int

    def ungated(self) -> "Given":
        """The same without the gate."""
        return replace(self, gate=None)


@dataclass(frozen=True)
class Normed:
    """The norm of the sum and its modulation, each part of which may be missing.

    Example:
        >>> Normed(None, None, None, None, rms=True, eps=1e-6).summed
        False
    """

    shift: Tensor | None
    scale: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    rms: bool
    eps: float

    @property
    def summed(self) -> bool:
        """Whether something of it needs sums over tokens."""
        return any(part is not None for part in (self.shift, self.scale, self.weight, self.bias))


def forward(
    x: Tensor, given: Given, normed: Normed | None, launcher: Launcher = launch, sizes: Sizes | None = None
) -> list[Tensor]:
    """The sum ``(n, d)``; with a norm also what follows it, and the statistics.

    These are 1/deviation ``(n,)``, and below it the mean of a layer norm. ``sizes`` None: the measured or fixed ones.

    Example:
        >>> given = Given(torch.ones(4, 2), torch.ones(1, 2), None, 4, 1)
        >>> normed = Normed(None, None, None, None, False, 1e-6)
        >>> [each.shape for each in forward(given.update, given, normed, lambda kernel, grid, arguments, warps: None)]
        [torch.Size([4, 2]), torch.Size([4, 2]), torch.Size([2, 4])]
    """
    from tubelet.kernels._residual import kernel

    n, width = x.shape
    results = [x.new_empty(n, width)]
    if normed is not None:
        results += [x.new_empty(n, width), x.new_empty(1 if normed.rms else 2, n, dtype=torch.float32)]
    y, out, stats = [*results, None, None][:3]
    name, fixed = ("residual_forward", fixed_forward) if normed else ("gate_forward", fixed_gate_forward)
    sizes = sizes or choose(name, x.device, width, x.dtype, fixed(width))
    rows = {"GATE": given.gate, "SHIFT": _part(normed, "shift"), "SCALE": _part(normed, "scale")}
    constants = _constants(width, normed)
    arguments = {
        "X": x,
        "UPDATE": given.update,
        "Y": y,
        "OUT": out,
        "STATS": stats,
        **rows,
        "INDEX": given.index,
        "WEIGHT": _part(normed, "weight"),
        "BIAS": _part(normed, "bias"),
        "n": n,
        "rows": given.rows,
        "per_row": given.per_row,
        "x_stride": x.stride(0),
        "update_stride": given.update.stride(0),
        **{f"{name.lower()}_stride": _stride(value) for name, value in rows.items()},
        "eps": normed.eps if normed else 0.0,
        **constants,
        "TOKENS": sizes.tokens,
    }
    if x.numel():
        launcher(kernel.forward, (-(-n // sizes.tokens), -(-width // constants["BLOCK"])), arguments, sizes.warps)
    return results


def backward(
    grads: tuple[Tensor | None, Tensor | None],
    y: Tensor | None,
    stats: Tensor | None,
    given: Given,
    normed: Normed | None,
    order: Tensor | None,
    offsets: Tensor | None,
    launcher: Launcher = launch,
    sizes: Sizes | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x and of the update, and sums by row ``(k, r, d)``.

    Args:
        grads: of the sum and of what follows it; None for zeros, and where there is no norm.
        y, stats: as the forward gave them, with a norm.
        given, normed: as the forward had them.
        order: the tokens by row; None without an index.
        offsets: where each row begins ``(r + 1,)``; None without an index.
        launcher: starts the kernels.
        sizes: None for the measured or fixed ones.

    Returns:
        An empty tensor for the gradient of x where there is no norm (it is that of the sum), and for that of the update
        where there is no gate (it is that of x). The sums: the gradient of the sum times the update, with a gate; the
        gradient of what follows, alone and times normed y, where something needs them.

    Example:
        >>> given, grad = Given(torch.ones(4, 2), torch.ones(1, 2), None, 4, 1), torch.ones(4, 2)
        >>> found = backward((grad, None), None, None, given, None, None, None, lambda kernel, grid, arguments, w: None)
        >>> [each.shape for each in found]
        [torch.Size([0]), torch.Size([4, 2]), torch.Size([1, 1, 2])]
    """
    from tubelet.kernels._residual import kernel

    update, (n, width) = given.update, given.update.shape
    summed = normed is not None and normed.summed
    if normed is not None and given.gate is not None and not together(width):
        dx, _, sums = backward(grads, y, stats, given.ungated(), normed, order, offsets, launcher, sizes)
        _, dupdate, by_gate = backward((dx, None), None, None, given, None, order, offsets, launcher)
        return dx, dupdate, torch.cat([by_gate, sums])
    name, fixed = ("residual_backward", fixed_backward) if normed else ("gate_backward", fixed_gate_backward)
    sizes = sizes or choose(name, update.device, width, update.dtype, fixed(width))
    cut = chunks(n, sizes.tokens, given.rows)
    dx = update.new_empty(0) if y is None else torch.empty_like(y)
    dupdate = update.new_empty(0) if given.gate is None else update.new_empty(n, width)
    kept = (given.gate is not None) + 2 * summed
    partial = update.new_empty(kept, cut.slots, width, dtype=torch.float32)
    scale, constants = _part(normed, "scale"), _constants(width, normed)
    arguments = {
        "GRAD_Y": grads[0],
        "GRAD": grads[1],
        "Y": y,
        "UPDATE": update,
        "DX": dx,
        "DUPDATE": dupdate,
        "STATS": stats,
        "GATE": given.gate,
        "SCALE": scale,
        "INDEX": given.index,
        "ORDER": order,
        "WEIGHT": _part(normed, "weight"),
        "SUMS": partial,
        "n": n,
        "rows": given.rows,
        "per_row": given.per_row,
        "slots": cut.slots,
        "chunk": cut.tokens,
        "grad_y_stride": _stride(grads[0]),
        "grad_stride": _stride(grads[1]),
        "update_stride": update.stride(0),
        "gate_stride": _stride(given.gate),
        "scale_stride": _stride(scale),
        **constants,
        "GATED": given.gate is not None,
        "SUMMED": summed,
    }
    if update.numel():
        launcher(kernel.backward, (cut.count, -(-width // constants["BLOCK"])), arguments, sizes.warps)
    return dx, dupdate, cut.combined(partial, offsets, given.per_row, launcher)


def together(width: int) -> bool:
    """Whether a program of the backward has registers for all three sums; wider rows take two launches.

    Example:
        >>> together(4096), together(5120)
        (True, False)
    """
    return width <= _TOGETHER


def fixed_forward(width: int) -> Sizes:
    """About 2,048 numbers a program, 16 a thread.

    Example:
        >>> fixed_forward(1536)
        Sizes(tokens=1, warps=4)
    """
    tokens = min(32, max(1, 2048 // power_of_two(width)))
    return Sizes(tokens, _warps(tokens * power_of_two(width), 512))


def fixed_backward(width: int) -> Sizes:
    """64 tokens in turn, 8 numbers of each a thread, or 16 where a program could not have so many.

    Example:
        >>> fixed_backward(1536), fixed_backward(5120)
        (Sizes(tokens=64, warps=8), Sizes(tokens=64, warps=16))
    """
    return Sizes(64, _warps(power_of_two(width), 256))


def fixed_gate_forward(width: int) -> Sizes:
    """About 2,048 numbers a program, 16 a thread.

    Example:
        >>> fixed_gate_forward(1536)
        Sizes(tokens=4, warps=4)
    """
    return Sizes(2048 // _columns(width), 4)


def fixed_gate_backward(width: int) -> Sizes:
    """64 tokens in turn, 8 numbers of each a thread.

    Example:
        >>> fixed_gate_backward(1536), fixed_gate_backward(5120)
        (Sizes(tokens=64, warps=2), Sizes(tokens=64, warps=4))
    """
    return Sizes(64, _warps(_columns(width), 256))


def _warps(numbers: int, each: int) -> int:
    return max(1, min(16, numbers // each))


def _columns(width: int) -> int:
    """Of a program where tokens need no whole row: what leaves the fewest columns idle."""
    return min((1024, 512, 256, 128), key=lambda columns: -width % columns)


def _part(normed: Normed | None, name: str) -> Tensor | None:
    return None if normed is None else getattr(normed, name)


def _stride(x: Tensor | None) -> int:
    return 0 if x is None else x.stride(0)


def _constants(width: int, normed: Normed | None) -> dict[str, int | bool]:
    block = _columns(width) if normed is None else power_of_two(width)
    return {"D": width, "RMS": normed is not None and normed.rms, "BLOCK": block}
