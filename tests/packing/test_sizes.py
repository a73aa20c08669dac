"""Resolution sampling against the closed form of the truncated normal distribution."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tubelet.packing import ImageSizes, truncated_normal

DRAWS = 4000
SIGMAS = 5  # a correct law fails such a test once in two million seeds, and the seed is fixed


def check_moments(draws: np.ndarray, law: object) -> None:
    """Mean and variance of independent draws lie within 5 standard errors of a scipy distribution's."""
    mean, variance, kurtosis = law.stats(moments="mvk")  # type: ignore[attr-defined]
    assert abs(draws.mean() - mean) <= SIGMAS * np.sqrt(variance / len(draws))
    assert abs(draws.var() - variance) <= SIGMAS * variance * np.sqrt((kurtosis + 2) / len(draws))


@pytest.mark.parametrize(
    ("mean", "deviation", "low", "high"), [(-0.5, 1.0, -1.0, 1.0), (0.0, 0.02, -0.04, 0.04), (3.0, 2.0, 4.0, 9.0)]
)
def test_truncated_normal_is_scipys(mean: float, deviation: float, low: float, high: float) -> None:
    rng = np.random.default_rng(0)
    draws = np.array([truncated_normal(rng, mean, deviation, low, high) for _ in range(DRAWS)])
    law = stats.truncnorm((low - mean) / deviation, (high - mean) / deviation, loc=mean, scale=deviation)
    check_moments(draws, law)
    assert stats.kstest(draws, law.cdf).pvalue > 1e-4


def test_sides_follow_the_papers_law() -> None:
    """u ~ N(-0.5, 1) on [-1, 1], mapped to 64 to 384 pixels: side = 224 + 160 u."""
    rng = np.random.default_rng(1)
    sides = np.array([ImageSizes().side(rng) for _ in range(DRAWS)])
    law = stats.truncnorm(-0.5, 1.5, loc=224 - 80, scale=160)
    check_moments(sides, law)
    assert stats.kstest(sides, law.cdf).pvalue > 1e-4
    assert 64 <= sides.min() < 66 and 375 < sides.max() <= 384
    assert round(law.mean()) == 201  # what the docstring says


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 32), st.integers(1, 32), st.integers(0, 1000))
def test_sizes_keep_area_and_aspect_up_to_a_patch(height: int, width: int, rows: int, columns: int, seed: int) -> None:
    law = ImageSizes(low=64, high=384)
    side = law.side(np.random.default_rng(seed))
    h, w = law.size(height, width, np.random.default_rng(seed), (rows, columns))
    assert h % rows == 0 and w % columns == 0
    exact = side * (height / width) ** 0.5, side * (width / height) ** 0.5
    assert exact[0] * exact[1] == pytest.approx(side**2) and exact[0] / exact[1] == pytest.approx(height / width)
    for got, want, patch in zip((h, w), exact, (rows, columns), strict=True):
        assert got == patch or abs(got - want) <= patch / 2 + 1e-9


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ImageSizes(low=0), "low=0, high=384"),
        (lambda: ImageSizes(low=64, high=32), "low=64, high=32"),
        (lambda: ImageSizes().size(0, 5, np.random.default_rng(0)), r"0 x 5 and patch=\(1, 1\)"),
        (lambda: ImageSizes().size(5, 5, np.random.default_rng(0), (1, 0)), r"patch=\(1, 0\)"),
        (lambda: truncated_normal(np.random.default_rng(0), 0.0, 1.0, 2.0, 1.0), "low=2.0 is above high=1.0"),
        (lambda: truncated_normal(np.random.default_rng(0), 0.0, 1.0, 9.0, 10.0), r"\[9.0, 10.0\] holds hardly any"),
        (lambda: truncated_normal(np.random.default_rng(0), 0.0, 0.0, 1.0, 2.0), r"\[1.0, 2.0\] holds hardly any"),
    ],
)
def test_errors(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]
