"""The world: real digits, whole forms per split, and motion that is what the caption says."""

import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tubelet.demo import digits

DRIFTING = [size for size, _ in digits.SIZES if size[0] > 1]


def centres(video: torch.Tensor) -> torch.Tensor:
    """The centre of mass of each frame as (y, x)."""
    ink = (video[0].double() + 1) / 2
    places = [torch.arange(side, dtype=torch.float64) for side in ink.shape[1:]]
    y = torch.einsum("thw,h->t", ink, places[0])
    x = torch.einsum("thw,w->t", ink, places[1])
    return torch.stack([y, x], 1) / ink.sum((1, 2))[:, None]


def test_splits_partition_the_file_by_whole_forms() -> None:
    from sklearn.datasets import load_digits

    rows = torch.cat([digits.load(split).rows for split in digits.SPLITS])
    assert sorted(rows.tolist()) == list(range(1797))
    labels = load_digits().target
    text = "".join(map(str, labels))
    for begin, end in zip(digits.FORMS, digits.FORMS[1:], strict=False):
        part = text[begin:end]
        assert part.startswith(("0123456789", "123456789")), part
        assert part.count("0955650989841773") == 1, part


def test_originals_are_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    held = digits.load("held_out")
    np.testing.assert_array_equal(held.ink.reshape(-1, 64).numpy() * 16, images[held.rows])
    np.testing.assert_array_equal(held.digits.numpy(), labels[held.rows])


def test_a_clip_knows_its_source_and_its_digit() -> None:
    from sklearn.datasets import load_digits

    labels = load_digits().target
    for split in digits.SPLITS:
        own = set(digits.load(split).rows.tolist())
        for clip in digits.batch(split, 3, 0, 100):
            assert clip.source in own
            assert labels[clip.source] == clip.digit
            assert digits.parse_caption(clip.caption) == (clip.digit, clip.direction)


@given(st.integers(0, 2**40), st.integers(0, 10**9), st.integers(1, 40))
def test_a_batch_is_its_clips(seed: int, start: int, count: int) -> None:
    together = digits.batch("train", seed, start, count)
    place = count // 2
    alone = digits.clip("train", seed, start + place)
    assert torch.equal(together[place].video, alone.video)
    assert (together[place].caption, together[place].source) == (alone.caption, alone.source)


def test_streams_differ_by_seed_index_and_split() -> None:
    base = digits.clip("train", 0, 0, (1, 24, 24)).video
    for split, seed, index in (("train", 1, 0), ("train", 0, 1), ("judge", 0, 0), ("train", 2**63, 0)):
        assert not torch.equal(digits.clip(split, seed, index, (1, 24, 24)).video, base)


@pytest.mark.parametrize("size", DRIFTING, ids=str)
def test_motion_is_constant_and_goes_where_the_caption_says(size: digits.Size) -> None:
    clips = digits.batch("train", 11, 0, 60, size)
    ways = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
    for clip in clips:
        assert clip.direction is not None
        path = centres(clip.video)
        along = path @ torch.tensor(ways[clip.direction], dtype=torch.float64)
        across = path @ torch.tensor(ways[clip.direction][::-1], dtype=torch.float64)
        assert 2.9 < along[-1] - along[0] < max(3.1, size[0] - 1 + 0.1)
        steps = along.diff()
        assert (steps - steps.mean()).abs().max() < 0.1
        assert (across - across.mean()).abs().max() < 0.06


@pytest.mark.parametrize("size", [size for size, _ in digits.SIZES], ids=str)
def test_no_ink_leaves_the_canvas(size: digits.Size) -> None:
    for clip in digits.batch("judge", 5, 0, 60, size):
        ink = (clip.video[0].double() + 1).sum((1, 2)) / 2
        assert ink.max() / ink.min() < 1.04
        glyph = digits.load("judge").ink[(digits.load("judge").rows == clip.source).nonzero()[0, 0]].double().sum()
        scale = ink.mean() / glyph  # the area of an original pixel: (1.9 * 0.9..1.1)², less where it had to shrink
        assert 0.7 * 1.71**2 < scale < 1.03 * 2.09**2


def test_videos_span_paper_to_full_ink() -> None:
    videos = [clip.video for clip in digits.batch("train", 0, 0, 200)]
    assert min(video.min() for video in videos) == -1
    assert max(video.max() for video in videos) == 1
    assert np.median([(video == -1).float().mean() for video in videos]) > 0.5


def test_the_mix_is_drawn_as_stated() -> None:
    clips = digits.batch("train", 1, 0, 4000)
    assert abs(sum(share for _, share in digits.SIZES) - 1) < 1e-12
    for size, share in digits.SIZES:
        found = sum(clip.video.shape[1:] == size for clip in clips) / len(clips)
        assert abs(found - share) < 5 * (share / len(clips)) ** 0.5
    counts = np.bincount([clip.digit for clip in clips], minlength=10)
    assert counts.min() > 320 and counts.max() < 480


def test_turns_and_slants_match_the_matrix_product() -> None:
    uniform = torch.tensor([[0.9, 0.2, 0.7]], dtype=torch.float64)
    turn, scale, shear = np.deg2rad(10) * 0.8, 1 - 0.06, 0.1 * 0.4
    rotate = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    expected = 1.9 * scale * rotate @ np.array([[1, 0], [shear, 1]])
    np.testing.assert_allclose(digits._affines(uniform)[0].numpy(), expected, rtol=1e-6)


def test_captions_round_trip() -> None:
    assert len(set(digits.PROMPTS)) == 50
    for prompt in digits.PROMPTS:
        assert digits.caption(*digits.parse_caption(prompt)) == prompt
        assert digits.as_captioned(prompt) == prompt


def test_an_becomes_a_and_nothing_else_changes() -> None:
    assert digits.as_captioned("an eight") == digits.as_captioned("An eight") == "a eight"
    assert digits.as_captioned("a banana and an ant, an") == "a banana and a ant, a"
    assert digits.as_captioned("") == ""


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: digits.clip("train", 0, 0, (9, 16, 16)), r"side of at least 24.*\(9, 16, 16\)"),
        (lambda: digits.clip("train", 0, 0, (4, 24, 24)), r"frames in .*\(4, 24, 24\)"),
        (lambda: digits.clip("train", 0, 0, (5, 24, 20)), r"sides in .*\(5, 24, 20\)"),
        (lambda: digits.batch("train", 0, -1, 2), "start=-1, count=2"),
        (lambda: digits.caption(10), "got 10"),
        (lambda: digits.parse_caption("a svn"), "got 'a svn'"),
    ],
)
def test_bad_input_is_named(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]


def test_a_missing_scikit_learn_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    digits.load.cache_clear()
    with pytest.raises(ImportError, match=r"tubelet\[demo\]"):
        digits.load("train")
