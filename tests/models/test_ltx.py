"""LTX-Video against diffusers with mapped weights, its sizes, and what diffusers cannot do against what it implies."""

from typing import Any

import ltxs
import pytest
import torch
from diffusers import LTXVideoTransformer3DModel
from mixtures import (
    LEVELS,
    Mixture,
    check_finer_levels,
    check_one_graph,
    check_packed_equals_separate,
    check_padding_never_counts,
    check_reset,
)
from parity import error, in_bfloat16, size
from torch import Tensor, nn

from tubelet import models
from tubelet.attention import FrameCausal, Joint, Window
from tubelet.hub import from_diffusers
from tubelet.hub.ltx import ltx_keys
from tubelet.layout import Grid, LayoutIndex, Rows, TokenLayout
from tubelet.models import LTXConfig, LTXTransformer, ltx_places
from tubelet.protocols import Pattern

F64 = {"dtype": torch.float64}
TINY = LTXConfig(dim=16, depth=2, heads=2, latent_channels=3, text_dim=5)
MIXTURE = Mixture({"x": 3}, {"text": 5}, {"rate": ()})


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
    index = TokenLayout.packed([Grid(1, 1, 3), Grid(3, 1, 2)], [1, 0], capacity=12).on("cpu")
    rates = index.rows(torch.tensor([25.0, 60.0], **F64), "sample")
    later = [[t, 0, w] for t in (0, 1 / 60, 9 / 60) for w in (0, 32)]
    expected = torch.tensor([[-8 / 25, 0, 0], [0, 0, 0], [0, 0, 32], [0, 0, 64], *later], **F64)
    torch.testing.assert_close(ltx_places(index, rates)[:10], expected)
    assert ltx_places(index, rates).isfinite().all()
    early = ltx_places(index, 24.0, causal=False, stride=(4, 16, 8))
    assert early[4:10].tolist() == [[t * 4 / 24, 0, w] for t in range(3) for w in (0, 8)]
    with pytest.raises(ValueError, match=r"fps has an index of shape \(4,\), but layout has \(12,\)"):
        ltx_places(index, TokenLayout.packed([Grid(1, 2, 2)]).on("cpu").rows(torch.ones(1), "sample"))


class AtRates(nn.Module):
    """The model on places at a rate for each sample; where there is only padding they are rubbish."""

    def __init__(self, model: LTXTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, layout: LayoutIndex, rate: Tensor, **given: Any) -> Tensor:
        rows = layout.rows(24 + rate[: layout.seqlens.shape[0]], "sample")
        places = torch.where(layout.valid[..., None], ltx_places(layout, rows), torch.nan)
        return self.model(layout=layout, places=places, **given)

    def reset_parameters(self) -> None:
        self.model.reset_parameters()


def tiny(pattern: Pattern | None = None) -> AtRates:
    model = LTXTransformer(TINY, pattern=Joint() if pattern is None else pattern, **F64)
    draw = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3, generator=draw)
    return AtRates(model)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("capacities", [(None, None), (20, 9)])
def test_packed_equals_separate(level: Any, capacities: tuple[int | None, int | None]) -> None:
    """In the gradients of the rates too."""
    check_packed_equals_separate(tiny(), MIXTURE, level, capacities)


@pytest.mark.parametrize("level", ["frame", "token"])
def test_finer_levels_that_are_equal_are_one_level_per_sample(level: Any) -> None:
    check_finer_levels(tiny(), MIXTURE, level)


@pytest.mark.parametrize("padding", [0.0, 7.0, torch.nan])
def test_padded_text_never_changes_the_result(padding: float) -> None:
    check_padding_never_counts(tiny(), MIXTURE, padding)


@pytest.mark.graph
def test_one_graph_serves_many_layouts_and_rates() -> None:
    check_one_graph(tiny(), MIXTURE)


def test_the_prediction_is_zero_at_the_start_and_a_model_made_on_meta_resets_whole() -> None:
    model = check_reset(lambda **made: AtRates(LTXTransformer(TINY, **made)), MIXTURE).model
    assert all(block.modulation.table.std() > 0.1 for block in model.blocks)


def inputs() -> dict[str, Any]:
    """The mixture as the bare model takes it, at one noise level."""
    given = MIXTURE.inputs()
    index = given["layout"].on("cpu")
    return {
        "x": given["x"],
        "t": Rows(torch.full((1,), 0.5, **F64)),
        "text": given["text"],
        "layout": given["layout"],
        "text_layout": given["text_layout"],
        "places": ltx_places(index, index.rows(24 + given["rate"].detach(), "sample")),
    }


def test_only_differences_of_places_matter() -> None:
    """Frames before the first, which would have negative seconds, are those of a video that starts later."""
    model, given = tiny().model, inputs()
    shift = torch.tensor([3.0, 64.0, 96.0], **F64)
    expected = model(**given)
    moved = model(**given | {"places": given["places"] + shift})
    torch.testing.assert_close(moved, expected, rtol=1e-10, atol=1e-10)
    longer = model(**given | {"places": given["places"] + shift * given["places"].sign()})
    assert error(longer, expected) > 1e-3


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
    model, given, values = tiny(pattern), MIXTURE.inputs(), MIXTURE.levels("frame")
    index = given["layout"].on("cpu")
    c = index.coords
    if isinstance(pattern, Window):
        allowed = ((c // torch.tensor([2, 1, 2]))[:, None] == (c // torch.tensor([2, 1, 2]))[None]).all(-1)
    else:
        behind = c[:, None, 0] - c[None, :, 0]
        allowed = (behind >= 0) & (behind < (pattern.window or 99))
    got = MIXTURE.ask(model, given, values, "frame")
    assert error(MIXTURE.ask(tiny(), given, values, "frame"), got) > 1e-3
    for block in model.model.blocks:
        branch = block.branches[0]
        branch.inner = Masked(branch.inner, allowed & (index.sample[:, None] == index.sample))
    torch.testing.assert_close(got, MIXTURE.ask(model, given, values, "frame"), rtol=1e-11, atol=1e-11)


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
    with pytest.raises(ValueError, match=says):
        tiny().model(**inputs() | change)


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
