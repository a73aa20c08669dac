"""LTX-Video's adapters: configs both ways, weights that return bit by bit, and Lightricks' own names."""

from typing import Any

import ltxs
import pytest
import torch
from diffusers.loaders.single_file_utils import convert_ltx_transformer_checkpoint_to_diffusers

from tubelet.hub import from_diffusers, to_diffusers
from tubelet.hub.ltx import ltx_config_from_diffusers, ltx_config_to_diffusers, ltx_keys, ltx_original_keys
from tubelet.models import LTXConfig, ltx_2b, ltx_13b


@pytest.mark.parametrize("config", [ltx_2b(), ltx_13b(), LTXConfig(dim=24, depth=1, heads=2, eps=1e-5, text_dim=7)])
def test_our_configs_return(config: LTXConfig) -> None:
    assert ltx_config_from_diffusers(ltx_config_to_diffusers(config)) == config


@pytest.mark.parametrize("kind", ltxs.KINDS)
def test_their_configs_and_weights_return_bit_by_bit(kind: str) -> None:
    theirs = ltxs.peer(kind)
    state, c = theirs.state_dict(), dict(theirs.config)
    model = from_diffusers(c | {"_class_name": "LTXVideoTransformer3DModel"}, state)
    config, back = to_diffusers(model)
    assert config.pop("_class_name") == "LTXVideoTransformer3DModel"
    written = {k: v for k, v in c.items() if not k.startswith("_")} | {"out_channels": c["in_channels"]}
    assert config == written
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)
    keys = ltx_keys(model.config)
    assert all(torch.equal(t, model.state_dict()[name]) for name, t in keys.to_ours(back).items())


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_the_original_names_are_those_that_diffusers_converts(prefix: str) -> None:
    """Their converter, made for Lightricks' files, turns what we write into the state of their class."""
    theirs = ltxs.peer("plain")
    state = theirs.state_dict()
    model = from_diffusers(dict(theirs.config) | {"_class_name": "LTXVideoTransformer3DModel"}, state)
    keys = ltx_original_keys(model.config, prefix)
    original = keys.to_theirs(model.state_dict())
    names = ("patchify_proj.weight", "adaln_single.linear.bias", "transformer_blocks.1.attn2.k_norm.weight")
    assert original.keys() >= {prefix + name for name in names}
    back = keys.to_ours(original)
    assert back.keys() == model.state_dict().keys()
    assert all(torch.equal(t, model.state_dict()[name]) for name, t in back.items())
    converted = convert_ltx_transformer_checkpoint_to_diffusers(dict(original))
    assert converted.keys() == state.keys()
    assert all(torch.equal(converted[name], state[name]) for name in state)


def test_names_of_the_autoencoder_are_not_the_transformers() -> None:
    with pytest.raises(ValueError, match=r"unknown \['vae.decoder.conv_in.conv.bias'\]"):
        ltx_original_keys(ltx_2b(), "model.diffusion_model.").to_ours({"vae.decoder.conv_in.conv.bias": torch.ones(1)})


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"sizes": 3}, r"config has keys \['sizes'\]"),
        ({"qk_norm": None}, "qk_norm=None"),
        ({"patch_size": 2}, "patch_size=2, but LTX-Video's is 1"),
        ({"norm_elementwise_affine": True}, "norm_elementwise_affine=True, but LTX-Video's is False"),
        ({"num_attention_heads": 16}, "cross_attention_dim=2048, but the projected text is 1024 wide"),
        ({"out_channels": 256}, "out_channels=256 are not in_channels=128"),
    ],
)
def test_configs_of_other_models_are_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ltx_config_from_diffusers(config)


def test_another_scale_of_times_has_no_place_in_their_config() -> None:
    with pytest.raises(ValueError, match="time_scale=1.0"):
        ltx_config_to_diffusers(LTXConfig(dim=24, depth=1, heads=2, time_scale=1.0))
