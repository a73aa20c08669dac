"""Launches that stand for all: channels and frames of known autoencoders. Shapes only, no data.

The RMS norm comes in the widths of Wan's autoencoders, of images and of the last scale; the group norm in those of
HunyuanVideo, CogVideoX and Allegro, by frame and by clip; each channels last and first, with a state or at the start.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from tubelet.kernels._launching import Launcher
from tubelet.kernels._padded import launches

__all__ = ["cases"]

_LAST, _FIRST = torch.channels_last_3d, torch.contiguous_format
_START, _ROUND = launches.Padding(2, True, 0, 0, False), launches.Padding(2, True, 1, 1, True)
_HALF, _FULL = torch.bfloat16, torch.float32
_BY_POSITION = ((_HALF, 96), (_HALF, 192), (_HALF, 384), (_HALF, 512), (_HALF, 1024), (_FULL, 96), (_FULL, 1024))
_BY_GROUP = ((_HALF, 128), (_HALF, 512), (_FULL, 512))
_RMS, _LATER = launches.Shape(0, per_frame=True), launches.Padding(2, False, 0, 0, False)


def cases() -> Iterator[tuple[str, Callable[[Launcher], None]]]:
    """Forward and backward by case.

    Example:
        >>> next(cases())[0]
        'rms bfloat16 96 last'
    """
    for name, layout in (("last", _LAST), ("first", _FIRST)):
        for dtype, width in _BY_POSITION:
            yield f"rms {str(dtype)[6:]} {width} {name}", partial(_run, dtype, width, layout, _RMS, _LATER)
        for dtype, width in _BY_GROUP:
            shape = launches.Shape(width // 32, per_frame=True)
            yield f"group {str(dtype)[6:]} {width} {name}", partial(_run, dtype, width, layout, shape, _START)
        whole = launches.Shape(16, per_frame=False)
        yield f"group of a clip bfloat16 512 {name}", partial(_run, torch.bfloat16, 512, layout, whole, _START)
        yield f"rms replicate bfloat16 384 {name}", partial(_run, torch.bfloat16, 384, layout, _RMS, _ROUND)


def _run(
    dtype: torch.dtype,
    channels: int,
    layout: torch.memory_format,
    shape: launches.Shape,
    padding: launches.Padding,
    launcher: Launcher,
) -> None:
    def frames(count: int, height: int, width: int) -> torch.Tensor:
        return torch.empty(1, channels, count, height, width, dtype=dtype, device="meta", memory_format=layout)

    x, grad = frames(4, 480, 832), frames(6, 480 + 2 * padding.rows, 832 + 2 * padding.columns)
    state = None if padding.copies else frames(2, 480, 832)
    weight = torch.empty(channels, dtype=dtype, device="meta")
    bias = weight if shape.group else None
    stats = launches.statistics(x, shape, 1e-6, launcher) if shape.group else None
    launches.forward(x, state, stats, weight, bias, shape, padding, 1e-6, launcher)
    launches.backward(grad, x, stats, weight, bias, shape, padding, 1e-6, launcher)
