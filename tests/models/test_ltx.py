"""LTX-Video against diffusers with mapped weights, its sizes, and what diffusers cannot do against what it implies."""

from collections.abc import Iterator
from typing import Any

import ltxs
import pytest
import torch
from diffusers import LTXVideoTransformer3DModel
from parity import error, in_bfloat16, size
from torch import Tensor, nn

from tubelet import models
from tubelet.attention import FrameCausal, Joint, Window
from tubelet.hub import from_diffusers
from tubelet.hub.ltx import ltx_keys
from tubelet.layout import Grid, Rows, TokenLayout
from tubelet.models import LTXConfig, LTXTransformer, ltx_places
from tubelet.protocols import Pattern

F64 = {"dtype": torch.float64}
TINY = LTXConfig(dim=16, depth=2, heads=2, latent_channels=3, text_dim=5)
GRIDS, TEXT, FPS = [Grid(2, 2, 1), Grid(1, 1, 3), Grid(3, 1, 2)], [2, 0, 3], [24.0, 25.0, 60.0]  # 4 + 3 + 6 tokens
LEVELS = ("sample", "frame", "token")


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("kind", ltxs.KINDS)
def test_equal_to_diffusers(kind: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64, in float32 beside tables as exact, and in float32 and bfloat16 as exactly as the peer."""
    theirs = ltxs.peer(kind, seed)
    asked = ltxs.question(kind, theirs, seed)
    config, state = dict(theirs.config), {name: p.clone() for name, p in theirs.state_dict().items()}

    def ours(dtype: torch.dtype) -> Tensor:
        return asked.ours(from_diffusers({"_class_name": "LTXVideoTransformer3DModel", **config}, state, dtype=dtype))

    plain = asked.theirs(theirs)
    with ltxs.exact_tables(theirs, monkeypatch) as careful:
        assert error(ours(torch.float32), asked.theirs(careful)) <= 1e-5
    with ltxs.in_float64(theirs, monkeypatch) as exact:
        expected = asked.theirs(exact)
    assert error(ours(torch.float64), expected) <= 1e-10
    assert error(ours(torch.float32), expected) <= min(1e-5, error(plain, expected))
    rough = ltxs.peer(kind, seed)
    assert error(ours(torch.bfloat16), expected) <= 1.5 * error(asked.theirs(in_bfloat16(rough)), expected)


@pytest.mark.parametrize("kind", ["plain", "masked", "keyframe"])
def test_gradients_are_those_of_diffusers(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every weight, in float64, mapped by the same table as the weights."""
    theirs = ltxs.peer(kind)
    asked = ltxs.question(kind, theirs)
    config, state = dict(theirs.config), {name: p.clone() for name, p in theirs.state_dict().items()}
    ours = from_diffusers({"_class_name": "LTXVideoTransformer3DModel", **config}, state, dtype=torch.float64)
    with ltxs.in_float64(theirs, monkeypatch) as exact, torch.enable_grad():
        asked.theirs(exact, grad=True).square().sum().backward()
    asked.ours(ours, grad=True).square().sum().backward()
    expected = ltx_keys(ours.config).to_ours({name: p.grad for name, p in theirs.named_parameters()})
    for name, parameter in ours.named_parameters():
        assert error(parameter.grad, expected[name]) <= 1e-10, name


PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "ltx_2b": ({}, 1_923_385_472),
    "ltx_13b": ({"attention_head_dim": 128, "cross_attention_dim": 4096, "num_layers": 48}, 13_042_569_344),
}


@pytest.mark.parametrize("preset", PUBLISHED)
def test_presets_have_the_published_sizes(preset: str) -> None:
    config, count = PUBLISHED[preset]
    with torch.device("meta"):
        theirs = LTXVideoTransformer3DModel(**config)
    ours = LTXTransformer(getattr(models, preset)(), device="meta", dtype=torch.bfloat16)
    assert all(p.is_meta and p.dtype == torch.bfloat16 for p in ours.parameters())
    assert size(ours) == size(theirs) == count


def test_places_are_seconds_and_pixels_at_each_samples_rate() -> None:
    index = TokenLayout.packed(GRIDS[1:], [1, 0], capacity=12).on("cpu")
    rates = index.rows(torch.tensor(FPS[1:], **F64), "sample")
    later = [[t, 0, w] for t in (0, 1 / 60, 9 / 60) for w in (0, 32)]
    expected = torch.tensor([[-8 / 25, 0, 0], [0, 0, 0], [0, 0, 32], [0, 0, 64], *later], **F64)
    torch.testing.assert_close(ltx_places(index, rates)[:10], expected)
    assert ltx_places(index, rates).isfinite().all()
    early = ltx_places(index, 24.0, causal=False, stride=(4, 16, 8))
    assert early[4:10].tolist() == [[t * 4 / 24, 0, w] for t in range(3) for w in (0, 8)]
    with pytest.raises(ValueError, match=r"fps of shape \(4,\) for tokens \(12,\)"):
        ltx_places(index, TokenLayout.packed(GRIDS[:1]).on("cpu").rows(torch.ones(1), "sample"))


