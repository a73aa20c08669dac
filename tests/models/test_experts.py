"""Which expert serves which noise level."""

import pytest
import torch
from torch import Tensor, nn

from tubelet.diffusion import Process, euler_step, heun_step, sample
from tubelet.layout import Grid, Rows, TokenLayout
from tubelet.models import NoiseExperts, WanConfig, WanTransformer
from tubelet.protocols import SamplerStep


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


@pytest.mark.parametrize("step", [euler_step, heun_step])
def test_two_wans_sample_packed_as_they_sample_alone(step: SamplerStep) -> None:
    """A whole run over the boundary; each expert counts, and samples of other sizes do not."""
    f64 = {"dtype": torch.float64}
    config = WanConfig(dim=12, depth=1, heads=1, mlp_dim=8, latent_channels=1, text_dim=3, frequencies=8)
    experts = NoiseExperts(WanTransformer(config, **f64), WanTransformer(config, **f64), boundary=0.875)
    for parameter in experts.parameters():
        nn.init.normal_(parameter, std=0.3)
    grids, texts = [Grid(2, 1, 2), Grid(1, 3, 1)], [2, 3]
    noise, text = torch.randn(7, 4, **f64), torch.randn(5, 3, **f64)
    times = torch.tensor([1.0, 0.95, 0.9, 0.5, 0.0], **f64)

    def run(model: nn.Module, x: Tensor, prompt: Tensor, layout: TokenLayout, text_layout: TokenLayout) -> Tensor:
        def denoiser(x: Tensor, t: Rows) -> Tensor:
            return model(x, t, prompt, layout, text_layout)

        return sample(denoiser, x, times, process=Process(), step=step)

    with torch.inference_mode():
        packed = run(experts, noise, text, TokenLayout.packed(grids), TokenLayout.packed([None] * 2, texts))
        apart = [
            run(experts, noise[a:b], text[c:d], TokenLayout.packed([grid]), TokenLayout.packed([None], [d - c]))
            for grid, a, b, c, d in ((grids[0], 0, 4, 0, 2), (grids[1], 4, 7, 2, 5))
        ]
        torch.testing.assert_close(packed, torch.cat(apart), rtol=1e-11, atol=1e-11)
        for one in (experts.high, experts.low):
            alone = run(one, noise, text, TokenLayout.packed(grids), TokenLayout.packed([None] * 2, texts))
            assert (alone - packed).norm() > 1e-3 * packed.norm()


def test_levels_on_both_sides_are_refused(experts: NoiseExperts) -> None:
    t = TokenLayout.packed([Grid(1, 1, 1)] * 2).rows(torch.tensor([0.5, 0.9]), "sample")
    with pytest.raises(ValueError, match=r"0\.5 and 0\.89.* both sides of boundary=0\.875"):
        experts(torch.zeros(2, 1), t, 0.0)
    with pytest.raises(ValueError, match=r"in \[0, 1\], got 875"):
        NoiseExperts(Named(1.0), Named(2.0), boundary=875.0)
