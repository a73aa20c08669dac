"""CogVideoX's adapter: configs both ways, and weights that return bit by bit."""

import dataclasses
from typing import Any

import cogvideoxs
import pytest
import torch

from tubelet.hub import from_diffusers, to_diffusers
from tubelet.hub.cogvideox import cogvideox_config_from_diffusers, cogvideox_config_to_diffusers, cogvideox_keys
from tubelet.models import (
    CogVideoXConfig,
    cogvideox_1_5_5b,
    cogvideox_1_5_5b_i2v,
    cogvideox_2b,
    cogvideox_5b,
    cogvideox_5b_i2v,
)

PRESETS = [cogvideox_2b(), cogvideox_5b(), cogvideox_5b_i2v(), cogvideox_1_5_5b(), cogvideox_1_5_5b_i2v()]
ROTARY = {"use_rotary_positional_embeddings": True}
LEARNED = {"use_learned_positional_embeddings": True}


@pytest.mark.parametrize("config", PRESETS)
def test_our_configs_return(config: CogVideoXConfig) -> None:
    assert cogvideox_config_from_diffusers(cogvideox_config_to_diffusers(config)) == config


@pytest.mark.parametrize("kind", cogvideoxs.KINDS)
def test_their_configs_and_weights_return_bit_by_bit(kind: str) -> None:
    theirs = cogvideoxs.peer(kind)
    state, before = theirs.state_dict(), dict(theirs.config)
    model = from_diffusers(before | {"_class_name": "CogVideoXTransformer3DModel"}, state)
    config, back = to_diffusers(model)
    # what their model does not read comes back as a default
    unread = {"temporal_interpolation_scale": 1.0, "spatial_interpolation_scale": 1.875} if kind != "sincos" else {}
    unread |= {"max_text_seq_length": 226} if kind != "image" else {}
    unread |= {"sample_frames": 49} if kind in ("rotary", "sincos") else {}
    unread |= {"sample_height": 60, "sample_width": 90} if kind == "sincos" else {}
    expected = {k: v for k, v in (before | unread).items() if not k.startswith("_")}
    assert {k: v for k, v in config.items() if k != "_class_name"} == expected
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)
    ours = model.state_dict()
    assert all(torch.equal(t, ours[name]) for name, t in cogvideox_keys(model.config).to_ours(back).items())


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"sizes": 3}, r"config has keys \['sizes'\]"),
        ({"attention_bias": False}, "attention_bias=False, but CogVideoX has True"),
        ({"freq_shift": 1}, "freq_shift=1, but CogVideoX has 0"),
        ({"flip_sin_to_cos": False}, "flip_sin_to_cos=False"),
        ({"activation_fn": "gelu"}, "activation_fn='gelu'"),
        ({"timestep_activation_fn": "gelu"}, "timestep_activation_fn='gelu'"),
        ({"norm_elementwise_affine": False}, "norm_elementwise_affine=False"),
        ({"dropout": 0.1}, "dropout=0.1"),
        ({"in_channels": 4}, "in_channels=4 are fewer than out_channels=16"),
        ({"ofs_embed_dim": 8}, "ofs_embed_dim=8 cannot be added to time_embed_dim=512"),
        ({"patch_bias": False}, "patch_bias=False"),
        ({"patch_size_t": 1, **ROTARY}, "patch_size_t=1: patches of one frame have patch_size_t=None"),
        ({"patch_size_t": 2}, "patch_size_t=2, but only rotary positions fit"),
        ({"patch_size_t": 2, **ROTARY, **LEARNED}, "patch_size_t=2, but only rotary positions fit"),
        (LEARNED, "use_learned_positional_embeddings=True, but without rotary"),
    ],
)
def test_configs_of_other_models_are_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        cogvideox_config_from_diffusers(config)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"time_scale": 500.0}, "time_scale=500.0"),
        ({"patch": (1, 2, 4)}, r"patch=\(1, 2, 4\), but diffusers' patches are square"),
        ({"sincos": (1.0, 1.0, 1.0)}, "are not among those"),
        ({"base": None}, "are not among those"),
        ({"patch": (2, 2, 2)}, "are not among those"),
        ({"learned": (13, 30, 44), "learned_text": 226}, "are not among those"),
        ({"rotary": False, "base": None}, "are not among those"),
    ],
)
def test_configs_that_have_no_place_in_theirs_are_named(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        cogvideox_config_to_diffusers(dataclasses.replace(cogvideox_5b(), **change))
