"""What an autoencoder makes of some clips, in numbers and beside the originals."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    import tubelet.data

__all__ = ["Scores", "judged", "write_reconstructions"]

_FPS = 8.0
_MOST, _SHOWN = 64, 8  # clips that are judged, and those of them that are shown


@dataclass(frozen=True)
class Scores:
    """PSNR and SSIM of each clip, of the autoencoder and of resizing to as many numbers.

    Example:
        >>> one = {"psnr": 30.0, "ssim": 0.9}
        >>> print(Scores({"a.mp4": {"reconstruction": one, "bicubic": {"psnr": 27.5, "ssim": 0.8}}}))
        30.00 dB, bicubic with as many numbers 27.50 dB (1 clip)
    """

    clips: dict[str, dict[str, dict[str, float]]]

    def __str__(self) -> str:
        ours, theirs = (
            fmean(clip[name]["psnr"] for clip in self.clips.values()) for name in ("reconstruction", "bicubic")
        )
        many = f"{len(self.clips)} clip{'s' * (len(self.clips) > 1)}"
        return f"{ours:.2f} dB, bicubic with as many numbers {theirs:.2f} dB ({many})"


def judged(root: Path, frames: int, side: int) -> "list[tubelet.data.Clip]":
    """The middle square of a window of each file, of at most 64.

    Raises:
        ValueError: nothing usable in the folder, or no clip of ``frames`` frames.

    Example:
        >>> callable(judged)
        True
    """
    from tubelet.data import ClipFolder

    folder = ClipFolder(root, frames=frames, size=(side, side))
    clips = list(islice((clip for clip in folder if clip.video.shape[1] == frames), _MOST))
    if not clips:
        raise ValueError(f"no clip to judge on in {root} has {frames} frames: name videos with --judge")
    return clips


def write_reconstructions(stem: Path, vae: nn.Module, clips: "Sequence[tubelet.data.Clip]") -> Scores:
    """Write ``stem.png``, film strips in three columns, and ``stem.gif``, the same moving; and judge.

    Args:
        stem: the files without their suffixes.
        vae: is in eval mode meanwhile.
        clips: of one size; all are judged, and the first 8 shown.

    Example:
        >>> import tempfile
        >>> from tubelet.data import Clip
        >>> from tubelet.vae import CausalAutoencoder, digits
        >>> clip = Clip(torch.zeros(1, 5, 16, 16), "", "a.mp4", 0.0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     scores = write_reconstructions(Path(folder) / "step", CausalAutoencoder(digits()), [clip])
        ...     sorted(path.name for path in Path(folder).iterdir())
        ['step.gif', 'step.png']
    """
    from tubelet.data import write_contact_sheet, write_video
    from tubelet.vae_recipe import compare

    training = vae.training
    vae.eval()
    compared = [compare(vae, clip.video[None]) for clip in clips]
    vae.train(training)
    labels, videos, scores = [], [], {}
    for clip, (made, numbers) in zip(clips, compared, strict=True):
        scores[clip.file] = numbers
        labels += [clip.file, *(f"{name}, {numbers[name]['psnr']:.2f} dB" for name in numbers)]
        videos += [made[name][0] for name in ("original", *numbers)]
    labels, videos = labels[: 3 * _SHOWN], videos[: 3 * _SHOWN]
    scale = max(1, 128 // videos[0].shape[-1])
    write_contact_sheet(stem.with_suffix(".png"), videos, columns=3, labels=labels, scale=scale, frames=3)
    rows: Any = [torch.cat(videos[i : i + 3], 3) for i in range(0, len(videos), 3)]
    write_video(stem.with_suffix(".gif"), torch.cat(rows, 2), _FPS, scale=scale)
    return Scores(scores)
