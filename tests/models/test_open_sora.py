"""Open-Sora 2 against its recipe in plain PyTorch, its size, and what its code cannot do against what it implies."""

from typing import Any

import open_soras
import pytest
import torch
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
from parity import error, randomise, size
from torch import Tensor

from tubelet.attention import FrameCausal, Joint, Window
from tubelet.hub import from_original
from tubelet.hub.open_sora import open_sora_config_to_original, open_sora_original_keys
from tubelet.layout import Grid, JointLayout, Rows, TokenLayout
from tubelet.models import OpenSoraConfig, OpenSoraTransformer, open_sora_2
from tubelet.protocols import Pattern

F64: dict[str, Any] = {"dtype": torch.float64}
TINY = OpenSoraConfig(
    dim=16, heads=2, depth=1, single_depth=1, mlp_ratio=1.5, latent_channels=2, given_channels=3, text_dim=5,
    pooled_dim=3, patch=(1, 1, 2), rope_axes=(2, 2, 4), guidance=True,
)  # fmt: skip
MIXTURE = Mixture({"x": 4, "given": 6}, {"text": 5}, {"pooled": (3,), "guidance": ()})


def test_a_joint_index_may_be_given_and_is_made_otherwise() -> None:
    """From layouts on the host, from indices, from one of each; indices with dropped tokens need one."""
    check_joint(tiny(), MIXTURE)


def ours(state: dict[str, Tensor], config: dict[str, Any]) -> OpenSoraTransformer:
    """The model of a checkpoint, in its dtype."""
    model = from_original(config, state, family="open_sora")
    assert isinstance(model, OpenSoraTransformer)
    return model


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("kind", open_soras.KINDS)
def test_equal_to_the_recipe(kind: str, seed: int) -> None:
    """In float64 and float32, and in bfloat16 as exactly as the recipe itself."""
    config = open_soras.sizes(kind, seed)
    state, asked = open_soras.checkpoint(config, seed), open_soras.question(config, seed)
    expected = asked.theirs(state)
    assert error(asked.ours(ours(state, config)), expected) <= 1e-10
    for dtype, bound in ((torch.float32, 1e-5), (torch.bfloat16, None)):
        rough = {name: tensor.to(dtype) for name, tensor in state.items()}
        bound = 1.5 * error(asked.theirs(rough), expected) if bound is None else bound
        assert error(asked.ours(ours(rough, config)), expected) <= bound


@pytest.mark.parametrize("kind", open_soras.KINDS)
def test_gradients_are_those_of_the_recipe(kind: str) -> None:
    """Of every weight, in float64, mapped by the same table as the weights."""
    config = open_soras.sizes(kind)
    state, asked = open_soras.checkpoint(config), open_soras.question(config)
    model = ours(state, config)
    leaves = {name: tensor.requires_grad_() for name, tensor in state.items()}
    asked.theirs(leaves).square().sum().backward()
    asked.ours(model).square().sum().backward()
    expected = open_sora_original_keys(model.config).to_ours({name: leaf.grad for name, leaf in leaves.items()})
    for name, parameter in model.named_parameters():
        assert error(parameter.grad, expected[name]) <= 1e-10, name


def test_the_preset_has_the_published_size() -> None:
    model = OpenSoraTransformer(open_sora_2(), device="meta", dtype=torch.bfloat16)
    assert all(p.is_meta and p.dtype == torch.bfloat16 for p in model.parameters())
    shapes = open_soras.shapes(open_sora_config_to_original(open_sora_2()))
    assert size(model) == sum(torch.Size(shape).numel() for shape in shapes.values()) == 11_891_390_528


def tiny(pattern: Pattern | None = None) -> OpenSoraTransformer:
    return randomise(OpenSoraTransformer(TINY, pattern=Joint() if pattern is None else pattern, **F64))  # type: ignore[return-value]


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
    model = check_reset(lambda **made: OpenSoraTransformer(TINY, **made), MIXTURE)
    assert not any(p.any() for p in model.given.parameters())


@pytest.mark.parametrize("pattern", [Window((2, 1, 2)), FrameCausal()])
def test_patterns_hide_what_they_say(pattern: Pattern) -> None:
    """One block of each kind: a change of the last frame reaches the first only where the pattern lets it."""
    layout, words = TokenLayout.dense(1, Grid(3, 1, 2)), TokenLayout.padded([2], 2)
    given: dict[str, Any] = {name: torch.randn(1, 6, d, **F64) for name, d in (("x", 4), ("given", 6))}
    given |= {"text": torch.randn(1, 2, 5, **F64), "pooled": torch.randn(1, 3, **F64), "layout": layout}
    given |= {"text_layout": words, "guidance": torch.ones(1, **F64), "t": Rows(torch.rand(1, **F64))}
    changed = given | {"x": torch.cat([given["x"][:, :4], given["x"][:, 4:] + 1], 1)}
    model = tiny(pattern)
    if isinstance(pattern, Window):  # the text would carry it on
        model.blocks.single = torch.nn.ModuleList()
    moved = (model(**changed) - model(**given)).abs().amax(-1)[0]
    assert moved[:2].max() < 1e-12 < 1e-3 < moved[4:].max()
    assert (tiny()(**changed) - tiny()(**given)).abs().amax(-1)[0].min() > 1e-3


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"x": torch.zeros(13, 5, **F64)}, "x is 5 wide, but the model takes 4"),
        ({"text": torch.zeros(6, 5, **F64)}, r"text has tokens \(6,\), but its layout has \(5,\)"),
        ({"given": None}, "given is None, but the model has given_channels=3"),
        ({"guidance": None}, "guidance is None, but the model has guidance=True"),
        ({"pooled": torch.zeros(3, 4, **F64)}, r"pooled has shape \(3, 4\), but layout has 3 samples of \(3,\)"),
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
        ({"rope_theta": 0.0}, "rope_theta must be positive, got 0.0"),
        ({"depth": -1}, "depth must not be negative, got -1"),
        ({"heads": 5}, r"dim=16 does not make heads=5 of rope_axes=\(2, 2, 4\)"),
        ({"patch": (1, 0, 2)}, r"three positive whole numbers .*, got \(1, 0, 2\)"),
    ],
)
def test_configs_that_do_not_fit_are_named(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        OpenSoraConfig(**vars(TINY) | change)
