"""Four ways to attend over space and time in video DiTs, by one value: what reaches what, sizes, starts, files."""

import dataclasses
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from mixtures import Mixture, check_packed_equals_separate
from parity import randomise, size
from torch import Tensor, nn

from tubelet import hub
from tubelet.attention import FrameCausal, Joint, Spatial, Temporal, set_pattern
from tubelet.layout import Grid, Rows, TokenLayout
from tubelet.models import (
    DiT,
    DiTConfig,
    SpaceTime,
    VideoDiT,
    VideoDiTConfig,
    WanConfig,
    WanTransformer,
    space_time,
)

F64: dict[str, Any] = {"dtype": torch.float64}
WAYS = get_args(SpaceTime)
SMALL = VideoDiTConfig(latent_channels=2, dim=32, depth=2, heads=2, text_dim=5, patch=(1, 1, 2), cond_dim=12)
GRID = Grid(3, 2, 2)


def small(how: SpaceTime, **changes: Any) -> VideoDiT:
    model = VideoDiT(dataclasses.replace(SMALL, space_time=how, **changes), **F64)
    return randomise(model)  # type: ignore[return-value]


def reached(model: nn.Module, at: int, width: int, **given: Any) -> Tensor:
    """Which tokens' predictions another value of one token changes."""
    layout, draw = TokenLayout.packed([GRID]), torch.Generator().manual_seed(0)
    x = torch.randn(GRID.tokens, width, generator=draw, **F64)
    other = x.clone()
    other[at] += 1
    t = Rows(torch.tensor([0.5], **F64))
    with torch.no_grad():
        before, after = (model(x=each, t=t, layout=layout, **given) for each in (x, other))
    return (before != after).any(-1)


def of_video_dit(model: VideoDiT, at: int) -> Tensor:
    return reached(model, at, 4, text=torch.ones(1, 5, **F64), text_layout=TokenLayout.packed([None], [1]))


def expected(how: SpaceTime, depth: int) -> Tensor:
    """What token 5, at (1, 0, 1), reaches after so many blocks, from who attends whom."""
    t, h, w = TokenLayout.packed([GRID]).on("cpu").coords.unbind(-1)
    over = {"space": t[:, None] == t, "time": (h[:, None] == h) & (w[:, None] == w)}
    over |= {"both": over["space"] | over["time"], "all": torch.ones(12, 12, dtype=torch.bool)}
    layers = {
        "joint": ["all"] * depth,
        "factorised_encoder": ["space"] * (depth // 2) + ["time"] * (depth // 2),
        "factorised_self_attention": ["space", "time"] * depth,
        "factorised_dot_product": ["both"] * depth,
    }[how]
    seen = torch.arange(12) == 5
    for layer in layers:
        seen = (over[layer] & seen).any(-1)
    return seen


@pytest.mark.parametrize("depth", [2, 4])
@pytest.mark.parametrize("how", WAYS)
def test_what_reaches_what_in_a_video_dit(how: SpaceTime, depth: int) -> None:
    assert torch.equal(of_video_dit(small(how, depth=depth), 5), expected(how, depth))
    if how != "factorised_encoder":
        assert torch.equal(of_video_dit(small(how, depth=1), 5), expected(how, 1))


def test_one_block_of_each_is_told_apart() -> None:
    """Of 12 tokens: all; the frame's four, then all over time; the frame's four and two others over time."""
    counts = [int(expected(how, 1).sum()) for how in ("joint", "factorised_self_attention", "factorised_dot_product")]
    assert counts == [12, 12, 6]
    frames = small("factorised_encoder")
    frames.blocks = frames.blocks[:1]  # before the stage over time
    assert of_video_dit(frames, 5).tolist() == [False] * 4 + [True] * 4 + [False] * 4


@pytest.mark.parametrize("how", WAYS)
def test_packed_equals_separate(how: SpaceTime) -> None:
    check_packed_equals_separate(small(how), Mixture({"x": 4}, {"text": 5}), "frame")


def test_only_attention_over_time_of_its_own_adds_parameters() -> None:
    sizes = {how: size(VideoDiT(dataclasses.replace(SMALL, space_time=how), device="meta")) for how in WAYS}
    d, c, head = 32, 12, 16
    more = 4 * d * (d + 1) + 2 * head + 3 * d * (c + 1)
    own = sizes.pop("factorised_self_attention")
    assert len(set(sizes.values())) == 1 and own == sizes["joint"] + 2 * more


def test_attention_over_time_of_its_own_starts_as_nothing() -> None:
    """Its gates open from zero: until then the model is that of single frames."""
    model = small("factorised_self_attention")
    for block in model.blocks:
        block.branches[1].modulation.reset_parameters()  # type: ignore[operator, union-attr]
    assert of_video_dit(model, 5).tolist() == [False] * 4 + [True] * 4 + [False] * 4


@pytest.mark.parametrize("how", ["joint", "factorised_encoder", "factorised_dot_product"])
def test_any_finished_video_dit_takes_the_patterns(how: SpaceTime) -> None:
    """Without new weights, by one call, and back."""
    dit = randomise(DiT(DiTConfig(dim=16, depth=2, heads=2, mlp_dim=8, latent_channels=1, classes=3), **F64))
    wan = WanConfig(dim=24, depth=2, heads=2, mlp_dim=8, text_dim=5, latent_channels=1)
    text = {"text": torch.ones(1, 5, **F64), "text_layout": TokenLayout.packed([None], [1])}
    for model, given in ((dit, {"labels": torch.tensor([1])}), (randomise(WanTransformer(wan, **F64)), text)):
        assert reached(model, 5, 4, **given).all()
        set_pattern(model, [one for (one,) in space_time(how, 2, 2)])
        assert torch.equal(reached(model, 5, 4, **given), expected(how, 2))
        set_pattern(model, Joint())
        assert reached(model, 5, 4, **given).all()


@pytest.mark.parametrize("how", WAYS)
def test_saved_and_loaded(how: SpaceTime, tmp_path: Path) -> None:
    model = small(how)
    again = hub.load(hub.save(model, tmp_path / "model"))
    assert again.config == model.config  # type: ignore[union-attr]
    assert torch.equal(of_video_dit(again, 5), expected(how, 2))  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))


def test_other_patterns_over_space_and_time() -> None:
    causal = FrameCausal() & Temporal()
    assert space_time("factorised_self_attention", 1, 2, temporal=causal) == ((Spatial(), causal),)
    assert space_time("joint", 3, 1) == ((Joint(),),) * 3
    assert space_time("factorised_encoder", 4, 1) == ((Spatial(),),) * 2 + ((Temporal(),),) * 2


@pytest.mark.graph  # without the shape checker, which would refuse the first
@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (("axial", 2, 2), "how must be one of .*, got 'axial'"),
        (("factorised_encoder", 3, 2), "depth must be even for space_time='factorised_encoder', .*, got 3"),
        (("factorised_dot_product", 2, 3), "heads=3 do not make two halves for space_time='factorised_dot_product'"),
    ],
)
def test_ways_that_do_not_fit_are_named(asked: tuple[Any, int, int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        space_time(*asked)
    how, depth, heads = asked
    with pytest.raises(ValueError):
        dataclasses.replace(SMALL, space_time=how, depth=depth, heads=heads, dim=96)
