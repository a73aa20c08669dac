"""Video files through an autoencoder and back, clip by clip, however long they are."""

import os
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tubelet.data.video import read_clips
from tubelet.data.writing import write_clips
from tubelet.vae.factors import Factors
from tubelet.vae.streaming import StreamingAutoencoder, decode_stream, encode_stream

__all__ = ["decode_file", "encode_file"]


def encode_file(
    vae: StreamingAutoencoder, path: str | os.PathLike[str], *, clip: int = 17, **reading: Any
) -> Iterator[Any]:
    """The posteriors of a video file, each of the next frames; what is held is a clip and the state.

    A file of any size is taken: its last frame, row and column are repeated until the factors divide it.

    Args:
        vae: in evaluation mode; nothing is recorded for gradients.
        path: anything FFmpeg decodes.
        clip: frames read at a time.
        reading: ``start``, ``fps``, ``size``, ``crop`` and ``gray`` of :func:`tubelet.data.read_clips`.

    Raises:
        ValueError, FileNotFoundError, ImportError: as :func:`tubelet.data.read_clips` does.

    Example:
        >>> import tempfile
        >>> from tubelet.data import write_video
        >>> from tubelet.vae import CausalAutoencoder, digits
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_video(f"{folder}/a.mp4", torch.zeros(3, 12, 16, 18), fps=8)
        ...     parts = encode_file(CausalAutoencoder(digits()), f"{folder}/a.mp4", clip=5, gray=True)
        ...     [tuple(part.mode().shape) for part in parts]
        [(1, 16, 2, 2, 3), (1, 16, 1, 2, 3), (1, 16, 1, 2, 3)]
    """
    weight = next(vae.parameters()) if isinstance(vae, nn.Module) else torch.empty(0)
    clips = (part[None].to(weight.device, weight.dtype) for part in read_clips(path, clip, **reading))
    parts = encode_stream(vae, _filled(clips, vae.config.factors))
    while True:
        with torch.no_grad():  # not round a yield, where it would hold for the caller too
            part = next(parts, None)
        if part is None:
            return
        yield part


def decode_file(
    vae: StreamingAutoencoder,
    latents: Iterable[Float[Tensor, "1 z _ h w"]],
    path: str | os.PathLike[str],
    fps: float | int = 8.0,
    *,
    size: tuple[int, int, int] | None = None,
) -> None:
    """Decode the latents of one video and write them to an MP4 file; what is held is a part and the state.

    Args:
        vae: in evaluation mode; nothing is recorded for gradients.
        latents: parts that follow each other.
        path: where to; ``.mp4``. The file appears when it is complete.
        fps: frames per second.
        size: frames, height and width to cut the video to, such as those of a file before it was filled up.

    Raises:
        ValueError: no latents, or as :func:`tubelet.data.write_clips` does.

    Example:
        >>> import tempfile
        >>> from tubelet.data import probe_video
        >>> from tubelet.vae import CausalAutoencoder, digits
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     latents = torch.zeros(1, 16, 4, 2, 3).split(1, dim=2)
        ...     decode_file(CausalAutoencoder(digits()), latents, f"{folder}/a.mp4", size=(12, 16, 18))
        ...     info = probe_video(f"{folder}/a.mp4")
        >>> info.frames, info.height, info.width
        (12, 16, 18)
    """

    def clips() -> Iterator[Tensor]:
        done = 0
        for video in decode_stream(vae, latents):
            frames, height, width = video.shape[2:] if size is None else (size[0] - done, *size[1:])
            done += video.shape[2]
            if frames > 0:
                yield video[0, :, :frames, :height, :width]

    with torch.no_grad():
        write_clips(path, clips(), fps)


def _filled(clips: Iterable[Tensor], factors: Factors) -> Iterator[Tensor]:
    """Clips whose sides, and together whose frames, the factors divide: the last of each is repeated."""
    done, last = 0, None
    for clip in clips:
        height, width = clip.shape[3:]
        sides = (0, -width % factors.spatial, 0, -height % factors.spatial, 0, 0)
        clip = nn.functional.pad(clip, sides, mode="replicate")
        done, last = done + clip.shape[2], clip[:, :, -1:]
        yield clip
    if last is not None and (missing := (1 - done) % factors.temporal):
        yield last.expand(-1, -1, missing, -1, -1)
