"""Writing videos: MP4 (H.264), GIF, WebP and PNG, chosen by the file's suffix, each written whole or not at all.

A video is ``(c, t, h, w)`` in [-1, 1], c = 3 or 1; level = round(127.5 (x + 1)), values outside are clamped.
"""

import itertools
import os
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from tubelet.files import replacing, require

__all__ = ["write_clips", "write_video"]

Levels = UInt8[np.ndarray, "n _ _ k"]


def write_video(
    path: str | os.PathLike[str], video: Float[Tensor, "c t h w"], fps: float | int = 8.0, *, scale: int = 1
) -> None:
    """Write one video; the suffix says how.

    - ``.mp4``: H.264 in 4:2:0, near-lossless (CRF 10), playable everywhere. Odd sides cannot be stored so: they grow by
      one pixel that repeats the last row or column.
    - ``.gif``: endless loop. Grey videos are exact, colours come from 256 per frame. Frame times are hundredths of a
      second, their rounding spread so that the whole keeps its duration. Equal frames in a row are stored as one.
    - ``.webp``: endless loop, lossless. Frame times are milliseconds. (FFmpeg does not read animated WebP back.)
    - ``.png``: all frames on one sheet in reading order, at most 8 a row, lossless; one frame is a plain image.

    The file appears under its name only when complete. Missing folders are made.

    Args:
        path: where to; ``.mp4``, ``.gif``, ``.webp`` or ``.png``.
        video: ``(c, t, h, w)`` in [-1, 1], c = 3 (RGB) or 1 (grey).
        fps: frames per second.
        scale: enlarge each pixel to ``scale`` by ``scale`` (nearest neighbour), to look at small videos.

    Raises:
        ValueError: another suffix, channel count, rank or dtype, an empty or non-finite video, or impossible ``fps`` or
            ``scale``.
        ImportError: PyAV or Pillow is missing (extra ``tubelet[video]``).

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_video(f"{folder}/ramp.gif", torch.linspace(-1, 1, 256).reshape(1, 4, 8, 8), fps=4)
        ...     os.listdir(folder)
        ['ramp.gif']
    """
    path = Path(path)
    writers: dict[str, Callable[[Path, Levels, Fraction], None]]
    writers = {".mp4": _write_mp4, ".gif": _write_gif, ".webp": _write_webp, ".png": _write_png}
    suffix = path.suffix.lower()
    if suffix not in writers:
        raise ValueError(f"path must end in {', '.join(writers)}, got {str(path)!r}")
    rate = _rate(fps)
    if suffix == ".gif" and fps > 50:
        raise ValueError(f"fps may be at most 50 in a GIF, got {fps}")
    levels = to_levels(video, scale)
    with replacing(path) as temporary:
        writers[suffix](temporary, levels, rate)


def write_clips(
    path: str | os.PathLike[str], clips: Iterable[Float[Tensor, "c _ h w"]], fps: float | int = 8.0
) -> None:
    """Write clips that follow each other as one MP4, as `write_video` does; no more than one clip is held.

    Args:
        path: where to; ``.mp4``.
        clips: ``(c, t, h, w)`` in [-1, 1], c = 3 (RGB) or 1 (grey), all of one size.
        fps: frames per second.

    Raises:
        ValueError: another suffix, no clip, clips of different sizes, or as in `write_video`.
        ImportError: PyAV is missing (extra ``tubelet[video]``).

    Example:
        >>> import tempfile
        >>> from tubelet.data import probe_video
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_clips(f"{folder}/a.mp4", (torch.zeros(3, 4, 16, 16) for _ in range(3)), fps=8)
        ...     probe_video(f"{folder}/a.mp4").frames
        12
    """
    path = Path(path)
    if path.suffix.lower() != ".mp4":
        raise ValueError(f"path must end in .mp4, got {str(path)!r}")
    rate = _rate(fps)
    with replacing(path) as temporary:
        _stream_mp4(temporary, (to_levels(clip) for clip in clips), rate)


def _rate(fps: float | int) -> Fraction:
    if not 0 < fps < float("inf"):
        raise ValueError(f"fps must be positive, got {fps}")
    rate = Fraction(fps).limit_denominator(100_000)
    if not rate:
        raise ValueError(f"fps must be at least 0.00001, got {fps}")
    return rate


