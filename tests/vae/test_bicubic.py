"""Resizing as a code: what it keeps is counted, and equals Pillow's resizing."""

import numpy as np
import pytest
import torch
from PIL import Image

from tubelet.vae import bicubic, bicubic_code


def pillow(video: torch.Tensor, height: int, width: int) -> torch.Tensor:
    planes = video.flatten(0, 2).numpy()
    made = [np.asarray(Image.fromarray(p, mode="F").resize((width, height), Image.Resampling.BICUBIC)) for p in planes]
    return torch.from_numpy(np.stack(made)).unflatten(0, video.shape[:3])


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated:DeprecationWarning")
def test_space_is_scaled_as_pillow_does() -> None:
    video = torch.rand(2, 3, 4, 24, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    small = bicubic._in_space(video, 12, 16)
    assert (small - pillow(video, 12, 16)).abs().max() < 1e-5


def test_time_is_averaged_over_a_triangle_and_drawn_as_lines() -> None:
    ramp = torch.arange(8.0).reshape(1, 1, 8, 1, 1).expand(1, 1, 8, 2, 2) / 8
    half = bicubic._in_time(ramp, 4)[0, 0, :, 0, 0] * 8
    assert torch.allclose(half[1:3], torch.tensor([2.5, 4.5]))  # the middles of pairs, where no edge is near
    again = bicubic._in_time(torch.tensor([0.0, 1.0]).reshape(1, 1, 2, 1, 1), 4).flatten()
    assert torch.allclose(again, torch.tensor([0.0, 0.25, 0.75, 1.0]))


@pytest.mark.parametrize(("numbers", "frames"), [(3 * 9 * 24 * 32, 9), (1000, 3), (77, 2), (30, 9)])
def test_no_more_numbers_are_kept_than_there_may_be(numbers: int, frames: int) -> None:
    video = torch.zeros(1, 3, 9, 24, 32)
    height, width = bicubic._sides(video, numbers, frames)
    assert 3 * frames * height * width <= numbers
    assert 3 * frames * (height + 1) * (width + 1) > numbers * 0.9 or (height, width) == (24, 32)


def test_enough_numbers_keep_everything_and_the_best_split_is_taken() -> None:
    generator = torch.Generator().manual_seed(1)
    video = torch.rand(1, 3, 5, 16, 16, generator=generator) * 2 - 1
    assert torch.equal(bicubic_code(video, video.numel()), video)
    still = video[:, :, :1].expand(-1, -1, 5, -1, -1)
    one = bicubic_code(still, 3 * 16 * 16)
    assert torch.allclose(one, still, atol=1e-6)  # one frame at full size is all of a still video
    assert (bicubic_code(still, 3 * 16 * 16, frames=5) - still).abs().mean() > 0.1
    both = bicubic_code(torch.cat([still, video]), 3 * 16 * 16)
    assert torch.equal(both[:1], one)
    errors = [(bicubic_code(video, 300, frames=n) - video).square().mean() for n in range(1, 6)]
    assert (bicubic_code(video, 300) - video).square().mean() == min(errors)


def test_too_few_numbers_are_refused() -> None:
    video = torch.zeros(1, 3, 5, 16, 16)
    with pytest.raises(ValueError, match="numbers must be at least those of one pixel, 3, got 2"):
        bicubic_code(video, 2)
    with pytest.raises(ValueError, match="numbers must be at least 15 for 5 frames, got 14"):
        bicubic_code(video, 14, frames=5)
    with pytest.raises(ValueError, match=r"frames must lie in \[1, 5\], got 6"):
        bicubic_code(video, 100, frames=6)