def test_only_differences_of_places_matter() -> None:
    """Frames before the first, which would have negative seconds, are those of a video that starts later."""
    model, given, values = tiny(), inputs(), levels("sample")
    shift = torch.tensor([3.0, 64.0, 96.0], **F64)
    expected = ask(model, given, values, "sample")
    got = ask(model, given | {"places": given["places"] + shift}, values, "sample")
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
    moved = given["places"] + shift * given["places"].sign()
    assert error(ask(model, given | {"places": moved}, values, "sample"), expected) > 1e-3


def tiny(pattern: Pattern | None = None) -> LTXTransformer:
    model = LTXTransformer(TINY, pattern=Joint() if pattern is None else pattern, **F64)
    draw = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3, generator=draw)
    return model


def inputs(capacity: int | None = None, text_capacity: int | None = None) -> dict[str, Any]:
    """Samples of three sizes, rates and prompts; what is real does not depend on the capacities; padding is rubbish."""
    layout = TokenLayout.packed(GRIDS, capacity=capacity)
    text_layout = TokenLayout.packed([None] * 3, TEXT, capacity=text_capacity)
    draw, index = torch.Generator().manual_seed(0), layout.on("cpu")
    out: dict[str, Any] = {"layout": layout, "text_layout": text_layout}
    for name, n, d, where in (("x", 13, 3, layout), ("text", 5, 5, text_layout)):
        real = torch.randn(n, d, generator=draw, **F64)
        out[name] = torch.cat([real, torch.full((where.width - n, d), torch.nan, **F64)]).requires_grad_()
    places = ltx_places(index, index.rows(torch.tensor(FPS, **F64), "sample"))
    out["places"] = torch.where(index.valid[:, None], places, torch.nan)
    return out


def levels(level: str) -> Tensor:
    count = TokenLayout.packed(GRIDS).on("cpu").row_counts(level)[0]
    return torch.rand(count, generator=torch.Generator().manual_seed(1), **F64)


def ask(model: LTXTransformer, given: dict[str, Any], values: Tensor, level: Any) -> Tensor:
    index = given["layout"].on("cpu")
    if level == "token":
        values = torch.cat([values, values.new_zeros(index.sample.numel() - len(values))])
    return model(t=index.rows(values, level), **given)


def alone(given: dict[str, Any], values: Tensor, level: str) -> Iterator[tuple[dict[str, Any], Tensor]]:
    """Each sample as a dense batch of one, with its noise levels and its frame rate."""
    starts = dict.fromkeys(("x", "text", "levels"), 0)
    for i, grid in enumerate(GRIDS):
        lengths = {"x": grid.tokens, "text": TEXT[i]}
        lengths["levels"] = {"sample": 1, "frame": grid.t, "token": grid.tokens}[level]
        cut = {name: slice(starts[name], starts[name] + n) for name, n in lengths.items()}
        one = {name: given[name].detach()[cut[name]][None].requires_grad_() for name in ("x", "text")}
        one["layout"], one["text_layout"] = TokenLayout.dense(1, grid), TokenLayout.padded([TEXT[i]], TEXT[i])
        one["places"] = ltx_places(one["layout"].on("cpu"), FPS[i])
        yield one, values[cut["levels"]]
        starts = {name: start + lengths[name] for name, start in starts.items()}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("capacities", [(None, None), (20, 9)])
def test_packed_equals_separate(level: Any, capacities: tuple[int | None, int | None]) -> None:
    """Outputs, and the gradients of weights and inputs: each sample with a text and a frame rate of its own."""
    model, given, values = tiny(), inputs(*capacities), levels(level)
    out = ask(model, given, values, level)[:13]
    out.square().sum().backward()
    packed = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    pieces = []
    for one, own in alone(given, values, level):
        pieces.append(one | {"out": ask(model, one, own, level)})
        pieces[-1]["out"].square().sum().backward()
    torch.testing.assert_close(out, torch.cat([p["out"][0] for p in pieces]), rtol=1e-11, atol=1e-11)
    for name in ("x", "text"):
        whole = torch.cat([p[name].grad[0] for p in pieces])
        torch.testing.assert_close(given[name].grad[: len(whole)], whole, rtol=1e-11, atol=1e-10)
        assert not given[name].grad[len(whole) :].any()
    for name, p in model.named_parameters():
        torch.testing.assert_close(packed[name], p.grad, rtol=1e-11, atol=1e-10)