def to_levels(video: Float[Tensor, "c t h w"], scale: int = 1) -> Levels:
    """8-bit frames ``(t, h, w, c)`` of a video in [-1, 1], each pixel repeated ``scale`` times both ways."""
    if not video.is_floating_point():
        raise ValueError(
            f"a video must hold floats in [-1, 1], got {video.dtype}; of 8-bit levels x it is x / 127.5 - 1"
        )
    if video.ndim != 4:
        raise ValueError(f"a video must be (c, t, h, w), got shape {tuple(video.shape)}")
    if video.shape[0] not in (1, 3) or video.numel() == 0:
        raise ValueError(f"a video needs 1 or 3 channels and at least one pixel, got shape {tuple(video.shape)}")
    if scale < 1:
        raise ValueError(f"scale must be at least 1, got {scale}")
    if not torch.isfinite(video).all():
        raise ValueError(f"a video must be finite, got {int((~torch.isfinite(video)).sum())} other values")
    levels = video.detach().float().cpu().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    frames = levels.permute(1, 2, 3, 0).repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    return frames.contiguous().numpy()


def _write_mp4(path: Path, levels: Levels, fps: Fraction) -> None:
    _stream_mp4(path, [levels], fps)


def _stream_mp4(path: Path, parts: Iterable[Levels], fps: Fraction) -> None:
    av, first = require("av"), None
    with av.open(os.fspath(path), "w", options={"movflags": "faststart"}) as container:
        for levels in parts:
            if first is None:
                first = levels.shape[1:3]
                stream = container.add_stream("libx264", rate=fps, options={"crf": "10", "preset": "medium"})
                stream.height, stream.width, stream.pix_fmt = (
                    first[0] + first[0] % 2,
                    first[1] + first[1] % 2,
                    "yuv420p",
                )
            elif levels.shape[1:3] != first:
                raise ValueError(f"clips must have one size, got {first} and {levels.shape[1:3]}")
            for picture in _evened(levels):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        if first is None:
            raise ValueError("clips must hold at least one, got none")
        container.mux(stream.encode(None))


def _evened(levels: Levels) -> UInt8[np.ndarray, "n _ _ 3"]:
    """Three channels and even sides, the last row and column repeated if need be."""
    height, width = levels.shape[1:3]
    frames = torch.from_numpy(levels).permute(0, 3, 1, 2).float()
    frames = functional.pad(frames, (0, width % 2, 0, height % 2), mode="replicate").byte().permute(0, 2, 3, 1)
    return frames.expand(-1, -1, -1, 3).contiguous().numpy()


def _write_gif(path: Path, levels: Levels, fps: Fraction) -> None:
    ends = [round(100 * frame / fps) for frame in range(len(levels) + 1)]
    durations = [10 * (end - start) for start, end in itertools.pairwise(ends)]
    _write_animation(path, levels, durations, {"optimize": False})


def _write_webp(path: Path, levels: Levels, fps: Fraction) -> None:
    ends = [round(1000 * frame / fps) for frame in range(len(levels) + 1)]
    durations = [end - start for start, end in itertools.pairwise(ends)]
    _write_animation(path, levels, durations, {"lossless": True, "exact": True})


def _write_animation(path: Path, levels: Levels, milliseconds: list[int], options: dict[str, bool]) -> None:
    image = require("PIL.Image")
    first, *rest = (image.fromarray(frame.squeeze(-1) if frame.shape[-1] == 1 else frame) for frame in levels)
    first.save(path, save_all=True, append_images=rest, duration=milliseconds, loop=0, **options)


def _write_png(path: Path, levels: Levels, fps: Fraction) -> None:
    image = require("PIL.Image")
    image.fromarray(tile(levels, columns=8, gap=1).squeeze(-1) if levels.shape[-1] == 1 else tile(levels, 8, 1)).save(
        path
    )


def tile(pictures: Levels, columns: int, gap: int) -> UInt8[np.ndarray, "_ _ k"]:
    """Pictures of one size in reading order on one sheet, ``gap`` white pixels between them."""
    count, height, width, channels = pictures.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), 255, np.uint8)
    for index, picture in enumerate(pictures):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        sheet[top : top + height, left : left + width] = picture
    return sheet
