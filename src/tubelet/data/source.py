"""One open video file: compressed packets or upright decoded frames with their times, and FFmpeg's errors made plain.

Frames are ``(seconds since the file's first frame, picture (3, h, w) of 8-bit RGB)``.
"""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from tubelet.files import require

__all__: list[str] = []

Timed = tuple[float, UInt8[Tensor, "3 h w"]]


class Source:
    """A context that opens a file's first video stream; whatever is wrong with it is a ValueError naming the file."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.av: Any = require("av")

    def __enter__(self) -> "Source":
        if not self.path.exists():
            raise FileNotFoundError(f"there is no file {self.path}")
        if not self.path.is_file():
            raise ValueError(f"{self.path} is not a file")
        if self.path.stat().st_size == 0:
            raise ValueError(f"{self.path} is empty (0 bytes)")
        self._open()
        return self

    def __exit__(self, *_: object) -> None:
        self.container.close()

    def _open(self) -> None:
        try:
            self.container = self.av.open(os.fspath(self.path))
        except self.av.FFmpegError as error:
            raise self._error(error) from error
        if not self.container.streams.video:
            self.container.close()
            raise ValueError(f"{self.path} holds no readable video stream")
        self.stream = self.container.streams.video[0]
        self.stream.thread_type = "AUTO"
        self.origin = self.stream.start_time or 0
        self.rate = float(self.stream.average_rate or self.stream.guessed_rate or 25)
        self.tick = float(self.stream.time_base)
        self.last_length = 1 / self.rate

    def _error(self, error: Exception) -> ValueError:
        return ValueError(f"{self.path} cannot be decoded: {getattr(error, 'strerror', None) or error}")

    @property
    def slack(self) -> float:
        """How late a timestamp may be by rounding, in seconds: half a tick, and a tenth of a frame."""
        return 0.1 / self.rate + 0.5 * self.tick

    def seconds(self, pts: int | None, index: int) -> float:
        """Time since the file's first frame; by the mean rate where there is no timestamp."""
        return index / self.rate if pts is None else (pts - self.origin) * self.tick

    def length(self, timed: Any) -> float:
        """Seconds that a packet or frame is shown."""
        return float(timed.duration * self.tick if timed.duration else 1 / self.rate)

    def _packets(self) -> Iterator[Any]:
        for packet in self.container.demux(self.stream):
            if packet.is_corrupt:
                raise ValueError(f"{self.path} is damaged or cut short at {self.seconds(packet.pts, 0):.3g} s")
            yield packet

    def packets(self) -> Iterator[Any]:
        """Compressed frames that will be shown, undecoded."""
        try:
            yield from (packet for packet in self._packets() if packet.size and not packet.is_discard)
        except self.av.FFmpegError as error:
            raise self._error(error) from error

    def frames(self) -> Iterator[Timed]:
        """Decoded frames from where the file stands, upright."""
        try:
            decoded = itertools.chain.from_iterable(packet.decode() for packet in self._packets())
            for index, frame in enumerate(decoded):
                picture = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4)
                self.last_length = self.length(frame)
                yield self.seconds(frame.pts, index), torch.from_numpy(picture.transpose(2, 0, 1).copy())
        except self.av.FFmpegError as error:
            raise self._error(error) from error

    def frames_near(self, seconds: float) -> Iterator[Timed]:
        """Decoded frames from a key frame at or before ``seconds``; from the beginning where the file cannot seek."""
        try:
            self.container.seek(self.origin + int(seconds / self.tick), stream=self.stream, backward=True)
            frames = self.frames()
            first = next(frames, None)
        except (self.av.FFmpegError, ValueError):
            first = None
        if first is None or first[0] > seconds + self.slack:
            self.container.close()
            self._open()
            return self.frames()
        return itertools.chain([first], frames)
