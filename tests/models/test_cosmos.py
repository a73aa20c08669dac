"""Cosmos against diffusers with mapped weights, its sizes, and what diffusers cannot do against what it implies."""

import dataclasses
import math
from typing import Any

import cosmoses
import pytest
import torch
from diffusers import CosmosTransformer3DModel, EDMEulerScheduler
from mixtures import (
    LEVELS,
    Mixture,
    check_finer_levels,
    check_one_graph,
    check_packed_equals_separate,
    check_padding_never_counts,
    check_reset,
)
from parity import error, in_bfloat16, randomise, size
from torch import Tensor, nn

from tubelet import models
from tubelet.attention import FrameCausal, Joint, Window
from tubelet.hub import from_diffusers
from tubelet.hub.cosmos import cosmos_config_to_diffusers, cosmos_keys
from tubelet.layout import Grid, Rows, TokenLayout
from tubelet.models import CosmosConfig, CosmosTransformer, pad_prompts
from tubelet.models.cosmos import _MODEL_TIME
from tubelet.protocols import Pattern

F64: dict[str, Any] = {"dtype": torch.float64}
TINY = CosmosConfig(
    dim=24, depth=2, heads=2, mlp_ratio=1.5, rank=3, latent_channels=2, text_dim=5, context_dim=4, patch=(1, 1, 2),
    known_channel=True, extent=(3, 2, 3), rope_scale=(2.0, 1.0, 3.0),
)  # fmt: skip
MIXTURE = Mixture({"x": 4, "known": 2, "padding": 2}, {"text": 5}, {"fps": ()})


