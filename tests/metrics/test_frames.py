"""PSNR and SSIM against their definitions, pixel by pixel in float64."""

import math

import pytest
import torch
from torch import Tensor

from tubelet.metrics import psnr, ssim


def video(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


def ssim_of_windows(x: Tensor, y: Tensor, span: float) -> float:
    """Wang et al. 2004, equations 6, 13 and 14-17, at each place where the window fits into one plane."""
    weights = torch.tensor(
        [[math.exp(-(i * i + j * j) / (2 * 1.5**2)) for j in range(-5, 6)] for i in range(-5, 6)], dtype=torch.float64
    )
    weights /= weights.sum()
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    found = []
    for top in range(x.shape[0] - 10):
        for left in range(x.shape[1] - 10):
            a, b = (plane[top : top + 11, left : left + 11] for plane in (x, y))
            ma, mb = float((weights * a).sum()), float((weights * b).sum())
            va, vb = float((weights * (a - ma) ** 2).sum()), float((weights * (b - mb) ** 2).sum())
            shared = float((weights * (a - ma) * (b - mb)).sum())
            found.append(((2 * ma * mb + c1) * (2 * shared + c2)) / ((ma**2 + mb**2 + c1) * (va + vb + c2)))
    return sum(found) / len(found)


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, 1.0), (0.0, 255.0)])
def test_ssim_is_that_of_its_windows(low: float, high: float) -> None:
    span = high - low
    x = video(2, 2, 2, 13, 15) * span / 2
    y = x + 0.2 * span * video(2, 2, 2, 13, 15, seed=1)
    planes = [(x[b, c, t], y[b, c, t]) for b in range(2) for c in range(2) for t in range(2)]
    expected = torch.tensor([ssim_of_windows(p, q, span) for p, q in planes], dtype=torch.float64).view(2, 4).mean(1)
    x, y, limits = x + low, y + low, (low, high)
    torch.testing.assert_close(ssim(x, y, limits), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(ssim(x.float(), y.float(), limits), expected.float(), rtol=1e-4, atol=1e-5)


def test_ssim_of_opposite_videos_is_negative_and_of_equal_ones_is_one() -> None:
    x = video(2, 3, 2, 16, 16)
    assert bool((ssim(x, -x) < -0.5).all())
    torch.testing.assert_close(ssim(x, x), torch.ones(2, dtype=torch.float64))


def test_ssim_does_not_depend_on_how_light_is_written() -> None:
    x, y = video(1, 3, 2, 16, 16), video(1, 3, 2, 16, 16, seed=1)
    torch.testing.assert_close(ssim(x, y), ssim(127.5 * (x + 1), 127.5 * (y + 1), (0.0, 255.0)), rtol=1e-11, atol=0.0)


def test_ssim_is_a_training_loss() -> None:
    x, y = video(1, 1, 1, 11, 12).requires_grad_(), video(1, 1, 1, 11, 12, seed=1)
    assert torch.autograd.gradcheck(lambda value: ssim(value, y), x)


def test_psnr_is_its_formula() -> None:
    x, y = video(2, 3, 4, 5, 6), video(2, 3, 4, 5, 6, seed=1)
    for b, decibels in enumerate(psnr(x, y, (-2.0, 1.0)).tolist()):
        error = sum((p - q) ** 2 for p, q in zip(x[b].flatten().tolist(), y[b].flatten().tolist(), strict=True)) / 360
        assert decibels == pytest.approx(20 * math.log10(3.0) - 10 * math.log10(error), abs=1e-10)
    assert psnr(x, x).tolist() == [math.inf, math.inf]


def test_half_precision_is_measured_in_single() -> None:
    x, y = video(1, 3, 2, 16, 16).bfloat16(), video(1, 3, 2, 16, 16, seed=1).bfloat16()
    for metric in (psnr, ssim):
        assert metric(x, y).dtype == torch.float32
        torch.testing.assert_close(metric(x, y), metric(x.double(), y.double()).float(), rtol=1e-5, atol=1e-5)


@pytest.mark.graph  # run-time shape checks off, as for users
def test_bad_input_is_named() -> None:
    x = video(1, 3, 2, 16, 16)
    for metric in (psnr, ssim):
        with pytest.raises(ValueError, match=r"x has shape \(1, 3, 2, 16, 16\), but y has \(1, 3, 1, 16, 16\)"):
            metric(x, x[:, :, :1])
        with pytest.raises(ValueError, match=r"\(b, c, t, h, w\) and not empty, got shape \(3, 2, 16, 16\)"):
            metric(x[0], x[0])
        with pytest.raises(ValueError, match=r"limits must ascend, not \(1.0, 1.0\)"):
            metric(x, x, (1.0, 1.0))
    with pytest.raises(ValueError, match=r"at least 11 pixels, got h, w = \(10, 16\)"):
        ssim(x[..., :10, :], x[..., :10, :])
