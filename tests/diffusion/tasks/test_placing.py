"""Every task against a loop over frames and pixels: what is known, where it stands, and what is refused."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tubelet.diffusion import Known
from tubelet.diffusion.tasks import (
    connect,
    extend,
    inpaint,
    interpolate,
    loop,
    nothing,
    outpaint,
    place,
    prepend,
    upsample,
)


def clip(frames: int, seed: int = 0, sides: tuple[int, int] = (2, 3)) -> torch.Tensor:
    return torch.randn(2, frames, *sides, generator=torch.Generator().manual_seed(seed))


def frames_of(known: Known) -> list[bool]:
    """Which frames are known; each must be so as a whole, and hold zeros where it is not."""
    tokens = known.tokens.flatten(1)
    assert torch.equal(tokens.all(1), tokens.any(1))
    assert not bool(known.video[:, ~tokens.all(1)].any())
    return tokens.all(1).tolist()


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 4))
def test_clips_stand_where_they_are_said_to(n: int, m: int, between: int) -> None:
    first, last, frames = clip(n), clip(m, 1), n + between + m
    here = [True] * n + [False] * (between + m)
    there = [False] * (n + between) + [True] * m
    for known, expected in (
        (extend(first, frames), here),
        (prepend(last, frames), there),
        (place({-m: last}, frames), there),
        (connect(first, last, frames), [a or b for a, b in zip(here, there, strict=True)]),
    ):
        assert frames_of(known) == expected
        assert known.video.shape == (2, frames, 2, 3)
    both = connect(first, last, frames).video
    assert torch.equal(both[:, :n], first)
    assert torch.equal(both[:, frames - m :], last)


@given(st.integers(1, 5), st.integers(0, 3), st.data())
def test_a_loop_ends_with_the_frames_that_it_begins_with(n: int, between: int, data) -> None:
    joined = data.draw(st.integers(1, n))
    frames = n + between + joined
    known = loop(clip(n), frames, joined)
    assert frames_of(known) == [True] * n + [False] * between + [True] * joined
    assert torch.equal(known.video[:, -joined:], known.video[:, :joined])
    assert torch.equal(known.video[:, :n], clip(n))


@given(st.integers(1, 5), st.integers(1, 4))
def test_upsampling_keeps_every_so_many_frames(n: int, factor: int) -> None:
    known = upsample(clip(n), factor)
    assert frames_of(known) == [number % factor == 0 for number in range(1 + factor * (n - 1))]
    assert torch.equal(known.video[:, ::factor], clip(n))


def test_keyframes_stand_in_any_order() -> None:
    known = interpolate(clip(3), at=[4, 0, 1], frames=6)
    assert frames_of(known) == [True, True, False, False, True, False]
    assert torch.equal(known.video[:, [4, 0, 1]], clip(3))


def test_a_hole_of_any_shape_in_space_and_time() -> None:
    video = clip(3)
    hole = torch.rand(3, 2, 3, generator=torch.Generator().manual_seed(3)) < 0.5
    for narrow in (hole, hole[:1], hole[:, :1], hole[..., :1]):
        known = inpaint(video, narrow)
        whole = narrow.expand(3, 2, 3)
        assert torch.equal(known.tokens, ~whole)
        assert torch.equal(known.video[:, ~whole], video[:, ~whole])
        assert not bool(known.video[:, whole].any())


def test_what_a_hole_covers_may_be_anything() -> None:
    known = inpaint(torch.full((1, 1, 1, 2), torch.nan), torch.tensor([[[True, True]]]))
    assert known.video.flatten().tolist() == [0.0, 0.0]


def test_a_canvas_around_a_video() -> None:
    known = outpaint(clip(2), sides=(5, 4), corner=(2, 1))
    assert known.video.shape == (2, 2, 5, 4)
    assert torch.equal(known.video[..., 2:4, 1:4], clip(2))
    assert int(known.tokens.sum()) == 2 * 2 * 3
    assert bool(known.tokens[:, 2:4, 1:4].all())


def test_nothing_is_known_of_text_to_video() -> None:
    assert frames_of(nothing(clip(2))) == [False, False]


def test_clips_that_overlap_must_agree() -> None:
    whole = clip(4)
    known = place({0: whole[:, :3], 1: whole[:, 1:]}, frames=4)
    assert torch.equal(known.video, whole)
    with pytest.raises(ValueError, match="the clip from frame 1 on differs from another"):
        place({0: whole[:, :3], 1: -whole[:, 1:]}, frames=4)


def test_dtype_and_device_are_the_clips() -> None:
    known = extend(clip(1).double(), frames=2)
    assert known.values.dtype == torch.float64


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: extend(clip(4), 3), "a clip of 4 frames from frame 0 on is not within 3 frames"),
        (lambda: prepend(clip(4), 3), "a clip of 4 frames from frame -1 on is not within 3 frames"),
        (lambda: place({3: clip(2)}, 4), "a clip of 2 frames from frame 3 on is not within 4"),
        (lambda: place({}, 4), "clips is empty"),
        (lambda: place({0: clip(1), 1: clip(1, sides=(2, 2))}, 4), r"got \(2, 1, 2, 3\) and \(2, 1, 2, 2\)"),
        (lambda: connect(clip(2), clip(3), 4), "clips of 2 and 3 frames do not fit into frames=4"),
        (lambda: loop(clip(2), 5, joined=3), "joined must be from 1 to the clip's 2 frames, got 3"),
        (lambda: loop(clip(2), 5, joined=0), "joined must be from 1 to the clip's 2 frames, got 0"),
        (lambda: loop(clip(2), 3, joined=2), "a clip of 2 frames and joined=2 do not fit into frames=3"),
        (lambda: interpolate(clip(2), [0, 0], 4), r"a place of its own, got \[0, 0\]"),
        (lambda: interpolate(clip(2), [0], 4), r"each of the 2 keyframes .* got \[0\]"),
        (lambda: upsample(clip(2), 0), "factor must be at least 1, got 0"),
        (lambda: outpaint(clip(1), (3, 3), (2, 0)), r"a video of 2x3 at \(2, 0\) is not within sides=\(3, 3\)"),
        (lambda: outpaint(clip(1), (3, 3), (-1, 0)), r"at \(-1, 0\)"),
    ],
)
def test_bad_input_is_refused(make, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()


@pytest.mark.graph  # run-time shape checks off, as for users
def test_a_hole_of_other_sides_is_refused() -> None:
    with pytest.raises(ValueError, match=r"hole has sides \(2, 2, 3\).* \(3, 2, 3\)"):
        inpaint(clip(3), torch.ones(2, 2, 3, dtype=torch.bool))
