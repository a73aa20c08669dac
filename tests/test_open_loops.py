"""Every open model in the same two loops: packed sampling equals samples alone, the packed loss is its definition."""

from functools import partial
from typing import Any

import pytest
import torch
from parity import randomise
from torch import Tensor, nn

from tubelet import Grid, TokenLayout
from tubelet.diffusion import (
    VP,
    Known,
    Process,
    cfg,
    ddim_step,
    hybrid_loss,
    noise_like,
    sample,
    shift_warp,
    without_variance,
)
from tubelet.layout import Rows
from tubelet.models import (
    CogVideoXConfig,
    CogVideoXTransformer,
    DiT,
    DiTConfig,
    HunyuanVideoConfig,
    HunyuanVideoTransformer,
    LatteConfig,
    LatteTransformer,
    LTXConfig,
    LTXTransformer,
    MochiConfig,
    MochiTransformer,
    NoiseExperts,
    WanConfig,
    WanTransformer,
    ltx_places,
)
from tubelet.pipeline import bind, packed_loss

F64: dict[str, Any] = {"dtype": torch.float64}
GRIDS, LENGTHS = (Grid(2, 2, 2), Grid(1, 2, 3)), (3, 2)
FLOW = Process(warp=shift_warp(3.0))
TABLE = VP.scaled_linear().shifted(3.0).zero_terminal_snr()


def wan() -> nn.Module:
    config = WanConfig(dim=12, depth=1, heads=1, mlp_dim=8, latent_channels=1, text_dim=8, frequencies=8)
    return NoiseExperts(WanTransformer(config, **F64), WanTransformer(config, **F64), boundary=0.6)


def cogvideox() -> nn.Module:
    return CogVideoXTransformer(
        CogVideoXConfig(dim=16, depth=1, heads=1, latent_channels=1, text_dim=8, time_dim=8), **F64
    )


def ltx() -> nn.Module:
    return LTXTransformer(LTXConfig(dim=12, depth=1, heads=1, latent_channels=4, text_dim=8), **F64)


def hunyuan() -> nn.Module:
    config = HunyuanVideoConfig(
        dim=16, depth=1, single_depth=1, heads=1, refiner_depth=1, latent_channels=1, text_dim=8, pooled_dim=5,
        rope_axes=(4, 6, 6), guidance=True,
    )  # fmt: skip
    return HunyuanVideoTransformer(config, **F64)


def mochi() -> nn.Module:
    return MochiTransformer(MochiConfig(dim=16, depth=1, heads=1, text_width=8, latent_channels=1, text_dim=8), **F64)


def dit() -> nn.Module:
    return DiT(DiTConfig(dim=16, depth=1, heads=1, mlp_dim=8, latent_channels=1, variance_channels=1), **F64)


def latte() -> nn.Module:
    return LatteTransformer(
        LatteConfig(dim=16, depth=2, heads=1, latent_channels=1, variance_channels=1, text_dim=8), **F64
    )


def places(grids: tuple[Grid, ...], _: slice) -> dict[str, Any]:
    return {"places": ltx_places(TokenLayout.packed(grids).on("cpu"), 24.0)}


def told(_: tuple[Grid, ...], which: slice) -> dict[str, Any]:
    pooled = torch.randn(2, 5, generator=torch.Generator().manual_seed(4), **F64)
    return {"pooled": pooled[which], "guidance": torch.full((2,), 6.0, **F64)[which]}


def labelled(_: tuple[Grid, ...], which: slice) -> dict[str, Any]:
    return {"labels": torch.tensor([7, 9])[which]}


def nothing(*_: Any) -> dict[str, Any]:
    return {}


EPS = Process(path=VP.linear(), prediction="eps")
MODELS = {
    "wan": (wan, FLOW, nothing),
    "cogvideox": (cogvideox, Process(path=TABLE, prediction="v"), nothing),
    "ltx": (ltx, FLOW, places),
    "hunyuan": (hunyuan, Process(warp=shift_warp(7.0)), told),
    "mochi": (mochi, FLOW, nothing),
    "dit": (dit, EPS, labelled),
    "latte": (latte, EPS, nothing),
}


def bound(name: str, model: nn.Module, which: slice = slice(None), null: bool = False) -> tuple[Any, TokenLayout]:
    """The model with the conditions of some of the samples, and where these lie."""
    grids, lengths = GRIDS[which], LENGTHS[which]
    layout, given = TokenLayout.packed(grids), MODELS[name][2](grids, which)
    if name != "dit":
        start = sum(LENGTHS[: which.start or 0])
        text = torch.randn(5, 8, generator=torch.Generator().manual_seed(3), **F64)[start : start + sum(lengths)]
        given |= {"text": text * (not null), "text_layout": TokenLayout.packed([None] * len(grids), lengths)}
    return bind(model, layout, **given), layout


