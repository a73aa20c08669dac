"""The video DiT: packed equals separate, samples never meet, one graph, and its sizes."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tubelet.layout import Grid, Rows, TokenLayout
from tubelet.models import VideoDiT, VideoDiTConfig, video_dit_b, video_dit_digits, video_dit_s, video_dit_xl
from tubelet.models.video_dit import _mean_text

SMALL = VideoDiTConfig(latent_channels=2, dim=32, depth=2, heads=2, text_dim=5, patch=(1, 1, 2), cond_dim=12)
GRIDS, TEXT = [Grid(2, 2, 1), Grid(1, 1, 3), Grid(3, 1, 2)], [2, 0, 3]  # 4 + 3 + 6 tokens
LEVELS = ("sample", "frame", "token")


def small(dtype: torch.dtype = torch.float64, depth: int = 2) -> VideoDiT:
    model = VideoDiT(dataclasses.replace(SMALL, depth=depth), dtype=dtype)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def inputs(
    capacity: int | None = None, text_capacity: int | None = None
) -> tuple[Tensor, Tensor, Tensor, TokenLayout, TokenLayout]:
    """Patches, known masks, text and layouts; what is real does not depend on the capacities."""
    layout = TokenLayout.packed(GRIDS, capacity=capacity)
    text_layout = TokenLayout.packed([None] * 3, TEXT, capacity=text_capacity)
    draw = torch.Generator().manual_seed(0)
    x, known, text = (torch.randn(n, d, dtype=torch.float64, generator=draw) for n, d in ((13, 4), (13, 2), (5, 5)))
    grown = [
        torch.cat([y, torch.full((n - len(y), y.shape[1]), 7.0, dtype=y.dtype)])
        for y, n in ((x, layout.width), (known, layout.width), (text, text_layout.width))
    ]
    return (*grown, layout, text_layout)


def levels(layout: TokenLayout, level: str) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    return torch.rand(layout.on("cpu").row_counts(level)[0], dtype=torch.float64, generator=draw)


def test_the_prediction_is_zero_at_the_start() -> None:
    x, known, text, layout, text_layout = inputs()
    model = VideoDiT(SMALL, dtype=torch.float64)
    t = layout.rows(levels(layout, "frame"), "frame")
    assert not model(x, t, text, layout, text_layout, known).any()
    assert all(not m.proj.weight.any() for m in model.modules() if type(m).__name__ == "AdaLNZero")


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("capacities", [(None, None), (20, 9), (20, None), (None, 9)])
def test_packed_equals_separate(level: str, capacities: tuple[int | None, int | None]) -> None:
    """Outputs, and the gradients of weights and inputs, for every level of noise rows and any padding."""
    model = small()
    x, known, text, layout, text_layout = inputs(*capacities)
    index, values = layout.on("cpu"), levels(TokenLayout.packed(GRIDS), level)
    if level == "token":
        values = torch.cat([values, values.new_zeros(layout.width - 13)])
    x.requires_grad_()
    out = model(x, index.rows(values, level), text, layout, text_layout, known)
    weights = torch.randn(13, 4, dtype=torch.float64)
    (out[:13] * weights).sum().backward()
    whole = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    owners = index._owner(level)[: len(values)]
    start = text_start = 0
    for i, (grid, length) in enumerate(zip(GRIDS, TEXT, strict=True)):
        stop, text_stop = start + grid.tokens, text_start + length
        one, one_text = TokenLayout.dense(1, grid), TokenLayout.padded([length], length)
        mine = values[start:stop] if level == "token" else values[owners == i]
        piece = x.detach()[None, start:stop].clone().requires_grad_()
        alone = model(
            piece, one.rows(mine, level), text[None, text_start:text_stop], one, one_text, known[None, start:stop]
        )
        (alone[0] * weights[start:stop]).sum().backward()
        torch.testing.assert_close(out[start:stop], alone[0], rtol=1e-10, atol=1e-11)
        torch.testing.assert_close(x.grad[start:stop], piece.grad[0], rtol=1e-10, atol=1e-10)
        start, text_start = stop, text_stop
    for packed, p in zip(whole, model.parameters(), strict=True):
        assert (packed - p.grad).norm() <= 1e-11 * p.grad.norm()


@pytest.mark.parametrize("level", LEVELS)
def test_dense_equals_packed(level: str) -> None:
    model, grid = small(), Grid(2, 1, 3)
    dense, packed = TokenLayout.dense(2, grid), TokenLayout.packed([grid] * 2)
    x, text = torch.randn(2, 6, 4, dtype=torch.float64), torch.randn(2, 3, 5, dtype=torch.float64)
    values = levels(dense, level)
    rows = TokenLayout.padded([3, 1], 3)
    got = model(x, dense.rows(values, level), text, dense, rows)
    flat_text = torch.cat([text[0], text[1, :1]])
    expected = model(
        x.flatten(0, 1), packed.rows(values, level), flat_text, packed, TokenLayout.packed([None] * 2, [3, 1])
    )
    torch.testing.assert_close(got.flatten(0, 1), expected, rtol=1e-11, atol=1e-11)


def test_one_noise_level_for_all_equals_one_per_sample() -> None:
    model = small()
    x, known, text, layout, text_layout = inputs()
    one = model(x, Rows(torch.tensor([0.3], dtype=torch.float64)), text, layout, text_layout, known)
    each = layout.rows(torch.full((3,), 0.3, dtype=torch.float64), "sample")
    torch.testing.assert_close(one, model(x, each, text, layout, text_layout, known), rtol=1e-11, atol=1e-11)


def test_each_input_reaches_its_own_sample_and_no_other() -> None:
    model = small()
    x, known, text, layout, text_layout = inputs()
    t = levels(layout, "sample")
    base = model(x, layout.rows(t, "sample"), text, layout, text_layout, known)
    owner, text_owner = layout.on("cpu").sample, text_layout.on("cpu").sample
    changes = {
        "x": (x + (owner == 2)[:, None], t, text, known),
        "noise level": (x, t + torch.tensor([0, 0, 0.1]), text, known),
        "text": (x, t, text + (text_owner == 2)[:, None], known),
        "known": (x, t, text, known + (owner == 2)[:, None]),
    }
    for name, (x2, t2, text2, known2) in changes.items():
        out = model(x2, layout.rows(t2, "sample"), text2, layout, text_layout, known2)
        assert torch.equal(out[:7], base[:7]), name
        assert ((out - base)[7:].abs().amax(dim=1) > 1e-6).all(), name


def test_nan_in_padding_stays_there() -> None:
    model = small()
    x, known, text, layout, text_layout = inputs(16, 8)
    t = layout.rows(levels(layout, "sample"), "sample")
    expected = model(x, t, text, layout, text_layout, known)
    x[13:], text[5:] = torch.nan, torch.nan
    got = model(x, t, text, layout, text_layout, known)
    assert torch.equal(got[:13], expected[:13])


def test_nan_in_padding_reaches_no_gradient() -> None:
    model = small()
    x, known, text, layout, text_layout = inputs(16, 8)
    t = layout.rows(levels(layout, "sample"), "sample")
    found = []
    for filler in (0.0, torch.nan):
        x[13:], known[13:], text[5:] = filler, filler, filler
        leaves = [x.clone().requires_grad_(), text.clone().requires_grad_()]
        loss = model(leaves[0], t, leaves[1], layout, text_layout, known)[:13].square().sum()
        found.append(torch.autograd.grad(loss, [*leaves, *model.parameters()]))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert not found[1][0][13:].any() and not found[1][1][5:].any()


def test_the_pooled_prompt_is_the_mean_of_its_tokens() -> None:
    """Against a loop, prompts of one token and of none included."""
    text = torch.randn(6, 5, dtype=torch.float64)
    got = _mean_text(text, TokenLayout.packed([None] * 4, [1, 3, 0, 2], capacity=6).on("cpu"))
    expected = torch.stack([text[0], text[1:4].mean(0), torch.zeros(5).double(), text[4:].mean(0)])
    torch.testing.assert_close(got[:4], expected, rtol=1e-14, atol=0)
    assert not got[4:].any()


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_the_time_embedding_sees_the_scaled_level(scale: float) -> None:
    model = VideoDiT(dataclasses.replace(SMALL, time_scale=scale), dtype=torch.float64)
    seen: list[Tensor] = []
    model.time.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    x, _, text, layout, text_layout = inputs()
    model(x, layout.rows(torch.tensor([0.0, 0.25, 1.0]), "sample"), text, layout, text_layout)
    assert seen[0].tolist() == [0.0, 0.25 * scale, scale]


def test_order_of_frames_rows_and_columns_matters() -> None:
    """The position codes reach the output: the same values in another order give another result."""
    model = small()
    _, _, text, _, _ = inputs()
    layout, text_layout = TokenLayout.packed([Grid(2, 2, 2)]), TokenLayout.packed([None], [5])
    x, t = torch.randn(8, 4, dtype=torch.float64), Rows(torch.tensor([0.5], dtype=torch.float64))
    base = model(x, t, text, layout, text_layout).view(2, 2, 2, 4)
    for axis in range(3):
        swapped = model(x.view(2, 2, 2, 4).flip(axis).reshape(8, 4), t, text, layout, text_layout).view(2, 2, 2, 4)
        assert (swapped.flip(axis) - base).abs().max() > 1e-3


def test_positions_count_from_both_ends_of_the_grid() -> None:
    model, index = small(), TokenLayout.packed([Grid(2, 2, 3)], [1], capacity=16).on("cpu")
    start, end = model._positions(index).chunk(2, dim=-1)
    cells = slice(1, 13)
    assert torch.equal(
        start[cells].flip(0), end[cells]
    )  # raster order backwards: the last cell is (0, 0, 0) from the end
    assert not start[0].any() and not end[0].any() and not end[13:].any()


@pytest.mark.parametrize("config", [SMALL, video_dit_digits(), video_dit_s(), video_dit_b(), video_dit_xl()])
def test_parameters_are_counted_by_formula_on_meta(config: VideoDiTConfig) -> None:
    model = VideoDiT(config, device="meta")
    assert all(p.is_meta for p in model.parameters())
    d, c, e, p = config.dim, config.cond_dim or config.dim, config.text_dim, config.patch_dim
    hidden, head = int(d * config.mlp_ratio), d // config.heads
    self_attention = 4 * d * (d + 1) + 2 * head + 3 * d * (c + 1)
    cross = 2 * d * (d + 1) + 2 * d * (e + 1) + 2 * head + 2 * d
    mlp = hidden * (d + 1) + d * (hidden + 1) + 3 * d * (c + 1)
    embeddings = d * (p + p // config.latent_channels + 1) + c * 257 + c * (c + 1) + c * (e + 1)
    final = 2 * d * (c + 1) + p * (d + 1)
    expected = config.depth * (self_attention + cross + mlp) + embeddings + final
    assert sum(x.numel() for x in model.parameters()) == expected


def test_reset_after_meta_construction_initialises_everything() -> None:
    model = VideoDiT(SMALL, device="meta").to_empty(device="cpu")
    for parameter in model.parameters():
        nn.init.constant_(parameter, torch.nan)
    model.reset_parameters()
    fresh = VideoDiT(SMALL)
    for (name, got), expected in zip(model.named_parameters(), fresh.parameters(), strict=True):
        assert got.isfinite().all(), name
        assert abs(got.std(correction=0) - expected.std(correction=0)) <= 0.35 * expected.std(correction=0) + 1e-9, name
    assert not any(b.branches[1].inner.out_proj.weight.any() for b in model.blocks)


@pytest.mark.graph
@pytest.mark.parametrize("level", LEVELS)
def test_one_graph_serves_many_layouts_with_gradients(level: str) -> None:
    model, compiles = small(torch.float32), []

    def counting(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        compiles.append(graph)
        return graph.forward

    compiled = torch.compile(model, fullgraph=True, backend=counting)
    mixtures = [
        ([Grid(3, 1, 2), Grid(1, 2, 3)], [1, 2]),
        ([Grid(1, 2, 2)], [4]),
        ([Grid(1, 1, 1)] * 9, [1, 0] * 4 + [1]),
    ]
    for grids, lengths in mixtures:
        index = TokenLayout.packed(grids, capacity=16).on("cpu")
        text_index = TokenLayout.packed([None] * len(grids), lengths, capacity=8).on("cpu")
        t = index.rows(torch.rand(index.row_counts(level)[0]), level)
        x, text, known = torch.randn(16, 4), torch.randn(8, 5), torch.zeros(16, 2)
        grads = []
        for call in (compiled, model):
            out = call(x, t, text, index, text_index, known)
            grads.append((out, torch.autograd.grad(out.square().sum(), model.embed.weight)[0]))
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert len(compiles) == 1


@pytest.mark.graph
def test_aot_autograd_traces_forward_and_backward() -> None:
    """Fake tensors through the whole model: the segment operator's registration holds inside a graph."""
    model = small(torch.float32, depth=1)
    x, known, text, layout, text_layout = inputs(16, 8)
    index, text_index = layout.on("cpu"), text_layout.on("cpu")
    t = index.rows(levels(layout, "sample").float(), "sample")
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    results = []
    for call in (model, compiled):
        out = call(x.float(), t, text.float(), index, text_index, known.float())
        results.append((out, *torch.autograd.grad(out[:13].square().sum(), list(model.parameters()))))
    for a, b in zip(*results, strict=True):
        assert (a - b).norm() <= 1e-4 * b.norm() + 1e-6


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"latent_channels": 0}, ("latent_channels", "0")),
        ({"dim": 48, "heads": 5}, ("dim=48", "heads=5")),
        ({"dim": 48, "heads": 2}, ("dim=48", "32")),
        ({"depth": 1.5}, ("depth", "1.5")),
        ({"cond_dim": 0}, ("cond_dim", "0")),
        ({"mlp_ratio": -1.0}, ("mlp_ratio", "-1.0")),
        ({"rope_theta": 0.0}, ("rope_theta", "0.0")),
        ({"time_scale": torch.nan}, ("time_scale", "nan")),
        ({"patch": (1, 0, 2)}, ("patch", "(1, 0, 2)")),
        ({"patch": (1, 2)}, ("patch", "(1, 2)")),
        ({"patch": (1, 2, 0.5)}, ("patch", "0.5")),
    ],
)
@pytest.mark.graph  # without the shape checker, which would refuse some of these first
def test_bad_sizes_name_both_values(change: dict[str, Any], names: tuple[str, ...]) -> None:
    sizes = {"latent_channels": 2, "dim": 32, "depth": 1, "heads": 2, "text_dim": 4, **change}
    with pytest.raises(ValueError) as caught:
        VideoDiTConfig(**sizes)
    assert all(name in str(caught.value) for name in names)


