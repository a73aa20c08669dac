"""Reading videos: by time or by frame, at any frame rate and size, through PyAV (FFmpeg's libraries).

``read_video(path) -> (c, t, h, w)`` float in [-1, 1]. Time is what the file's timestamps say, counted in seconds from
its first frame, so files of variable frame rate and containers with rounded timestamps come out right. At a given
frame rate the frame taken at time s is the one on display then: the last that began at or before s.

Resizing is antialiased bilinear on 8-bit levels; grey is the luma of ITU-R BT.601, ``0.299 R + 0.587 G + 0.114 B``.
"""

import itertools
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Integral
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from tubelet.data.source import Source, Timed

__all__ = ["VideoInfo", "probe_video", "read_clips", "read_video"]

Crop = Literal["center", "stretch", "pad"] | tuple[float | int, float | int]
_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class VideoInfo:
    """What a video file holds, counted rather than taken from its header.

    Args:
        frames: number of frames.
        fps: mean frames per second; meaningless for an image.
        duration: seconds from the first frame's start to the last one's end.
        height: pixels, as displayed (after the file's rotation).
        width: pixels, as displayed.

    Example:
        >>> VideoInfo(frames=50, fps=25.0, duration=2.0, height=272, width=640).duration
        2.0
    """

    frames: int
    fps: float
    duration: float
    height: int
    width: int


def probe_video(path: str | os.PathLike[str]) -> VideoInfo:
    """Count a file's frames and measure it, decoding only the first frame.

    Args:
        path: a video or image file.

    Returns:
        The number of frames, their rate, the duration and the displayed size.

    Raises:
        ValueError: the file is empty, truncated before the first frame, or holds no video.
        FileNotFoundError: there is no such file.
        ImportError: PyAV is missing (extra ``tubelet[video]``).

    Example:
        >>> import tempfile, tubelet.data
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     tubelet.data.write_video(f"{folder}/a.mp4", torch.zeros(3, 10, 16, 32), fps=5)
        ...     probe_video(f"{folder}/a.mp4")
        VideoInfo(frames=10, fps=5.0, duration=2.0, height=16, width=32)
    """
    starts: list[float] = []
    end = 0.0
    with Source(path) as source:
        for packet in source.packets():
            starts.append(source.seconds(packet.pts, len(starts)))
            end = max(end, starts[-1] + source.length(packet))
    if not starts:
        raise ValueError(f"{os.fspath(path)} holds no video frames")
    with Source(path) as source:
        first = next(source.frames(), None)
    if first is None:
        raise ValueError(f"{os.fspath(path)} holds no video frames")
    height, width = first[1].shape[-2:]
    begin, last, count = min(starts), max(starts), len(starts)
    fps = (count - 1) / (last - begin) if last > begin else 1 / (end - begin)
    return VideoInfo(count, round(fps, 6), round(end - begin, 6), height, width)


def read_video(
    path: str | os.PathLike[str],
    *,
    start: float | int | None = None,
    start_frame: int | None = None,
    frames: int | None = None,
    fps: float | int | None = None,
    size: tuple[int, int] | None = None,
    crop: Crop = "center",
    gray: bool = False,
) -> Float[Tensor, "c t h w"]:
    """Decode a stretch of a video, or an image as a video of one frame.

    Args:
        path: anything FFmpeg decodes: mp4, mkv, webm, avi, mov, gif, png, jpg, ...
        start: where to begin, in seconds from the first frame; the file is entered there, not read from its beginning.
        start_frame: where to begin, as a frame number from 0 (decodes all frames before it). Not both.
        frames: how many frames to return. Default: all that follow.
        fps: frames per second to return, by picking or repeating source frames. Default: every source frame.
        size: ``(height, width)`` to return. Default: the file's.
        crop: how the picture meets ``size``: "center" or fractions ``(down, right)`` in [0, 1] scale it to cover the
            size and cut the rest, ``(0.5, 0.5)`` being the centre; "pad" scales it to fit and adds black; "stretch"
            ignores its aspect.
        gray: return one channel, the luma.

    Returns:
        ``(c, t, h, w)``, c = 3 or 1, float32 in [-1, 1].

    Raises:
        ValueError: a bad argument; a file that is empty, corrupt or without video; fewer frames left than asked for.
        FileNotFoundError: there is no such file.
        ImportError: PyAV is missing (extra ``tubelet[video]``).

    Example:
        >>> import tempfile, tubelet.data
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     tubelet.data.write_video(f"{folder}/a.mp4", torch.zeros(3, 20, 16, 32), fps=10)
        ...     read_video(f"{folder}/a.mp4", start=0.5, frames=4, fps=5, size=(8, 8), gray=True).shape
        torch.Size([1, 4, 8, 8])
    """
    _check_request(start, start_frame, frames, fps, size, crop)
    with Source(path) as source:
        pictures = list(itertools.islice(_pictures(source, start, start_frame, fps, size, crop), frames))
    if not pictures or len(pictures) < (frames or 1):
        place = f"frame {start_frame}" if start_frame is not None else f"{start or 0:g} s"
        raise ValueError(f"{os.fspath(path)} has {len(pictures)} frames from {place} on, but {frames or 1} are needed")
    return _to_float(torch.stack(pictures, dim=1), gray)


