"""A dataset of clips with captions, drawn from a folder of real video and image files.

Files are counted and tried once, when the folder is opened; what cannot be used is skipped with one warning each and
kept in ``skipped``. A clip is then a pure function of ``(seed, index)``: which files, which window of time and which
crop never depend on workers or on what was read before, so training resumes exactly.

As in NaViT (arXiv:2307.06304) and Sora's report (2024), clips may keep their own duration and aspect: give several
``frames`` or ``size`` choices and each file takes the longest and the nearest in shape.
"""

import hashlib
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset

from tubelet.data.captions import Caption, read_captions
from tubelet.data.video import VideoInfo, is_size, probe_video, read_video

__all__ = ["Clip", "ClipFolder"]

SUFFIXES = frozenset({".mp4", ".mkv", ".webm", ".avi", ".mov", ".gif", ".png", ".jpg", ".jpeg"})
_END = 2**16  # bytes at either end of a file that tell it from others
ClipCrop = Literal["center", "stretch", "pad", "random"]


class Clip(NamedTuple):
    """One training example of a :class:`ClipFolder`.

    Attributes:
        video: ``(c, t, h, w)`` in [-1, 1].
        caption: its text, "" where there is none.
        file: where it comes from, relative to the folder.
        start: where its window begins in the file, seconds.

    Example:
        >>> import torch
        >>> Clip(torch.zeros(3, 1, 8, 8), "a seven", "sevens/a.png", 0.0).caption
        'a seven'
    """

    video: Float[Tensor, "c t h w"]
    caption: str
    file: str
    start: float


@dataclass(frozen=True)
class _Entry:
    """A usable segment of a file, and the shape its clips have."""

    caption: Caption
    span: float
    fps: float
    frames: int
    size: tuple[int, int]


class ClipFolder(Dataset[Clip]):
    """Clips of the video and image files below a folder.

    Images (and files of one frame) are clips of one frame. Of every other file a window of ``frames`` frames at ``fps``
    is cut at a place that ``seed`` and the index decide. ``len(folder)`` is ``windows`` times the number of usable
    segments; index ``i`` is segment ``i % segments``. A file that turns out to be corrupt only when a clip is read
    is skipped too, with its warning, and the next segment takes its place.

    Args:
        root: folder, searched with its subfolders for mp4, mkv, webm, avi, mov, gif, png, jpg; hidden files are not.
        captions: JSON lines as :func:`read_captions` takes them. Default: every caption is "".
        frames: frames of a clip, or several choices of which each segment takes the most it can fill.
        size: ``(height, width)`` of a clip, or a list of which each file takes the nearest aspect. Default: the file's.
        fps: frames per second of a clip. Default: each file's own mean rate.
        crop: as in :func:`read_video`, or "random": cover the size and cut anywhere.
        gray: one channel instead of three.
        seed: what windows and random crops are drawn from.
        windows: how many different windows of each segment the dataset holds.
        uncaptioned: with ``captions``, what a file without a line there is: an "error", or a clip whose caption is
            "empty".

    Attributes:
        skipped: for each file (relative to ``root``) or segment (``file[start:end]``) that cannot be used, why.

    Raises:
        ValueError: ``root`` is no folder, nothing in it is usable, a file has no caption (all are listed), a bad line
            in ``captions``, or a bad argument.
        ImportError: PyAV is missing (extra ``tubelet[video]``).

    Example:
        >>> import tempfile, torch
        >>> from tubelet.data.writing import write_video
        >>> with tempfile.TemporaryDirectory() as root:
        ...     write_video(f"{root}/a.mp4", torch.zeros(3, 20, 32, 32), fps=10)
        ...     write_video(f"{root}/b.png", torch.zeros(3, 1, 32, 32))
        ...     folder = ClipFolder(root, frames=5, size=(16, 16))
        ...     [(clip.file, tuple(clip.video.shape)) for clip in folder]
        [('a.mp4', (3, 5, 16, 16)), ('b.png', (3, 1, 16, 16))]
    """

    skipped: dict[str, str]

    def __init__(
        self,
        root: str | os.PathLike[str],
        captions: str | os.PathLike[str] | None = None,
        *,
        frames: int | tuple[int, ...],
        size: tuple[int, int] | list[tuple[int, int]] | None = None,
        fps: float | int | None = None,
        crop: ClipCrop = "center",
        gray: bool = False,
        seed: int = 0,
        windows: int = 1,
        uncaptioned: Literal["error", "empty"] = "error",
    ) -> None:
        self.root = Path(root)
        self.choices = (frames,) if isinstance(frames, int) else tuple(frames)
        self.sizes = [size] if isinstance(size, tuple) else size
        self.fps, self.crop, self.gray, self.seed, self.windows = fps, crop, gray, seed, windows
        self._check()
        self.skipped = {}
        found = find_files(self.root)
        named = None if captions is None else read_captions(captions)
        infos = self._probe(found)
        segments = _match(infos, found, named, uncaptioned)
        self._entries = [entry for segment in segments if (entry := self._entry(segment, infos)) is not None]
        if not self._entries:
            reasons = "; ".join(f"{file}: {reason}" for file, reason in list(self.skipped.items())[:5])
            raise ValueError(
                f"no usable clips in {self.root} ({len(self.skipped)} skipped{': ' * bool(reasons)}{reasons})"
            )

    def _check(self) -> None:
        if not self.root.is_dir():
            raise ValueError(f"root must be a folder, got {str(self.root)!r}")
        if not self.choices or min(self.choices) < 1:
            raise ValueError(f"frames must be at least 1, got {self.choices}")
        if self.sizes is not None and not (self.sizes and all(map(is_size, self.sizes))):
            raise ValueError(f"size must be (height, width) of at least 1, or a list of such, got {self.sizes}")
        if self.fps is not None and not 0 < self.fps < math.inf:
            raise ValueError(f"fps must be positive, got {self.fps}")
        if self.crop not in ("center", "stretch", "pad", "random"):
            raise ValueError(f"crop must be 'center', 'stretch', 'pad' or 'random', got {self.crop!r}")
        for name, value, least in (("windows", self.windows, 1), ("seed", self.seed, 0)):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")

    def __len__(self) -> int:
        return len(self._entries) * self.windows

    def __iter__(self) -> Iterator[Clip]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Clip:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is outside a folder of {len(self)} clips")
        index %= len(self)
        for step in range(len(self._entries)):
            entry = self._entries[(index + step) % len(self._entries)]
            try:
                return self._read(entry, index)
            except ValueError as error:
                self._skip(entry.caption.file, str(error))
        raise ValueError(f"no clip of {self.root} can be read any more; skipped: {self.skipped}")

    def sources(self) -> list[str]:
        """What the clips are made of, in their order: a line a segment, which differs where clip or caption may.

        A line has the file's name and the part of it, its bytes, a hash of its first and last 64 KiB, and the caption.

        Example:
            >>> import tempfile, torch
            >>> from tubelet.data.writing import write_video
            >>> with tempfile.TemporaryDirectory() as root:
            ...     write_video(f"{root}/b.png", torch.zeros(3, 1, 32, 32))
            ...     ClipFolder(root, frames=5).sources()  # doctest: +ELLIPSIS
            ["b.png (... bytes, hash ..., '')"]
        """
        marks = {file: _mark(self.root / file) for file in {entry.caption.file for entry in self._entries}}
        segments = [entry.caption for entry in self._entries]
        return [f"{_name(segment)} ({marks[segment.file]}, {segment.caption!r})" for segment in segments]

    def _read(self, entry: _Entry, index: int) -> Clip:
        rng = np.random.default_rng((self.seed, index))
        late, down, right = (float(draw) for draw in rng.random(3))
        start = float(entry.caption.start) + late * max(0.0, entry.span - entry.frames / entry.fps)
        video = read_video(
            self.root / entry.caption.file,
            start=start,
            frames=entry.frames,
            fps=entry.fps,
            size=entry.size,
            crop=(down, right) if self.crop == "random" else self.crop,
            gray=self.gray,
        )
        return Clip(video, entry.caption.caption, entry.caption.file, start)

    def _probe(self, files: Sequence[str]) -> dict[str, VideoInfo]:
        infos = {}
        for file in files:
            try:
                infos[file] = probe_video(self.root / file)
            except ValueError as error:
                self._skip(file, str(error))
        return infos

    def _entry(self, segment: Caption, infos: dict[str, VideoInfo]) -> _Entry | None:
        info = infos.get(segment.file)
        if info is None:
            if segment.file not in self.skipped:
                self._skip(segment.file, f"{self.root / segment.file} has a caption but does not exist")
            return None
        size = (info.height, info.width) if self.sizes is None else _nearest(self.sizes, info)
        if info.frames == 1:
            return _Entry(segment, 0.0, info.fps, 1, size)
        fps = float(self.fps or info.fps)
        span = float(min(info.duration, segment.end or math.inf) - segment.start)
        available = math.floor(span * fps + 0.1)
        fitting = [count for count in self.choices if count <= available]
        if not fitting:
            enough = f"{max(0, available)} frames at {fps:g} fps, but {min(self.choices)} are needed"
            self._skip(_name(segment), f"{self.root / segment.file} holds {enough}")
            return None
        return _Entry(segment, span, fps, max(fitting), size)

    def _skip(self, file: str, reason: str) -> None:
        if file not in self.skipped:
            self.skipped[file] = reason
            warnings.warn(f"skipped {file}: {reason}", stacklevel=3)


