"""Which expert serves which noise level."""

import pytest
import torch
from torch import Tensor, nn

from tubelet.layout import Grid, Rows, TokenLayout
from tubelet.models import NoiseExperts


class Named(nn.Module):
    def __init__(self, number: float) -> None:
        super().__init__()
        self.number = number

    def forward(self, x: Tensor, t: Rows, more: float, last: float = 0.0) -> Tensor:
        return torch.full_like(x, self.number + more + last)


@pytest.fixture
def experts() -> NoiseExperts:
    return NoiseExperts(Named(100.0), Named(200.0), boundary=0.875)


@pytest.mark.parametrize(("level", "number"), [(1.0, 100), (0.875, 100), (0.8749, 200), (0.0, 200)])
def test_the_level_chooses_and_inputs_are_handed_on(experts: NoiseExperts, level: float, number: int) -> None:
    out = experts(torch.zeros(2, 1), Rows(torch.tensor([level])), 1.0, last=2.0)
    assert out.tolist() == [[number + 3.0]] * 2


def test_rows_behind_the_real_ones_do_not_choose(experts: NoiseExperts) -> None:
    layout = TokenLayout.packed([Grid(1, 1, 2), Grid(2, 1, 1)], capacity=8)
    for level in ("sample", "frame", "token"):
        real = layout.on("cpu").row_counts(level)[0]
        values = torch.full((real,), 0.9)
        assert experts(torch.zeros(8, 1), layout.rows(values, level), 0.0)[0].item() == 100


def test_levels_on_both_sides_are_refused(experts: NoiseExperts) -> None:
    t = TokenLayout.packed([Grid(1, 1, 1)] * 2).rows(torch.tensor([0.5, 0.9]), "sample")
    with pytest.raises(ValueError, match=r"0\.5 and 0\.89.* both sides of boundary=0\.875"):
        experts(torch.zeros(2, 1), t, 0.0)
    with pytest.raises(ValueError, match=r"in \[0, 1\], got 875"):
        NoiseExperts(Named(1.0), Named(2.0), boundary=875.0)
