"""NaViT: packed equals alone, isolation, padding, dropping, the cost of packing, positions, heads, errors.

Parity with another implementation is in tests/bench/test_navit.py.
"""

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from parity import error, randomise, size
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from tubelet import models
from tubelet.attention import Joint, Spatial, Window, set_pattern
from tubelet.attention.backends.sdpa import tables_of
from tubelet.attention.plan import make_plan
from tubelet.attention.planned import as_bytes
from tubelet.layout import Grid, TokenLayout
from tubelet.models import NaViT, NaViTConfig
from tubelet.norms import LayerNorm, RMSNorm
from tubelet.packing import (
    BetaDrop,
    ConstantDrop,
    ImageSizes,
    PackedStream,
    Sample,
    drop_tokens,
    fill,
    pack_offline,
    pack_stream,
)
from tubelet.patchify import central_frame_, fold_packed, inflate_
from tubelet.positions import Stretched
from tubelet.protocols import AttentionRequest, Pattern

F64: dict[str, Any] = {"dtype": torch.float64}
TINY = NaViTConfig(dim=32, depth=2, heads=2, mlp_dim=48, grid=(4, 6, 8), channels=1, patch=(1, 2, 2), classes=5)
GRIDS = (Grid(1, 3, 4), Grid(1, 6, 2), Grid(3, 2, 2), Grid(1, 1, 1), Grid(1, 2, 8))  # 12 + 12 + 12 + 1 + 16 tokens
TOTAL = 53
KINDS = ("absolute", "fractional")


def tiny(dtype: torch.dtype = torch.float64, pattern: Pattern | None = None, **changes: Any) -> NaViT:
    """A model whose every parameter is random: its logits start at zero, and would hide every error."""
    config = dataclasses.replace(TINY, **changes)
    return randomise(NaViT(config, pattern=Joint() if pattern is None else pattern, dtype=dtype))


def drawn(capacity: int | None = None, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Patches of the samples; what is real does not depend on the capacity, and padding is NaN."""
    real = torch.randn(TOTAL, 4, generator=torch.Generator().manual_seed(seed), **F64).to(dtype)
    padding = torch.full(((capacity or TOTAL) - TOTAL, 4), torch.nan, dtype=dtype)
    return torch.cat([real, padding]).requires_grad_()


def alone(model: NaViT, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Each sample as a dense batch of one: its patches and its result."""
    pieces = [part.detach()[None].clone().requires_grad_() for part in x[:TOTAL].split([g.tokens for g in GRIDS])]
    return pieces, [model(part, TokenLayout.dense(1, g))[0] for part, g in zip(pieces, GRIDS, strict=True)]


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-11), (torch.float32, 1e-5)])
@pytest.mark.parametrize("capacity", [None, 64])
@pytest.mark.parametrize("positions", KINDS)
def test_packed_equals_each_sample_alone(
    positions: str, capacity: int | None, dtype: torch.dtype, bound: float
) -> None:
    """Outputs, and the gradients of patches and weights."""
    model, x = tiny(dtype, positions=positions), drawn(capacity, dtype=dtype)
    cotangent = torch.randn(len(GRIDS), 5, generator=torch.Generator().manual_seed(3), **F64).to(dtype)
    out = model(x, TokenLayout.packed(GRIDS, capacity=capacity))
    assert not out[len(GRIDS) :].any() and len(out) == (len(GRIDS) if capacity is None else 16)
    out[: len(GRIDS)].backward(cotangent)
    packed = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    pieces, results = alone(model, x)
    torch.stack(results).backward(cotangent)
    assert error(out[: len(GRIDS)], torch.stack(results)) <= bound
    assert error(x.grad[:TOTAL], torch.cat([part.grad[0] for part in pieces])) <= bound
    assert not x.grad[TOTAL:].any()
    for name, p in model.named_parameters():
        assert error(packed[name], p.grad) <= bound, name


