"""What is measured on meta equals what real tensors hold, and the formulas have the papers' factors."""

import pytest
import torch
from torch import nn

from tubelet import models
from tubelet.bench.memory import peak_bytes as profiled
from tubelet.layout import Grid, TokenLayout
from tubelet.planner import activation_bytes, forward_inputs, inference_bytes, peak_bytes, saved_bytes

DIT = models.DiTConfig(dim=64, depth=3, heads=2, mlp_dim=256)


def both(config: models.DiTConfig, grid: Grid):
    """A model and its inputs on meta and on the CPU."""
    on_meta = models.DiT(config, device="meta")
    model, layout = models.DiT(config), TokenLayout.dense(1, grid).on("cpu")
    x = torch.zeros(1, grid.tokens, config.patch_dim)
    inputs = {"x": x, "t": layout.rows(torch.zeros(1), "sample"), "layout": layout, "labels": torch.zeros(1).long()}
    return on_meta, forward_inputs(on_meta, grid), model, inputs


def test_what_backward_needs_is_that_of_real_tensors() -> None:
    on_meta, meta_inputs, model, inputs = both(DIT, Grid(1, 8, 8))
    assert saved_bytes(on_meta, **meta_inputs) == saved_bytes(model, **inputs)


def test_what_backward_needs_grows_by_what_a_block_keeps() -> None:
    sizes = [
        saved_bytes(model, **forward_inputs(model, Grid(1, 16, 16)))
        for depth in (1, 2, 4)
        for model in [models.DiT(models.DiTConfig(dim=64, depth=depth, heads=2, mlp_dim=256), device="meta")]
    ]
    one = sizes[1] - sizes[0]
    assert sizes[2] - sizes[1] == 2 * one
    assert 34 / 2 * 4 <= one / (256 * 64) <= 62 / 2 * 4  # the range of implementations, in float32


def test_parameters_are_not_counted_as_activations() -> None:
    linear = nn.Linear(8, 4)
    assert saved_bytes(linear, torch.ones(2, 8)) == 2 * 8 * 4
    assert saved_bytes(nn.Sequential(linear, nn.Tanh()), torch.ones(2, 8)) == 2 * 8 * 4 + 2 * 4 * 4


def test_the_peak_is_that_of_the_profiler() -> None:
    """On the CPU attention has scratch memory inside, which meta does not show."""
    on_meta, meta_inputs, model, inputs = both(DIT, Grid(1, 16, 16))
    with torch.no_grad():
        found, reason = profiled(lambda: model(**inputs), torch.device("cpu"))
    assert reason is None
    assert peak_bytes(on_meta, **meta_inputs) == pytest.approx(found, rel=0.05)


def test_what_has_ended_is_not_in_the_peak() -> None:
    layers = nn.Sequential(*(nn.Linear(8, 8) for _ in range(5)))
    assert peak_bytes(layers, torch.ones(2, 8)) == 2 * (2 * 8 * 4)
    assert peak_bytes(layers.to("meta"), torch.ones(2, 8, device="meta")) == 2 * (2 * 8 * 4)


def test_formulas() -> None:
    n, d, depth = 100, 64, 12
    assert activation_bytes(n, d, depth) == 34 * depth * n * d
    assert activation_bytes(n, d, depth, per_number=62, checkpointed=True) == 2 * depth * n * d + 62 * n * d
    assert inference_bytes(1000, n, d) == 2 * 1000 + 10 * 2 * n * d
    assert inference_bytes(1000, n, d, itemsize=4) == 2 * inference_bytes(1000, n, d)


def test_nothing_can_be_differentiated_on_meta() -> None:
    on_meta, inputs, _, _ = both(DIT, Grid(1, 4, 4))
    assert saved_bytes(on_meta, **inputs) > 0
    assert all(parameter.grad is None for parameter in on_meta.parameters())
