"""Which expert serves which noise level."""

import itertools
from typing import Literal

import pytest
import torch
from parity import randomise
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from tubelet.diffusion import Known, Process, euler_step, heun_step, sample
from tubelet.layout import Grid, LayoutIndex, Rows, TokenLayout
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


F64 = {"dtype": torch.float64}
CONFIG = WanConfig(dim=12, depth=1, heads=1, mlp_dim=8, latent_channels=1, text_dim=3, frequencies=8)


def two_wans() -> NoiseExperts:
    return randomise(NoiseExperts(WanTransformer(CONFIG, **F64), WanTransformer(CONFIG, **F64), boundary=0.875))


def of_wan(layout: TokenLayout) -> tuple[Tensor, LayoutIndex, LayoutIndex]:
    texts = TokenLayout.packed([None] * len(layout.grids), [2] * len(layout.grids))
    return torch.randn(2 * len(layout.grids), 3, **F64), layout.on("cpu"), texts.on("cpu")


@pytest.mark.parametrize("finer", ["sample", "frame", "token"])
def test_levels_on_both_sides_take_each_token_from_its_expert(finer: Literal["sample", "frame", "token"]) -> None:
    experts, layout = two_wans(), TokenLayout.packed([Grid(2, 1, 2), Grid(1, 3, 1)], capacity=9)
    x, inputs = torch.randn(9, 4, **F64, requires_grad=True), of_wan(layout)
    values = torch.tensor([0.0, 0.9, 0.875, 0.3, 0.8, 0.95, 0.5, 0.0, 0.0], **F64)[: inputs[1].row_counts(finer)[0]]
    t = layout.rows(values, finer)
    out = experts(x, t, *inputs)[:7]
    high, low = (expert(x, t, *inputs)[:7] for expert in (experts.high, experts.low))
    noisy = (t.expand() >= 0.875)[:7, None]
    expected = high * noisy + low * ~noisy
    torch.testing.assert_close(out, expected, rtol=1e-14, atol=1e-14)
    assert not torch.equal(out, high)
    assert not torch.equal(out, low)
    weights = [p for p in experts.parameters() if p.requires_grad]
    for found, wanted in zip(*(torch.autograd.grad(y.sum(), weights) for y in (out, expected)), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_a_batch_asks_only_the_experts_it_needs(experts: NoiseExperts, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    for name in ("high", "low"):
        part = getattr(experts, name)
        part.register_forward_pre_hook(lambda module, args, name=name: asked.append(name))
    for levels, expected in (([0.9, 1.0], ["high"]), ([0.0, 0.5], ["low"]), ([0.5, 0.9], ["high", "low"])):
        asked.clear()
        out = experts(torch.zeros(2, 3, 1), Rows(torch.tensor(levels)), 0.0)
        assert asked == expected
        assert out[:, 0, 0].tolist() == [100.0 if level >= 0.875 else 200.0 for level in levels]


def test_known_frames_stay_while_the_rest_is_sampled() -> None:
    experts, layout = two_wans(), TokenLayout.packed([Grid(2, 1, 2), Grid(1, 3, 1)])
    inputs = of_wan(layout)
    known = Known(layout.rows(torch.tensor([True, False, False]), "frame"), torch.randn(7, 4, **F64))
    times = torch.tensor([1.0, 0.9, 0.5, 0.0], **F64)

    def denoiser(x: Tensor, t: Rows) -> Tensor:
        return experts(x, t, *inputs)

    start = known.apply(torch.randn(7, 4, **F64))
    with torch.inference_mode():
        made = sample(denoiser, start, times, process=Process(), rows=known.levels)
        x = start
        for now, then in itertools.pairwise(times):
            t = known.levels(now)
            expert = experts.high if now >= 0.875 else experts.low
            x = known.apply(x + (then - now) * expert(x, t, *inputs))
    torch.testing.assert_close(made, x, rtol=1e-12, atol=1e-12)


@pytest.mark.graph
def test_one_graph_serves_both_sides() -> None:
    experts, layout = two_wans(), TokenLayout.packed([Grid(2, 1, 2), Grid(1, 3, 1)], capacity=9)
    inputs, counter = of_wan(layout), CompileCounter()
    compiled = torch.compile(experts, backend=counter, fullgraph=True)
    x = torch.randn(9, 4, **F64)
    with torch.no_grad():
        for values in ([0.9, 0.95], [0.1, 0.9], [0.1, 0.2]):
            t = layout.rows(torch.tensor(values, **F64), "sample")
            torch.testing.assert_close(compiled(x, t, *inputs)[:7], experts(x, t, *inputs)[:7], rtol=1e-12, atol=1e-12)
    assert counter.frame_count == 1


def test_a_boundary_of_an_index_is_refused() -> None:
    with pytest.raises(ValueError, match=r"in \[0, 1\], got 875"):
        NoiseExperts(Named(1.0), Named(2.0), boundary=875.0)
