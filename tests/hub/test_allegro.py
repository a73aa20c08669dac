"""Allegro's adapter: configs both ways, and weights that return bit by bit."""

from typing import Any

import allegros
import pytest
import torch

from tubelet.hub import from_diffusers, from_original, to_diffusers, to_original
from tubelet.hub.allegro import (
    allegro_config_from_diffusers,
    allegro_config_from_original,
    allegro_config_to_diffusers,
    allegro_config_to_original,
    allegro_keys,
    allegro_original_config,
)
from tubelet.models import AllegroConfig, AllegroTransformer, allegro_3b


def test_our_config_returns() -> None:
    assert allegro_config_from_diffusers(allegro_config_to_diffusers(allegro_3b())) == allegro_3b()
    assert allegro_config_from_diffusers({}) == allegro_3b()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_their_configs_and_weights_return_bit_by_bit(seed: int) -> None:
    theirs = allegros.peer(seed)
    state = theirs.state_dict()
    model = from_diffusers(dict(theirs.config) | {"_class_name": "AllegroTransformer3DModel"}, state)
    config, back = to_diffusers(model)
    assert config.pop("_class_name") == "AllegroTransformer3DModel"
    assert config == {key: value for key, value in theirs.config.items() if not key.startswith("_")}
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)
    keys = allegro_keys(model.config)
    assert all(torch.equal(t, model.state_dict()[name]) for name, t in keys.to_ours(back).items())


def test_the_authors_names_are_the_same_and_their_config_is_read() -> None:
    assert allegro_config_from_original(allegro_config_to_original(allegro_3b())) == allegro_3b()
    assert allegro_config_from_original({"sa_attention_mode": "math", "sample_size": [1, 1]}) == allegro_3b()
    state = allegro_keys(allegro_3b()).to_theirs(AllegroTransformer(allegro_3b(), device="meta").state_dict())
    read = allegro_original_config({}, {name: tuple(tensor.shape) for name, tensor in state.items()})
    assert allegro_config_from_original(read) == allegro_3b()
    theirs = allegros.peer(0)
    model = from_diffusers(dict(theirs.config) | {"_class_name": "AllegroTransformer3DModel"}, theirs.state_dict())
    config, back = to_original(model)
    assert from_original(config, back).config == model.config
    assert all(torch.equal(back[name], tensor) for name, tensor in theirs.state_dict().items())


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"sample_height": 90}, r"config has keys \['sample_height'\]"),
        ({"use_rope": False}, "use_rope=False, but this model has True"),
        ({"norm_type": "ada_norm"}, "norm_type='ada_norm', but this model has 'ada_norm_single'"),
    ],
)
def test_configs_of_other_models_of_the_authors_are_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        allegro_config_from_original(config)
    with pytest.raises(ValueError, match="num_attention_heads=0 do not divide the width 48"):
        allegro_original_config({}, {"pos_embed.proj.weight": (48, 4, 2, 2)})


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"sizes": 3}, r"config has keys \['sizes'\], which AllegroTransformer3DModel does not have"),
        ({"patch_size_t": 2}, "patch_size_t=2, but this model has 1"),
        ({"norm_elementwise_affine": True}, "norm_elementwise_affine=True"),
        ({"attention_bias": False}, "attention_bias=False"),
        ({"activation_fn": "geglu"}, "activation_fn='geglu', but this model has 'gelu-approximate'"),
        ({"dropout": 0.1}, "dropout=0.1"),
        ({"cross_attention_dim": 4}, "cross_attention_dim=4, but text is projected to width 2304"),
        ({"out_channels": 8}, "in_channels=4, but out_channels=8"),
        ({"interpolation_scale_h": None}, r"\(2.2, None, 2.0\)"),
    ],
)
def test_configs_of_other_models_are_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        allegro_config_from_diffusers(config)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"time_scale": 1.0}, "time_scale=1.0"),
        ({"frequencies": 8}, "frequencies=8"),
        ({"patch": (2, 2, 2)}, r"patch=\(2, 2, 2\)"),
        ({"patch": (1, 1, 2)}, r"patch=\(1, 1, 2\)"),
    ],
)
def test_what_has_no_place_in_their_config_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        allegro_config_to_diffusers(AllegroConfig(dim=24, depth=1, heads=2, **change))