@pytest.mark.parametrize("padding", [0.0, 7.0, torch.nan])
def test_padded_text_never_changes_the_result(padding: float) -> None:
    """Prompts of a batch in padded rows equal those end to end, whatever the padding holds."""
    model, given, values = tiny(), inputs(), levels("sample")
    samples, packed = TokenLayout.dense(3, Grid(1, 2, 2)), TokenLayout.packed([Grid(1, 2, 2)] * 3)
    noisy = torch.randn(3, 4, 3, **F64)
    rows = torch.full((3, 6, 5), padding, **F64)
    rows[torch.arange(6) < torch.tensor(TEXT)[:, None]] = given["text"].detach()
    places = ltx_places(samples.on("cpu"), samples.on("cpu").rows(torch.tensor(FPS), "sample"))
    # tokens and text must both be rows or both be end to end
    flat = {"x": noisy.flatten(0, 1), "places": places.flatten(0, 1), "layout": packed}
    expected = ask(model, given | flat, values, "sample")
    text = {"text": rows, "text_layout": TokenLayout.padded(TEXT, 6)}
    got = ask(model, {"x": noisy, "places": places, "layout": samples} | text, values, "sample")
    torch.testing.assert_close(got.flatten(0, 1), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("level", ["frame", "token"])
def test_finer_levels_that_are_equal_are_one_level_per_sample(level: Any) -> None:
    model, given, values = tiny(), inputs(), levels("sample")
    finer = given["layout"].on("cpu").lift(values, level)
    got, expected = ask(model, given, finer, level), ask(model, given, values, "sample")
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)
    assert error(ask(model, given, levels(level), level), expected) > 1e-3


class Masked(nn.Module):
    """A self-attention by its definition, under a mask of all pairs of tokens."""

    def __init__(self, inner: Any, allowed: Tensor) -> None:
        super().__init__()
        self.inner, self.allowed = inner, allowed

    def forward(self, x: Tensor, layout: Any, rope: Any) -> Tensor:
        q, k, v = self.inner._qkv(x, rope)
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


def test_the_prediction_is_zero_at_the_start_and_a_model_made_on_meta_resets_whole() -> None:
    model = LTXTransformer(TINY, device="meta", **F64).to_empty(device="cpu")
    for parameter in model.parameters():
        nn.init.constant_(parameter, torch.nan)
    model.reset_parameters()
    assert all(p.isfinite().all() for p in model.parameters())
    assert not ask(model, inputs(), levels("sample"), "sample").any()
    assert all(block.modulation.table.std() > 0.1 for block in model.blocks)


@pytest.mark.graph
def test_one_graph_serves_many_layouts_and_rates() -> None:
    model, compiles = tiny(), []

    def counting(graph: torch.fx.GraphModule, example: list[Tensor]) -> object:
        compiles.append(graph)
        return graph.forward

    compiled = torch.compile(model, fullgraph=True, backend=counting)
    for grids in ([Grid(1, 2, 2)], [Grid(2, 2, 2), Grid(1, 1, 3)], [Grid(1, 1, 1)] * 9):
        index = TokenLayout.packed(grids, capacity=16).on("cpu")
        text_index = TokenLayout.packed([None] * len(grids), [i % 4 for i in range(len(grids))], capacity=20).on("cpu")
        tokens = {"x": torch.randn(16, 3, **F64), "text": torch.randn(20, 5, **F64)}
        places = ltx_places(index, index.rows(torch.rand(len(grids), **F64) + 24, "sample"))
        t = index.rows(torch.rand(len(grids), **F64), "sample")
        given = {"t": t, "layout": index, "text_layout": text_index, "places": places, **tokens}
        torch.testing.assert_close(compiled(**given), model(**given))
    assert len(compiles) == 1


@pytest.mark.graph  # run-time shape checks off, as for users
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"x": torch.zeros(13, 5, **F64)}, "x is 5 wide, but the model takes 3"),
        ({"text": torch.zeros(6, 5, **F64)}, r"text has tokens \(6,\), but its layout has \(5,\)"),
        ({"places": torch.zeros(13, 2, **F64)}, "places is 2 wide, but the model takes 3"),
        ({"places": torch.zeros(12, 3, **F64)}, r"places has tokens \(12,\), but its layout has \(13,\)"),
        ({"text_layout": TokenLayout.packed([None], [5])}, "layout has 3 samples, but that of text has 1"),
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
        ({"dim": 0}, "dim must be positive, got 0"),
        ({"text_dim": -1}, "text_dim must be positive, got -1"),
        ({"heads": 5}, "dim=16 does not make heads=5"),
        ({"heads": 16}, "dim=16 does not make heads=16 of even width"),
        ({"dim": 8}, "dim=8 is too narrow to rotate; the least is 12"),
    ],
)
def test_configs_that_do_not_fit_are_named(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        LTXConfig(**{name: getattr(TINY, name) for name in TINY.__dataclass_fields__} | change)
