"""Latte against diffusers with mapped weights, its variants against their definition, and what diffusers cannot do."""

import dataclasses
from typing import Any, get_args

import lattes
import pytest
import torch
from diffusers import LatteTransformer3DModel
from lattes import KINDS
from mixtures import (
    F64,
    LEVELS,
    Mixture,
    check_finer_levels,
    check_one_graph,
    check_packed_equals_separate,
    check_padding_never_counts,
    check_reset,
)
from parity import error, in_bfloat16, randomise, size
from pixarts import Masked, assert_same_gradients

from tubelet.attention import FrameCausal, Temporal, Window
from tubelet.hub import from_diffusers
from tubelet.hub.latte import latte_keys
from tubelet.layout import Grid, Rows, TokenLayout
from tubelet.models import LatteConfig, LatteTransformer, LatteVariant, latte_1, latte_arrangement

TINY = LatteConfig(
    dim=24, depth=2, heads=2, latent_channels=2, variance_channels=1, text_dim=5, patch=(1, 1, 2), sample_size=6,
    frequencies=8, temporal_from=2,
)  # fmt: skip
MIXTURE = Mixture({"x": 4}, {"text": 5})
VARIANTS = get_args(LatteVariant)


def read(theirs: LatteTransformer3DModel, dtype: torch.dtype, **changed: Any) -> LatteTransformer:
    """Our model of their weights, in a config that their class does not know."""
    model = from_diffusers({"_class_name": "LatteTransformer3DModel", **theirs.config}, theirs.state_dict())
    own = LatteTransformer(dataclasses.replace(model.config, **changed), dtype=dtype)
    own.load_state_dict(model.state_dict())
    return own


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_equal_to_diffusers(kind: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, in float64 where the peer's roundings are lifted, and in bfloat16 as exactly as the peer."""
    theirs = lattes.peer(kind, seed)
    asked = lattes.question(kind, theirs, seed)
    fine, exact, rough = (read(theirs, dtype) for dtype in (torch.float32, torch.float64, torch.bfloat16))
    assert error(asked.ours(fine), asked.theirs(theirs)) <= 1e-5
    with lattes.in_float64(theirs, monkeypatch) as lifted:
        expected = asked.theirs(lifted)
    assert error(asked.ours(exact), expected) <= 1e-10
    theirs_rough = in_bfloat16(lattes.peer(kind, seed))
    assert error(asked.ours(rough), expected) <= 1.5 * error(asked.theirs(theirs_rough), expected)


@pytest.mark.parametrize("kind", ["square", "stretched"])
def test_gradients_are_those_of_diffusers(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every weight, in float64, mapped by the same table as the weights."""
    theirs = lattes.peer(kind, 1)
    asked, ours = lattes.question(kind, theirs), read(theirs, torch.float64)
    with lattes.in_float64(theirs, monkeypatch) as lifted, torch.enable_grad():
        asked.theirs(lifted, grad=True).square().sum().backward()
    asked.ours(ours, grad=True).square().sum().backward()
    expected = latte_keys(ours.config).to_ours({name: p.grad for name, p in theirs.named_parameters()})
    assert_same_gradients(ours, expected)


def test_any_number_of_frames_where_diffusers_takes_one() -> None:
    """A peer refuses frames that a twin of it, made for them, answers as our one model does."""
    theirs = lattes.peer("stretched")
    ours = read(theirs, torch.float32)
    for frames in (2, 5):
        twin = lattes.peer("stretched", video_length=frames)
        asked = lattes.question("stretched", twin)
        assert error(asked.ours(ours), asked.theirs(twin)) <= 1e-5
        with pytest.raises(RuntimeError, match="must match"):
            asked.theirs(theirs)


def test_images_pass_by_time_as_in_joint_training() -> None:
    """With ``temporal_from=2`` frames that come as images are diffusers' without its blocks over time."""
    theirs = lattes.peer("stretched")
    asked = lattes.question("stretched", theirs)
    expected = asked.theirs(theirs, enable_temporal_attentions=False)
    ours, frames = read(theirs, torch.float32, temporal_from=2), asked.grid.t
    images = dataclasses.replace(
        asked,
        latents=asked.latents.transpose(1, 2).flatten(0, 1)[:, :, None],
        time=asked.time.repeat_interleave(frames),
    )
    layout = TokenLayout.dense(2 * frames, images.grid)
    text = {"text": asked.text.float().repeat_interleave(frames, 0), "text_layout": TokenLayout.padded([5] * 6, 5)}
    got = images.ours(ours, layout=layout, **text).squeeze(2).unflatten(0, (2, frames)).transpose(1, 2)
    assert error(got, expected) <= 1e-5
    assert error(asked.ours(ours), expected) > 1e-2  # as a video it goes through them
    assert error(asked.ours(ours), asked.theirs(theirs)) <= 1e-5


@pytest.mark.parametrize("grid", [Grid(3, 2, 4), Grid(5, 3, 1)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_are_those_of_the_paper(variant: LatteVariant, grid: Grid) -> None:
    model = tiny(variant=variant, depth=4, patch=(1, 1, 1))
    draw = torch.Generator().manual_seed(3)
    x, text = torch.randn(grid.tokens, 2, generator=draw, **F64), torch.randn(4, 5, generator=draw, **F64)
    level, layouts = torch.rand(1, generator=draw, **F64), (TokenLayout.packed([grid]), TokenLayout.packed([None], [4]))
    expected = lattes.defined(model, x, level, grid, text)
    torch.testing.assert_close(model(x, Rows(level), text, *layouts), expected, rtol=1e-11, atol=1e-11)
    others = [tiny(variant=v, depth=4, patch=(1, 1, 1)) for v in VARIANTS if v != variant]
    assert all(error(other(x, Rows(level), text, *layouts), expected) > 1e-3 for other in others)


def test_arrangements_are_lists_of_words() -> None:
    assert latte_arrangement("interleaved", 4).blocks == (("space",), ("time",)) * 2
    assert latte_arrangement("late_fusion", 6).blocks == (("space",),) * 3 + (("time",),) * 3
    assert [latte_arrangement(v, 4).before_time for v in VARIANTS] == [1, 2, 0, 0]
    assert [latte_arrangement(v, 4).parts for v in VARIANTS] == [6, 6, 9, 6]


def test_the_preset_has_the_published_size() -> None:
    """The config is that of the folder ``maxin-cn/Latte-1``."""
    with torch.device("meta"):
        theirs = LatteTransformer3DModel(
            num_attention_heads=16, attention_head_dim=72, in_channels=4, out_channels=8, num_layers=28,
            cross_attention_dim=1152, attention_bias=True, sample_size=64, patch_size=2,
            activation_fn="gelu-approximate", num_embeds_ada_norm=1000, norm_type="ada_norm_single",
            norm_elementwise_affine=False, norm_eps=1e-6, caption_channels=4096, video_length=16,
        )  # fmt: skip
    ours = LatteTransformer(latte_1(), device="meta", dtype=torch.bfloat16)
    assert all(p.is_meta and p.dtype == torch.bfloat16 for p in ours.parameters())
    assert size(ours) == size(theirs) == 1_057_246_880


def tiny(spatial: Any = None, temporal: Any = None, **changed: Any) -> Any:
    patterns = {name: p for name, p in (("spatial", spatial), ("temporal", temporal)) if p is not None}
    return randomise(LatteTransformer(dataclasses.replace(TINY, **changed), **patterns, **F64))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("capacities", [(None, None), (20, 9)])
def test_packed_equals_separate(variant: str, level: Any, capacities: tuple[int | None, int | None]) -> None:
    """Videos and an image in one mixture."""
    check_packed_equals_separate(tiny(variant=variant), MIXTURE, level, capacities)


@pytest.mark.parametrize("padding", [0.0, 7.0, torch.nan])
def test_padded_text_never_changes_the_result(padding: float) -> None:
    check_padding_never_counts(tiny(), MIXTURE, padding)


@pytest.mark.parametrize("level", ["frame", "token"])
def test_finer_levels_that_are_equal_are_one_level_per_sample(level: Any) -> None:
    check_finer_levels(tiny(), MIXTURE, level)


@pytest.mark.parametrize("variant", VARIANTS)
def test_any_patterns_equal_their_masks(variant: str) -> None:
    """Windows in the frame and causal columns in every variant."""
    changed = {"variant": variant, "temporal_from": 1}
    model, given, values = (
        tiny(Window((1, 1, 2)), Temporal() & FrameCausal(), **changed),
        MIXTURE.inputs(),
        MIXTURE.levels("frame"),
    )
    index = given["layout"].on("cpu")
    (t, h, w), same = index.coords.unbind(-1), index.sample[:, None] == index.sample
    spatial = same & (t[:, None] == t) & (h[:, None] == h) & (w[:, None] // 2 == w // 2)
    temporal = same & (h[:, None] == h) & (w[:, None] == w) & (t[:, None] >= t)
    masks = {"space": spatial, "time": temporal, "both": torch.stack([spatial, temporal])}
    got = MIXTURE.ask(model, given, values, "frame")
    assert error(MIXTURE.ask(tiny(**changed), given, values, "frame"), got) > 1e-3
    for kinds, block in zip(latte_arrangement(variant, 2).blocks, model.blocks, strict=True):
        holders = [m for m in block.modules() if getattr(m, "takes", ()) == ("layout",)]
        for kind, holder in zip(kinds, holders, strict=True):
            holder.inner = Masked(holder.inner, masks[kind])
    torch.testing.assert_close(got, MIXTURE.ask(model, given, values, "frame"), rtol=1e-11, atol=1e-11)


def test_the_prediction_is_zero_at_the_start_and_a_model_made_on_meta_resets_whole() -> None:
    model: Any = check_reset(lambda **made: LatteTransformer(TINY, **made), MIXTURE)
    assert model.blocks[0].modulation.table.std() > 0.1 and model.blocks[1].inner.modulation.table.std() > 0.1
    assert not model.blocks[0].branches[1].inner.out_proj.weight.any()


@pytest.mark.graph
def test_one_graph_serves_many_layouts() -> None:
    check_one_graph(tiny(), MIXTURE)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"x": torch.zeros(13, 5, **F64)}, "x is 5 wide, but the model takes 4"),
        ({"text": torch.zeros(6, 5, **F64)}, r"text has tokens \(6,\), but its layout has \(5,\)"),
        ({"text": torch.zeros(5, 4, **F64)}, "text is 4 wide, but the model takes 5"),
        ({"layout": TokenLayout.packed(MIXTURE.grids[:2])}, r"x has tokens \(13,\), but its layout has \(7,\)"),
        ({"text_layout": TokenLayout.packed([None], [5])}, "layout has 3 samples, but that of text has 1"),
        ({"t": Rows(torch.zeros(3, **F64))}, "3 values without an index"),
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
        ({"temporal_from": 0}, "temporal_from must be positive, got 0"),
        ({"heads": 5}, "dim=24 must be a multiple of heads=5"),
        ({"dim": 26}, "dim=26 must be a multiple of heads=2 and, for its positions, of 4"),
        ({"heads": 3, "variant": "half_heads"}, "heads=3 do not make two halves"),
        ({"depth": 3}, "depth must be even for variant='interleaved', half over space and half over time, got 3"),
        ({"depth": 3, "variant": "late_fusion"}, "depth must be even for variant='late_fusion'"),
        ({"sample_size": 7}, r"sample_size=7 is not made of patches of \(1, 2\)"),
        ({"frequencies": 7}, "even and positive, got 7"),
        ({"patch": (1, 0, 2)}, r"three positive whole numbers .*, got \(1, 0, 2\)"),
        ({"variance_channels": -1}, "variance_channels must not be negative, got -1"),
    ],
)
def test_configs_that_do_not_fit_are_named(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        LatteConfig(**{name: getattr(TINY, name) for name in TINY.__dataclass_fields__} | change)


@pytest.mark.graph  # without type checks, as users run it
def test_variants_that_are_not_there_are_named() -> None:
    with pytest.raises(ValueError, match=r"variant must be one of .*'half_heads'\), got 'joint'"):
        dataclasses.replace(TINY, variant="joint")