@pytest.mark.parametrize("name", MODELS)
def test_packed_sampling_equals_samples_alone(name: str) -> None:
    make, process, _ = MODELS[name]
    model = randomise(make()).eval()
    step = ddim_step if process.prediction in ("v", "eps") else None

    def run(which: slice, seeds: list[int]) -> Tensor:
        (conditional, layout), (null, _) = bound(name, model, which), bound(name, model, which, null=True)
        guided = without_variance(cfg(conditional, null, 2.0))
        noise = noise_like(layout, channels=4, seeds=seeds, **F64)
        return sample(guided, noise, process.times(3, **F64), process=process, **({"step": step} if step else {}))

    with torch.inference_mode():
        together, alone = run(slice(None), [5, 6]), [run(slice(0, 1), [5]), run(slice(1, 2), [6])]
    assert together.isfinite().all()
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", MODELS)
def test_the_packed_loss_is_its_definition_and_trains(name: str) -> None:
    make, process, _ = MODELS[name]
    model = randomise(make())
    denoiser, layout = bound(name, model)
    x0 = torch.randn(14, 4, **F64)
    learned = name in ("dit", "latte")
    asked = without_variance(denoiser) if learned else denoiser
    found = packed_loss(asked, x0, layout, process, torch.Generator().manual_seed(1))
    draw = torch.Generator().manual_seed(1)
    levels = process.draw_times((2,), draw, **F64)
    noise = torch.randn(14, 4, generator=draw).double()
    sizes = torch.tensor([8, 6])
    alpha, sigma = (f(levels).repeat_interleave(sizes)[:, None] for f in (process.path.alpha, process.path.sigma))
    dots = (f(levels).repeat_interleave(sizes)[:, None] for f in (process.path.alpha_dot, process.path.sigma_dot))
    wanted = {
        "eps": lambda: noise,
        "v": lambda: alpha * noise - sigma * x0,
        "velocity": lambda: torch.add(*(d * y for d, y in zip(dots, (x0, noise), strict=True))),
    }[process.prediction]()
    prediction = asked(alpha * x0 + sigma * noise, layout.rows(levels, "sample"))
    torch.testing.assert_close(found, (prediction - wanted).square().mean(), rtol=1e-10, atol=1e-10)
    if learned:
        hybrid = partial(hybrid_loss, process, steps=1000)
        found = packed_loss(denoiser, x0, layout, process, torch.Generator().manual_seed(1), loss=hybrid)
    found.backward()
    assert sum(p.grad is not None and bool(p.grad.any()) for p in model.parameters()) > 5


def test_known_tokens_and_padding_do_not_count() -> None:
    model = randomise(wan())
    layout = TokenLayout.packed(GRIDS, capacity=17)
    prompts = TokenLayout.packed([None] * 2, LENGTHS)
    denoiser = bind(model, layout, text=torch.randn(5, 8, **F64), text_layout=prompts)
    x0 = torch.full((17, 4), torch.nan, **F64)
    x0[:14] = torch.randn(14, 4, **F64)
    index = layout.on("cpu")
    known = Known(index.rows(torch.tensor([True, False, False]), "frame"), x0)
    seen: list[Any] = []

    def watching(x: Tensor, t: Rows) -> Tensor:
        seen.append((x, t.expand(), denoiser(x, t)))
        return seen[-1][2]

    found = packed_loss(watching, x0, layout, Process(), torch.Generator().manual_seed(1), known=known)
    (x, levels, prediction), draw = seen[0], torch.Generator().manual_seed(1)
    drawn = Process().draw_times((2,), draw, **F64)
    noise = torch.randn(17, 4, generator=draw).double()
    assert levels[:14].tolist() == [0.0] * 4 + [drawn[0].item()] * 4 + [drawn[1].item()] * 6
    assert torch.equal(x[:4], x0[:4])
    torch.testing.assert_close(found, (prediction - noise + x0)[4:14].square().mean(), rtol=1e-12, atol=1e-12)


def test_the_network_computes_in_its_own_dtype() -> None:
    config = WanConfig(dim=12, depth=1, heads=1, mlp_dim=8, latent_channels=1, text_dim=8, frequencies=8)
    model = randomise(WanTransformer(config)).bfloat16()
    layout, prompts = TokenLayout.packed(GRIDS), TokenLayout.packed([None] * 2, LENGTHS)
    text = torch.randn(5, 8, dtype=torch.bfloat16)
    denoiser = bind(model, layout, text=text, text_layout=prompts)
    x, t = torch.randn(14, 4), Rows(torch.tensor([0.3]))
    out = denoiser(x, t)
    assert out.dtype == torch.float32
    expected = model(x.bfloat16(), t, text, layout, prompts)
    assert expected.dtype == torch.bfloat16
    assert torch.equal(out, expected.float())


def test_what_does_not_fit_is_said() -> None:
    model, layout = randomise(dit()), TokenLayout.packed(GRIDS)
    denoiser, process = bind(model, layout, labels=torch.tensor([7, 9])), EPS
    with pytest.raises(ValueError, match=r"prediction has \(14, 8\): without_variance\(denoiser\) gives the pred"):
        sample(denoiser, torch.randn(14, 4, **F64), process.times(2, **F64), process=process)
    with pytest.raises(ValueError, match=r"x0 has tokens \(13,\), but layout has \(14,\)"):
        packed_loss(denoiser, torch.randn(13, 4, **F64), layout, process, torch.Generator())
    known = Known(Rows(torch.tensor([True])), torch.randn(14, 4, **F64))
    with pytest.raises(ValueError, match="known.mask has 1 rows without an owner: make it by layout.rows"):
        packed_loss(denoiser, known.values, layout, process, torch.Generator(), known=known)
