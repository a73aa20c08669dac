"""Inputs that open models share: levels, layouts and rates that are none, and what padding may hold."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from tubelet.layout import Grid, LayoutIndex, Rows, TokenLayout
from tubelet.models import (
    AllegroConfig,
    AllegroTransformer,
    CogVideoXConfig,
    CogVideoXTransformer,
    CosmosConfig,
    CosmosTransformer,
    DiT,
    DiTConfig,
    HunyuanVideoConfig,
    HunyuanVideoTransformer,
    WanConfig,
    WanTransformer,
    ltx_places,
)
from tubelet.models.inputs import highest_levels, real_levels

LAYOUT = TokenLayout.packed([Grid(1, 1, 2), Grid(1, 1, 3)], capacity=9)
TEXT = TokenLayout.packed([None, None], [1, 2])
SIZES: dict[str, Any] = {"dim": 24, "depth": 1, "heads": 2, "latent_channels": 1, "text_dim": 8}
NAN = torch.nan


def ask(model: nn.Module, **changes: Any) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    index, text_index = LAYOUT.on("cpu"), TEXT.on("cpu")
    config: Any = model.config
    given = {
        "x": torch.randn(9, config.patch_dim, generator=draw),
        "text": torch.randn(3, 8, generator=draw),
        "layout": index,
    }
    given |= {"text_layout": text_index, "t": index.rows(torch.tensor([0.3, 0.6]), "sample")}
    return model(**given | changes)  # type: ignore[no-any-return]


def wan(**changes: Any) -> WanTransformer:
    return WanTransformer(WanConfig(**SIZES, mlp_dim=8, **changes))


def hunyuan() -> HunyuanVideoTransformer:
    sizes = SIZES | {"single_depth": 1, "rope_axes": (4, 4, 4), "pooled_dim": 5, "guidance": True}
    return HunyuanVideoTransformer(HunyuanVideoConfig(**sizes))


def index() -> LayoutIndex:
    return LAYOUT.on("cpu")


def test_levels_of_padding_reach_no_gradient() -> None:
    levels = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, NAN, NAN, NAN, NAN], requires_grad=True)
    model = AllegroTransformer(AllegroConfig(**SIZES))
    nn.init.normal_(model.project.weight)
    ask(model, t=index().rows(levels, "token"))[:5].square().sum().backward()  # type: ignore[no-untyped-call]
    grads = {name: p.grad for name, p in model.named_parameters()} | {"t": levels.grad}
    assert [name for name, grad in grads.items() if grad is None or not grad.isfinite().all()] == []
    assert levels.grad is not None and levels.grad[:5].all() and not levels.grad[5:].any()


def test_values_of_samples_that_are_only_room_reach_no_gradient() -> None:
    model = hunyuan()
    nn.init.normal_(model.project.weight)
    pooled, guidance = torch.full((16, 5), NAN), torch.full((16,), NAN)
    pooled[:2], guidance[:2] = 1.0, 6.0
    ask(model, pooled=pooled, guidance=guidance)[:5].square().sum().backward()  # type: ignore[no-untyped-call]
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    ofs = torch.tensor([2.0, 2.0, *[NAN] * 14])
    other = CogVideoXTransformer(CogVideoXConfig(**SIZES | {"dim": 32}, ofs=True))
    nn.init.normal_(other.project.weight)
    ask(other, ofs=ofs)[:5].square().sum().backward()  # type: ignore[no-untyped-call]
    assert all(p.grad.isfinite().all() for p in other.parameters() if p.grad is not None)


def test_levels_of_batch_elements_without_tokens_are_zeros() -> None:
    layout = TokenLayout.padded([2, 0], 2).on("cpu")
    assert real_levels(Rows(torch.tensor([0.5, NAN])), layout).values.tolist() == [0.5, 0.0]
    assert real_levels(Rows(torch.tensor([0.5])), layout).values.tolist() == [0.5]


def test_highest_levels_are_those_of_real_tokens() -> None:
    own = torch.where(index().valid, index().sample, 1)  # padding uses the second sample's row
    found = highest_levels(Rows(torch.tensor([0.3, 0.6]), own), index(), TEXT.on("cpu")).expand()
    assert found.tolist() == pytest.approx([0.3, 0.6, 0.6])


@pytest.mark.parametrize(
    ("t", "says"),
    [
        (Rows(torch.tensor([500.0])), r"t holds noise levels in \[0, 1\], got 500.0: divide"),
        (Rows(torch.tensor([-0.5])), r"t holds noise levels in \[0, 1\], got -0.5"),
        (Rows(torch.tensor([NAN])), r"t holds noise levels in \[0, 1\], got nan"),
        (Rows(torch.tensor([0.2, NAN]), LAYOUT.on("cpu").sample.clamp(min=0)), r"in \[0, 1\], got nan"),
        (Rows(torch.tensor([0.1, 7.0]), LAYOUT.on("cpu").sample.clamp(min=0)), r"got 0.1\d* to 7.0"),
        (Rows(torch.zeros(2), torch.zeros(9).short()), "index of row numbers, int32 or int64, got torch.int16"),
        (Rows(torch.zeros(2), torch.arange(9)), "index of 0 to 8, but 2 rows"),
        (Rows(torch.zeros(2), -torch.ones(9).long()), "index of -1 to -1, but 2 rows"),
    ],
)
def test_levels_that_are_none_are_named(t: Rows, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        real_levels(t, index())


def test_levels_are_not_read_where_that_would_wait() -> None:
    assert real_levels(Rows(torch.empty(1, device="meta")), LAYOUT.on("meta")).values.device.type == "meta"


@pytest.mark.parametrize("rate", [0.0, -24.0, NAN, math.inf])
def test_rates_that_are_none_are_named(rate: float) -> None:
    rates = torch.tensor([24.0, rate])
    with pytest.raises(ValueError, match=rf"fps must be positive numbers, got \[24.0, {rate}\]"):
        ltx_places(index(), index().rows(rates, "sample"))
    with pytest.raises(ValueError, match=rf"fps must be positive numbers, got \[24.0, {rate}\]"):
        ask(CosmosTransformer(CosmosConfig(**SIZES)), fps=rates)
    room = torch.cat([torch.tensor([24.0, 30.0]), torch.full((14,), rate)])
    assert ltx_places(index(), index().rows(room, "sample"))[:5].isfinite().all()


@pytest.mark.parametrize("strength", [-6.0, NAN])
def test_guidance_below_zero_is_named(strength: float) -> None:
    with pytest.raises(ValueError, match=rf"guidance must be 0 or more, got \[1.0, {strength}\]"):
        ask(hunyuan(), pooled=torch.zeros(2, 5), guidance=torch.tensor([1.0, strength]))


@pytest.mark.graph  # without the tests' own checks of types, which come first
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"t": torch.zeros(1)}, "t must be Rows of levels"),
        ({"text": None}, r"text must be a tensor of tokens \(3, 8\), got None"),
        ({"x": None}, r"x must be a tensor of tokens \(9,\), got None"),
        ({"layout": None}, "^layout must be a TokenLayout or the index of one, got None"),
        ({"text_layout": None}, "text_layout must be a TokenLayout or the index of one, got None"),
        ({"image_layout": TEXT}, r"image_layout has tokens \(3,\), but the model has image_dim=None"),
    ],
)
def test_what_is_no_input_at_all_is_named(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ask(wan(), **change)


def test_an_image_of_more_tokens_than_positions_is_named() -> None:
    model, layout = wan(image_dim=6, image_tokens=3), TokenLayout.packed([None, None], [3, 4])
    with pytest.raises(ValueError, match="an image has 4 tokens, but the model has image_tokens=3"):
        ask(model, image=torch.zeros(7, 6), image_layout=layout)


@pytest.mark.graph
@pytest.mark.parametrize("shape", [(2, 1), (1,)])
def test_ofs_of_another_shape_is_named(shape: tuple[int, ...]) -> None:
    model = CogVideoXTransformer(CogVideoXConfig(**SIZES | {"dim": 32}, ofs=True))
    with pytest.raises(ValueError, match="ofs has shape .* but layout has 2 samples"):
        ask(model, ofs=torch.zeros(shape))


@pytest.mark.graph
@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_labels_that_are_no_numbers_are_named(dtype: torch.dtype) -> None:
    model = DiT(DiTConfig(dim=24, depth=1, heads=2, mlp_dim=8))
    x = torch.zeros(9, model.config.patch_dim)
    with pytest.raises(ValueError, match=f"labels must be whole numbers, int64 or int32, got {dtype}"):
        model(x, Rows(torch.zeros(1)), index(), torch.zeros(2, dtype=dtype))