def test_padded_rows_equal_packed() -> None:
    model, x = tiny(), drawn()
    longest = max(g.tokens for g in GRIDS)
    rows = torch.full((len(GRIDS), longest, 4), torch.nan, **F64)
    layout = TokenLayout(GRIDS, (0,) * len(GRIDS), longest, batched=True)
    rows[layout.on("cpu").valid] = x.detach()
    torch.testing.assert_close(model(rows, layout), model(x, TokenLayout.packed(GRIDS)), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_another_sample_changes_no_bit(dtype: torch.dtype) -> None:
    """Neither of results nor of tokens, in any dtype; and a sample's gradient does not know of the others' loss."""
    model, layout = tiny(dtype), TokenLayout.packed(GRIDS, capacity=64).on("cpu")
    x, other = drawn(64, dtype=dtype), drawn(64, seed=1, dtype=dtype)
    starts = [0, *np.cumsum([g.tokens for g in GRIDS])]
    for i in (0, 2, 3):
        mixed = x.detach().clone()
        mixed[starts[i] : starts[i + 1]] = other.detach()[starts[i] : starts[i + 1]]
        same = (model(mixed, layout) == model(x, layout)).all(-1)[: len(GRIDS)]
        assert same.tolist() == [j != i for j in range(len(GRIDS))]
        tokens = (model.tokens(mixed, layout) == model.tokens(x, layout)).all(-1)[:TOTAL]
        assert tokens.tolist() == [not starts[i] <= j < starts[i + 1] for j in range(TOTAL)]
        (grad,) = torch.autograd.grad(model(x, layout)[i].sum(), x)
        touched = grad.abs().sum(-1) > 0
        assert touched[starts[i] : starts[i + 1]].all() and touched.sum() == GRIDS[i].tokens


def test_a_clip_of_one_frame_is_an_image_at_time_zero() -> None:
    """A model of videos without tables of time is one of images."""
    video = tiny()
    image = tiny(grid=(1, 6, 8))
    state = {name: value for name, value in video.state_dict().items() if name != "positions.time"}
    image.load_state_dict(state)
    x, layout = torch.randn(2, 12, 4, **F64), TokenLayout.dense(2, Grid(1, 3, 4))
    assert error(video(x, layout), image(x, layout)) > 1e-3
    with torch.no_grad():
        video.positions.time.zero_()
    torch.testing.assert_close(video(x, layout), image(x, layout), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("classes", [5, 3])
def test_a_model_of_videos_starts_from_one_of_images(classes: int, bias: bool) -> None:
    """It sees the central frame of each patch, or their mean; each frame of patches as an image, under Spatial()."""
    image = tiny(grid=(1, 6, 8), bias=bias)
    config = dataclasses.replace(image.config, grid=(4, 6, 8), patch=(3, 2, 2), classes=classes)
    clip = torch.randn(1, 6, 6, 8, generator=torch.Generator().manual_seed(0), **F64)
    for embed, frames in ((central_frame_, clip[:, 1::3]), (inflate_, clip.unflatten(1, (2, 3)).mean(2))):
        video = randomise(NaViT(config, pattern=Spatial(), **F64), seed=1)
        head = video.head.weight.clone()
        models.navit_from_image_(video, image, embed)
        patches, grids = fold_packed([clip], (3, 2, 2))
        stills, images = fold_packed(list(frames.split(1, dim=1)), (1, 2, 2))
        got = video.tokens(patches, TokenLayout.packed(grids))
        torch.testing.assert_close(got, image.tokens(stills, TokenLayout.packed(images)), rtol=1e-11, atol=1e-11)
        assert torch.equal(video.head.weight, image.head.weight if classes == 5 else head)
        torch.testing.assert_close(video.pool.state_dict(), image.pool.state_dict())


@pytest.mark.parametrize(
    ("video", "image", "says"),
    [
        ({}, {}, r"image must be a model of single frames .*grid=\(4, 6, 8\)"),
        ({}, {"grid": (1, 6, 8), "patch_norms": True}, "image must be .*patch_norms=True"),
        ({}, {"grid": (1, 6, 8), "dim": 16}, "same sizes but for time, got dim=32 and 16"),
        ({"grid": (4, 6, 9)}, {"grid": (1, 6, 8)}, r"got grid=\(1, 6, 9\) and \(1, 6, 8\)"),
    ],
)
def test_images_that_do_not_fit_are_named(video: dict[str, Any], image: dict[str, Any], says: str) -> None:
    model = tiny(**video)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=says):
        models.navit_from_image_(model, tiny(**image))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def lengths(count: int) -> list[int]:
    """Numbers of patches by NaViT's law of sizes and the usual aspect ratios, from a seed."""
    rng, law = np.random.default_rng(0), ImageSizes()
    ratios = [(1, 1), (4, 3), (3, 4), (3, 2), (2, 3), (16, 9), (9, 16)]
    found = (law.size(*(100 * side for side in ratios[rng.integers(7)]), rng, patch=(16, 16)) for _ in range(count))
    return [h * w // 256 for h, w in found]


def test_padding_is_less_than_two_percent() -> None:
    """As they come, over a few open packs, and all at once; one pack is the room for the odd tokens of the end."""
    drawn_lengths = lengths(5000)
    assert min(drawn_lengths) >= 12 and 100 < np.mean(drawn_lengths) < 250
    assert 1 - fill(drawn_lengths, list(pack_stream(drawn_lengths, 4096)), 4096) < 0.02
    assert 1 - fill(drawn_lengths, pack_offline(drawn_lengths, 4096), 4096) < 0.02


def test_dropped_tokens_are_as_if_they_never_were() -> None:
    """Attention, positions and pooling of what is left, by the definition: the model on masked tokens, one sample."""
    model, x = tiny(), drawn().detach()
    layout = TokenLayout.packed(GRIDS)
    kept = drop_tokens(layout, BetaDrop(0.5), seeds=range(5))
    out = model(x[kept], layout.keep(kept))
    assert out.shape == (5, 5) and error(out, model(x, layout)) > 1e-3
    left = layout.keep(kept)
    assert [1 <= n <= g.tokens for n, g in zip(left.lengths, GRIDS, strict=True)] == [True] * 5
    for i, (start, places) in enumerate(zip(layout.starts, left.kept, strict=True)):
        expected = by_definition(model, x[start : start + GRIDS[i].tokens], GRIDS[i], list(places))
        torch.testing.assert_close(out[i], expected, rtol=1e-10, atol=1e-10)


def by_definition(model: NaViT, x: Tensor, grid: Grid, kept: list[int]) -> Tensor:
    """The forward of one sample written out, with its own indices of row and column."""
    config, t = model.config, torch.arange(grid.tokens)
    frame, row, column = t // (grid.h * grid.w), t // grid.w % grid.h, t % grid.w
    h = x @ model.embed.weight.T
    h = h + model.positions.time[frame] + model.positions.height[row] + model.positions.width[column]
    h = h[kept]

    def norm(x: Tensor, own: nn.Module) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + config.eps).sqrt() * own.weight

    def heads(x: Tensor, proj: nn.Linear) -> Tensor:
        return (x @ proj.weight.T).unflatten(-1, (config.heads, -1)).transpose(0, 1)

    def rms(x: Tensor, own: nn.Module) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + config.eps).sqrt() * own.weight

    def attend(queries: Tensor, keys: Tensor, own: Any) -> Tensor:
        q, k, v = rms(heads(queries, own.q_proj), own.q_norm), rms(heads(keys, own.k_proj), own.k_norm), None
        v = heads(keys, own.v_proj)
        weights = (q @ k.transpose(1, 2) / (config.dim // config.heads) ** 0.5).softmax(-1)
        return (weights @ v).transpose(0, 1).flatten(1) @ own.out_proj.weight.T

    def mlp(x: Tensor, branch: Any) -> Tensor:
        up = norm(x, branch.norm) @ branch.inner.up.weight.T
        return x + F.gelu(up, approximate="tanh") @ branch.inner.down.weight.T

    for block in model.blocks:
        attention, dense = block.branches
        normed = norm(h, attention.norm)
        h = mlp(h + attend(normed, normed, attention.inner), dense)
    pooled = attend(model.pool.queries, norm(h, model.final_norm), model.pool.attention)
    return (norm(mlp(pooled, model.pool_mlp), model.pool_norm) @ model.head.weight.T)[0]


def test_dropping_makes_room_for_more_samples() -> None:
    """Packs of dropped samples, from a stream, give each what it has alone; half the tokens are half the packs."""
    model, draw = tiny(), torch.Generator().manual_seed(0)
    grids = [Grid(1, 4, 4)] * 16
    samples = [Sample(torch.randn(16, 4, generator=draw, **F64), grid) for grid in grids]
    dropped = [s.keep(drop_tokens(s.layout, ConstantDrop(0.5), [i])) for i, s in enumerate(samples)]
    whole, half = (list(PackedStream(each, budget=64)) for each in (samples, dropped))
    assert (len(whole), len(half)) == (4, 2)
    assert all(batch.tokens.shape == (64, 4) for batch in half)
    got = torch.cat([model(batch.tokens, batch.layout)[: len(batch.layout.grids)] for batch in half])
    expected = torch.cat([model(s.tokens, s.layout) for s in dropped])
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


def cost(model: NaViT, layout: TokenLayout) -> int:
    """Multiply-adds of the blocks, attention by its definition over each row of the layout."""
    with FlopCounterMode(display=False) as counter:
        h = torch.randn(*layout.shape, model.config.dim, **F64)
        for block in model.blocks:
            h = block(h, None, {"layout": layout.on("cpu")})
    return counter.get_total_flops() // 2


@pytest.mark.parametrize(("images", "tokens"), [(2, 12), (8, 16), (5, 3)])
def test_the_overhead_of_masked_packing_is_that_of_the_paper_and_ours_is_none(images: int, tokens: int) -> None:
    """``n(k - 1) / (6d + n)`` of a layer with an MLP of 4d, were attention computed over the pack; counted, exactly."""
    model = tiny(mlp_dim=128, grid=(1, 64, 64))
    dim = model.config.dim
    for block in model.blocks:
        block.branches[0].inner.backend = "reference"
    alone, pack = TokenLayout.dense(images, Grid(1, 1, tokens)), TokenLayout.dense(1, Grid(1, images, tokens))
    assert cost(model, alone) == 2 * images * tokens * 2 * dim * (6 * dim + tokens)  # two layers
    overhead = (cost(model, pack) - cost(model, alone)) / cost(model, alone)
    assert overhead == pytest.approx(tokens * (images - 1) / (6 * dim + tokens), rel=1e-12)
    assert planned_pairs(TokenLayout.packed([Grid(1, 1, tokens)] * images)) == images * tokens**2


def planned_pairs(layout: TokenLayout) -> int:
    """Pairs of query and key that are computed, by the plan that runs."""
    n = layout.shape[0]
    index = layout.on("cpu")
    request = AttentionRequest(Joint(), index, None, (n, 2, 4), (n, 2, 4), torch.float64, "cpu", 0.5, None)
    table, *rest = (None if x is None else as_bytes(x) for x in tables_of(request))
    plan = make_plan(Joint(), table, *rest, heads=2)
    assert not plan.merges and all(run.mask is None for run in plan.runs)
    return sum(run.q.groups * run.q.length * run.k.length for run in plan.runs)


@pytest.mark.graph
def test_one_graph_serves_all_layouts_of_a_capacity() -> None:
    """Forward and loss, for different numbers and sizes of samples."""
    model, compiles = tiny(), []

    def counting(graph: torch.fx.GraphModule, example: list[Tensor]) -> object:
        compiles.append(graph)
        return graph.forward

    compiled = torch.compile(model, fullgraph=True, backend=counting)
    for grids in ([Grid(1, 2, 2)], [Grid(2, 2, 2), Grid(1, 1, 3)], [Grid(1, 1, 1)] * 9, [Grid(1, 4, 4)]):
        index, x = TokenLayout.packed(grids, capacity=16).on("cpu"), torch.randn(16, 4, **F64)
        torch.testing.assert_close(compiled(x, index), model(x, index))
    assert len(compiles) == 1


def test_fractional_positions_are_shares_of_the_side() -> None:
    """By the formula: ``r = p/side`` of each axis, read from its table; a grid of the table's sides is absolute."""
    model = tiny(positions="fractional")
    index = TokenLayout.packed([Grid(2, 3, 4)]).on("cpu")
    got = model.positions(model.places(index.coords, index.extent))
    expected = []
    for coords in index.coords.tolist():
        parts = []
        for table, place, side in zip(model.positions.parameters(), coords, (2, 3, 4), strict=True):
            at = place / side * len(table)
            first, share = int(at), at - int(at)
            parts.append((1 - share) * table[first] + share * table[min(first + 1, len(table) - 1)])
        expected.append(sum(parts))
    torch.testing.assert_close(got, torch.stack(expected), rtol=1e-12, atol=1e-12)
    full, x = TokenLayout.dense(1, Grid(4, 6, 8)), torch.randn(1, 192, 4, **F64)
    same = tiny()
    same.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(x, full), same(x, full), rtol=1e-11, atol=1e-11)
    other = TokenLayout.dense(1, Grid(1, 3, 4))
    assert error(model(x[:, :12], other), same(x[:, :12], other)) > 1e-3


def test_fractional_positions_serve_any_size_and_absolute_ones_refuse() -> None:
    layout, x = TokenLayout.dense(1, Grid(1, 7, 20)), torch.randn(1, 140, 4, **F64)
    assert tiny(positions="fractional")(x, layout).isfinite().all()
    with pytest.raises(ValueError, match=r"coords span .* outside extent=\(4, 6, 8\)"):
        tiny()(x, layout)


@pytest.mark.parametrize("pattern", [Spatial(), Window((2, 2, 2))])
def test_any_pattern_equals_its_mask(pattern: Pattern) -> None:
    """Packed, by segments, against the predicate of every pair."""
    model, x, layout = tiny(pattern=pattern), drawn(), TokenLayout.packed(GRIDS)
    masked = copy.deepcopy(model)
    for block in masked.blocks:
        block.branches[0].inner.backend = "reference"
    torch.testing.assert_close(model(x, layout), masked(x, layout), rtol=1e-11, atol=1e-11)
    set_pattern(masked, Joint())
    assert error(masked(x, layout), model(x, layout)) > 1e-3


PUBLISHED = {  # what ViT-S, -B and -L hold in their blocks (12d² each), without biases
    "navit_s": (384, 12, 6),
    "navit_b": (768, 12, 12),
    "navit_l": (1024, 24, 16),
}


@pytest.mark.parametrize("preset", PUBLISHED)
def test_presets_have_the_sizes_of_the_paper(preset: str) -> None:
    """Counted by hand: matrices of 12d² a block, two norms of tokens and two of heads; no bias anywhere."""
    dim, depth, heads = PUBLISHED[preset]
    model = NaViT(getattr(models, preset)(), device="meta")
    block = 12 * dim**2 + 2 * dim + 2 * dim // heads
    assert size(model.blocks) == depth * block
    rest = 768 * dim + 2 * 64 * dim + dim  # embedding, rows and columns, the last norm
    pool = dim + 4 * dim**2 + 2 * dim // heads + 8 * dim**2 + dim + dim  # query, attention, its MLP, norms
    assert size(model) == depth * block + rest + pool
    assert not [name for name, _ in model.named_parameters() if "bias" in name]
    assert model.config.heads == heads and model.config.grid[0] == 1


def test_norms_of_queries_and_keys_have_no_bias() -> None:
    for kind, norm in (("rms", RMSNorm), ("layer", LayerNorm)):
        for bias in (False, True):
            attention = tiny(qk_norm=kind, bias=bias).blocks[0].branches[0].inner
            for each in (attention.q_norm, attention.k_norm):
                assert type(each) is norm and getattr(each, "bias", None) is None


def test_scores_stay_bounded_whatever_the_weights() -> None:
    """What the norm of queries and keys is for: weights a thousand times as large change no score."""
    model, x = tiny(eps=1e-12), drawn()
    layout = TokenLayout.packed(GRIDS)
    before = model(x, layout)
    with torch.no_grad():
        for block in model.blocks:
            block.branches[0].inner.q_proj.weight *= 1000
            block.branches[0].inner.k_proj.weight *= 1000
    torch.testing.assert_close(model(x, layout), before, rtol=1e-8, atol=1e-8)


def test_a_model_made_on_meta_resets_whole_and_its_logits_start_at_zero() -> None:
    model = NaViT(dataclasses.replace(TINY, bias=True, patch_norms=True), device="meta", **F64).to_empty(device="cpu")
    for parameter in model.parameters():
        nn.init.constant_(parameter, torch.nan)
    model.reset_parameters()
    assert all(p.isfinite().all() for p in model.parameters())
    layout = TokenLayout.packed(GRIDS)
    assert not model(drawn(), layout).any()
    features = NaViT(dataclasses.replace(TINY, classes=None), **F64)(drawn(), layout)
    assert features.shape == (5, 32) and features.std(0).min() > 1e-3


def test_rows_of_no_sample_are_zero_with_biases_too() -> None:
    out = tiny(bias=True)(drawn(64), TokenLayout.packed(GRIDS, capacity=64))
    assert out.shape == (16, 5) and out[:5].all() and not out[5:].any()


def test_it_learns_from_images_and_clips_in_one_pack() -> None:
    torch.manual_seed(0)
    model = NaViT(TINY)
    x, layout = drawn(dtype=torch.float32).detach(), TokenLayout.packed(GRIDS).on("cpu")
    labels, losses = torch.tensor([4, 0, 3, 1, 2]), []
    optimiser = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(25):
        loss = F.cross_entropy(model(x, layout), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(np.log(5)) and losses[-1] < 0.05


def test_images_fold_into_patches_of_the_config() -> None:
    """A whole way from pixels, at two aspect ratios, against the definition of the embedding as a convolution."""
    model = tiny(patch_norms=False)
    images = [torch.randn(1, 1, 6, 8, **F64), torch.randn(1, 1, 4, 10, **F64)]
    patches, grids = fold_packed(images, model.config.patch)
    kernel = model.embed.weight.view(32, 1, 2, 2)
    expected = [F.conv2d(image[:, 0][None], kernel, stride=2)[0].flatten(1).T for image in images]
    torch.testing.assert_close(model.embed(patches), torch.cat(expected), rtol=1e-12, atol=1e-12)
    assert grids == (Grid(1, 3, 4), Grid(1, 2, 5))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"x": torch.zeros(TOTAL, 5, **F64)}, "x is 5 wide, but the model takes 4"),
        ({"x": torch.zeros(50, 4, **F64)}, r"x has tokens \(50,\), but its layout has \(53,\)"),
        ({"x": torch.zeros(TOTAL, 4)}, r"x is torch.float32, but the model's weights are torch.float64"),
        ({"layout": [Grid(1, 1, 1)]}, "layout must be a TokenLayout or the index of one"),
        ({"layout": TokenLayout.packed([Grid(1, 4, 13), None], [0, 1])}, r"samples with text of \[0, 1\] tokens"),
    ],
)
@pytest.mark.graph
def test_inputs_that_do_not_fit_are_named(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        tiny()(**{"x": drawn(), "layout": TokenLayout.packed(GRIDS)} | change)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"heads": 5}, "dim=32 is not a multiple of heads=5"),
        ({"classes": 0}, "classes must be positive, got 0"),
        ({"channels": -1}, "channels must be positive, got -1"),
        ({"grid": (1, 0, 4)}, r"grid must be three positive sides \(t, h, w\), got \(1, 0, 4\)"),
        ({"patch": (0, 2, 2)}, r"three positive whole numbers .*, got \(0, 2, 2\)"),
        ({"positions": "relative"}, "positions must be one of .*'relative'"),
        ({"qk_norm": None}, "qk_norm must be one of .*None"),
        ({"eps": 0.0}, "eps must be positive, got 0.0"),
    ],
)
@pytest.mark.graph
def test_configs_that_do_not_fit_are_named(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        dataclasses.replace(TINY, **change)


def test_fractional_places_are_those_of_the_map() -> None:
    assert tiny(positions="fractional").places == Stretched((6.0, 8.0), time=4.0)
