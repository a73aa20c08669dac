"""Launches that stand for all: head widths of the known video transformers. Shapes only, no data."""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from tubelet.kernels._launching import Launcher
from tubelet.kernels._tiled import launches
from tubelet.kernels._tiled.table import FIELDS, Tiles

__all__ = ["HEAD_DIMS", "cases"]

HEAD_DIMS = (64, 72, 80, 96, 128, 256)
"""DiT and LTX; DiT-XL; others from 66 to 126, padded to 128; Wan and HunyuanVideo; the widest there are."""
_SHIPPED = (
    (torch.bfloat16, HEAD_DIMS),
    (torch.float16, (64, 128)),
    (torch.float32, (64, 128)),
)
TOKENS, HEADS = 32_768, 12


def cases() -> Iterator[tuple[str, Callable[[Launcher], None]]]:
    """Forward and backward by case, of views into a packed qkv: lines alone (joint attention), and boxes.

    Lines come by pointers, and by the descriptors that sm_90 has.

    Example:
        >>> next(cases())[0]
        'lines bfloat16 64'
    """
    for dtype, head_dims in _SHIPPED:
        for head_dim in head_dims:
            for boxes in (False, True):
                name = f"{'boxes' if boxes else 'lines'} {str(dtype)[6:]} {head_dim}"
                yield name, partial(_run, head_dim, dtype, boxes, False)
        for head_dim in head_dims if dtype == torch.bfloat16 else ():
            yield f"descriptors {str(dtype)[6:]} {head_dim}", partial(_run, head_dim, dtype, False, True)


def _run(head_dim: int, dtype: torch.dtype, boxes: bool, descriptors: bool, launcher: Launcher) -> None:
    q, k, v = torch.empty(TOKENS, 3, HEADS, head_dim, dtype=dtype, device="meta").unbind(1)
    table = torch.empty(600, len(FIELDS), dtype=torch.int32, device="meta")
    sizes = launches.fixed_sizes(dtype, head_dim, boxes)
    few, spans = (table.new_empty(99, width) if boxes else None for width in (4, 2))
    tiles = Tiles(table, table, table, few, spans, sizes, (TOKENS, TOKENS))
    given = launches.Given(q, k, v, head_dim**-0.5, tiles, descriptors)
    out, lse = launches.forward(given, launcher)
    launches.backward(torch.empty_like(out), given, out, lse, launcher)
