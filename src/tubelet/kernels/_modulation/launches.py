"""The host side of norm + modulate: outputs, sizes and launches. Nothing here waits for the device.

Bytes moved, of ``n·d`` tokens in 2 bytes: the forward reads x and writes y, ``4·n·d``; the backward reads x and the
gradient and writes dx, ``6·n·d``; its partial sums, written and read in float32, add ``16·n·d/chunk`` (4 % at 64
tokens a chunk). Rows and statistics are small beside that.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tubelet.kernels._launching import Launcher, Sizes, launch, power_of_two
from tubelet.kernels._rows.sums import chunks
from tubelet.kernels._tuning import choose

__all__ = ["LARGEST", "Given", "backward", "fixed_backward", "fixed_forward", "forward"]

LARGEST = 8192
"""The widest row that one program holds in registers."""


@dataclass(frozen=True)
class Given:
    """What both directions read: ``x (n, d)``, rows ``(r, d)``, and how tokens find them; last axes lie dense.

    Without an index token ``i`` has row ``i // per_row``.

    Example:
        >>> Given(torch.ones(4, 2), torch.ones(1, 2), None, None, 4, True, 1e-6).norm_is_rms
        True
    """

    x: Tensor
    scale: Tensor
    index: Tensor | None
    weight: Tensor | None
    per_row: int
    norm_is_rms: bool
    eps: float

    @property
    def constants(self) -> dict[str, int | bool]:
        """What is compiled into the kernels."""
        width = self.x.shape[1]
        return {"D": width, "RMS": self.norm_is_rms, "BLOCK": power_of_two(width)}


def forward(
    given: Given, shift: Tensor, bias: Tensor | None, launcher: Launcher = launch, sizes: Sizes | None = None
) -> tuple[Tensor, Tensor]:
    """The output ``(n, d)`` and the statistics: 1/deviation ``(n,)``, and below it the mean of a layer norm.

    ``sizes`` None means the measured or the fixed ones.

    Example:
        >>> one = torch.ones(1, 2)
        >>> given = Given(torch.ones(4, 2), one, None, None, 4, False, 1e-6)
        >>> out, stats = forward(given, one, None, lambda kernel, grid, arguments, warps: None)
        >>> out.shape, stats.shape
        (torch.Size([4, 2]), torch.Size([2, 4]))
    """
    from tubelet.kernels._modulation import kernel

    x, (n, width) = given.x, given.x.shape
    out = x.new_empty(n, width, dtype=torch.promote_types(x.dtype, shift.dtype))
    stats = x.new_empty(1 if given.norm_is_rms else 2, n, dtype=torch.float32)
    sizes = sizes or choose("modulation_forward", x.device, width, x.dtype, fixed_forward(width))
    arguments = {
        "X": x,
        "OUT": out,
        "STATS": stats,
        "SHIFT": shift,
        "SCALE": given.scale,
        "INDEX": given.index,
        "WEIGHT": given.weight,
        "BIAS": bias,
        "n": n,
        "rows": given.scale.shape[0],
        "per_row": given.per_row,
        "x_stride": x.stride(0),
        "shift_stride": shift.stride(0),
        "scale_stride": given.scale.stride(0),
        "eps": given.eps,
        **given.constants,
        "TOKENS": sizes.tokens,
    }
    if x.numel():
        launcher(kernel.forward, (-(-n // sizes.tokens),), arguments, sizes.warps)
    return out, stats


def backward(
    grad: Tensor,
    given: Given,
    stats: Tensor,
    order: Tensor | None,
    offsets: Tensor | None,
    launcher: Launcher = launch,
    sizes: Sizes | None = None,
) -> tuple[Tensor, Tensor]:
    """The gradient of x ``(n, d)``, and per row the sums of the gradient and of gradient · normed x, ``(2, r, d)``.

    ``order`` lists the tokens by row and ``offsets`` ``(r + 1,)`` where each row begins there; both None without index.

    Example:
        >>> given = Given(torch.ones(4, 2), torch.ones(1, 2), None, None, 4, False, 1e-6)
        >>> stats = torch.ones(2, 4)
        >>> dx, sums = backward(given.x, given, stats, None, None, lambda kernel, grid, arguments, warps: None)
        >>> dx.shape, sums.shape
        (torch.Size([4, 2]), torch.Size([2, 1, 2]))
    """
    from tubelet.kernels._modulation import kernel

    x, (n, width), rows = given.x, given.x.shape, given.scale.shape[0]
    sizes = sizes or choose("modulation_backward", x.device, width, x.dtype, fixed_backward(width))
    cut = chunks(n, sizes.tokens, rows)
    dx = x.new_empty(n, width)
    partial = x.new_empty(2, cut.slots, width, dtype=torch.float32)
    arguments = {
        "GRAD": grad,
        "X": x,
        "DX": dx,
        "STATS": stats,
        "SCALE": given.scale,
        "INDEX": given.index,
        "ORDER": order,
        "WEIGHT": given.weight,
        "SUMS": partial,
        "n": n,
        "rows": rows,
        "per_row": given.per_row,
        "slots": cut.slots,
        "chunk": cut.tokens,
        "grad_stride": grad.stride(0),
        "x_stride": x.stride(0),
        "scale_stride": given.scale.stride(0),
        **given.constants,
    }
    if x.numel():
        launcher(kernel.backward, (cut.count,), arguments, sizes.warps)
    return dx, cut.combined(partial, offsets, given.per_row, launcher)


def fixed_forward(width: int) -> Sizes:
    """About 2,048 numbers a program, 16 a thread.

    Example:
        >>> fixed_forward(1536)
        Sizes(tokens=1, warps=4)
    """
    tokens = min(32, max(1, 2048 // power_of_two(width)))
    return Sizes(tokens, _warps(tokens * power_of_two(width)))


def fixed_backward(width: int) -> Sizes:
    """64 tokens in turn, 16 numbers of each a thread.

    Example:
        >>> fixed_backward(1536)
        Sizes(tokens=64, warps=4)
    """
    return Sizes(64, _warps(power_of_two(width)))


def _warps(numbers: int) -> int:
    return max(1, min(16, numbers // 512))
