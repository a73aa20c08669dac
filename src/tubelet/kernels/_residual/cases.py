"""Launches that stand for all: widths of the known video transformers. Shapes only, no data.

Gate + residual + norm + modulate in bfloat16 comes in every width. A few widths do for gate + residual alone, for
float16, which compiles to the same code but for a conversion, for float32, and for an affine norm without modulation
behind a sum without a gate (Wan's cross-attention).
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from tubelet.kernels._launching import Launcher
from tubelet.kernels._modulation.cases import ROWS, TOKENS, WIDTHS
from tubelet.kernels._residual import launches

__all__ = ["cases"]

_BY_FORM = (
    ("modulated", torch.bfloat16, WIDTHS),
    ("modulated", torch.float16, (384, 5120)),
    ("modulated", torch.float32, (384, 2048, 4096, 5120)),
    ("alone", torch.bfloat16, (1152, 1536, 5120)),
    ("alone", torch.float32, (1536, 5120)),
    ("affine", torch.bfloat16, (1536, 5120)),
    ("affine modulated", torch.bfloat16, (1536, 5120)),
)


def cases() -> Iterator[tuple[str, Callable[[Launcher], None]]]:
    """Forward and backward by case.

    Example:
        >>> next(cases())[0]
        'modulated bfloat16 384'
    """
    for form, dtype, widths in _BY_FORM:
        for width in widths:
            yield f"{form} {str(dtype)[6:]} {width}", partial(_run, width, dtype, form)


def _run(width: int, dtype: torch.dtype, form: str, launcher: Launcher) -> None:
    x = torch.empty(TOKENS, width, dtype=dtype, device="meta")
    gate, shift, scale = torch.empty(ROWS, 3 * width, dtype=dtype, device="meta").chunk(3, dim=-1)
    order: torch.Tensor | None
    offsets: torch.Tensor | None
    index, order = (torch.empty(TOKENS, dtype=torch.int64, device="meta") for _ in range(2))
    offsets = torch.empty(ROWS + 1, dtype=torch.int64, device="meta")
    weight = x.new_empty(width) if "affine" in form else None
    normed, given = None, launches.Given(x, gate, index, TOKENS, ROWS)
    if "modulated" in form:
        normed = launches.Normed(shift, scale, weight, weight, "affine" in form, 1e-6)
    elif form == "affine":
        normed, given = (
            launches.Normed(None, None, weight, weight, True, 1e-6),
            launches.Given(x, None, None, TOKENS, 1),
        )
    launches.forward(x, given, normed, launcher)
    y, stats = (None, None) if normed is None else (x, x.new_empty(2, TOKENS, dtype=torch.float32))
    order, offsets = (None, None) if given.index is None else (order, offsets)
    launches.backward((x, y), y, stats, given, normed, order, offsets, launcher)
