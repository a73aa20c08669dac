"""The numbers of the demo against closed forms, SciPy and cases built to have known answers."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from tubelet.demo import digits, metrics
from tubelet.demo.evaluate import judged_clips
from tubelet.demo.judge import Judge
from tubelet.demo.metrics import (
    digit_accuracy,
    direction_accuracy,
    diversity,
    linear_predictor_loss,
    memorised,
    wilson_lower,
)


@given(st.integers(1, 2000), st.floats(0, 1))
def test_wilson_is_scipys(count: int, share: float) -> None:
    successes = round(share * count)
    expected = binomtest(successes, count).proportion_ci(0.95, method="wilson").low
    assert wilson_lower(successes, count) == pytest.approx(expected, abs=1e-7)


def test_wilson_refuses_nonsense() -> None:
    for successes, count in ((0, 0), (3, 2), (-1, 5)):
        with pytest.raises(ValueError, match=f"successes={successes}, count={count}"):
            wilson_lower(successes, count)


class Oracle(Judge):
    """Reads whatever digit the top left pixel spells, in tenths."""

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot((frames[:, 0, 0, 0] * 10).round().long(), 10).float() * 50


def test_digit_accuracy_counts_what_is_read_right() -> None:
    videos = [torch.full((1, t, 16, 16), digit / 10) for t in (1, 5) for digit in range(10)]
    captions = [f"a {word}" for word in digits.WORDS] * 2
    captions[3], captions[14] = "a nine", "a zero drifting left"
    got = digit_accuracy(Oracle(width=1), videos, captions)
    assert got == (18 / 20, wilson_lower(18, 20), 20)
    with pytest.raises(ValueError, match="19 for 20"):
        digit_accuracy(Oracle(width=1), videos, captions[:-1])


def test_direction_accuracy_leaves_stills_out_and_counts_standing_as_wrong() -> None:
    clips = digits.batch("judge", 2, 0, 60)
    videos, captions = [clip.video for clip in clips], [clip.caption for clip in clips]
    moving = [i for i, clip in enumerate(clips) if clip.direction]
    videos[moving[0]] = videos[moving[0]].flip(1)
    videos[moving[1]] = videos[moving[1]][:, :1].expand_as(videos[moving[1]])
    got = direction_accuracy(videos, captions)
    assert got.samples == len(moving) < 60
    assert got.value == pytest.approx(1 - 2 / len(moving))
    with pytest.raises(ValueError, match="name a direction"):
        direction_accuracy(videos[:1], ["a two"])


def test_diversity_is_the_ratio_of_pooled_variances() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 10
    fake, real = (rng.normal(size=(200, 6)) * scale + 9 * labels[:, None] for scale in (0.7, 1.3))

    def within(x: np.ndarray) -> float:
        return float(np.mean([np.trace(np.cov(x[labels == digit].T)) for digit in range(10)]))

    digit = torch.from_numpy(labels)
    got = diversity(torch.from_numpy(fake), digit, torch.from_numpy(real), digit)
    assert got == pytest.approx(within(fake) / within(real), rel=1e-12)
    with pytest.raises(ValueError, match="two samples of each digit"):
        diversity(torch.from_numpy(fake[:15]), digit[:15], torch.from_numpy(real), digit)


def test_memorised_tells_copies_from_strangers() -> None:
    train = [clip.video for clip in digits.batch("train", 0, 0, 400)]
    real = [clip.video for clip in digits.batch("held_out", 0, 0, 101)]
    assert memorised(real, train, real) == (50 / 101, 5 / 101)
    noise = [torch.rand(1, 1, 24, 24) * 2 - 1 for _ in range(10)]
    assert memorised(noise, train, real) == (0, 0)
    shifted = [torch.roll(video, (1, -1), dims=(-2, -1)) for video in train[:50] if video.shape[-1] > 16]
    assert memorised(shifted, train, real).beyond_fifth_percentile > 0.8
    with pytest.raises(ValueError, match="train must hold"):
        memorised(real, [], real)


@pytest.mark.slow
def test_the_scale_of_memorised_is_as_documented() -> None:
    """docs/demo.md: training clips rendered anew, and other digits by the same hands, under the demo's yardstick."""
    train = digits.batch("train", 0, 0, 4000, (1, 24, 24))
    fresh, held = digits.batch("train", 77, 0, 619), judged_clips(0, 500)
    known, near, yardstick = (metrics._aligned([clip.video for clip in clips]) for clips in (train, fresh, held))
    distances = torch.cdist(near, known)
    same = torch.tensor([[one.source == other.source for other in train] for one in fresh])
    bars = torch.cdist(yardstick, known).amin(1).quantile(torch.tensor([0.5, 0.05]))
    found = [
        [round(float((d.amin(1) < bar).double().mean()), 2) for bar in bars]
        for d in (distances, distances.masked_fill(same, torch.inf))
    ]
    assert found == [[0.94, 0.66], [0.78, 0.22]]


def test_memorised_measures_middle_frames_around_their_ink() -> None:
    square = torch.full((1, 3, 24, 24), -1.0)
    square[0, 1, 4:10, 4:10] = 1
    elsewhere = torch.full((1, 1, 32, 32), -1.0)
    elsewhere[0, 0, 17:23, 9:15] = 1
    bar = torch.full((1, 1, 24, 24), -1.0)
    bar[0, 0, 4:20, 4:8] = 1
    assert memorised([elsewhere, bar], [square], [bar, bar]) == (0.5, 0.5)


def test_linear_predictor_loss_is_least_squares() -> None:
    """Against a numerical least-squares fit per element, on many noise draws."""
    generator = torch.Generator().manual_seed(0)
    x = (
        torch.randn(6, 2, 1, 1, 1, generator=generator, dtype=torch.float64)
        * torch.tensor([0.5, 2.0])[:, None, None, None]
    )
    x = x + 3
    errors = []
    for t in (0.2, 0.7):
        for channel in range(2):
            x0 = x[:, channel, 0, 0, 0].repeat(40000)
            eps = torch.randn(len(x0), generator=generator, dtype=torch.float64)
            inputs = torch.stack([(1 - t) * x0 + t * eps, torch.ones_like(x0)], 1)
            target = (eps - x0)[:, None]
            fit = torch.linalg.lstsq(inputs, target).solution
            errors.append(((inputs @ fit - target) ** 2).mean().item())
    got = linear_predictor_loss(list(x), torch.tensor([0.2, 0.7]))
    assert got == pytest.approx(np.mean(errors), rel=0.02)


def test_linear_predictor_loss_weighs_sizes_by_their_numbers() -> None:
    small = [torch.full((1, 1, 1, 1), value) for value in (-1.0, 1.0)]  # variance 1
    large = [torch.full((1, 1, 1, 3), value) for value in (-2.0, 2.0)]  # variance 4
    one, four = 1 / 0.5, 4 / (0.25 * 4 + 0.25)
    got = linear_predictor_loss([small[0], large[0], small[1], large[1]], torch.tensor([0.5]))
    assert got == pytest.approx((2 * one + 6 * four) / 8)
    with pytest.raises(ValueError, match="each size at least twice"):
        linear_predictor_loss(small[:1], torch.tensor([0.5]))
    with pytest.raises(ValueError, match=r"times must lie in \(0, 1\], got 0.0"):
        linear_predictor_loss(small, torch.tensor([0.0, 0.5]))
