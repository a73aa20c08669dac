"""Wan against diffusers with mapped weights, its sizes, and what diffusers cannot do against what it implies."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import wans
from diffusers import WanTransformer3DModel
from parity import error, in_bfloat16, size
from torch import Tensor, nn

from tubelet import models
from tubelet.attention import FrameCausal, Joint, Window
from tubelet.hub import from_diffusers
from tubelet.hub.wan import wan_keys
from tubelet.layout import Grid, Rows, TokenLayout
from tubelet.models import WanConfig, WanTransformer, pad_prompts
from tubelet.protocols import Pattern

F64 = {"dtype": torch.float64}
TINY = WanConfig(
    dim=24, depth=2, heads=2, mlp_dim=20, latent_channels=2, text_dim=5, patch=(1, 1, 2), frequencies=8,
    given_channels=1, image_dim=3, image_tokens=4,
)  # fmt: skip
GRIDS, TEXT, IMAGE = [Grid(2, 2, 1), Grid(1, 1, 3), Grid(3, 1, 2)], [2, 0, 3], [4, 1, 0]  # 4 + 3 + 6 tokens
LEVELS = ("sample", "frame", "token")


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("kind", wans.KINDS)
def test_equal_to_diffusers(kind: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, in float64 where the peer's roundings are lifted, and in bfloat16 as exactly as the peer."""
    theirs = wans.peer(kind, seed)
    asked = wans.question(kind, theirs, seed)
    config, state = dict(theirs.config), {name: p.clone() for name, p in theirs.state_dict().items()}

    def ours(dtype: torch.dtype) -> Tensor:
        return asked.ours(from_diffusers({"_class_name": "WanTransformer3DModel", **config}, state, dtype=dtype))

    assert error(ours(torch.float32), asked.theirs(theirs)) <= 1e-5
    with wans.in_float64(theirs, monkeypatch) as exact:
        expected = asked.theirs(exact)
    assert error(ours(torch.float64), expected) <= 1e-10
    rough = wans.peer(kind, seed)
    assert error(ours(torch.bfloat16), expected) <= 1.5 * error(asked.theirs(in_bfloat16(rough, wans.WIDE)), expected)


