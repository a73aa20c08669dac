"""DiT against diffusers with mapped weights, its sizes and costs, and what diffusers cannot do."""

import dataclasses
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import dits
import pytest
import torch
from diffusers import DiTTransformer2DModel
from dits import multiply_adds, parameters, per_depth
from parity import error, in_bfloat16, randomise, size
from torch import Tensor, nn

from tubelet import models
from tubelet.attention import FrameCausal, Joint, Spatial, Window
from tubelet.diffusion import VP, Process, cfg, ddim_step, only_channels, sample
from tubelet.hub import from_diffusers
from tubelet.hub.dit import dit_keys
from tubelet.layout import Grid, Rows, TokenLayout
from tubelet.models import DiT, DiTConfig
from tubelet.protocols import Pattern

F64 = {"dtype": torch.float64}
TINY = DiTConfig(
    dim=32, depth=2, heads=2, mlp_dim=20, latent_channels=2, variance_channels=1, classes=5, patch=(1, 1, 2),
    frequencies=8, position_axes=3, base_grid=(3, 2),
)  # fmt: skip
GRIDS, LABELS = [Grid(2, 2, 1), Grid(1, 1, 3), Grid(3, 1, 2)], torch.tensor([4, 5, 0])  # 4 + 3 + 6 tokens
LEVELS = ("sample", "frame", "token")


def loaded(theirs: DiTTransformer2DModel, dtype: torch.dtype) -> DiT:
    state = {name: p.clone() for name, p in theirs.state_dict().items()}
    return from_diffusers(dict(theirs.config) | {"_class_name": "DiTTransformer2DModel"}, state, dtype=dtype)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("kind", dits.KINDS)