def read_clips(
    path: str | os.PathLike[str],
    clip: int,
    *,
    start: float | int | None = None,
    fps: float | int | None = None,
    size: tuple[int, int] | None = None,
    crop: Crop = "center",
    gray: bool = False,
) -> Iterator[Float[Tensor, "c _ h w"]]:
    """A video in clips that follow each other, however long it is: no more than one clip is held.

    Args:
        path, start, fps, size, crop, gray: as in `read_video`.
        clip: frames of each; the last may have fewer.

    Returns:
        Clips ``(c, t, h, w)``, c = 3 or 1, float32 in [-1, 1].

    Raises:
        ValueError: a bad argument; a file that is empty or without video, or damaged where the clips have come to.
        FileNotFoundError: there is no such file.
        ImportError: PyAV is missing (extra ``tubelet[video]``).

    Example:
        >>> import tempfile, tubelet.data
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     tubelet.data.write_video(f"{folder}/a.mp4", torch.zeros(3, 10, 16, 32), fps=10)
        ...     [part.shape[1] for part in read_clips(f"{folder}/a.mp4", 4)]
        [4, 4, 2]
    """
    _check_request(start, None, clip, fps, size, crop)
    with Source(path) as source:
        pictures = _pictures(source, start, None, fps, size, crop)
        while found := list(itertools.islice(pictures, clip)):
            yield _to_float(torch.stack(found, dim=1), gray)


def _pictures(
    source: Source,
    start: float | int | None,
    start_frame: int | None,
    fps: float | int | None,
    size: tuple[int, int] | None,
    crop: Crop,
) -> Iterator[UInt8[Tensor, "c h w"]]:
    """The frames from the asked place on, at the asked rate and size."""
    stretch = _stretch(source, start, start_frame)
    picked = stretch if fps is None else _resample(stretch, fps, source, start)
    return (picture if size is None else _fit(picture, size, crop) for _, picture in picked)


def _check_request(
    start: float | int | None,
    start_frame: int | None,
    frames: int | None,
    fps: float | int | None,
    size: tuple[int, int] | None,
    crop: Crop,
) -> None:
    if start is not None and start_frame is not None:
        raise ValueError(f"give start or start_frame, not both: got start={start}, start_frame={start_frame}")
    if start is not None and not (0 <= start < math.inf):
        raise ValueError(f"start must be a time of at least 0 seconds, got {start}")
    if start_frame is not None and start_frame < 0:
        raise ValueError(f"start_frame must be at least 0, got {start_frame}")
    if frames is not None and frames < 1:
        raise ValueError(f"frames must be at least 1, got {frames}")
    if fps is not None and not (0 < fps < math.inf):
        raise ValueError(f"fps must be positive, got {fps}")
    if size is not None and not is_size(size):
        raise ValueError(f"size must be (height, width) of at least 1, got {size!r}")
    known = all(0 <= part <= 1 for part in crop) if isinstance(crop, tuple) else crop in ("center", "stretch", "pad")
    if not known:
        raise ValueError(f"crop must be 'center', 'stretch', 'pad' or two fractions in [0, 1], got {crop!r}")


def is_size(value: object) -> bool:
    """Whether ``value`` is a (height, width)."""
    return isinstance(value, tuple) and len(value) == 2 and all(isinstance(n, Integral) and int(n) >= 1 for n in value)


def _stretch(source: Source, start: float | int | None, start_frame: int | None) -> Iterator[Timed]:
    """The frames from the asked place on; at a time, from the frame on display then."""
    if start is None or start == 0:
        return itertools.islice(source.frames(), start_frame or 0, None)
    return _from_time(source.frames_near(start), start + source.slack, source)


def _from_time(frames: Iterator[Timed], start: float | int, source: Source) -> Iterator[Timed]:
    held = next(frames, None)
    if held is None:
        return
    for timed in frames:
        if timed[0] > start:
            yield from (held, timed)
            yield from frames
            return
        held = timed
    if start < held[0] + source.last_length:
        yield held


def _resample(frames: Iterator[Timed], fps: float | int, source: Source, start: float | int | None) -> Iterator[Timed]:
    """The frame on display at each of start + k / fps."""
    held = next(frames, None)
    if held is None:
        return
    origin = held[0] if start is None else start
    wanted = (origin + k / fps for k in itertools.count())
    now = next(wanted)
    for timed in frames:
        while now + source.slack < timed[0]:
            yield now, held[1]
            now = next(wanted)
        held = timed
    while now + source.slack < held[0] + source.last_length:
        yield now, held[1]
        now = next(wanted)


def _fit(picture: UInt8[Tensor, "c h w"], size: tuple[int, int], crop: Crop) -> UInt8[Tensor, "c h2 w2"]:
    height, width = picture.shape[-2:]
    ratios = size[0] / height, size[1] / width
    if crop == "stretch":
        return resized(picture[None], size)[0]
    scale = min(ratios) if crop == "pad" else max(ratios)
    inner = max(1, round(height * scale)), max(1, round(width * scale))
    down, right = crop if isinstance(crop, tuple) else (0.5, 0.5)
    top, left = round((inner[0] - size[0]) * down), round((inner[1] - size[1]) * right)
    # Negative amounts cut, positive ones add black.
    edges = (-left, size[1] - inner[1] + left, -top, size[0] - inner[0] + top)
    return functional.pad(resized(picture[None], inner)[0], edges)


def resized(pictures: UInt8[Tensor, "n c h w"], size: tuple[int, int]) -> UInt8[Tensor, "n c h2 w2"]:
    """Pictures scaled to a size, antialiased bilinear."""
    if tuple(pictures.shape[-2:]) == size:
        return pictures
    # Interleaved 8-bit channels: torch's antialiasing fails for 8-bit planes at 1×1, and errs for floats at width 1.
    interleaved = pictures.contiguous(memory_format=torch.channels_last)
    return functional.interpolate(interleaved, size=size, mode="bilinear", antialias=True)


def _to_float(video: UInt8[Tensor, "3 t h w"], gray: bool) -> Float[Tensor, "c t h w"]:
    values = video.float()
    if gray:
        values = torch.einsum("c,cthw->thw", torch.tensor(_LUMA), values)[None]
    return values.div_(127.5).sub_(1)
