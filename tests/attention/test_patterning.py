"""Another pattern for a finished model: its own attention, joint ones too, equal to one made with the pattern."""

from typing import Any

import pytest
import torch
from mixtures import Mixture
from parity import randomise
from torch import nn

from tubelet.attention import Attention, Joint, Spatial, Window, set_pattern
from tubelet.attention.patterning import patterned
from tubelet.models import (
    HunyuanVideoConfig,
    HunyuanVideoTransformer,
    MochiConfig,
    MochiTransformer,
    WanConfig,
    WanTransformer,
)

F64 = {"dtype": torch.float64}
MODELS = {
    "wan": (
        lambda **k: WanTransformer(
            WanConfig(dim=24, depth=2, heads=2, mlp_dim=20, latent_channels=1, text_dim=5), **k, **F64
        ),
        Mixture({"x": 4}, {"text": 5}),
        2,
    ),
    "mochi": (
        lambda **k: MochiTransformer(
            MochiConfig(dim=24, depth=2, heads=2, text_width=12, latent_channels=1, text_dim=8), **k, **F64
        ),
        Mixture({"x": 4}, {"text": 8}),
        2,
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_with_another_pattern_is_one_that_was_made_with_it(name: str) -> None:
    make, mixture, count = MODELS[name]
    made, changed, plain = (randomise(make(**kwargs)) for kwargs in ({"pattern": Window((1, 1, 2))}, {}, {}))
    assert len(set_pattern(changed, Window((1, 1, 2)))) == count
    assert len(set_pattern(randomise(make()), Window((1, 1, 2)), lambda name, module: "blocks.1" in name)) == 1
    given, values = mixture.inputs(), mixture.levels("sample")
    expected = mixture.ask(made, given, values, "sample")
    torch.testing.assert_close(mixture.ask(changed, given, values, "sample"), expected, rtol=0, atol=0)
    assert (mixture.ask(plain, given, values, "sample") - expected).abs().max() > 1e-3


def test_a_sequence_gives_each_module_its_own() -> None:
    model = MODELS["wan"][0]()
    patterns = [Window((1, 1, 2)), Joint()]
    assert set_pattern(model, patterns) == list(patterned(model))
    assert [module.pattern for module in patterned(model).values()] == patterns
    first = set_pattern(model, (Spatial(),), lambda name, module: name.startswith("blocks.0."))
    assert first == list(patterned(model))[:1]
    assert [module.pattern for module in patterned(model).values()] == [Spatial(), Joint()]


def test_what_does_not_fit_changes_nothing() -> None:
    model = MODELS["mochi"][0](pattern=Spatial())
    with pytest.raises(ValueError, match="3 patterns, but there are 2"):
        set_pattern(model, [Joint()] * 3)
    assert {module.pattern for module in patterned(model).values()} == {Spatial()}


@pytest.mark.graph  # without the tests' own checks of types, which come first
@pytest.mark.parametrize("wrong", [Joint, "joint", None, [Joint(), "joint"], [Joint, Joint()]])
def test_what_is_no_pattern_is_named(wrong: Any) -> None:
    model = nn.Sequential(Attention(8, 2), Attention(8, 2))
    before = [module.pattern for module in model]
    with pytest.raises(ValueError, match=r"pattern must be one such as Joint\(\) or a list of them, got"):
        set_pattern(model, wrong)
    assert [module.pattern for module in model] == before


def test_a_refiner_of_text_keeps_its_pattern() -> None:
    config = HunyuanVideoConfig(dim=24, heads=2, depth=1, single_depth=1, rope_axes=(4, 4, 4), text_dim=8)
    model, made = HunyuanVideoTransformer(config), HunyuanVideoTransformer(config, pattern=Spatial())
    changed = set_pattern(model, Spatial())
    patterns = [getattr(module, "pattern", None) for module in model.modules()]
    assert changed and patterns == [getattr(module, "pattern", None) for module in made.modules()]
    assert set_pattern(model.refiner, Spatial()) == [f"blocks.{i}.branches.0.inner" for i in range(2)]
