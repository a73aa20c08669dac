"""Launches that stand for all: heads of the known video transformers. Shapes only, no data.

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
_KINDS = (
    ("layer", "interleaved", 48, 64),
    ("learned", "interleaved", 24, 128),
    ("plain", "half_per_axis", 24, 96),
    ("unturned", "none", 24, 128),
    ("across", "interleaved", 12, 128),
    ("across", "interleaved", 40, 128),
    ("across own", "interleaved", 32, 64),
    ("across one", "none", 12, 128),
)
"""CogVideoX; Mochi, with gradients of its angles; Allegro; text beside video; Wan's two sizes; LTX; cross-attention."""
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
                yield f"{layout} {str(dtype)[6:]} {head_dim}", partial(_run, "", layout, HEADS, head_dim, dtype)
    for dtype, kinds in ((torch.bfloat16, _KINDS), (torch.float32, (_KINDS[1], _KINDS[5]))):
        for kind, layout, heads, head_dim in kinds:
            name = f"{kind} {str(dtype)[6:]} {heads}x{head_dim}"
            yield name, partial(_run, kind, layout, heads, head_dim, dtype)


def _run(kind: str, layout: str, heads: int, head_dim: int, dtype: torch.dtype, launcher: Launcher) -> None:
    q, k, _ = torch.empty(1, TOKENS, 3, heads, head_dim, dtype=dtype, device="meta").unbind(2)
    own = (heads,) if kind in ("learned", "across own") else ()
    cos, sin = (torch.empty(1, TOKENS, *own, head_dim // 2, device="meta") for _ in range(2))
    across = kind.startswith("across")
    weight = torch.empty(head_dim * (heads if across else 1), dtype=dtype, device="meta")
    halves = {"interleaved": None, "half": (head_dim // 2, 0, 0)}.get(layout, (head_dim // 6,) * 3)
    one, turned = kind == "across one", layout != "none"
    given = launches.Given(
        q,
        None if one else k,
        cos if turned else None,
        sin if turned else None,
        q_weight=None if kind == "plain" else weight,
        k_weight=None if kind == "plain" or one else weight,
        q_bias=weight if kind == "layer" else None,
        k_bias=weight if kind == "layer" else None,
        norm={"layer": "layer", "plain": "none"}.get(kind, "rms"),
        across=across,
        axes=halves if turned else None,
    )
    launches.forward(given, launcher)
    launches.backward(given.q, given.k, given, launcher, of_angles=kind == "learned")
