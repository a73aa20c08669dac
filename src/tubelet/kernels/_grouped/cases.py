"""Launches that stand for all: head widths of the known video transformers. Shapes only, no data.

Short groups that share a tile (time; in float32, whose tiles are small, of a clip), groups of many tiles (a frame, by
pointers and by the descriptors that sm_90 has), and text that joins afterwards.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from tubelet.kernels._grouped import launches
from tubelet.kernels._grouped.places import Axes, Pair
from tubelet.kernels._launching import Launcher

__all__ = ["HEAD_DIMS", "cases"]

HEAD_DIMS = (64, 72, 128)
"""DiT and LTX; DiT-XL, like all from 66 to 126 padded to 128; Wan and HunyuanVideo."""
_SHIPPED = (
    (torch.bfloat16, HEAD_DIMS, ("time", "frame")),
    (torch.bfloat16, (64, 128), ("text",)),
    (torch.float16, (128,), ("time",)),
    (torch.float32, (128,), ("time", "frame", "clip")),
    (torch.bfloat16, HEAD_DIMS, ("descriptors",)),
)
FRAMES, CLIP, PLACES, TEXT, HEADS = 21, 5, 1560, 100, 12


def cases() -> Iterator[tuple[str, Callable[[Launcher], None]]]:
    """Forward and backward by case, of views into a packed qkv.

    Example:
        >>> next(cases())[0]
        'time bfloat16 64'
    """
    for dtype, head_dims, names in _SHIPPED:
        for head_dim in head_dims:
            for name in names:
                yield f"{name} {str(dtype)[6:]} {head_dim}", partial(_run, head_dim, dtype, name)


def _run(head_dim: int, dtype: torch.dtype, name: str, launcher: Launcher) -> None:
    tokens = TEXT + FRAMES * PLACES
    q, k, v = torch.empty(tokens, 3, HEADS, head_dim, dtype=dtype, device="meta").unbind(1)
    given = launches.Given(q, k, v, head_dim**-0.5, _RUNS[name], name == "descriptors")
    out, lse = launches.forward(given, launcher)
    launches.backward(torch.empty_like(out), given, out, lse, launcher)


def _axes(start: int, groups: int, pitch: int, items: int, stride: int) -> Axes:
    return Axes(start, (1, 1, 1, groups), (0, 0, 0, pitch), (1, 1, items), (0, 0, stride))


_TIME, _CLIP = (_axes(TEXT, PLACES, 1, frames, PLACES) for frames in (FRAMES, CLIP))
_FRAME = _axes(TEXT, FRAMES, PLACES, PLACES, 1)
_GRID, _TEXT = _axes(TEXT, 1, 0, FRAMES * PLACES, 1), _axes(0, 1, 0, TEXT, 1)
_RUNS = {
    "time": [Pair(_TIME, _TIME, False)],
    "frame": [Pair(_FRAME, _FRAME, False)],
    "descriptors": [Pair(_FRAME, _FRAME, False)],
    "clip": [Pair(_CLIP, _CLIP, False)],
    "text": [Pair(_TIME, _TIME, False), Pair(_GRID, _TEXT, True)],
}
