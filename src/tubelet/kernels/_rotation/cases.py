"""Launches that stand for all: head widths of the known video transformers. Shapes only, no data.

bfloat16 comes in every width; of float16, which compiles to the same code but for a conversion, and of float32 a few
widths do.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from tubelet.kernels._launching import Launcher
from tubelet.kernels._rotation import launches

__all__ = ["HEAD_DIMS", "cases"]

HEAD_DIMS = (64, 72, 80, 96, 128)
"""DiT and LTX, DiT-XL, Open-Sora, U-ViT, Wan and HunyuanVideo."""
_BY_DTYPE = (
    (torch.bfloat16, HEAD_DIMS),
    (torch.float16, (128,)),
    (torch.float32, (64, 72, 128)),
)
TOKENS, HEADS = 32_768, 16


def cases() -> Iterator[tuple[str, Callable[[Launcher], None]]]:
    """Forward and backward by case, of views into a packed qkv.

    Example:
        >>> next(cases())[0]
        'interleaved bfloat16 64'
    """
    for dtype, head_dims in _BY_DTYPE:
        for head_dim in head_dims:
            for layout in ("interleaved", "half"):
                yield f"{layout} {str(dtype)[6:]} {head_dim}", partial(_run, head_dim, layout, dtype)


def _run(head_dim: int, layout: str, dtype: torch.dtype, launcher: Launcher) -> None:
    q, k, _ = torch.empty(1, TOKENS, 3, HEADS, head_dim, dtype=dtype, device="meta").unbind(2)
    cos, sin = (torch.empty(1, TOKENS, head_dim // 2, device="meta") for _ in range(2))
    weight = torch.empty(head_dim, dtype=dtype, device="meta")
    given = launches.Given(q, k, cos, sin, weight, weight, 1e-6, layout == "interleaved")
    forward = launches.forward(given, launcher)
    launches.backward(*forward, given, launcher)