@pytest.mark.parametrize("kind", ["text", "image", "tokens"])
def test_gradients_are_those_of_diffusers(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every weight, in float64, mapped by the same table as the weights."""
    theirs = wans.peer(kind)
    asked = wans.question(kind, theirs)
    config, state = dict(theirs.config), {name: p.clone() for name, p in theirs.state_dict().items()}
    ours = from_diffusers({"_class_name": "WanTransformer3DModel", **config}, state, dtype=torch.float64)
    with wans.in_float64(theirs, monkeypatch) as exact, torch.enable_grad():
        asked.theirs(exact, grad=True).square().sum().backward()
    asked.ours(ours, grad=True).square().sum().backward()
    expected = wan_keys(ours.config).to_ours({name: p.grad for name, p in theirs.named_parameters()})
    for name, parameter in ours.named_parameters():
        assert error(parameter.grad, expected[name]) <= 1e-10, name


def test_padded_prompts_are_those_of_the_published_models() -> None:
    """Zeros behind a prompt count: the answer is the peer's on a padded text, and not that on the prompt alone."""
    theirs = wans.peer("text")
    asked = wans.question("text", theirs)
    ours = from_diffusers(dict(theirs.config) | {"_class_name": "WanTransformer3DModel"}, theirs.state_dict())
    short = TokenLayout.padded([3, 2], 5)
    text, layout = pad_prompts(asked.text, short, tokens=7)
    assert layout == TokenLayout.padded([7, 7], 7)
    packed, packed_layout = pad_prompts(asked.text[short.on("cpu").valid], TokenLayout.packed([None] * 2, [3, 2]), 7)
    assert torch.equal(packed, text.flatten(0, 1)) and packed_layout == TokenLayout.packed([None] * 2, [7, 7])
    assert not text[0, 3:].any() and not text[1, 2:].any()
    padded = dataclasses.replace(asked, text=text)
    assert error(padded.ours(ours), padded.theirs(theirs)) <= 1e-5
    assert error(asked.ours(ours, text_layout=short), padded.theirs(theirs)) > 1e-3
    with pytest.raises(ValueError, match="3 tokens, more than tokens=2"):
        pad_prompts(asked.text, short, tokens=2)


PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "wan_1_3b": ({"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960}, 1_418_996_800),
    "wan_14b": ({}, 14_288_491_584),
    "wan_i2v_14b": ({"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120}, 16_394_878_784),
    "wan_2_2_i2v_14b": ({"in_channels": 36}, 14_288_901_184),
    "wan_2_2_5b": (
        {"num_attention_heads": 24, "num_layers": 30, "ffn_dim": 14336, "in_channels": 48, "out_channels": 48},
        4_999_787_712,
    ),
}


@pytest.mark.parametrize("preset", PUBLISHED)
def test_presets_have_the_published_sizes(preset: str) -> None:
    config, count = PUBLISHED[preset]
    with torch.device("meta"):
        theirs = WanTransformer3DModel(**config)
    ours = WanTransformer(getattr(models, preset)(), device="meta", dtype=torch.bfloat16)
    assert all(p.is_meta and p.dtype == torch.bfloat16 for p in ours.parameters())
    assert size(ours) == size(theirs) == count


def tiny(pattern: Pattern | None = None) -> WanTransformer:
    model = WanTransformer(TINY, pattern=Joint() if pattern is None else pattern, **F64)
    draw = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3, generator=draw)
    return model


def inputs(capacity: int | None = None, context_capacity: int | None = None) -> dict[str, Any]:
    """Everything that :data:`TINY` takes; what is real does not depend on the capacities, and padding is rubbish."""
    layout = TokenLayout.packed(GRIDS, capacity=capacity)
    text_layout = TokenLayout.packed([None] * 3, TEXT, capacity=context_capacity)
    image_layout = TokenLayout.packed([None] * 3, IMAGE, capacity=context_capacity)
    draw = torch.Generator().manual_seed(0)
    sizes = {"x": (13, 4, layout), "given": (13, 2, layout), "text": (5, 5, text_layout), "image": (5, 3, image_layout)}
    out: dict[str, Any] = {"layout": layout, "text_layout": text_layout, "image_layout": image_layout}
    for name, (n, d, where) in sizes.items():
        real = torch.randn(n, d, generator=draw, **F64)
        out[name] = torch.cat([real, torch.full((where.width - n, d), torch.nan, **F64)]).requires_grad_()
    return out


def levels(level: str) -> Tensor:
    count = TokenLayout.packed(GRIDS).on("cpu").row_counts(level)[0]
    return torch.rand(count, generator=torch.Generator().manual_seed(1), **F64)


def ask(model: WanTransformer, given: dict[str, Any], values: Tensor, level: str) -> Tensor:
    index = given["layout"].on("cpu")
    if level == "token":
        values = torch.cat([values, values.new_zeros(index.shape[0] - len(values))])
    return model(t=index.rows(values, level), **given)


def alone(given: dict[str, Any], values: Tensor, level: str) -> Iterator[tuple[dict[str, Any], Tensor]]:
    """Each sample as a dense batch of one, with its noise levels."""
    starts = dict.fromkeys(("x", "text", "image", "levels"), 0)
    for i, grid in enumerate(GRIDS):
        lengths = {"x": grid.tokens, "text": TEXT[i], "image": IMAGE[i]}
        lengths["levels"] = {"sample": 1, "frame": grid.t, "token": grid.tokens}[level]
        cut = {name: slice(starts[name], starts[name] + n) for name, n in lengths.items()}
        one = {name: given[name].detach()[cut[name]][None].requires_grad_() for name in ("x", "text", "image")}
        one["given"] = given["given"].detach()[cut["x"]][None].requires_grad_()
        one["layout"] = TokenLayout.dense(1, grid)
        one["text_layout"], one["image_layout"] = (TokenLayout.padded([n], n) for n in (TEXT[i], IMAGE[i]))
        yield one, values[cut["levels"]]
        starts = {name: start + lengths[name] for name, start in starts.items()}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("capacities", [(None, None), (20, 9)])
def test_packed_equals_separate(level: Any, capacities: tuple[int | None, int | None]) -> None:
    """Outputs, and the gradients of weights and inputs: each sample with a text and an image of its own length."""
    model, given, values = tiny(), inputs(*capacities), levels(level)
    out = ask(model, given, values, level)[:13]
    out.square().sum().backward()
    packed = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    pieces = []
    for one, own in alone(given, values, level):
        pieces.append(one | {"out": ask_dense(model, one, own, level)})
        pieces[-1]["out"].square().sum().backward()
    torch.testing.assert_close(out, torch.cat([p["out"][0] for p in pieces]), rtol=1e-11, atol=1e-11)
    for name in ("x", "given", "text", "image"):
        whole = torch.cat([p[name].grad[0] for p in pieces])
        torch.testing.assert_close(given[name].grad[: len(whole)], whole, rtol=1e-11, atol=1e-10)
        assert not given[name].grad[len(whole) :].any()
    for name, p in model.named_parameters():
        torch.testing.assert_close(packed[name], p.grad, rtol=1e-11, atol=1e-10)


def ask_dense(model: WanTransformer, one: dict[str, Any], values: Tensor, level: Any) -> Tensor:
    return model(t=one["layout"].rows(values, level), **one)


@pytest.mark.parametrize("padding", [0.0, 7.0, torch.nan])
def test_padded_contexts_never_change_the_result(padding: float) -> None:
    """Text and image of a batch in padded rows equal those end to end, whatever the padding holds."""
    model, given, values = tiny(), inputs(), levels("sample")
    samples = TokenLayout.dense(3, Grid(1, 2, 2))
    noisy = {"x": torch.randn(3, 4, 4, **F64), "given": torch.randn(3, 4, 2, **F64), "layout": samples}
    t, padded = samples.rows(values, "sample"), {}
    for name, lengths, width in (("text", TEXT, 6), ("image", IMAGE, 5)):
        rows = torch.full((3, width, given[name].shape[-1]), padding, **F64)
        rows[torch.arange(width) < torch.tensor(lengths)[:, None]] = given[name].detach()
        padded |= {name: rows, f"{name}_layout": TokenLayout.padded(lengths, width)}
    # tokens and contexts must both be rows or both be end to end
    flat = {name: noisy[name].flatten(0, 1) for name in ("x", "given")}
    packed = TokenLayout.packed([Grid(1, 2, 2)] * 3)
    expected = model(t=packed.rows(values, "sample"), **given | flat | {"layout": packed})
    got = model(t=t, **noisy | padded)
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
        q, k, v = self.inner.qkv(x, rope)
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
    model = WanTransformer(TINY, device="meta", **F64).to_empty(device="cpu")
    for parameter in model.parameters():
        nn.init.constant_(parameter, torch.nan)
    model.reset_parameters()
    assert all(p.isfinite().all() for p in model.parameters())
    assert not ask(model, inputs(), levels("sample"), "sample").any()
    assert all(block.modulation.table.std() > 0.1 for block in model.blocks)


@pytest.mark.graph
def test_one_graph_serves_many_layouts() -> None:
    model, compiles = tiny(), []

    def counting(graph: torch.fx.GraphModule, example: list[Tensor]) -> object:
        compiles.append(graph)
        return graph.forward

    compiled = torch.compile(model, fullgraph=True, backend=counting)
    for grids in ([Grid(1, 2, 2)], [Grid(2, 2, 2), Grid(1, 1, 3)], [Grid(1, 1, 1)] * 9):
        index = TokenLayout.packed(grids, capacity=16).on("cpu")
        context = TokenLayout.packed([None] * len(grids), [i % 4 for i in range(len(grids))], capacity=20).on("cpu")
        t = index.rows(torch.rand(len(grids), **F64), "sample")
        tokens = {name: torch.randn(n, d, **F64) for name, n, d in (("x", 16, 4), ("given", 16, 2), ("text", 20, 5))}
        tokens["image"] = torch.randn(20, 3, **F64)
        layouts = {"layout": index, "text_layout": context, "image_layout": context}
        torch.testing.assert_close(compiled(t=t, **tokens, **layouts), model(t=t, **tokens, **layouts))
    assert len(compiles) == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"x": torch.zeros(13, 5, **F64)}, "x is 5 wide, but the model takes 4"),
        ({"text": torch.zeros(6, 5, **F64)}, r"text has tokens \(6,\), but its layout has \(5,\)"),
        ({"given": None}, "given is None, but the model has given_channels=1"),
        ({"image": None}, "image_dim=3: give image and image_layout"),
        ({"image": torch.zeros(5, 4, **F64)}, "image is 4 wide, but the model takes 3"),
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
        ({"heads": 5}, "dim=24 does not make heads=5"),
        ({"heads": 8}, "dim=24 does not make heads=8 of even width"),
        ({"frequencies": 7}, "even and positive, got 7"),
        ({"image_dim": None}, "image_tokens=4 have positions"),
        ({"patch": (1, 0, 2)}, r"three positive whole numbers .*, got \(1, 0, 2\)"),
    ],
)
def test_configs_that_do_not_fit_are_named(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        WanConfig(**{name: getattr(TINY, name) for name in TINY.__dataclass_fields__} | change)
