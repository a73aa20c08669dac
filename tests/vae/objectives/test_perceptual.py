"""The perceptual loss: LPIPS with gradients, on frames that are drawn evenly."""

from itertools import combinations

import pytest
import torch

from tubelet.metrics import LPIPS
from tubelet.vae.objectives import draw_frames, perceptual_loss


def plain(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """A distance with one number a video: of each frame its mean, weighted by the frame's size."""
    return (x - y).square().mean((1, 2, 3, 4))


def test_of_all_frames_it_is_the_distance() -> None:
    lpips = LPIPS((4, 4, 8, 8, 8)).double()
    a, b = torch.rand(2, 2, 3, 3, 16, 18, dtype=torch.float64) * 2 - 1
    expected = torch.stack([lpips(a[:, :, [i]], b[:, :, [i]]) for i in range(3)]).mean()
    for frames in (None, 3, 7):
        torch.testing.assert_close(perceptual_loss(lpips, a, b, frames), expected, rtol=1e-10, atol=0)


def test_drawn_frames_estimate_the_mean_without_bias() -> None:
    """Over every choice that can be drawn, the mean of the loss is the loss of all frames; choices come alike often."""
    a, b = torch.randn(2, 1, 3, 4, 2, 2, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    drawn = [tuple(row) for row in draw_frames(2, 6000, 4, generator).tolist()]
    choices = list(combinations(range(4), 2))
    assert all(abs(drawn.count(choice) / 6000 - 1 / 6) < 0.02 for choice in choices)
    losses = [plain(a[:, :, list(choice)], b[:, :, list(choice)]).mean() for choice in choices]
    torch.testing.assert_close(torch.stack(losses).mean(), perceptual_loss(plain, a, b), rtol=1e-12, atol=0)


def test_each_clip_has_frames_of_its_own_and_the_same_on_both_sides() -> None:
    a = torch.arange(6.0).reshape(1, 1, 6, 1, 1).expand(8, 3, 6, 2, 2)
    seen = []

    def watch(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        assert torch.equal(x, y)
        seen.extend(tuple(row) for row in x[:, 0, :, 0, 0].tolist())
        return plain(x, y)

    assert perceptual_loss(watch, a, a, 2, torch.Generator().manual_seed(1)).item() == 0.0
    assert len(set(seen)) > 1 and all(first < second for first, second in seen)


def test_gradients_reach_the_drawn_frames_and_equal_differences() -> None:
    lpips = LPIPS((4, 4, 8, 8, 8)).double()
    a, b = torch.rand(2, 1, 1, 5, 16, 16, dtype=torch.float64) * 2 - 1
    draw = lambda x: perceptual_loss(lpips, x, b, 2, torch.Generator().manual_seed(3))  # noqa: E731
    (gradient,) = torch.autograd.grad(draw(a.requires_grad_()), a)
    index = draw_frames(2, 1, 5, torch.Generator().manual_seed(3))[0].tolist()
    assert gradient.abs().sum((0, 1, 3, 4)).nonzero().flatten().tolist() == index
    direction = torch.randn_like(a)
    with torch.no_grad():
        slope = (draw(a + 1e-6 * direction) - draw(a - 1e-6 * direction)) / 2e-6
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-4, atol=1e-9)


@pytest.mark.graph  # run-time shape checks off, as for users
def test_bad_input_is_named() -> None:
    x = torch.zeros(1, 3, 2, 4, 4)
    with pytest.raises(ValueError, match=r"decoded has shape \(1, 3, 1, 4, 4\), but video has \(1, 3, 2, 4, 4\)"):
        perceptual_loss(plain, x[:, :, :1], x)
    with pytest.raises(ValueError, match="count must be a whole number of at least 1, got 0"):
        perceptual_loss(plain, x, x, frames=0)
