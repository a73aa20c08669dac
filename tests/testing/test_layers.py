"""The kit's checks of modulation and positions."""

import pytest
import torch
from torch import nn

from tubelet.conditioning import AdaLNZero
from tubelet.layout import Rows
from tubelet.positions import SinCos3d
from tubelet.testing import check_modulation, check_positions


class Mean(nn.Module):
    def forward(self, cond: Rows) -> Rows:
        return cond.map(lambda c: c - c.mean(0))


def test_modulation() -> None:
    source = AdaLNZero(8, 6)
    check_modulation(source, 6, 24)
    assert not any(p.any() or p.grad is not None for p in source.parameters())  # yours is left as it was
    with pytest.raises(AssertionError, match=r"shape \(4, 24\), expected \(4, 16\)"):
        check_modulation(source, 6, 16)
    with pytest.raises(AssertionError, match="row 0 alone differs"):
        check_modulation(Mean(), 6, 6)
    with pytest.raises(AssertionError, match="torch.float32 became torch.float64"):
        check_modulation(lambda cond: cond.map(torch.Tensor.double), 6, 6)
    with pytest.raises(AssertionError, match="lost their index"):
        check_modulation(lambda cond: Rows(cond.values), 6, 6)


def test_positions() -> None:
    check_positions(SinCos3d(32), 32)
    with pytest.raises(AssertionError, match="differ in one axis have the same position"):
        check_positions(lambda coords: SinCos3d(32)(coords * torch.tensor([1, 1, 0])), 32)
    with pytest.raises(AssertionError, match="tokens in another order differs"):
        check_positions(lambda coords: SinCos3d(32)(coords).cumsum(-2), 32)
    with pytest.raises(AssertionError, match="for 16 features"):
        check_positions(SinCos3d(32), 16)