def find_files(root: Path) -> list[str]:
    """Files of known kinds below ``root``, sorted, relative, with forward slashes."""
    files = (path.relative_to(root) for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    return sorted(file.as_posix() for file in files if not any(part.startswith(".") for part in file.parts))


def _match(
    infos: dict[str, VideoInfo], found: list[str], named: tuple[Caption, ...] | None, uncaptioned: str
) -> list[Caption]:
    """The segments of all files, in the order of the files, then of the caption lines."""
    if named is None:
        return [Caption(file, "") for file in infos]
    known = {caption.file for caption in named}
    bare = [file for file in infos if file not in known]
    if bare and uncaptioned == "error":
        more = ", ..." if len(bare) > 5 else ""
        raise ValueError(
            f"{len(bare)} of {len(found)} files have no caption: {', '.join(bare[:5])}{more} "
            "(uncaptioned='empty' gives them empty ones)"
        )
    return sorted([*named, *(Caption(file, "") for file in bare)], key=lambda caption: caption.file)


def _name(segment: Caption) -> str:
    """The file, or which part of it."""
    if segment.start == 0 and segment.end is None:
        return segment.file
    return f"{segment.file}[{segment.start:g}:{'' if segment.end is None else format(segment.end, 'g')}]"


def _mark(path: Path) -> str:
    """The length of a file and a hash of its ends, where containers and streams differ."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        digest = hashlib.sha256()
        for start in (0, max(0, size - _END)):
            file.seek(start)
            digest.update(file.read(_END))
    return f"{size} bytes, hash {digest.hexdigest()[:16]}"


def _nearest(sizes: Sequence[tuple[int, int]], info: VideoInfo) -> tuple[int, int]:
    """The size whose aspect ratio is nearest to the file's."""
    aspect = info.width / info.height
    return min(sizes, key=lambda size: abs(math.log(size[1] / size[0] / aspect)))
