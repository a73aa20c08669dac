"""A convolution with fewer output positions than channels, as one matrix product of the input's columns.

Libraries copy a convolution's weights to a layout of their own at every call, which pays where many positions share
them. The coarsest layers of autoencoders that shrink much (LTX-Video's 32 × 32) have weights of a hundred megabytes for
a few dozen positions. There the input is unfolded instead (im2col; Chellapilla et al., 2006), one row of all taps for
each output position, which is less than the weights, and these are read once, where they lie.
"""

from math import prod

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tubelet.vae.formats import layout_of
from tubelet.vae.unwatched import plain

__all__ = ["convolved"]


def convolved(conv: nn.Conv3d, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b d t2 h2 w2"]:
    """``conv(x)``, as a matrix product where that reads less, with the same hooks, gradients and rounding.

    Example:
        >>> conv, x = nn.Conv3d(2, 40, 3, padding=(0, 1, 1)), torch.randn(1, 2, 4, 4, 4)
        >>> with torch.no_grad():
        ...     torch.allclose(convolved(conv, x), conv(x), atol=1e-5)
        True
    """
    if plain(conv, x) and 0 < _positions(conv, x) < conv.out_channels:
        return _product(conv, x)
    y: Tensor = conv(x)
    return y


def _positions(conv: nn.Conv3d, x: Tensor) -> int:
    return int(x.shape[0] * (x.shape[2] - conv.kernel_size[0] + 1) * prod(x.shape[3:]))


def _product(conv: nn.Conv3d, x: Tensor) -> Tensor:
    rows, columns = (int(side) for side in conv.padding[1:])
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    taps = F.pad(x, (columns, columns, rows, rows, 0, 0), mode=mode)
    for axis, size in zip((2, 3, 4), conv.kernel_size, strict=True):
        taps = taps.unfold(axis, size, 1)
    if layout_of(conv.weight) == torch.channels_last_3d:
        kernel, taps = conv.weight.movedim(1, -1).flatten(1), taps.permute(0, 2, 3, 4, 5, 6, 7, 1)
        y = kernel @ taps.flatten(4).flatten(0, 3).T  # with the larger factor in front, libraries are faster
        y = torch.unflatten(y, 1, taps.shape[:4]).movedim(0, 1)
    else:
        kernel, taps = conv.weight.flatten(1), taps.permute(0, 1, 5, 6, 7, 2, 3, 4)
        y = torch.stack([kernel @ sample for sample in taps.flatten(1, 4).flatten(2)])
        y = torch.unflatten(y, 2, taps.shape[5:])
    y = y.contiguous(memory_format=layout_of(x))
    return y if conv.bias is None else y.add_(conv.bias.reshape(-1, 1, 1, 1))