@pytest.mark.graph  # without the shape checker, which would refuse some of these first
@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"x": torch.zeros(13, 3)}, ("3 numbers a patch", "has 4")),
        ({"x": torch.zeros(12, 4)}, ("(12,)", "(13,)")),
        ({"text": torch.zeros(4, 5)}, ("(4,)", "(5,)")),
        ({"text_layout": TokenLayout.packed([None], [5])}, ("3 samples", "text_layout has 1")),
        ({"text": torch.zeros(5, 4)}, ("text is 4 wide", "text_dim=5")),
        ({"known": torch.zeros(13, 1)}, ("known", "(13, 1)", "(13, 2)")),
        ({"known": torch.zeros(1, 2)}, ("known", "(1, 2)", "(13, 2)")),
        ({"t": Rows(torch.zeros(3))}, ("t has 3 values", "(13,)")),
        ({"t": Rows(torch.zeros(13))}, ("t has 13 values", "(13,)")),
        ({"t": Rows(torch.zeros(3), torch.zeros(1, 13, dtype=torch.long))}, ("(1, 13)", "(13,)")),
        ({"t": TokenLayout.packed([Grid(1, 3, 4)]).rows(torch.zeros(1), "sample")}, ("(12,)", "(13,)")),
        ({"t": Rows(torch.zeros(1, 2))}, ("t must hold scalars", "(1, 2)")),
        ({"t": Rows(torch.tensor([500]))}, ("t must hold scalars", "torch.int64")),
    ],
)
def test_bad_inputs_name_both_values(change: dict[str, object], names: tuple[str, ...]) -> None:
    x, _, text, layout, text_layout = inputs()
    given = {"x": x, "t": Rows(torch.zeros(1)), "text": text, "layout": layout, "text_layout": text_layout, **change}
    with pytest.raises(ValueError) as caught:
        small()(**given)
    assert all(name in str(caught.value) for name in names), str(caught.value)


@pytest.mark.graph
def test_a_dense_batch_takes_one_level_or_one_an_element() -> None:
    layout, text_layout = TokenLayout.dense(2, Grid(1, 2, 2)), TokenLayout.dense(2, Grid(1, 1, 1))
    x, text = torch.zeros(2, 4, 4, dtype=torch.float64), torch.zeros(2, 1, 5, dtype=torch.float64)
    for rows in (Rows(torch.zeros(1)), layout.rows(torch.zeros(2), "sample")):
        assert small()(x, rows, text, layout, text_layout).shape == (2, 4, 4)
    with pytest.raises(ValueError, match=r"t has 4 values .* layout has \(2, 4\)"):
        small()(x, Rows(torch.zeros(4)), text, layout, text_layout)
