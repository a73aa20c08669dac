"""Latte with classes against diffusers' DiT blocks over space and time, and mixtures against each sample alone."""

import dataclasses
from typing import Any, get_args

import latte_classes
import pytest
import torch
from lattes import defined
from mixtures import F64, GRIDS, LEVELS, Mixture
from parity import error, randomise, size
from pixarts import assert_same_gradients
from torch import Tensor, nn

from tubelet import models
from tubelet.layout import Grid, Rows, TokenLayout
from tubelet.models import LatteClassConfig, LatteClassTransformer, LatteVariant

TINY = LatteClassConfig(
    dim=24, depth=4, heads=2, classes=3, latent_channels=2, variance_channels=1, patch=(1, 1, 2), sample_size=6
)
VARIANTS = get_args(LatteVariant)
LABELS = torch.tensor([0, 3, 2])  # a class, none, another class


@pytest.mark.parametrize("grid", [Grid(3, 2, 4), Grid(5, 3, 3), Grid(1, 1, 2)])
@pytest.mark.parametrize("seed", [0, 1])
def test_equal_to_blocks_of_diffusers(seed: int, grid: Grid) -> None:
    """Outputs and the gradient of every weight, in float64; an image passes by the blocks over time."""
    config = dataclasses.replace(TINY, patch=(1, 2, 2), heads=1 + seed)
    theirs = latte_classes.peer(config, seed)
    ours = LatteClassTransformer(config, **F64)
    ours.load_state_dict(latte_classes.weights(theirs))
    x, level, labels = torch.randn(2, grid.tokens, 8, **F64), torch.rand(2, **F64), torch.tensor([1, 3])
    layout = TokenLayout.dense(2, grid)
    out = ours(x, layout.rows(level, "sample"), layout, labels)
    # the peer's places are those of its only size, of three by three patches
    expected = latte_classes.answer(theirs, x.unflatten(1, (grid.t, -1)), 1000 * level - 1, labels, (grid.h, grid.w), 3)
    assert error(out, expected.flatten(1, 2)) <= 1e-11
    out.square().sum().backward()
    expected.square().sum().backward()
    assert_same_gradients(ours, latte_classes.gradients(theirs))


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_are_those_of_the_paper(variant: LatteVariant) -> None:
    model, grid = tiny(variant=variant, patch=(1, 1, 1)), Grid(3, 2, 4)
    x, level, layout = torch.randn(grid.tokens, 2, **F64), torch.rand(1, **F64), TokenLayout.packed([grid])
    expected = defined(model, x, level, grid, label=torch.tensor([2]))
    torch.testing.assert_close(model(x, Rows(level), layout, torch.tensor([2])), expected, rtol=1e-11, atol=1e-11)


PUBLISHED = {"latte_s": 32_480_672, "latte_b": 129_547_040, "latte_l": 456_815_648, "latte_xl": 673_681_568}


@pytest.mark.parametrize("preset", PUBLISHED)
def test_presets_have_the_published_sizes(preset: str) -> None:
    """Those of the authors' code: 18 d² + 15 d a block, and the ends; a vector for each class and one for none."""
    config = getattr(models, preset)()
    d, ends = config.dim, [16, 1, 256, 1, config.dim, 1, 2 * config.dim, 2, 32]
    model = LatteClassTransformer(config, device="meta")
    assert size(model) == config.depth * (18 * d * d + 15 * d) + sum(ends) * d + 32 == PUBLISHED[preset]
    assert size(LatteClassTransformer(getattr(models, preset)(classes=101), device="meta")) - size(model) == 102 * d


def tiny(**changed: Any) -> Any:
    return randomise(LatteClassTransformer(dataclasses.replace(TINY, **changed), **F64))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("level", LEVELS)
def test_packed_equals_separate(variant: str, level: Any) -> None:
    """Outputs and gradients of videos and an image with classes of their own, padding full of rubbish."""
    model, layout, values = tiny(variant=variant), TokenLayout.packed(GRIDS, capacity=20), Mixture({}, {}).levels(level)
    index, x = layout.on("cpu"), latte_classes.inputs(GRIDS, 20, 4)
    spread = torch.cat([values, values.new_zeros(7)]) if level == "token" else values
    out = model(x, index.rows(spread, level), index, LABELS)[:13]
    out.square().sum().backward()
    packed = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    start, first = 0, 0
    for i, grid in enumerate(GRIDS):
        cut = slice(start, start := start + grid.tokens)
        count = {"sample": 1, "frame": grid.t, "token": grid.tokens}[level]
        own, first = values[first : first + count], first + count
        one, dense = x.detach()[cut][None].requires_grad_(), TokenLayout.dense(1, grid)
        alone = model(one, dense.rows(own, level), dense, LABELS[i : i + 1])
        alone.square().sum().backward()
        torch.testing.assert_close(out[cut], alone[0], rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(x.grad[cut], one.grad[0], rtol=1e-11, atol=1e-10)
    assert not x.grad[start:].any()
    for name, p in model.named_parameters():
        torch.testing.assert_close(packed[name], p.grad, rtol=1e-10, atol=1e-9)


def test_a_model_without_classes_is_that_of_the_null_class() -> None:
    """Whose vector goes into the bias of the embedded time."""
    model, plain = tiny(), LatteClassTransformer(dataclasses.replace(TINY, classes=None), **F64)
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("label.")}
    plain.load_state_dict(state | {"time.down.bias": state["time.down.bias"] + model.label.table.weight[3]})
    index, x = TokenLayout.packed(GRIDS).on("cpu"), latte_classes.inputs(GRIDS, 13, 4)
    t = index.rows(Mixture({}, {}).levels("sample"), "sample")
    torch.testing.assert_close(model(x, t, index, torch.full((3,), 3)), plain(x, t, index), rtol=1e-11, atol=1e-11)


