"""The tasks by name, each taking what it needs from a source video: for command lines, judges and notebooks."""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tubelet.diffusion import Known
from tubelet.diffusion.tasks import (
    connect,
    extend,
    inpaint,
    interpolate,
    loop,
    nothing,
    outpaint,
    prepend,
    upsample,
)

__all__ = ["TASKS", "task"]

Video = Float[Tensor, "c _ _ _"]


def task(name: str, source: Float[Tensor, "c t h w"], frames: int, given: int = 5, every: int = 4) -> Known:
    """What a task keeps of a source video; the rest of ``frames`` frames is to be made.

    Args:
        name: one of :data:`TASKS`.
        source: as many frames as the task keeps, or more.
        frames: of the video to be made.
        given: how many of the source's first or last frames ``extend``, ``prepend``, ``connect`` and ``loop`` keep.
        every: how far apart ``interpolate`` keeps frames where they are, beside the last, and ``upsample`` puts the
            source's first ones.

    Raises:
        ValueError: an unknown name, counts below 1, or a source that is too short for the task.

    Example:
        >>> task("interpolate", torch.zeros(1, 9, 16, 16), 9, every=4).tokens[:, 0, 0].nonzero().flatten().tolist()
        [0, 4, 8]
    """
    if name not in TASKS:
        raise ValueError(f"name must be one of {', '.join(TASKS)}, got {name!r}")
    if min(frames, given, every) < 1:
        raise ValueError(f"frames, given and every must be at least 1, got {frames}, {given} and {every}")
    return TASKS[name](source, frames, given, every)


def _first(source: Video, frames: int) -> Video:
    if source.shape[1] < frames:
        raise ValueError(f"the task keeps frames of the first {frames} of its source, which has {source.shape[1]}")
    return source[:, :frames]


def _last(source: Video, frames: int) -> Video:
    return _first(source.flip(1), frames).flip(1)


def _interpolate(source: Video, frames: int, given: int, every: int) -> Known:
    at = sorted({*range(0, frames, every), frames - 1})
    return interpolate(_first(source, frames)[:, at], at, frames)


def _upsample(source: Video, frames: int, given: int, every: int) -> Known:
    if (frames - 1) % every:
        raise ValueError(f"upsample makes 1 + {every}·k frames, got frames={frames}")
    return upsample(_first(source, 1 + (frames - 1) // every), every)


def _outpaint(source: Video, frames: int, given: int, every: int) -> Known:
    """The middle half of height and width."""
    height, width = source.shape[2:]
    top, left = height // 4, width // 4
    middle = _first(source, frames)[..., top : height - top, left : width - left]
    return outpaint(middle, (height, width), (top, left))


def _box(source: Video) -> Bool[Tensor, "1 h w"]:
    """The middle half of height and width."""
    height, width = source.shape[2:]
    hole = torch.zeros(1, height, width, dtype=torch.bool, device=source.device)
    hole[:, height // 4 : height - height // 4, width // 4 : width - width // 4] = True
    return hole


def _later(source: Video, frames: int) -> Bool[Tensor, "t h 1"]:
    """The lower half of the canvas from a third of the time on."""
    height = source.shape[2]
    hole = torch.zeros(frames, height, 1, dtype=torch.bool, device=source.device)
    hole[-(-frames // 3) :, height // 2 :] = True
    return hole


TASKS: Mapping[str, Callable[[Video, int, int, int], Known]] = {
    "text": lambda x, frames, given, every: nothing(x[:, :1].expand(-1, frames, -1, -1)),
    "image": lambda x, frames, given, every: extend(x[:, :1], frames),
    "extend": lambda x, frames, given, every: extend(_first(x, given), frames),
    "prepend": lambda x, frames, given, every: prepend(_last(x, given), frames),
    "connect": lambda x, frames, given, every: connect(_first(x, given), _last(x, given), frames),
    "loop": lambda x, frames, given, every: loop(_first(x, given), frames),
    "inpaint": lambda x, frames, given, every: inpaint(_first(x, frames), _box(x)),
    "outpaint": _outpaint,
    "spacetime": lambda x, frames, given, every: inpaint(_first(x, frames), _later(x, frames)),
    "interpolate": _interpolate,
    "upsample": _upsample,
}
"""What each task keeps of a source, from its frames, ``given`` and ``every``. Example: ``TASKS["loop"]``."""