def test_equal_to_diffusers(kind: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, and in float64 where the peer's roundings are lifted."""
    theirs = dits.peer(seed)
    asked = dits.question(kind, theirs, seed)
    single, double = (loaded(theirs, dtype) for dtype in (torch.float32, torch.float64))
    assert error(asked.ours(single), asked.theirs(theirs)) <= 1e-5
    with dits.in_float64(theirs, monkeypatch) as exact:
        assert error(asked.ours(double), asked.theirs(exact)) <= 1e-10


def test_as_exact_as_diffusers_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """On average over models: the peer has no float32 islands, so that one model's errors are luck on either side."""
    ratios = []
    for seed in range(6):
        theirs = dits.peer(seed)
        asked = dits.question("trained", theirs, seed)
        half, rough = loaded(theirs, torch.bfloat16), in_bfloat16(dits.peer(seed))
        with dits.in_float64(theirs, monkeypatch) as exact:
            expected = asked.theirs(exact)
        ratios.append(error(asked.ours(half), expected) / error(asked.theirs(rough), expected))
    assert math.prod(ratios) ** (1 / len(ratios)) <= 1.1


def test_gradients_are_those_of_diffusers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every weight, in float64, mapped by the same table as the weights."""
    theirs = dits.peer()
    asked = dits.question("trained", theirs)
    ours = loaded(theirs, torch.float64)
    with dits.in_float64(theirs, monkeypatch) as exact, torch.enable_grad():
        asked.theirs(exact, grad=True).square().sum().backward()
    asked.ours(ours, grad=True).square().sum().backward()
    expected = dit_keys(ours.config).to_ours({name: theirs.get_parameter(name).grad for name in theirs.state_dict()})
    scale = max(float(grad.norm()) for grad in expected.values())
    for name, parameter in ours.named_parameters():
        if name.endswith("k_proj.bias"):  # the same for all keys: softmax does not see it
            assert max(parameter.grad.norm(), expected[name].norm()) <= 1e-12 * scale
        else:
            assert error(parameter.grad, expected[name]) <= 1e-10, name


PUBLISHED = {
    # billions of multiply-adds and parameters with the fixed positions of 256 pixels (table 4 and section 3.2)
    "dit_s": {8: (0.36, 33_148_160), 4: (1.41, 32_945_024), 2: (6.06, 32_963_360)},
    "dit_b": {8: (1.42, 130_881_536), 4: (5.56, 130_475_648), 2: (23.01, 130_512_416)},
    "dit_l": {8: (5.01, 458_594_816), 4: (19.70, 458_053_760), 2: (80.71, 458_102_816)},
    "dit_xl": {8: (7.39, 675_683_072), 4: (29.05, 675_074_432), 2: (118.64, 675_129_632)},
}


@pytest.mark.parametrize("preset", PUBLISHED)
def test_presets_have_the_published_sizes_and_costs(preset: str) -> None:
    for patch, (cost, count) in PUBLISHED[preset].items():
        config = getattr(models, preset)(patch)
        assert per_depth(parameters, config) == count - (32 // patch) ** 2 * config.dim
        assert per_depth(multiply_adds, config) == pytest.approx(cost, rel=6e-3)


def test_the_largest_has_the_size_of_the_class_of_diffusers() -> None:
    """But for the embeddings, of which each of their blocks holds a copy."""
    with torch.device("meta"):
        theirs = DiTTransformer2DModel(out_channels=8)
    ours = DiT(models.dit_xl(), device="meta", dtype=torch.bfloat16)
    assert all(p.is_meta and p.dtype == torch.bfloat16 for p in ours.parameters())
    assert size(ours) == size(theirs) - 27 * size(theirs.transformer_blocks[0].norm1.emb) == 674_834_720


def test_512_pixels_cost_what_is_published() -> None:
    assert per_depth(partial(multiply_adds, side=64), models.dit_xl()) == pytest.approx(524.60, rel=1e-3)


def tiny(pattern: Pattern | None = None, config: DiTConfig = TINY) -> DiT:
    return randomise(DiT(config, pattern=Joint() if pattern is None else pattern, **F64))


def inputs(capacity: int | None = None) -> dict[str, Any]:
    """Everything that :data:`TINY` takes; what is real does not depend on the capacity, and padding is rubbish."""
    layout = TokenLayout.packed(GRIDS, capacity=capacity)
    real = torch.randn(13, 4, generator=torch.Generator().manual_seed(0), **F64)
    x = torch.cat([real, torch.full((layout.width - 13, 4), torch.nan, **F64)]).requires_grad_()
    return {"x": x, "layout": layout, "labels": LABELS}


def levels(level: str) -> Tensor:
    count = TokenLayout.packed(GRIDS).on("cpu").row_counts(level)[0]
    return torch.rand(count, generator=torch.Generator().manual_seed(1), **F64)


def ask(model: DiT, given: dict[str, Any], values: Tensor, level: str) -> Tensor:
    index = given["layout"].on("cpu")
    if level == "token":
        values = torch.cat([values, values.new_zeros(index.shape[0] - len(values))])
    return model(t=index.rows(values, level), **given)


def alone(given: dict[str, Any], values: Tensor, level: str) -> Iterator[tuple[dict[str, Any], Tensor]]:
    """Each sample as a dense batch of one, with its noise levels."""
    start = first = 0
    for i, grid in enumerate(GRIDS):
        stop, last = start + grid.tokens, first + {"sample": 1, "frame": grid.t, "token": grid.tokens}[level]
        x = given["x"].detach()[start:stop][None].requires_grad_()
        yield {"x": x, "layout": TokenLayout.dense(1, grid), "labels": LABELS[i : i + 1]}, values[first:last]
        start, first = stop, last


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("capacity", [None, 20])
def test_packed_equals_separate(level: Any, capacity: int | None) -> None:
    """Outputs, and the gradients of weights and inputs: each sample with a size and a label of its own."""
    model, given, values = tiny(), inputs(capacity), levels(level)
    out = ask(model, given, values, level)[:13]
    out.square().sum().backward()
    packed = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    pieces, grads = [], []
    for one, own in alone(given, values, level):
        pieces.append(model(t=one["layout"].rows(own, level), **one)[0])
        pieces[-1].square().sum().backward()
        grads.append(one["x"].grad[0])
    torch.testing.assert_close(out, torch.cat(pieces), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(given["x"].grad[:13], torch.cat(grads), rtol=1e-11, atol=1e-10)
    assert not given["x"].grad[13:].any()
    for name, p in model.named_parameters():
        torch.testing.assert_close(packed[name], p.grad, rtol=1e-11, atol=1e-10)


@pytest.mark.parametrize("level", ["frame", "token"])
def test_finer_levels_that_are_equal_are_one_level_per_sample(level: Any) -> None:
    model, given, values = tiny(), inputs(), levels("sample")
    finer = given["layout"].on("cpu").lift(values, level)
    got, expected = ask(model, given, finer, level), ask(model, given, values, "sample")
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)
    assert error(ask(model, given, levels(level), level), expected) > 1e-3


def test_one_level_for_all_is_that_level_for_each() -> None:
    model, given = tiny(), inputs()
    got = model(t=Rows(torch.tensor([0.3], **F64)), **given)
    torch.testing.assert_close(got, ask(model, given, torch.full((3,), 0.3, **F64), "sample"), rtol=1e-11, atol=1e-11)


def test_labels_are_per_sample() -> None:
    """Another label changes the tokens of its own sample, and no others."""
    model, given, values = tiny(), inputs(), levels("sample")
    base = ask(model, given, values, "sample")
    changed = ask(model, given | {"labels": torch.tensor([4, 1, 0])}, values, "sample")
    same = (base == changed).all(-1)
    assert same.tolist() == [True] * 4 + [False] * 3 + [True] * 6


class Masked(nn.Module):
    """A self-attention by its definition, under a mask of all pairs of tokens."""

    def __init__(self, inner: Any, allowed: Tensor) -> None:
        super().__init__()
        self.inner, self.allowed = inner, allowed

    def forward(self, x: Tensor, layout: Any) -> Tensor:
        q, k, v = self.inner.qkv(x, None)
        scores = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
        weights = scores.masked_fill(~self.allowed, -torch.inf).softmax(-1)
        return self.inner.out_proj(torch.einsum("hqk,khd->qhd", weights, v).flatten(1))


@pytest.mark.parametrize("pattern", [Window((2, 1, 2)), FrameCausal(), FrameCausal(window=2)])
def test_any_pattern_equals_its_mask(pattern: Pattern) -> None:
    model, given, values = tiny(pattern), inputs(), levels("frame")
    index = given["layout"].on("cpu")
    c = index.coords
    if isinstance(pattern, Window):
        allowed = ((c // torch.tensor([2, 1, 2]))[:, None] == (c // torch.tensor([2, 1, 2]))[None]).all(-1)
    else:
        behind = c[:, None, 0] - c[None, :, 0]
        allowed = (behind >= 0) & (behind < (pattern.window or 99))
    got = ask(model, given, values, "frame")
    assert error(ask(tiny(), given, values, "frame"), got) > 1e-3
    for block in model.blocks:
        branch = block.branches[0]
        branch.inner = Masked(branch.inner, allowed & (index.sample[:, None] == index.sample))
    torch.testing.assert_close(got, ask(model, given, values, "frame"), rtol=1e-11, atol=1e-11)


def test_a_video_under_spatial_attention_is_its_frames_as_images() -> None:
    """A model of images serves clips: sinusoids of row and column are the same in each frame."""
    model = tiny(Spatial(), dataclasses.replace(TINY, position_axes=2))
    x, levels = torch.randn(1, 3, 4, 4, **F64), torch.rand(3, **F64)
    layout, images = TokenLayout.dense(1, Grid(3, 2, 2)), TokenLayout.dense(3, Grid(1, 2, 2))
    got = model(x.flatten(1, 2), layout.rows(levels, "frame"), layout, LABELS[:1])
    expected = model(x[0], images.rows(levels, "sample"), images, LABELS[:1].expand(3))
    torch.testing.assert_close(got[0], expected.flatten(0, 1), rtol=1e-11, atol=1e-11)


def test_frames_have_places_of_their_own_where_the_config_asks_for_them() -> None:
    layout = TokenLayout.dense(1, Grid(2, 1, 2))
    t, frame = Rows(torch.tensor([0.5], **F64)), torch.randn(1, 2, 4, **F64)
    for axes, alike in ((2, True), (3, False)):
        out = tiny(config=dataclasses.replace(TINY, position_axes=axes))(frame.repeat(1, 2, 1), t, layout, LABELS[:1])
        assert torch.allclose(out[0, :2], out[0, 2:], rtol=1e-9, atol=1e-9) == alike


def test_the_prediction_is_zero_at_the_start_and_a_model_made_on_meta_resets_whole() -> None:
    model = DiT(TINY, device="meta", **F64).to_empty(device="cpu")
    for parameter in model.parameters():
        nn.init.constant_(parameter, torch.nan)
    model.reset_parameters()
    assert all(p.isfinite().all() for p in model.parameters())
    given = inputs()
    assert not ask(model, given, levels("sample"), "sample").any()
    index, h = given["layout"].on("cpu"), torch.randn(13, 32, **F64)
    cond = index.rows(torch.randn(3, 32, **F64), "sample")
    for block in model.blocks:
        assert torch.equal(block(h, cond, {"layout": index}), h)  # each block is the identity
    for linear, std in ((model.time.up, 0.02), (model.time.down, 0.02), (model.label.table, 0.02)):
        assert 0.01 < linear.weight.std() < 0.03, std


def test_guided_samples_of_a_mixture_are_those_of_each_alone() -> None:
    """The published way: the noise of a model that learned its variance too, guided on some channels, through DDIM."""
    model, process = tiny(), Process(path=VP.linear(), prediction="eps")

    def sampled(x: Tensor, labels: Tensor, layout: TokenLayout) -> Tensor:
        def predict(labels: Tensor, x: Tensor, t: Rows) -> Tensor:
            return model(x, t, layout, labels)[..., :4]

        both = partial(predict, labels), partial(predict, torch.full_like(labels, model.label.null))
        with torch.no_grad():
            guided = only_channels(cfg(*both, 2.0), both[0], 1, 2)
            return sample(guided, x, process.times(4, **F64), process=process, step=ddim_step)

    given = inputs()
    got = sampled(given["x"].detach(), LABELS, given["layout"])
    ones = (one for one, _ in alone(given, levels("sample"), "sample"))
    pieces = [sampled(one["x"].detach(), one["labels"], one["layout"])[0] for one in ones]
    torch.testing.assert_close(got, torch.cat(pieces), rtol=1e-9, atol=1e-9)


def test_it_learns() -> None:
    """Eight labelled latents by heart: the loss falls by more than ten."""
    torch.manual_seed(0)
    model = DiT(dataclasses.replace(TINY, classes=8, variance_channels=0, position_axes=2, base_grid=None))
    latents, noise = torch.randn(8, 4, 4), torch.randn(8, 4, 4)
    layout = TokenLayout.dense(8, Grid(1, 2, 2)).on("cpu")
    t = layout.rows(torch.full((8,), 0.7), "sample")
    x = (1 - 0.7) * latents + 0.7 * noise
    optimiser, losses = torch.optim.AdamW(model.parameters(), 3e-3), []
    for _ in range(120):
        loss = (model(x, t, layout, torch.arange(8)) - noise).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 10


@pytest.mark.graph
def test_one_graph_serves_many_layouts() -> None:
    model, compiles = tiny(), []

    def counting(graph: torch.fx.GraphModule, example: list[Tensor]) -> object:
        compiles.append(graph)
        return graph.forward

    compiled = torch.compile(model, fullgraph=True, backend=counting)
    for grids in ([Grid(1, 2, 2)], [Grid(2, 2, 2), Grid(1, 1, 3)], [Grid(1, 1, 1)] * 9):
        index = TokenLayout.packed(grids, capacity=16).on("cpu")
        t = index.rows(torch.rand(len(grids), **F64), "sample")
        labels = index.rows(torch.arange(len(grids)) % 6, "sample").values
        x = torch.randn(16, 4, **F64)
        torch.testing.assert_close(compiled(x, t, index, labels), model(x, t, index, labels))
    assert len(compiles) == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"x": torch.zeros(13, 5, **F64)}, "x is 5 wide, but the model takes 4"),
        ({"x": torch.zeros(12, 4, **F64)}, r"x has tokens \(12,\), but its layout has \(13,\)"),
        ({"labels": torch.tensor([1])}, r"labels has shape \(1,\), but layout has 3 samples"),
        ({"labels": torch.tensor([1, 6, 2])}, "labels lie between 1 and 6, but the table has 0 to 5"),
        ({"t": Rows(torch.zeros(3, **F64))}, "3 values without an index"),
    ],
)
def test_inputs_that_do_not_fit_are_named(change: dict[str, Any], says: str) -> None:
    given = inputs() | {"t": Rows(torch.zeros(1, **F64))} | change
    with pytest.raises(ValueError, match=says):
        tiny()(**given)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"classes": 0}, "classes must be positive, got 0"),
        ({"heads": 5}, "dim=32 is not a multiple of heads=5"),
        ({"dim": 24}, "dim=24 is not a multiple of 16, which position_axes=3 need"),
        ({"position_axes": 1}, "position_axes must be 2 or 3, got 1"),
        ({"variance_channels": -1}, "variance_channels must not be negative, got -1"),
        ({"frequencies": 7}, "even and positive, got 7"),
        ({"patch": (1, 0, 2)}, r"three positive whole numbers .*, got \(1, 0, 2\)"),
        ({"base_grid": (0, 2)}, r"base_grid=\(0, 2\) is too small"),
    ],
)
def test_configs_that_do_not_fit_are_named(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        dataclasses.replace(TINY, **change)
