"""Latte's adapter: configs both ways, and weights that return bit by bit."""

from typing import Any

import lattes
import pytest
import torch

from tubelet.hub import from_diffusers, to_diffusers
from tubelet.hub.latte import latte_config_from_diffusers, latte_config_to_diffusers, latte_keys
from tubelet.models import LatteConfig, latte_1


def test_our_config_returns() -> None:
    assert latte_config_from_diffusers(latte_config_to_diffusers(latte_1())) == latte_1()


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("kind", ["square", "large"])
def test_their_configs_and_weights_return_bit_by_bit(kind: str, seed: int) -> None:
    theirs = lattes.peer(kind, seed)
    state = theirs.state_dict()
    model = from_diffusers(dict(theirs.config) | {"_class_name": "LatteTransformer3DModel"}, state)
    config, back = to_diffusers(model)
    assert config.pop("_class_name") == "LatteTransformer3DModel"
    expected = {key: value for key, value in theirs.config.items() if not key.startswith("_")}
    assert config == expected | {"video_length": 16}
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)
    keys = latte_keys(model.config)
    assert all(torch.equal(t, model.state_dict()[name]) for name, t in keys.to_ours(back).items())


GOOD = latte_config_to_diffusers(LatteConfig(dim=24, depth=2, heads=2))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"sizes": 3}, r"config has keys \['sizes'\], which LatteTransformer3DModel does not have"),
        ({"norm_type": "layer_norm"}, "norm_type='layer_norm', but this model has 'ada_norm_single'"),
        ({"norm_elementwise_affine": True}, "norm_elementwise_affine=True"),
        ({"attention_bias": False}, "attention_bias=False"),
        ({"activation_fn": "geglu"}, "activation_fn='geglu'"),
        ({"dropout": 0.1}, "dropout=0.1"),
        ({"cross_attention_dim": None}, "cross_attention_dim=None, but text is projected to width 24"),
        ({"out_channels": 2}, "out_channels=2 are fewer than in_channels=4"),
        ({"patch_size": None, "in_channels": None}, r"config has no \['in_channels', 'patch_size'\]"),
    ],
)
def test_configs_of_other_models_are_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        latte_config_from_diffusers(GOOD | config)


def test_channels_that_are_not_named_are_those_of_the_latents() -> None:
    assert latte_config_from_diffusers(GOOD | {"out_channels": None}).variance_channels == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"time_scale": 1.0}, "time_scale=1.0"),
        ({"frequencies": 8}, "frequencies=8"),
        ({"variant": "half_heads"}, "variant='half_heads', but diffusers' class has 'interleaved'"),
        ({"temporal_from": 2}, "temporal_from=2"),
        ({"patch": (2, 2, 2)}, r"patch=\(2, 2, 2\)"),
    ],
)
def test_what_has_no_place_in_their_config_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        latte_config_to_diffusers(LatteConfig(dim=24, depth=2, heads=2, **change))