@pytest.mark.parametrize(("kind", "seed"), [*zip(cosmoses.KINDS, range(6), strict=True), ("video", 6), ("frames", 7)])
def test_equal_to_diffusers(kind: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, in float64 where the peer's roundings are lifted, and in bfloat16 as exactly as the peer."""
    theirs = cosmoses.peer(kind, seed)
    asked = cosmoses.question(kind, theirs, seed)
    config, state = dict(theirs.config), {name: p.clone() for name, p in theirs.state_dict().items()}

    def ours(dtype: torch.dtype) -> Tensor:
        return asked.ours(from_diffusers({"_class_name": "CosmosTransformer3DModel", **config}, state, dtype=dtype))

    assert error(ours(torch.float32), asked.theirs(theirs)) <= 1e-5
    with cosmoses.in_float64(theirs, monkeypatch) as exact:
        expected = asked.theirs(exact)
    assert error(ours(torch.float64), expected) <= 1e-10
    rough = in_bfloat16(cosmoses.peer(kind, seed), cosmoses.WIDE)
    assert error(ours(torch.bfloat16), expected) <= 1.5 * error(asked.theirs(rough), expected)


@pytest.mark.parametrize("kind", ["video", "projected"])
def test_gradients_are_those_of_diffusers(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every weight, in float64, mapped by the same table as the weights."""
    theirs = cosmoses.peer(kind)
    asked = cosmoses.question(kind, theirs)
    config, state = dict(theirs.config), {name: p.clone() for name, p in theirs.state_dict().items()}
    ours = from_diffusers({"_class_name": "CosmosTransformer3DModel", **config}, state, dtype=torch.float64)
    with cosmoses.in_float64(theirs, monkeypatch) as exact, torch.enable_grad():
        asked.theirs(exact, grad=True).square().sum().backward()
    asked.ours(ours, grad=True).square().sum().backward()
    expected = cosmos_keys(ours.config).to_ours({name: p.grad for name, p in theirs.named_parameters()})
    for name, parameter in ours.named_parameters():
        assert error(parameter.grad, expected[name]) <= 1e-10, name


def test_without_its_optional_inputs_nothing_is_padded_and_frames_count_as_at_24() -> None:
    theirs = cosmoses.peer("world")
    asked = cosmoses.question("world", theirs)
    ours = from_diffusers(dict(theirs.config) | {"_class_name": "CosmosTransformer3DModel"}, theirs.state_dict())
    padded, rated = asked.ours(ours), asked.ours(ours, padding=None)
    asked.padding, asked.fps = torch.zeros_like(asked.padding), 24
    assert error(asked.ours(ours, padding=None), asked.theirs(theirs)) <= 1e-5
    asked.fps = None
    expected = asked.theirs(theirs)
    assert error(asked.ours(ours, padding=None), expected) <= 1e-5
    assert error(rated, expected) > 1e-3 and error(padded, rated) > 1e-3


def test_zeros_behind_prompts_count_as_the_published_models_are_fed() -> None:
    theirs = cosmoses.peer("image")
    asked = cosmoses.question("image", theirs)
    ours = from_diffusers(dict(theirs.config) | {"_class_name": "CosmosTransformer3DModel"}, theirs.state_dict())
    short = asked.ours(ours)
    asked.text, padded = pad_prompts(asked.text, TokenLayout.padded(asked.lengths, 5), tokens=7)
    asked.lengths = [7, 7]
    assert error(asked.ours(ours, text_layout=padded), asked.theirs(theirs)) <= 1e-5
    assert error(short, asked.theirs(theirs)) > 1e-3


PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "cosmos_1_7b": ({}, 7_236_192_256),
    "cosmos_1_v2w_7b": ({"in_channels": 17}, 7_236_208_640),
    "cosmos_1_14b": ({"num_attention_heads": 40, "num_layers": 36, "rope_scale": (2.0, 2.0, 2.0)}, 14_267_149_312),
    "cosmos_1_v2w_14b": (
        {"in_channels": 17, "num_attention_heads": 40, "num_layers": 36, "rope_scale": (2.0, 2.0, 2.0)},
        14_267_169_792,
    ),
    "cosmos_2_t2i_2b": (
        {"num_attention_heads": 16, "rope_scale": (1.0, 4.0, 4.0), "extra_pos_embed_type": None},
        1_956_405_248,
    ),
    "cosmos_2_t2i_14b": (
        {
            "num_attention_heads": 40,
            "num_layers": 36,
            "rope_scale": (1.0, 4.0, 4.0),
            "extra_pos_embed_type": None,
        },
        14_265_265_152,
    ),
    "cosmos_2_v2w_2b": (
        {
            "in_channels": 17,
            "num_attention_heads": 16,
            "rope_scale": (1.0, 3.0, 3.0),
            "extra_pos_embed_type": None,
        },
        1_956_413_440,
    ),
    "cosmos_2_v2w_14b": (
        {
            "in_channels": 17,
            "num_attention_heads": 40,
            "num_layers": 36,
            "rope_scale": (20 / 24, 2.0, 2.0),
            "extra_pos_embed_type": None,
        },
        14_265_285_632,
    ),
    "cosmos_2_5_2b": (
        {
            "in_channels": 17,
            "num_attention_heads": 16,
            "rope_scale": (1.0, 3.0, 3.0),
            "extra_pos_embed_type": None,
            "use_crossattn_projection": True,
            "crossattn_proj_in_channels": 100352,
        },
        2_059_174_912,
    ),
    "cosmos_2_5_14b": (
        {
            "in_channels": 17,
            "num_attention_heads": 40,
            "num_layers": 36,
            "rope_scale": (1.0, 3.0, 3.0),
            "extra_pos_embed_type": None,
            "use_crossattn_projection": True,
            "crossattn_proj_in_channels": 100352,
        },
        14_368_047_104,
    ),
}


@pytest.mark.parametrize("preset", PUBLISHED)
def test_presets_have_the_published_sizes(preset: str) -> None:
    config, count = PUBLISHED[preset]
    with torch.device("meta"):
        theirs = CosmosTransformer3DModel(**config)
    ours = CosmosTransformer(getattr(models, preset)(), device="meta", dtype=torch.bfloat16)
    assert all(p.is_meta and p.dtype == torch.bfloat16 for p in ours.parameters())
    assert size(ours) == size(theirs) == count
    written = {k: tuple(v) if isinstance(v, list) else v for k, v in cosmos_config_to_diffusers(ours.config).items()}
    assert written == {k: v for k, v in theirs.config.items() if not k.startswith("_")}


def test_edm_times_and_predictions_are_those_of_the_published_scheduler() -> None:
    """Unit data times 0.5 plus noise: what it feeds as time and input, and what it makes of an output."""
    scheduler = EDMEulerScheduler(sigma_data=0.5)
    sigma = torch.tensor([0.002, 0.3, 1.0, 80.0], **F64)
    alpha, noise = 0.5 / (sigma**2 + 0.25).sqrt(), sigma / (sigma**2 + 0.25).sqrt()
    fed = _MODEL_TIME["edm"](noise / (alpha + noise))
    torch.testing.assert_close(fed, torch.stack([scheduler.precondition_noise(s) for s in sigma]))
    x0, eps = torch.randn(2, 4, **F64)
    torch.testing.assert_close(
        torch.stack(
            [scheduler.precondition_inputs(0.5 * a + s * e, s) for a, e, s in zip(x0, eps, sigma, strict=True)]
        ),
        alpha * x0 + noise * eps,
    )
    said = noise * x0 - alpha * eps
    cleaned = [
        scheduler.precondition_outputs(0.5 * a + s * e, f, s) for a, e, f, s in zip(x0, eps, said, sigma, strict=True)
    ]
    torch.testing.assert_close(torch.stack(cleaned), 0.5 * x0)
    ends = torch.tensor([0.0, 1e-6, 1e-5, 1 - 1e-5, 1 - 1e-6, 1.0], dtype=torch.float64)
    inside = ends.clamp(1e-6, 1 - 1e-6)
    torch.testing.assert_close(_MODEL_TIME["edm"](ends), (0.5 * inside / (1 - inside)).log() / 4)
    assert _MODEL_TIME["edm"](torch.tensor([0.5], dtype=torch.bfloat16)).item() == pytest.approx(math.log(0.5) / 4)


def tiny(pattern: Pattern | None = None) -> CosmosTransformer:
    return randomise(CosmosTransformer(TINY, pattern=Joint() if pattern is None else pattern, **F64))  # type: ignore[return-value]


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
    model = check_reset(lambda **made: CosmosTransformer(TINY, **made), MIXTURE)
    assert model.positions.time.std() > 0.01


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
    for block in model.blocks:
        branch = block.branches[0]
        branch.inner = Masked(branch.inner, allowed & (index.sample[:, None] == index.sample))
    torch.testing.assert_close(got, MIXTURE.ask(model, given, values, "frame"), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"x": torch.zeros(13, 5, **F64)}, "x is 5 wide, but the model takes 4"),
        ({"text": torch.zeros(6, 5, **F64)}, r"text has tokens \(6,\), but its layout has \(5,\)"),
        ({"known": None}, "known is None, but the model has known_channel=True"),
        ({"known": torch.zeros(13, 1, **F64), "padding": None}, "known is 1 wide, but the model takes 2"),
        ({"text_layout": TokenLayout.packed([None], [5])}, "layout has 3 samples, but that of text has 1"),
        ({"t": Rows(torch.zeros(3, **F64))}, "t has 3 values without an index"),
        ({"fps": torch.ones(2)}, r"fps has shape \(2,\), but layout has 3 samples of \(\)"),
    ],
)
def test_inputs_that_do_not_fit_are_named(change: dict[str, Any], says: str) -> None:
    given = MIXTURE.inputs() | {"t": Rows(torch.zeros(1, **F64))} | change
    with pytest.raises(ValueError, match=says):
        tiny()(**given)


def test_masks_that_the_model_lacks_are_refused() -> None:
    model = CosmosTransformer(CosmosConfig(dim=12, depth=1, heads=1, text_dim=4, padding_channel=False))
    layout, text = TokenLayout.dense(1, Grid(1, 1, 2)), TokenLayout.padded([1], 1)
    for name, says in (("known", "known_channel=False"), ("padding", "padding_channel=False")):
        with pytest.raises(ValueError, match=rf"{name} is of shape \(1, 2, 4\), but the model has {says}"):
            model(
                torch.zeros(1, 2, 64), Rows(torch.zeros(1)), torch.zeros(1, 1, 4), layout, text,
                **{name: torch.zeros(1, 2, 4)},
            )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rank": 0}, "rank must be positive, got 0"),
        ({"context_dim": 0}, "context_dim must be positive, got 0"),
        ({"heads": 5}, "dim=24 does not make heads=5"),
        ({"heads": 6}, "dim=24 does not make heads=6 of even width, at least 6"),
        ({"patch": (1, 0, 2)}, r"patch must be positive on each axis, got \(1, 0, 2\)"),
        ({"extent": (1, 0, 2)}, r"extent must be positive on each axis, got \(1, 0, 2\)"),
        ({"rope_scale": (1.0, 0.0, 2.0)}, "rope_scale must be positive on each axis"),
        ({"mlp_ratio": 0.0}, "mlp_ratio=0.0 leaves dim=24 no hidden width"),
    ],
)
def test_configs_that_do_not_fit_are_named(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        CosmosConfig(**{name: getattr(TINY, name) for name in TINY.__dataclass_fields__} | change)


def test_an_unknown_time_is_named() -> None:
    config = dataclasses.replace(TINY)
    object.__setattr__(config, "time", "sigma")  # the shape hook would refuse the name before the config does
    with pytest.raises(ValueError, match=r"time must be one of \('level', 'edm'\), got 'sigma'"):
        config.__post_init__()
