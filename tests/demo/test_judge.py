"""The judge reads other people's hands, and the ruler reads directions."""

import pytest
import torch

from tubelet.demo import digits
from tubelet.demo.judge import Judge, direction, ink_centre, train_judge


@pytest.mark.slow
def test_the_judge_reads_hands_it_never_saw() -> None:
    judge = train_judge(seed=0)
    for split in ("held_out", "train"):
        clips = digits.batch(split, 77, 0, 600)
        read = judge.digit([clip.video for clip in clips]).argmax(1)
        right = (read == torch.tensor([clip.digit for clip in clips])).float().mean()
        assert right >= 0.97, (split, right)


def test_training_is_deterministic_leaves_global_randomness_and_learns() -> None:
    before = torch.random.get_rng_state()
    losses: list[float] = []
    first = train_judge(seed=3, steps=12, progress=lambda _, loss: losses.append(loss))
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(99)
    again = train_judge(seed=3, steps=12)
    other = train_judge(seed=4, steps=1)
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert not torch.equal(first.head.weight, other.head.weight)
    assert len(losses) == 12 and losses[-1] < losses[0] - 0.3
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        train_judge(steps=0)


def test_probabilities_and_features_average_the_frames_of_mixed_sizes() -> None:
    judge = Judge(width=4).double().eval()
    sizes = [(5, 16, 24), (1, 16, 16), (5, 16, 24), (3, 24, 16)]
    videos = [torch.rand(1, *size, dtype=torch.float64) * 2 - 1 for size in sizes]
    for i, video in enumerate(videos):
        frames = [video[None, :, t] for t in range(video.shape[1])]
        said = torch.stack([judge(frame)[0].softmax(0) for frame in frames]).mean(0)
        torch.testing.assert_close(judge.digit(videos)[i], said, rtol=1e-10, atol=1e-12)
        seen = torch.stack([judge.body(frame)[0] for frame in frames]).mean(0)
        torch.testing.assert_close(judge.features(videos)[i], seen, rtol=1e-10, atol=1e-12)


def test_judge_rejects_small_frames_and_builds_on_meta() -> None:
    with pytest.raises(ValueError, match=r"at least 16 pixels.*8, 24"):
        Judge(width=4).eval().digit([torch.zeros(1, 1, 8, 24)])
    assert Judge(width=4, device=torch.device("meta")).head.weight.is_meta
    judge = Judge(width=4)
    old = judge.head.weight.clone()
    judge.reset_parameters()
    assert not torch.equal(judge.head.weight, old)


def test_ink_centre_of_a_block_and_of_paper() -> None:
    video = torch.full((1, 2, 16, 20), -1.0)
    video[0, 0, 2:5, 6:12] = 1.0
    video[0, 0, 15, 19] = -0.6  # fainter than a quarter of full ink
    torch.testing.assert_close(ink_centre(video), torch.tensor([[3.0, 8.5], [7.5, 9.5]]))


@pytest.mark.parametrize("split", ["train", "judge", "held_out"])
def test_directions_of_real_clips(split: digits.Split) -> None:
    clips = digits.batch(split, 21, 0, 200)
    assert all(direction(clip.video) == clip.direction for clip in clips)
    mirrored = {"left": "right", "right": "left", "up": "up", "down": "down", None: None}
    reversed_ = {"left": "right", "right": "left", "up": "down", "down": "up", None: None}
    for clip in clips[:50]:
        assert direction(clip.video.flip(-1)) == mirrored[clip.direction]
        assert direction(clip.video.flip(1)) == reversed_[clip.direction]


def test_what_stands_still_has_no_direction() -> None:
    frame = digits.clip("train", 0, 0, (1, 24, 24)).video
    still = frame.expand(1, 9, 24, 24)
    assert direction(still) is None
    moved = torch.cat([still[:, :6], still[:, 6:].roll(2, dims=-1)], dim=1)
    assert direction(moved) == "right"
    assert direction(moved, least=2.5) is None
