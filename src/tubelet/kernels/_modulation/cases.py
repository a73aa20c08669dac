"""Launches that stand for all: widths of the known video transformers. Shapes only, no data.

bfloat16 comes in every width; of float16, which compiles to the same code but for a conversion, of float32 and of the
affine norm a few widths do.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from tubelet.kernels._launching import Launcher
from tubelet.kernels._modulation import launches

__all__ = ["WIDTHS", "cases"]

WIDTHS = (384, 768, 1152, 1536, 2048, 3072, 4096, 5120)
"""DiT-S, -B and -XL, Wan 1.3B, LTX, HunyuanVideo and Mochi, Cosmos, Wan 14B."""
_BY_DTYPE = (
    (torch.bfloat16, WIDTHS),
    (torch.float16, (384, 5120)),
    (torch.float32, (384, 2048, 4096, 5120)),
)
TOKENS, ROWS = 32_768, 32


def cases() -> Iterator[tuple[str, Callable[[Launcher], None]]]:
    """Forward and backward by case: a plain layer norm, and an affine RMS norm whose tokens share rows in order.

    Example:
        >>> next(cases())[0]
        'layer bfloat16 384'
    """
    for dtype, widths in _BY_DTYPE:
        for width in widths:
            yield f"layer {str(dtype)[6:]} {width}", partial(_run, width, dtype, False)
    for width in (1536, 3072, 5120):
        yield f"affine rms bfloat16 {width}", partial(_run, width, torch.bfloat16, True)


def _run(width: int, dtype: torch.dtype, affine: bool, launcher: Launcher) -> None:
    x = torch.empty(TOKENS, width, dtype=dtype, device="meta")
    shift, scale = torch.empty(ROWS, 3 * width, dtype=dtype, device="meta").chunk(3, dim=-1)[:2]
    index, order = (None if affine else torch.empty(TOKENS, dtype=torch.int64, device="meta") for _ in range(2))
    offsets = None if affine else torch.empty(ROWS + 1, dtype=torch.int64, device="meta")
    weight = x.new_empty(width) if affine else None
    given = launches.Given(x, scale, index, weight, TOKENS // ROWS, affine, 1e-6)
    _, stats = launches.forward(given, shift, weight, launcher)
    launches.backward(x, given, stats, order, offsets, launcher)
