"""The judged tasks: scores of real clips and of spoiled ones, and (slow) the shipped checkpoint's of every task."""

from typing import Any

import pytest
import torch

from tubelet.demo import digits
from tubelet.demo.build import build
from tubelet.demo.judge import Judge, train_judge
from tubelet.demo.shipped import load_model
from tubelet.demo.tasks import BAR, NAMES, Done, do_task, judged_task, moving_clips, task_line
from tubelet.diffusion.tasks import extend, loop, nothing


@pytest.fixture(scope="module")
def judge() -> Judge:
    """Trained long enough to read most real clips."""
    return train_judge(0, steps=90)


def real(clips: list[digits.Clip]) -> Done:
    return Done(
        [c.video for c in clips], [c.caption for c in clips], clips, [extend(c.video[:, :5], 13) for c in clips]
    )


def test_real_clips_pass_and_spoiled_ones_do_not(judge) -> None:
    done = real(moving_clips(0, 24))
    scores = judged_task(judge, "extend", done)
    assert scores["passes"]
    assert scores["distance"] == 0
    assert scores["known_exact"] == 1
    backward = done._replace(videos=[video.flip(1) for video in done.videos])
    assert judged_task(judge, "extend", backward)["direction_accuracy"]["value"] == 0
    assert not judged_task(judge, "extend", backward)["passes"]
    inexact = done._replace(videos=[video * 0.999 for video in done.videos])
    assert judged_task(judge, "extend", inexact)["known_exact"] == 0
    assert not judged_task(judge, "extend", inexact)["passes"]
    wrong = done._replace(captions=[digits.caption((c.digit + 1) % 10, c.direction) for c in done.clips])
    assert not judged_task(judge, "extend", wrong)["passes"]


def test_a_loop_must_join(judge) -> None:
    clips = moving_clips(0, 12)
    videos = [torch.cat([c.video, c.video.flip(1)[:, 1:]], dim=1) for c in clips]
    done = Done(videos, [digits.caption(c.digit) for c in clips], clips, [loop(c.video[:, :5], 25) for c in clips])
    scores = judged_task(judge, "loop", done)
    assert scores["passes"]
    assert "direction_accuracy" not in scores
    open_ends = done._replace(videos=[v.clone() for v in videos], knowns=[nothing(v) for v in videos])
    for video in open_ends.videos:
        video[:, -1] *= 0.99
    assert judged_task(judge, "loop", open_ends)["joined"] == 0


def test_distance_and_largest_step_are_in_pixels(judge) -> None:
    clips = moving_clips(0, 4)
    done = real(clips)
    moved = [torch.roll(clip.video, 2, dims=2) for clip in clips]
    inside = [bool((clip.video[0, :, -2:] < -0.9).all()) for clip in clips]
    kept = [i for i, yes in enumerate(inside) if yes]
    some = Done(*[[each[i] for i in kept] for each in (moved, done.captions, clips, done.knowns)])
    assert judged_task(judge, "text", some)["distance"] == pytest.approx(2, abs=1e-3)
    jumpy = [torch.cat([clip.video[:, :6], torch.roll(clip.video[:, 6:], 3, dims=3)], dim=1) for clip in clips]
    assert judged_task(judge, "text", done._replace(videos=jumpy))["largest_step"] > 1.5


@pytest.mark.parametrize("name", NAMES)
def test_every_task_is_done_and_judged(name: str) -> None:
    clips = moving_clips(0, 2)
    ticks: list[int] = []
    done = do_task(build(0), name, clips, seed=0, steps=1, tick=ticks.append)
    assert ticks == [2]
    assert {video.shape for video in done.videos} == {(1, 29 if name == "long" else 13, 32, 32)}
    scores = judged_task(Judge(width=4).eval(), name, done)
    assert scores["known_exact"] == 1
    assert name in task_line(name, scores)
    if name in ("edit", "invert"):
        assert all(caption != clip.caption for caption, clip in zip(done.captions, clips, strict=True))


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(ValueError, match="name must be one of text, image"):
        do_task(build(0), "dream", moving_clips(0, 1), seed=0)


@pytest.fixture(scope="module")
def trained_judge() -> Judge:
    return train_judge(0)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_shipped_checkpoint_passes_every_task(trained_judge, name: str) -> None:
    """On 200 held-out clips each, as ``tubelet demo --tasks`` does."""
    done = do_task(load_model(), name, moving_clips(0, 200), seed=10_000)
    scores: dict[str, Any] = judged_task(trained_judge, name, done)
    print(task_line(name, scores))
    assert scores["passes"], task_line(name, scores)
    assert scores["digit_accuracy"]["samples"] == 200
    assert scores["digit_accuracy"]["value"] >= BAR
    if name not in ("text", "edit", "invert", "long", "loop"):
        assert scores["distance"] < 2.5  # text to video, which knows nothing, is 7 pixels away
