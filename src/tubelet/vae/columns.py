"""A convolution with few output positions as matrix products of the input's columns.

Libraries copy a convolution's weights to a layout of their own at every call, which pays where many positions share
them. The coarsest layers of autoencoders that shrink much (LTX-Video's 32 × 32) have weights of a hundred megabytes for
a few dozen positions. There the input is unfolded instead (im2col; Chellapilla et al., 2006), one row of all taps for
each output position, of some frames at a time, and the weights are read where they lie. For small inputs in float32
PyTorch unfolds all frames by itself, and multiplies more slowly.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tubelet.kernels import linear
from tubelet.vae.formats import layout_of
from tubelet.vae.unwatched import unwatched

__all__ = ["convolved"]

_ENOUGH = 512  # positions that make a fast product
_NATIVE = 20480  # numbers of b·c·t·h up to which PyTorch has no faster library convolve in float32


def convolved(conv: nn.Conv3d, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b d t2 h2 w2"]:
    """``conv(x)``, as matrix products where these read less, with the same hooks, gradients and rounding.

    Example:
        >>> conv, x = nn.Conv3d(2, 40, 3, padding=(0, 1, 1)), torch.randn(1, 2, 4, 4, 4)
        >>> with torch.no_grad():
        ...     torch.allclose(convolved(conv, x), conv(x), atol=1e-5)
        True
    """
    if _served(conv) and unwatched(conv, x):
        frames, *sides = _sides(conv, x)
        positions = x.shape[0] * sides[0] * sides[1]  # of one frame
        few = positions * min(frames, 2) <= conv.out_channels or _native(x)
        if few and positions > 0 and frames > 0:
            return _products(conv, x, frames, max(1, _ENOUGH // positions))
    y: Tensor = conv(x)
    return y


def _served(conv: nn.Conv3d) -> bool:
    simple = max(*conv.dilation, conv.groups) == 1 and conv.padding_mode in ("zeros", "replicate")
    return simple and not isinstance(conv.padding, str) and conv.padding[0] == 0


def _native(x: Tensor) -> bool:
    return x.dtype == torch.float32 and x.shape[:4].numel() <= _NATIVE


def _sides(conv: nn.Conv3d, x: Tensor) -> list[int]:
    """Frames, height and width of the result."""
    edges = [int(edge) for edge in conv.padding]
    how = zip(x.shape[2:], edges, conv.kernel_size, conv.stride, strict=True)
    return [(side + 2 * edge - kernel) // step + 1 for side, edge, kernel, step in how]


def _products(conv: nn.Conv3d, x: Tensor, frames: int, step: int) -> Tensor:
    """So many frames of the result, ``step`` at a time."""
    rows, columns = (int(side) for side in conv.padding[1:])
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    taps = F.pad(x, (columns, columns, rows, rows, 0, 0), mode=mode)
    for axis, size, stride in zip((2, 3, 4), conv.kernel_size, conv.stride, strict=True):
        taps = taps.unfold(axis, size, stride)
    made = _product(conv.weight, taps[:, :, :step])
    if step < frames:
        shape = (*made.shape[:2], frames, *made.shape[3:])
        y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout_of(x))
        y[:, :, :step] = made
        for start in range(step, frames, step):
            y[:, :, start : start + step] = _product(conv.weight, taps[:, :, start : start + step])
    else:
        y = made.contiguous(memory_format=layout_of(x))
    return y if conv.bias is None else y.add_(conv.bias.reshape(-1, 1, 1, 1))


def _product(weight: Tensor, taps: Tensor) -> Tensor:
    """Of the taps ``(b, c, t, h, w, kt, kh, kw)`` of each position, all of them at once."""
    places = (0, 2, 3, 4)
    if layout_of(weight) == torch.channels_last_3d:  # each copy goes along what lies dense
        kernel, seen = weight.movedim(1, -1).flatten(1), taps.permute(*places, 5, 6, 7, 1).flatten(4).flatten(0, 3)
    else:
        kernel, seen = weight.flatten(1), taps.permute(1, 5, 6, 7, *places).flatten(0, 3).flatten(1).t()
    y = linear(kernel, seen)  # with the larger factor in front, libraries are faster
    return torch.unflatten(y, 1, [taps.shape[place] for place in places]).movedim(0, 1)
