"""Allegro against diffusers with mapped weights, its sizes, and what diffusers cannot do against what it implies."""

from typing import Any

import allegros
import pytest
import torch
from diffusers import AllegroTransformer3DModel
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
from torch import nn

from tubelet.attention import FrameCausal, Joint, Window
from tubelet.hub import from_diffusers
from tubelet.hub.allegro import allegro_keys
from tubelet.layout import Rows, TokenLayout
from tubelet.models import AllegroConfig, AllegroTransformer, allegro_3b
from tubelet.protocols import Pattern

TINY = AllegroConfig(
    dim=24, depth=2, heads=2, latent_channels=2, text_dim=5, patch=(1, 1, 2), scale=(1.5, 2.0, 0.5), frequencies=8
)
MIXTURE = Mixture({"x": 4}, {"text": 5})


def read(theirs: AllegroTransformer3DModel, dtype: torch.dtype) -> AllegroTransformer:
    config = {"_class_name": "AllegroTransformer3DModel", **theirs.config}
    return from_diffusers(config, theirs.state_dict(), dtype=dtype)


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_equal_to_diffusers(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, in float64 where the peer's roundings are lifted, and in bfloat16 as exactly as the peer."""
    theirs = allegros.peer(seed)
    asked = allegros.question(theirs, seed)
    fine, exact, rough = (read(theirs, dtype) for dtype in (torch.float32, torch.float64, torch.bfloat16))
    assert error(asked.ours(fine), asked.theirs(theirs)) <= 1e-5
    with allegros.in_float64(theirs, monkeypatch) as lifted:
        expected = asked.theirs(lifted)
    assert error(asked.ours(exact), expected) <= 1e-10
    theirs_rough = in_bfloat16(allegros.peer(seed))
    assert error(asked.ours(rough), expected) <= 1.5 * error(asked.theirs(theirs_rough), expected)


@pytest.mark.parametrize("seed", [0, 1])
def test_gradients_are_those_of_diffusers(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every weight, in float64, mapped by the same table as the weights."""
    theirs = allegros.peer(seed)
    asked, ours = allegros.question(theirs), read(theirs, torch.float64)
    with allegros.in_float64(theirs, monkeypatch) as lifted, torch.enable_grad():
        asked.theirs(lifted, grad=True).square().sum().backward()
    asked.ours(ours, grad=True).square().sum().backward()
    expected = allegro_keys(ours.config).to_ours({name: p.grad for name, p in theirs.named_parameters()})
    assert_same_gradients(ours, expected)


def test_the_preset_has_the_published_size() -> None:
    with torch.device("meta"):
        theirs = AllegroTransformer3DModel()
    ours = AllegroTransformer(allegro_3b(), device="meta", dtype=torch.bfloat16)
    assert all(p.is_meta and p.dtype == torch.bfloat16 for p in ours.parameters())
    assert size(ours) == size(theirs) == 2_771_907_856


def tiny(pattern: Pattern | None = None) -> nn.Module:
    return randomise(AllegroTransformer(TINY, pattern=Joint() if pattern is None else pattern, **F64))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("capacities", [(None, None), (20, 9)])
def test_packed_equals_separate(level: Any, capacities: tuple[int | None, int | None]) -> None:
    check_packed_equals_separate(tiny(), MIXTURE, level, capacities)


@pytest.mark.parametrize("padding", [0.0, 7.0, torch.nan])
def test_padded_text_never_changes_the_result(padding: float) -> None:
    check_padding_never_counts(tiny(), MIXTURE, padding)


@pytest.mark.parametrize("level", ["frame", "token"])
def test_finer_levels_that_are_equal_are_one_level_per_sample(level: Any) -> None:
    check_finer_levels(tiny(), MIXTURE, level)


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


def test_the_prediction_is_zero_at_the_start_and_a_model_made_on_meta_resets_whole() -> None:
    model: Any = check_reset(lambda **made: AllegroTransformer(TINY, **made), MIXTURE)
    assert all(block.modulation.table.std() > 0.1 for block in model.blocks)
    assert not any(block.branches[1].inner.out_proj.weight.any() for block in model.blocks)


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
        ({"heads": 5}, "dim=24 does not make heads=5"),
        ({"heads": 3}, "dim=24 does not make heads=3 of three axes of even width"),
        ({"frequencies": 7}, "even and positive, got 7"),
        ({"patch": (1, 0, 2)}, r"three positive whole numbers .*, got \(1, 0, 2\)"),
        ({"scale": (1.0, 0.0, 1.0)}, r"scale must be positive .*, got \(1.0, 0.0, 1.0\)"),
    ],
)
def test_configs_that_do_not_fit_are_named(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        AllegroConfig(**{name: getattr(TINY, name) for name in TINY.__dataclass_fields__} | change)
