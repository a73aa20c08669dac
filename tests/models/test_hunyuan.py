"""HunyuanVideo against diffusers with mapped weights, its sizes, and what diffusers cannot against what it implies."""

from typing import Any

import hunyuans
import pytest
import torch
from diffusers import HunyuanVideoTransformer3DModel
from mixtures import (
    LEVELS,
    Mixture,
    check_finer_levels,
    check_joint,
    check_one_graph,
    check_packed_equals_separate,
    check_padding_never_counts,
    check_reset,
)
from parity import error, in_bfloat16, randomise, size
from torch import Tensor

from tubelet import models
from tubelet.attention import FrameCausal, Joint, Window
from tubelet.hub import from_diffusers
from tubelet.hub.hunyuan import hunyuan_video_keys
from tubelet.layout import Grid, JointLayout, Kind, Rows, TokenLayout
from tubelet.models import HunyuanVideoConfig, HunyuanVideoTransformer
from tubelet.protocols import Pattern

F64 = {"dtype": torch.float64}
PEER = {"_class_name": "HunyuanVideoTransformer3DModel"}
TINY = HunyuanVideoConfig(
    dim=16, heads=2, depth=1, single_depth=2, refiner_depth=1, mlp_ratio=1.5, latent_channels=2, given_channels=1,
    text_dim=5, pooled_dim=3, patch=(1, 1, 2), rope_axes=(2, 2, 4), guidance=True,
)  # fmt: skip
MIXTURE = Mixture({"x": 4, "given": 2}, {"text": 5}, {"pooled": (3,), "guidance": ()})


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("kind", hunyuans.KINDS)
def test_equal_to_diffusers(kind: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, in float64 where the peer's roundings are lifted, and in bfloat16 as exactly as the peer."""
    theirs = hunyuans.peer(kind, seed)
    asked = hunyuans.question(theirs, seed)
    config, state = dict(theirs.config), {name: p.clone() for name, p in theirs.state_dict().items()}

    def ours(dtype: torch.dtype) -> Tensor:
        return asked.ours(from_diffusers(PEER | config, state, dtype=dtype))

    with hunyuans.exact_angles(theirs, monkeypatch):
        assert error(ours(torch.float32), asked.theirs(theirs)) <= 1e-5
    with hunyuans.in_float64(theirs, monkeypatch) as exact:
        expected = asked.theirs(exact)
    assert error(ours(torch.float64), expected) <= 1e-10
    rough = in_bfloat16(hunyuans.peer(kind, seed))
    assert error(ours(torch.bfloat16), expected) <= 1.5 * error(asked.theirs(rough), expected)


@pytest.mark.parametrize("kind", hunyuans.KINDS)
def test_gradients_are_those_of_diffusers(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every weight, in float64, mapped by the same table as the weights."""
    theirs = hunyuans.peer(kind)
    asked = hunyuans.question(theirs)
    config, state = dict(theirs.config), {name: p.clone() for name, p in theirs.state_dict().items()}
    ours = from_diffusers(PEER | config, state, **F64)
    with hunyuans.in_float64(theirs, monkeypatch) as exact, torch.enable_grad():
        asked.theirs(exact, grad=True).square().sum().backward()
    asked.ours(ours, grad=True).square().sum().backward()
    expected = hunyuan_video_keys(ours.config).to_ours({name: p.grad for name, p in theirs.named_parameters()})
    for name, parameter in ours.named_parameters():
        if name.startswith("refiner") and name.endswith("k_proj.bias"):  # it moves all scores of a query alike
            assert max(parameter.grad.norm(), expected[name].norm()) <= 1e-10
        else:
            assert error(parameter.grad, expected[name]) <= 1e-10, name


def test_clean_frames_are_told_the_guidance_only_where_they_are_not_given() -> None:
    """At level 0 a model whose first frame is given ignores the guidance; any other has it at every level."""
    for condition, heard in (("token_replace", False), (None, True)):
        state = tiny().state_dict()
        model = HunyuanVideoTransformer(HunyuanVideoConfig(**vars(TINY) | {"image_condition": condition}), **F64)
        model.load_state_dict(state)
        given, clean = MIXTURE.inputs(), torch.zeros(3, **F64)
        louder = given | {"guidance": given["guidance"] + 1}
        answers = [MIXTURE.ask(model, each, clean, "sample") for each in (given, louder)]
        assert (error(*answers) > 1e-3) == heard


PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "hunyuan_video": ({}, 12_821_012_544),
    "hunyuan_video_i2v": ({"image_condition_type": "token_replace"}, 12_821_012_544),
    "hunyuan_video_i2v_concat": (
        {"image_condition_type": "latent_concat", "in_channels": 33, "guidance_embeds": False},
        12_810_991_680,
    ),
}


@pytest.mark.parametrize("preset", PUBLISHED)
def test_presets_have_the_published_sizes(preset: str) -> None:
    config, count = PUBLISHED[preset]
    with torch.device("meta"):
        theirs = HunyuanVideoTransformer3DModel(**config)
    ours = HunyuanVideoTransformer(getattr(models, preset)(), device="meta", dtype=torch.bfloat16)
    assert all(p.is_meta and p.dtype == torch.bfloat16 for p in ours.parameters())
    assert size(ours) == size(theirs) == count


def tiny(pattern: Pattern | None = None) -> HunyuanVideoTransformer:
    return randomise(HunyuanVideoTransformer(TINY, pattern=Joint() if pattern is None else pattern, **F64))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("capacities", [(None, None), (20, 9)])
def test_packed_equals_separate(level: Any, capacities: tuple[int | None, int | None]) -> None:
    check_packed_equals_separate(tiny(), MIXTURE, level, capacities)


@pytest.mark.parametrize("level", ["frame", "token"])
def test_finer_levels_that_are_equal_are_one_level_per_sample(level: Any) -> None:
    check_finer_levels(tiny(), MIXTURE, level)


@pytest.mark.parametrize("padding", [0.0, 7.0, torch.nan])
def test_padded_text_never_changes_the_result(padding: float) -> None:
    check_padding_never_counts(tiny(), MIXTURE, padding)


@pytest.mark.graph
def test_one_graph_serves_many_layouts() -> None:
    check_one_graph(tiny(), MIXTURE)


def test_the_prediction_is_zero_at_the_start_and_a_model_made_on_meta_resets_whole() -> None:
    check_reset(lambda **made: HunyuanVideoTransformer(TINY, **made), MIXTURE)


def test_a_joint_index_may_be_given_and_is_made_otherwise() -> None:
    """From layouts on the host, from indices, from one of each; indices with dropped tokens need one."""
    check_joint(tiny(), MIXTURE)


def test_rows_of_a_batch_are_never_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    """One noise level per sample of a dense batch: every modulation broadcasts, with padded text too."""
    model, given, layout = tiny(), MIXTURE.inputs(), TokenLayout.dense(3, Grid(1, 2, 2))
    expand = Rows.expand

    def by_view(rows: Rows) -> Tensor:
        assert rows.index is None
        return expand(rows)

    monkeypatch.setattr(Rows, "expand", by_view)
    batch = {name: torch.randn(3, 4, d, **F64) for name, d in (("x", 4), ("given", 2), ("text", 5))}
    where = {"layout": layout, "text_layout": TokenLayout.padded([1, 4, 2], 4)}
    for t in (Rows(torch.rand(1, **F64)), layout.rows(torch.rand(3, **F64), "sample")):
        model(t=t, **given | batch | where)


@pytest.mark.parametrize("pattern", [Window((2, 1, 2)), FrameCausal(), FrameCausal(window=2)])
def test_any_pattern_equals_its_mask(pattern: Pattern, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the blocks of both kinds; the refiner's attention among the text is joint whatever the pattern."""
    model, given, values = tiny(pattern), MIXTURE.inputs(), MIXTURE.levels("frame")
    got = MIXTURE.ask(model, given, values, "frame")
    assert error(MIXTURE.ask(tiny(), given, values, "frame"), got) > 1e-3

    def by_mask(
        q: Tensor, k: Tensor, v: Tensor, *, pattern: Pattern, layout: Any, backend: str, bias: None = None
    ) -> Tensor:
        index = layout.on("cpu") if isinstance(layout, TokenLayout) else layout
        c, text = index.coords, index.kind == Kind.TEXT
        cells, before = torch.ones(len(c), len(c), dtype=torch.bool), text[None]
        if isinstance(pattern, Window):
            window = c // torch.tensor([2, 1, 2])
            cells, before = (window[:, None] == window).all(-1), text[None] | text[:, None]
        elif isinstance(pattern, FrameCausal):
            behind = c[:, None, 0] - c[None, :, 0]
            cells = (behind >= 0) & (behind < (pattern.window or 99)) & ~text[:, None]
        allowed = (cells | before) & (index.sample[:, None] == index.sample)
        scores = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
        weights = scores.masked_fill(~allowed, -torch.inf).softmax(-1)
        return torch.einsum("hqk,khd->qhd", weights, v)

    monkeypatch.setattr("tubelet.attention.streams.attend", by_mask)
    monkeypatch.setattr("tubelet.attention.modules.attend", by_mask)
    torch.testing.assert_close(got, MIXTURE.ask(model, given, values, "frame"), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"x": torch.zeros(13, 5, **F64)}, "x is 5 wide, but the model takes 4"),
        ({"text": torch.zeros(6, 5, **F64)}, r"text has tokens \(6,\), but its layout has \(5,\)"),
        ({"given": None}, "given is None, but the model has given_channels=1"),
        ({"guidance": None}, "guidance is None, but the model has guidance=True"),
        ({"pooled": torch.zeros(3, 4, **F64)}, r"pooled has shape \(3, 4\), but layout has 3 samples of \(3,\)"),
        ({"text_layout": TokenLayout.packed([None], [5])}, "layout has 3 samples, but that of text has 1"),
        ({"t": Rows(torch.zeros(3, **F64))}, "3 values without an index"),
        ({"joint": JointLayout((TokenLayout.padded([1], 1),) * 2).on("cpu")}, r"tokens of \[\(1, 1\), \(1, 1\)\]"),
    ],
)
def test_inputs_that_do_not_fit_are_named(change: dict[str, Any], says: str) -> None:
    given = MIXTURE.inputs() | {"t": Rows(torch.zeros(1, **F64))} | change
    with pytest.raises(ValueError, match=says):
        tiny()(**given)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"dim": 0}, "dim must be positive, got 0"),
        ({"mlp_ratio": 0.0}, "mlp_ratio must be positive, got 0.0"),
        ({"single_depth": -1}, "single_depth must not be negative, got -1"),
        ({"heads": 5}, r"dim=16 does not make heads=5 of rope_axes=\(2, 2, 4\)"),
        ({"rope_axes": (2, 2, 2)}, r"dim=16 does not make heads=2 of rope_axes=\(2, 2, 2\)"),
        ({"patch": (1, 0, 2)}, r"three positive whole numbers .*, got \(1, 0, 2\)"),
        ({"image_condition": "first"}, "image_condition must be one of .* got 'first'"),
    ],
)
def test_configs_that_do_not_fit_are_named(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        HunyuanVideoConfig(**vars(TINY) | change)