def test_the_blocks_are_closed_at_the_start_and_a_model_made_on_meta_resets_whole() -> None:
    model = LatteClassTransformer(TINY, device="meta", **F64).to_empty(device="cpu")
    for parameter in model.parameters():
        nn.init.constant_(parameter, torch.nan)
    model.reset_parameters()
    assert all(p.isfinite().all() for p in model.parameters())
    index, x = TokenLayout.packed(GRIDS).on("cpu"), latte_classes.inputs(GRIDS, 13, 4)
    assert not model(x, index.rows(Mixture({}, {}).levels("sample"), "sample"), index, LABELS).any()
    seen = torch.randn(13, 24, **F64)
    context = {"layout": index, "moving": torch.ones(13, 1, dtype=torch.bool)}
    for block in model.blocks:
        assert torch.equal(block(seen, Rows(torch.randn(1, 24, **F64)), context), seen)


@pytest.mark.graph
def test_one_graph_serves_many_layouts() -> None:
    model, compiles = tiny(depth=2), []

    def counting(graph: torch.fx.GraphModule, example: list[Tensor]) -> object:
        compiles.append(graph)
        return graph.forward

    compiled = torch.compile(model, fullgraph=True, backend=counting)
    for grids in ([Grid(1, 2, 2)], [Grid(2, 2, 2), Grid(1, 1, 3)], [Grid(1, 1, 1)] * 9):
        index = TokenLayout.packed(grids, capacity=16).on("cpu")
        labels = torch.arange(index.row_counts("sample")[1]) % 4
        t = index.rows(torch.rand(len(grids), **F64), "sample")
        given = (torch.randn(16, 4, **F64), t, index, labels)
        torch.testing.assert_close(compiled(*given), model(*given))
    assert len(compiles) == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"x": torch.zeros(13, 5, **F64)}, "x is 5 wide, but the model takes 4"),
        ({"layout": TokenLayout.packed(GRIDS[:2])}, r"x has tokens \(13,\), but its layout has \(7,\)"),
        ({"labels": None}, "labels is None, but the model has classes=3"),
        ({"labels": LABELS[:2]}, r"labels has shape \(2,\), but layout has 3 samples"),
        ({"t": Rows(torch.zeros(3, **F64))}, "3 values without an index"),
    ],
)
def test_inputs_that_do_not_fit_are_named(change: dict[str, Any], says: str) -> None:
    x = latte_classes.inputs(GRIDS, 13, 4)
    given = {"x": x, "t": Rows(torch.zeros(1, **F64)), "layout": TokenLayout.packed(GRIDS), "labels": LABELS} | change
    with pytest.raises(ValueError, match=says):
        tiny()(**given)


def test_labels_of_a_model_without_classes_are_refused() -> None:
    given = latte_classes.inputs(GRIDS, 13, 4), Rows(torch.zeros(1, **F64)), TokenLayout.packed(GRIDS), LABELS
    with pytest.raises(ValueError, match=r"labels is of shape \(3,\), but the model has classes=None"):
        tiny(classes=None)(*given)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"classes": 0}, "classes must be positive, got 0"),
        ({"sample_size": 0}, "sample_size must be positive, got 0"),
        ({"heads": 5}, "dim=24 must be a multiple of heads=5"),
        ({"heads": 3, "variant": "half_heads"}, "heads=3 do not make two halves"),
        ({"depth": 3}, "depth must be even for variant='interleaved'"),
        ({"frequencies": 7}, "even and positive, got 7"),
        ({"patch": (1, 0, 2)}, r"three positive whole numbers .*, got \(1, 0, 2\)"),
        ({"variance_channels": -1}, "variance_channels must not be negative, got -1"),
    ],
)
def test_configs_that_do_not_fit_are_named(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        dataclasses.replace(TINY, **change)
