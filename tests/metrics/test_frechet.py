"""The Fréchet distance against closed forms and against scipy's matrix root."""

import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor

from tubelet.metrics import Gaussian, frechet_distance, fvd, video_features


def features(count: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return torch.randn(count, width, generator=generator, dtype=torch.float64) @ mix + seed


def test_fit_is_the_mean_and_the_covariance() -> None:
    for count in (3, 40):
        x = features(count, 7, seed=1)
        normal = Gaussian.fit(x.float())
        torch.testing.assert_close(normal.mean, x.mean(0), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            Gaussian.fit(x).root.T @ Gaussian.fit(x).root, torch.cov(x.T), rtol=1e-11, atol=1e-11
        )
        assert normal.root.dtype == torch.float64


def test_diagonal_gaussians() -> None:
    """``|m₁ - m₂|² + Σ (s₁ - s₂)²`` for covariances that commute."""
    m, n, s, t = torch.rand(4, 6, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    p, q = Gaussian(m, s.diag() @ turn), Gaussian(n, t.diag() @ turn)
    expected = (m - n).square().sum() + (s - t).square().sum()
    torch.testing.assert_close(frechet_distance(p, q), expected, rtol=1e-12, atol=1e-12)


def test_two_features_have_a_closed_form() -> None:
    """For 2 × 2 matrices, ``tr √M = √(tr M + 2 √det M)``."""
    x, y = features(30, 2, seed=1), features(20, 2, seed=2)
    a, b = torch.cov(x.T), torch.cov(y.T)
    root = (torch.trace(a @ b) + 2 * torch.linalg.det(a @ b).sqrt()).sqrt()
    expected = (x.mean(0) - y.mean(0)).square().sum() + torch.trace(a) + torch.trace(b) - 2 * root
    torch.testing.assert_close(frechet_distance(Gaussian.fit(x), Gaussian.fit(y)), expected, rtol=1e-11, atol=1e-11)


def test_it_is_scipys_matrix_root() -> None:
    x, y = features(60, 9, seed=1), features(25, 9, seed=2)
    a, b = torch.cov(x.T), torch.cov(y.T)
    root = sqrtm((a @ b).numpy())
    expected = (x.mean(0) - y.mean(0)).square().sum() + torch.trace(a) + torch.trace(b) - 2 * root.real.trace()
    torch.testing.assert_close(frechet_distance(Gaussian.fit(x), Gaussian.fit(y)), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("counts", [(5, 7), (60, 5), (60, 50)])
def test_distance_of_equals_is_zero_also_with_fewer_rows_than_features(counts: tuple[int, int]) -> None:
    p, q = (Gaussian.fit(features(count, 20, seed=count)) for count in counts)
    for normal in (p, q):
        assert abs(frechet_distance(normal, normal).item()) < 1e-11 * normal.root.square().sum().item()
    assert frechet_distance(p, q) > 0
    torch.testing.assert_close(frechet_distance(p, q), frechet_distance(q, p), rtol=1e-11, atol=1e-11)


def test_fvd_is_the_distance_of_what_the_network_says() -> None:
    weight = torch.randn(3 * 2 * 4 * 4, 5, dtype=torch.float64)

    def network(videos: Tensor) -> Tensor:
        assert videos.shape[-2:] == (4, 4) and not torch.is_grad_enabled()
        return videos.flatten(1).double() @ weight

    real, other = [torch.rand(n, 3, 2, 4, 4) for n in (3, 4)], [torch.rand(6, 3, 2, 4, 4)]
    x, y = torch.cat(real).flatten(1).double() @ weight, other[0].flatten(1).double() @ weight
    expected = frechet_distance(Gaussian.fit(x), Gaussian.fit(y)).item()
    assert fvd(iter(real), iter(other), network, size=4) == pytest.approx(expected, rel=1e-12)
    assert fvd(real, real, network, size=4) == pytest.approx(0.0, abs=1e-9)
    assert video_features(network, [torch.rand(2, 3, 2, 9, 6)], size=4).shape == (2, 5)


def test_frames_are_resized_one_by_one() -> None:
    ramp = torch.arange(8.0).view(1, 1, 1, 1, 8).expand(1, 1, 2, 8, 8) + torch.tensor([0.0, 100.0]).view(1, 1, 2, 1, 1)
    rows = video_features(lambda videos: videos.mean((1, 3)).flatten(1), [ramp], size=16)[0].view(2, 16)
    inner = (torch.arange(16.0, dtype=torch.float64) + 0.5) / 2 - 0.5  # centres of pixels, held at the edges
    torch.testing.assert_close(
        rows,
        torch.stack([inner, inner + 100]).clamp(
            min=torch.tensor([[0.0], [100.0]]).double(), max=torch.tensor([[7.0], [107.0]]).double()
        ),
    )


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"at least 2 rows for a covariance, got n, d = \(1, 3\)"):
        Gaussian.fit(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="must be finite, but 1 numbers are not"):
        Gaussian.fit(torch.tensor([[0.0], [torch.nan]]))
    with pytest.raises(ValueError, match="p has 3 features, but q has 2"):
        frechet_distance(Gaussian.fit(torch.rand(4, 3)), Gaussian.fit(torch.rand(4, 2)))
    with pytest.raises(ValueError, match="at least one batch, got none"):
        fvd([], [], lambda videos: videos)
    video = torch.zeros(2, 3, 5, 16, 16)
    with pytest.raises(ValueError, match=r"network must give a row for each of 2 videos, got shape \(\)"):
        fvd([video], [video], lambda videos: videos.mean(), size=16)
    with pytest.raises(ValueError, match=r"got \(2, 3, 5, 16, 16\) and size 0"):
        fvd([video], [video], lambda videos: videos.mean((2, 3, 4)), size=0)
