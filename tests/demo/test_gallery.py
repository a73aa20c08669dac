"""The gallery: sizes and prompts as promised, files that hold what they are named after, and an honest comparison."""

import numpy as np
import pytest
import torch
from PIL import Image

from tubelet.data import probe_video, read_video
from tubelet.demo import digits
from tubelet.demo.build import build
from tubelet.demo.gallery import SHOWN, given_frames_exact, image_to_video, text_to_video, write_all


@pytest.fixture(scope="module")
def model():
    return build(0).eval()


def test_the_gallery_shows_four_sizes_and_a_still() -> None:
    sizes = {size for _, size in SHOWN}
    assert len(sizes) >= 4
    assert any(t == 1 for t, _, _ in sizes)
    assert {digits.as_captioned(prompt) for prompt, _ in SHOWN} <= set(digits.PROMPTS)
    assert not any(prompt.startswith("a eight") for prompt, _ in SHOWN)


def test_prompts_and_videos_go_together(model) -> None:
    prompts, videos = text_to_video(model, seed=3, steps=1)
    assert [(prompt, tuple(video.shape[1:])) for prompt, video in zip(prompts, videos, strict=True)] == list(SHOWN)
    assert all(video.dtype == torch.float32 and video.abs().max() <= 1 for video in videos)


def test_only_moving_clips_are_continued_and_their_first_frame_stays(model) -> None:
    clips, videos = image_to_video(model, seed=0, count=3)
    assert len(clips) == len(videos) == 3
    assert all(clip.direction for clip in clips)
    assert [video.shape for video in videos] == [clip.video.shape for clip in clips]
    assert given_frames_exact(clips, videos) == {"given_frame_exact": 1.0, "samples": 3}


def test_one_changed_bit_is_not_exact() -> None:
    clips = digits.batch("held_out", 0, 0, 2, (5, 24, 24))
    videos = [clip.video.clone() for clip in clips]
    videos[0][:, 1:] = 0
    videos[1][0, 0, 0, 0] = torch.nextafter(videos[1][0, 0, 0, 0], torch.tensor(2.0))
    assert given_frames_exact(clips, videos) == {"given_frame_exact": 0.5, "samples": 2}


def test_files_hold_their_video(tmp_path) -> None:
    levels = torch.randint(0, 256, (1, 5, 16, 24))
    videos = [levels / 127.5 - 1, levels[:, :1, :, :16] / 127.5 - 1]
    written = write_all(tmp_path / "new", videos, ["a two drifting up", "a two"])
    assert [path.name for path in written] == [
        "0-a-two-drifting-up-5x16x24.mp4",
        "0-a-two-drifting-up-5x16x24.gif",
        "1-a-two-1x16x16.png",
        "contact-sheet.png",
    ]
    info = probe_video(written[0])
    assert (info.frames, info.height, info.width, info.fps) == (5, 96, 144, 8.0)
    shown = ((read_video(written[1], gray=True)[:, :, ::6, ::6] + 1) * 127.5).round().long()
    assert torch.equal(shown, levels)
    with Image.open(written[2]) as still:
        assert np.array_equal(np.asarray(still)[::6, ::6], levels[0, 0, :, :16].numpy())
