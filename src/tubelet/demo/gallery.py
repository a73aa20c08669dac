"""The demo's pictures: one checkpoint sampled at several durations and shapes, and images brought to motion."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tubelet.data import write_video
from tubelet.demo import digits
from tubelet.demo.evaluate import sample_like
from tubelet.demo.pictures import sample_sheet
from tubelet.pipeline import TextToVideo, generate

__all__ = ["SHOWN", "given_frames_exact", "image_to_video", "text_to_video", "write_all"]

SHOWN: tuple[tuple[str, digits.Size], ...] = (
    ("a seven drifting left", (13, 32, 32)),
    ("a three drifting right", (9, 16, 32)),
    ("a four drifting up", (9, 32, 24)),
    ("a two drifting down", (5, 24, 24)),
    ("a zero drifting left", (9, 24, 32)),
    ("an eight", (1, 24, 24)),
)
"""Prompts and (frames, height, width) of the gallery. Example: ``SHOWN[0]``."""


def text_to_video(model: TextToVideo, seed: int, steps: int = 25) -> tuple[list[str], list[Float[Tensor, "1 _ _ _"]]]:
    """The gallery's prompts and one sample of each, all in one packed batch.

    Example:
        >>> from tubelet.demo.build import build
        >>> prompts, videos = text_to_video(build(0), seed=0, steps=1)
        >>> [tuple(video.shape) for video in videos] == [(1, *size) for _, size in SHOWN]
        True
    """
    prompts, sizes = [prompt for prompt, _ in SHOWN], [size for _, size in SHOWN]
    with torch.autocast("cpu", torch.bfloat16):
        worded = [digits.as_captioned(prompt) for prompt in prompts]
        videos = generate(model, worded, sizes, [seed + i for i in range(len(prompts))], steps=steps, guidance=2.0)
    return prompts, [video.float() for video in videos]


def image_to_video(model: TextToVideo, seed: int, count: int = 64) -> tuple[list[digits.Clip], list[Tensor]]:
    """Held-out clips, and what the model makes of their first frames and captions.

    Example:
        >>> from tubelet.demo.build import build
        >>> clips, videos = image_to_video(build(0), seed=0, count=1)
        >>> torch.equal(clips[0].video[:, 0], videos[0][:, 0])
        True
    """
    clips = [clip for clip in digits.batch("held_out", seed, 0, 2 * count) if clip.direction][:count]
    return clips, sample_like(model, clips, seed, first_frames=True)


def write_all(folder: Path, videos: Sequence[Float[Tensor, "1 _ _ _"]], captions: Sequence[str]) -> list[Path]:
    """Each video as MP4 and GIF (a still as PNG), and a contact sheet of all.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     [path.name for path in write_all(Path(folder), [torch.zeros(1, 1, 16, 16)], ["a one"])]
        ['0-a-one-1x16x16.png', 'contact-sheet.png']
    """
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for number, (video, caption) in enumerate(zip(videos, captions, strict=True)):
        t, h, w = video.shape[1:]
        stem = f"{number}-{caption.replace(' ', '-')}-{t}x{h}x{w}"
        for suffix in (".png",) if t == 1 else (".mp4", ".gif"):
            written.append(folder / f"{stem}{suffix}")
            write_video(written[-1], video, fps=8, scale=6)
    written.append(folder / "contact-sheet.png")
    sample_sheet(written[-1], videos, captions)
    return written


def given_frames_exact(clips: Sequence[digits.Clip], videos: Sequence[Tensor]) -> dict[str, Any]:
    """The share of videos whose first frame is the given one, bit for bit.

    Example:
        >>> clips = digits.batch("held_out", 0, 0, 1)
        >>> given_frames_exact(clips, [clips[0].video])
        {'given_frame_exact': 1.0, 'samples': 1}
    """
    same = [torch.equal(clip.video[:, :1], video[:, :1]) for clip, video in zip(clips, videos, strict=True)]
    return {"given_frame_exact": sum(same) / len(same), "samples": len(same)}
