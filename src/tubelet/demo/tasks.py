"""Every task of known frames, done by a checkpoint of the demo on held-out clips, and judged as its samples are.

A task passes where the judge reads the digit that the prompt names, and the ink drifts as the prompt says, in at least
85 % of the videos. Since the prompt alone gives both, ``distance`` says how far the ink's centre is from the real
clip's, in pixels, averaged over the frames: it is what the known pixels add.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from tubelet.completion import TASKS, complete, edit, edit_inverted, lengthen, task
from tubelet.demo import digits
from tubelet.demo.judge import Judge, ink_centre
from tubelet.demo.metrics import digit_accuracy, direction_accuracy
from tubelet.diffusion import Known
from tubelet.pipeline import TextToVideo

__all__ = ["BAR", "NAMES", "Done", "do_task", "judged_task", "moving_clips", "task_line"]

BAR = 0.85
"""The share of videos whose digit, and direction, must be right. Example: ``BAR``."""

NAMES = (*TASKS, "edit", "invert", "long")
"""Every task. Example: ``NAMES[0]``."""

_SIZE: digits.Size = (13, 32, 32)
_FRAMES, _AT_ONCE = {"long": 29}, 50
_STRENGTH, _EDIT_GUIDANCE, _INVERTED_GUIDANCE = 0.75, 4.0, 3.0
_EVERY = 2  # upsample


class Done(NamedTuple):
    """Videos of a task, what they should show, and the clips and known pixels that they were made from.

    Example:
        >>> Done([], [], [], []).videos
        []
    """

    videos: list[Float[Tensor, "1 _ _ _"]]
    captions: list[str]
    clips: list[digits.Clip]
    knowns: list[Known]


def moving_clips(seed: int, count: int) -> list[digits.Clip]:
    """Held-out clips that drift, of 13 frames of 32x32.

    Example:
        >>> [clip.video.shape for clip in moving_clips(seed=0, count=1)]
        [torch.Size([1, 13, 32, 32])]
    """
    return digits.batch("held_out", seed, 0, count, _SIZE)


def do_task(
    model: TextToVideo,
    name: str,
    clips: Sequence[digits.Clip],
    seed: int,
    *,
    steps: int = 25,
    tick: Callable[[int], None] | None = None,
) -> Done:
    """A task on clips, with their captions as prompts, in packed batches of 50.

    Some ask for something else: a loop cannot drift on, so its prompt is the digit alone; ``edit`` and ``invert``
    want another digit with the clip's motion; ``upsample`` is given the clip at half its rate; ``long`` goes on for 29
    frames from the clip's first 5.

    Raises:
        ValueError: a name that is not in :data:`NAMES`.

    Example:
        >>> from tubelet.demo.build import build
        >>> [video.shape for video in do_task(build(0), "prepend", moving_clips(0, 1), seed=0, steps=1).videos]
        [torch.Size([1, 13, 32, 32])]
    """
    if name not in NAMES:
        raise ValueError(f"name must be one of {', '.join(NAMES)}, got {name!r}")
    made: list[Tensor] = []
    captions = [_caption(name, clip) for clip in clips]
    knowns = [_known(name, clip) for clip in clips]
    for start in range(0, len(clips), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        seeds = [seed + start + i for i in range(len(clips[part]))]
        with torch.autocast("cpu", torch.bfloat16):
            made += _make(model, name, clips[part], captions[part], knowns[part], seeds, steps)
        if tick is not None:
            tick(len(made))
    return Done(made, captions, list(clips), knowns)


def _make(
    model: TextToVideo,
    name: str,
    clips: Sequence[digits.Clip],
    captions: list[str],
    knowns: list[Known],
    seeds: list[int],
    steps: int,
) -> list[Tensor]:
    videos = [clip.video for clip in clips]
    if name == "edit":
        return edit(model, captions, videos, seeds, strength=_STRENGTH, steps=steps, guidance=_EDIT_GUIDANCE)
    if name == "invert":
        sources = [clip.caption for clip in clips]
        return edit_inverted(model, captions, videos, sources, steps=steps, guidance=_INVERTED_GUIDANCE)
    if name == "long":
        starts = [video[:, :5] for video in videos]
        return lengthen(model, captions, starts, _FRAMES[name], seeds, window=_SIZE[0], overlap=5, steps=steps)
    return complete(model, captions, knowns, seeds, steps=steps)


def _caption(name: str, clip: digits.Clip) -> str:
    if name == "loop":
        return digits.caption(clip.digit)
    if name in ("edit", "invert"):
        return digits.caption((clip.digit + 3) % 10, clip.direction)
    return clip.caption


def _known(name: str, clip: digits.Clip) -> Known:
    """What a task keeps bit for bit; the edits keep nothing so."""
    if name == "long":
        return task("extend", clip.video, _FRAMES[name])
    if name == "upsample":
        return task(name, clip.video[:, ::_EVERY], _SIZE[0], every=_EVERY)
    return task(name if name in TASKS else "text", clip.video, _SIZE[0])


def judged_task(judge: Judge, name: str, done: Done) -> dict[str, Any]:
    """The scores of a task, and whether it passes.

    Args:
        judge: reads the digits.
        name: the task's.
        done: what :func:`do_task` gave.

    Returns:
        ``digit_accuracy`` and, but for a loop, ``direction_accuracy``; ``known_exact``, the share of videos whose known
        pixels are the given ones, bit for bit; ``distance`` from the real clip where it shows the same time;
        ``largest_step`` of the ink's centre between two frames, the median over the videos; for a loop ``joined``, the
        share whose last frame is the first; ``passes``.

    Example:
        >>> from tubelet.demo.build import build
        >>> done = do_task(build(0), "loop", moving_clips(0, 1), seed=0, steps=1)
        >>> scores = judged_task(Judge(width=4).eval(), "loop", done)
        >>> scores["known_exact"], scores["joined"]
        (1.0, 1.0)
    """
    pairs = list(zip(done.videos, done.knowns, strict=True))
    scores: dict[str, Any] = {
        "digit_accuracy": digit_accuracy(judge, done.videos, done.captions)._asdict(),
        "known_exact": _share(torch.equal(known.apply(v := video.permute(1, 2, 3, 0)), v) for video, known in pairs),
        "largest_step": float(torch.stack([_steps(video).max() for video in done.videos]).median()),
    }
    bars = [scores["digit_accuracy"]["value"] >= BAR, scores["known_exact"] == 1]
    if name == "loop":
        scores["joined"] = _share(torch.equal(video[:, 0], video[:, -1]) for video in done.videos)
        bars.append(scores["joined"] == 1)
    else:
        scores["direction_accuracy"] = direction_accuracy(done.videos, done.captions)._asdict()
        bars.append(scores["direction_accuracy"]["value"] >= BAR)
    if name not in ("loop", "long"):
        scores["distance"] = _distance(done.videos, [clip.video for clip in done.clips])
    return scores | {"passes": all(bars)}


def task_line(name: str, scores: dict[str, Any]) -> str:
    """A line of the table.

    Example:
        >>> accuracy = {"value": 1.0, "lower": 0.98, "samples": 200}
        >>> task_line("loop", {"digit_accuracy": accuracy, "known_exact": 1.0, "largest_step": 0.6, "passes": True})
        '  pass  loop         digit 1.000  direction -      exact 1.000  distance -     step 0.60'
    """
    direction = scores.get("direction_accuracy")
    shown = "-    " if direction is None else f"{direction['value']:.3f}"
    distance = f"{scores['distance']:.2f} " if "distance" in scores else "-    "
    return (
        f"  {'pass' if scores['passes'] else 'MISS'}  {name:<12} digit {scores['digit_accuracy']['value']:.3f}  "
        f"direction {shown}  exact {scores['known_exact']:.3f}  distance {distance} step {scores['largest_step']:.2f}"
    )


def _share(right: Any) -> float:
    found = [bool(each) for each in right]
    return sum(found) / len(found)


def _steps(video: Float[Tensor, "1 t h w"]) -> Float[Tensor, " s"]:
    """How far the ink's centre goes from each frame to the next, in pixels."""
    centre = ink_centre(video)
    return (centre[1:] - centre[:-1]).square().sum(1).sqrt()


def _distance(videos: Sequence[Tensor], real: Sequence[Tensor]) -> float:
    gaps = [ink_centre(a) - ink_centre(b) for a, b in zip(videos, real, strict=True)]
    return float(torch.stack(gaps).square().sum(-1).sqrt().mean())
