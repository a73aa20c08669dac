"""Random crops of a folder of videos and images, for networks that are trained on pixels.

Files are decoded once, at most at a given size, and held as 8-bit levels; a folder that memory cannot hold is gone
through in pools of files. A batch is then a pure function of ``(seed, step)``, so training resumes exactly: which pool,
which files, which windows of time, which squares at which scale, and which are mirrored or run backwards.
"""

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from tubelet.data.clips import find_files
from tubelet.data.video import probe_video, read_clips, resized
from tubelet.packing import pack_stream

__all__ = ["RandomCrops"]

_CHUNK = 32  # frames decoded at once
_GB = 2**30


@dataclass(frozen=True)
class _File:
    """A usable file: its name, the frames that are held of it and their size."""

    name: str
    frames: int
    size: tuple[int, int]

    @property
    def numbers(self) -> int:
        return 3 * self.frames * self.size[0] * self.size[1]


class RandomCrops:
    """Batches of square crops of the videos below a folder.

    A file is drawn with a chance that grows with the root of its length, so that long ones do not drown short ones; of
    it a window of ``frames`` frames, a square whose side lies between ``size`` and the shorter side of the picture, all
    ratios being equally likely, scaled down to ``size``; half of the crops are mirrored and half run backwards.

    Args:
        root: folder, searched with its subfolders as by :class:`ClipFolder`.
        frames: of a crop; shorter files are passed over, with a warning.
        size: side of a crop in pixels.
        most: the shorter side of what is held; larger pictures are scaled down to it. Default: ``4 * size``.
        longest: frames held of one file, from its first.
        memory: bytes to hold; a folder that needs more is gone through in pools of files that fit.
        turn: steps before the next pool takes over, where there are several.
        seed: what everything is drawn from.
        on_file: is told how many files of how many are decoded, while a pool is.

    Attributes:
        skipped: for each file that cannot be used, why.

    Raises:
        ValueError: ``root`` is no folder, nothing in it is usable, a bad argument; at a batch, a file that is damaged
            further on, which is named.
        ImportError: PyAV is missing (extra ``tubelet[video]``).

    Example:
        >>> import tempfile, tubelet.data
        >>> with tempfile.TemporaryDirectory() as root:
        ...     tubelet.data.write_video(f"{root}/a.mp4", torch.zeros(3, 20, 32, 48), fps=10)
        ...     crops = RandomCrops(root, frames=5, size=16)
        ...     crops.batch(0, 2).shape, torch.equal(crops.batch(7, 2), crops.batch(7, 2))
        (torch.Size([2, 3, 5, 16, 16]), True)
    """

    skipped: dict[str, str]

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        frames: int,
        size: int,
        most: int | None = None,
        longest: int = 1000,
        memory: int = 4 * _GB,
        turn: int = 500,
        seed: int = 0,
        on_file: Callable[[int, int], None] | None = None,
    ) -> None:
        self.root, self.frames, self.size = Path(root), frames, size
        self.most, self.longest, self.memory = 4 * size if most is None else most, longest, memory
        self.turn, self.seed, self.on_file = turn, seed, on_file
        self._check()
        self.skipped = {}
        found = [self._probed(name) for name in find_files(self.root)]
        self.files = [file for file in found if file is not None]
        if not self.files:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in list(self.skipped.items())[:5])
            raise ValueError(f"no usable clips in {self.root} ({len(found)} skipped{': ' * bool(reasons)}{reasons})")
        if max(file.numbers for file in self.files) > memory:
            largest = max(self.files, key=lambda file: file.numbers)
            needs = f"{largest.numbers} bytes for {largest.frames} frames of {largest.size[0]}x{largest.size[1]}"
            raise ValueError(f"memory is {memory} bytes, but {self.root / largest.name} needs {needs}")
        order = np.random.default_rng(seed).permutation(len(self.files)).tolist()
        packs = pack_stream([self.files[i].numbers for i in order], memory)
        self._pools = [tuple(order[i] for i in members) for members in packs]
        self._held: tuple[tuple[int, ...], list[UInt8[Tensor, "t 3 h w"]]] = ((), [])

    def _check(self) -> None:
        if not self.root.is_dir():
            raise ValueError(f"root must be a folder, got {str(self.root)!r}")
        for name in ("frames", "size", "longest", "memory", "turn"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name, least in (("most", self.size), ("longest", self.frames)):
            if (value := getattr(self, name)) < least:
                raise ValueError(f"{name} must be at least that of a crop, {least}, got {value}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")

    def batch(self, step: int, count: int) -> Float[Tensor, "b 3 t h w"]:
        """``count`` crops, a function of the seed and the step alone.

        Raises:
            ValueError: a count below 1, or a file that cannot be decoded after all.
        """
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        pool = self._pool(step)
        rng = np.random.default_rng((self.seed, step))
        chances = np.sqrt([len(video) for video in pool])
        chosen = rng.choice(len(pool), count, p=chances / chances.sum())
        crops = [self._crop(pool[i], rng.random(6).tolist()) for i in chosen]
        return torch.stack(crops).float().div_(127.5).sub_(1)

    def _crop(self, video: UInt8[Tensor, "n 3 h w"], drawn: Sequence[float]) -> UInt8[Tensor, "3 t s s"]:
        """The crop that six numbers in [0, 1) say."""
        scale, late, down, right, mirror, reverse = drawn
        height, width = video.shape[2:]
        side = round(self.size * (min(height, width) / self.size) ** scale)
        first, top, left = (
            int(place * (length - part + 1))
            for place, length, part in (
                (late, len(video), self.frames),
                (down, height, side),
                (right, width, side),
            )
        )
        window = video[first : first + self.frames, :, top : top + side, left : left + side]
        crop = resized(window, (self.size, self.size))
        turned = [axis for axis, draw in ((3, mirror), (0, reverse)) if draw < 0.5]
        return (crop.flip(turned) if turned else crop).transpose(0, 1)

    def _pool(self, step: int) -> list[UInt8[Tensor, "n 3 h w"]]:
        """The decoded files that a step draws from; the last pool is kept."""
        members = self._pools[(step // self.turn) % len(self._pools)]
        if members != self._held[0]:
            self._held = ((), [])  # free the old pool before the new one is decoded
            self._held = (members, [self._decoded(i, place, len(members)) for place, i in enumerate(members)])
        return self._held[1]

    def _decoded(self, index: int, place: int, count: int) -> UInt8[Tensor, "n 3 h w"]:
        file, held = self.files[index], []
        for part in read_clips(self.root / file.name, _CHUNK, size=file.size, crop="stretch"):
            held.append(part.add(1).mul(127.5).round().to(torch.uint8).transpose(0, 1))
            if sum(map(len, held)) >= file.frames:
                break
        if self.on_file is not None:
            self.on_file(place + 1, count)
        video = torch.cat(held)[: file.frames]
        if len(video) < self.frames:
            raise ValueError(f"{self.root / file.name} has {len(video)} frames, but {self.frames} are needed")
        return video.contiguous(memory_format=torch.channels_last)

    def _probed(self, name: str) -> _File | None:
        """A file that can be used; of another, the warning."""
        path = self.root / name
        try:
            info = probe_video(path)
        except ValueError as error:
            self._skip(name, str(error))
            return None
        shorter = min(info.height, info.width)
        if info.frames < self.frames:
            self._skip(name, f"{path} has {info.frames} frames, but {self.frames} are needed")
        elif shorter < self.size:
            self._skip(name, f"{path} has {info.height}x{info.width} pixels, but crops have {self.size}x{self.size}")
        else:
            scale = min(1.0, self.most / shorter)
            size = round(info.height * scale), round(info.width * scale)
            return _File(name, min(info.frames, self.longest), size)
        return None

    def _skip(self, name: str, reason: str) -> None:
        self.skipped[name] = reason
        warnings.warn(f"skipped {name}: {reason}", stacklevel=4)
