"""Scales that depend on the noise level."""

import math

import pytest
import torch
from denoisers import C, U, randn

from tubelet.diffusion import cfg, cfg_excess, interval
from tubelet.layout import Rows

X = randn(5, 4)
LEVELS = Rows(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64), torch.tensor([0, 1, 1, 2, 0]))


@pytest.mark.parametrize(("make", "scale", "outside"), [(cfg, 4.0, 1.0), (cfg_excess, 3.0, 0.0)])
def test_an_interval_acts_per_row_with_both_ends_inside(make: object, scale: float, outside: float) -> None:
    got = make(C, U, interval(scale, 0.5, 0.9, outside=outside))(X, LEVELS)
    full = cfg(C, U, 4.0)(X, LEVELS)
    inside = torch.tensor([False, True, True, True, False])
    torch.testing.assert_close(got[inside], full[inside])
    torch.testing.assert_close(got[~inside], C(X, LEVELS)[~inside])
    without = make(C, U, interval(scale, 0.51, 0.89, outside=outside))(X, LEVELS)
    torch.testing.assert_close(without, C(X, LEVELS))


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"low must not be above high, got 0\.8 and 0\.2"):
        interval(2.0, 0.8, 0.2)
    with pytest.raises(ValueError, match="low must not be above high, got nan and 1"):
        interval(1.0, math.nan, 1.0)
    with pytest.raises(ValueError, match="scale must be finite, got inf"):
        interval(math.inf, 0.2, 0.8)
    with pytest.raises(ValueError, match="rows has 2 values without an index"):
        cfg(C, U, Rows(torch.ones(2)))(X, LEVELS)
