"""Dynamic thresholding against Imagen's definition and diffusers' samplers."""

import math

import pytest
import torch
from denoisers import C, U, randn
from diffusers import DDIMScheduler

from tubelet.diffusion import VP, Process, cfg, dynamic_threshold, one_row
from tubelet.layout import Rows

T = one_row(torch.tensor(0.4, dtype=torch.float64))
DATA = Process(prediction="x0")


@pytest.mark.parametrize("quantile", [0.0, 0.5, 0.9, 0.995, 1.0])
@pytest.mark.parametrize(("limit", "highest"), [(1.0, math.inf), (0.3, math.inf), (1.0, 1.2), (0.5, 0.5)])
def test_equals_the_definition(quantile: float, limit: float, highest: float) -> None:
    x = randn(3, 7, 4)
    guided = cfg(C, U, 3.0)
    got = dynamic_threshold(guided, DATA, quantile=quantile, limit=limit, highest=highest)(x, T)
    for mine, data in zip(got, guided(x, T), strict=True):
        side = min(max(float(data.abs().quantile(quantile)), limit), highest)
        expected = torch.where(data.abs() > side, side * data.sign(), data) * limit / side
        torch.testing.assert_close(mine, expected, rtol=1e-12, atol=1e-12)
        assert float(mine.abs().max()) <= limit + 1e-12


@pytest.mark.parametrize("most", [1.0, 1.5, 100.0])
def test_equals_diffusers(most: float) -> None:
    scheduler = DDIMScheduler(thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=most)
    x = 2 * randn(3, 4, 5, 6, dtype=torch.float32)
    expected = scheduler._threshold_sample(x)
    got = dynamic_threshold(lambda x, t: x, DATA, quantile=0.9, highest=most)(x, one_row(torch.tensor(0.4)))
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["eps", "v", "velocity"])
def test_it_is_the_data_that_are_limited(kind: str) -> None:
    process = Process(path=VP.linear(), prediction=kind)
    x = randn(5, 4)
    limited = dynamic_threshold(C, process, quantile=0.7, limit=0.5)(x, T)
    before, after = process.split(C(x, T), x, T)[0], process.split(limited, x, T)[0]
    expected = dynamic_threshold(lambda x, t: before, DATA, quantile=0.7, limit=0.5)(x, T)
    torch.testing.assert_close(after, expected, rtol=1e-10, atol=1e-10)
    assert float((after - before).norm()) > 0.1


def test_data_inside_the_range_stay() -> None:
    x = randn(5, 4)
    for process in (DATA, Process(), Process(path=VP.linear(), prediction="eps")):
        small = dynamic_threshold(C, process, limit=1e4)
        assert torch.equal(small(x, Rows(T.values)), C(x, T))


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"quantile must lie in \[0, 1\], got 99\.5"):
        dynamic_threshold(C, DATA, quantile=99.5)
    with pytest.raises(ValueError, match=r"got limit=0\.0 and highest=inf"):
        dynamic_threshold(C, DATA, limit=0.0)
    with pytest.raises(ValueError, match=r"got limit=2\.0 and highest=1\.0"):
        dynamic_threshold(C, DATA, limit=2.0, highest=1.0)
