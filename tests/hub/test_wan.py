"""Wan's adapter: configs both ways, and weights that return bit by bit."""

from typing import Any

import pytest
import torch
import wans

from tubelet.hub import from_diffusers, to_diffusers
from tubelet.hub.wan import wan_config_from_diffusers, wan_config_to_diffusers, wan_keys
from tubelet.models import WanConfig, wan_1_3b, wan_2_2_5b, wan_2_2_i2v_14b, wan_14b, wan_i2v_14b

PRESETS = [wan_1_3b(), wan_14b(), wan_i2v_14b(), wan_2_2_i2v_14b(), wan_2_2_5b()]


@pytest.mark.parametrize("config", PRESETS)
def test_our_configs_return(config: WanConfig) -> None:
    assert wan_config_from_diffusers(wan_config_to_diffusers(config)) == config


@pytest.mark.parametrize("kind", wans.KINDS)
def test_their_configs_and_weights_return_bit_by_bit(kind: str) -> None:
    theirs = wans.peer(kind)
    state = theirs.state_dict()
    model = from_diffusers(dict(theirs.config) | {"_class_name": "WanTransformer3DModel"}, state)
    config, back = to_diffusers(model)
    assert {k: v for k, v in config.items() if k != "_class_name"} == {
        k: list(v) if isinstance(v, tuple) else v
        for k, v in (dict(theirs.config) | {"rope_max_seq_len": 1024}).items()
        if not k.startswith("_")
    }
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)
    keys = wan_keys(model.config)
    assert all(torch.equal(t, model.state_dict()[name]) for name, t in keys.to_ours(back).items())


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"sizes": 3}, r"config has keys \['sizes'\]"),
        ({"qk_norm": None}, "qk_norm=None"),
        ({"image_dim": 1280}, "added_kv_proj_dim=None with image_dim=1280"),
        ({"in_channels": 4}, "in_channels=4 are fewer than out_channels=16"),
    ],
)
def test_configs_of_other_models_are_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        wan_config_from_diffusers(config)


def test_another_scale_of_times_has_no_place_in_their_config() -> None:
    with pytest.raises(ValueError, match="time_scale=1.0"):
        wan_config_to_diffusers(WanConfig(dim=24, depth=1, heads=2, mlp_dim=4, time_scale=1.0))
