"""HunyuanVideo's adapter: configs both ways, and weights that return bit by bit."""

from typing import Any

import hunyuans
import pytest
import torch

from tubelet.hub import from_diffusers, to_diffusers
from tubelet.hub.hunyuan import (
    hunyuan_video_config_from_diffusers,
    hunyuan_video_config_to_diffusers,
    hunyuan_video_keys,
)
from tubelet.models import HunyuanVideoConfig, hunyuan_video, hunyuan_video_i2v, hunyuan_video_i2v_concat

PRESETS = [hunyuan_video(), hunyuan_video_i2v(), hunyuan_video_i2v_concat()]
PEER = {"_class_name": "HunyuanVideoTransformer3DModel"}


@pytest.mark.parametrize("config", PRESETS)
def test_our_configs_return(config: HunyuanVideoConfig) -> None:
    assert hunyuan_video_config_from_diffusers(hunyuan_video_config_to_diffusers(config)) == config


@pytest.mark.parametrize("kind", hunyuans.KINDS)
def test_their_configs_and_weights_return_bit_by_bit(kind: str) -> None:
    theirs = hunyuans.peer(kind)
    state = theirs.state_dict()
    model = from_diffusers(dict(theirs.config) | PEER, state)
    config, back = to_diffusers(model)
    assert config == PEER | {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in dict(theirs.config).items()
        if not key.startswith("_")
    }
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)
    keys = hunyuan_video_keys(model.config)
    assert all(torch.equal(t, model.state_dict()[name]) for name, t in keys.to_ours(back).items())


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"sizes": 3}, r"config has keys \['sizes'\]"),
        ({"qk_norm": None}, "qk_norm=None, but HunyuanVideo's is 'rms_norm'"),
        ({"in_channels": 4}, "in_channels=4 are fewer than out_channels=16"),
        ({"rope_axes_dim": [64, 64]}, r"rope_axes_dim=\[64, 64\] are not those of three axes"),
        ({"image_condition_type": "other"}, "image_condition must be one of"),
    ],
)
def test_configs_of_other_models_are_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        hunyuan_video_config_from_diffusers(config)


@pytest.mark.parametrize(
    ("change", "says"), [({"time_scale": 1.0}, "time_scale=1.0"), ({"patch": (1, 1, 2)}, r"patch=\(1, 1, 2\)")]
)
def test_what_has_no_place_in_their_config_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        hunyuan_video_config_to_diffusers(HunyuanVideoConfig(**vars(hunyuan_video()) | change))
