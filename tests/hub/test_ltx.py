"""LTX-Video's adapters: configs both ways, weights that return bit by bit, and Lightricks' own names."""

from pathlib import Path
from typing import Any

import ltxs
import pytest
import torch
from diffusers import LTXVideoTransformer3DModel
from diffusers.loaders.single_file_utils import convert_ltx_transformer_checkpoint_to_diffusers
from parity import randomise
from safetensors.torch import save_file

from tubelet.hub import from_diffusers, from_original, load_original, to_diffusers, to_original
from tubelet.hub.ltx import (
    ltx_config_from_diffusers,
    ltx_config_from_original,
    ltx_config_to_diffusers,
    ltx_config_to_original,
    ltx_keys,
    ltx_original_config,
    ltx_original_keys,
)
from tubelet.models import LTXConfig, LTXTransformer, ltx_2b, ltx_13b


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


def built(**sizes: Any) -> tuple[Any, Any]:
    """A peer with random weights, and ours from it."""
    theirs = ltxs.peer("plain") if not sizes else randomise(LTXVideoTransformer3DModel(**sizes))
    return theirs, from_diffusers(dict(theirs.config) | {"_class_name": type(theirs).__name__}, theirs.state_dict())


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_the_original_names_are_those_that_diffusers_converts(prefix: str) -> None:
    """Their converter, made for Lightricks' files, turns what we write into the state of their class."""
    theirs, model = built()
    config, original = to_original(model)
    names = ("patchify_proj.weight", "adaln_single.linear.bias", "transformer_blocks.1.attn2.k_norm.weight")
    assert original.keys() >= set(names)
    file = {prefix + name: tensor for name, tensor in original.items()}
    back = from_original(config, file)
    assert back.config == model.config
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in back.state_dict().items())
    converted, state = convert_ltx_transformer_checkpoint_to_diffusers(file), theirs.state_dict()
    assert converted.keys() == state.keys()
    assert all(torch.equal(converted[name], state[name]) for name in state)


def test_a_file_alone_as_it_is_published_with_the_autoencoder(tmp_path: Path) -> None:
    sizes = {"num_attention_heads": 32, "attention_head_dim": 2, "cross_attention_dim": 64, "num_layers": 2}
    _, model = built(**sizes, in_channels=3, out_channels=3, caption_channels=6)
    state = {f"model.diffusion_model.{name}": tensor for name, tensor in to_original(model)[1].items()}
    vae = {"vae.decoder.conv_in.conv.bias": torch.ones(2)}
    save_file(state | vae, tmp_path / "ltx.safetensors")
    again = load_original(tmp_path / "ltx.safetensors", family="ltx")
    assert again.config == model.config
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in again.state_dict().items())
    with pytest.raises(ValueError, match=r"there is no patchify_proj\.weight of rank 2"):
        from_original({}, vae, family="ltx")
    with pytest.raises(ValueError, match=r"do not fit Transformer3DModel in 1 places:\n  unexpected audio"):
        from_original({}, {**to_original(model)[1], "audio": torch.ones(1)}, family="ltx")


@pytest.mark.parametrize("config", [ltx_2b(), ltx_13b()])
def test_presets_return_from_the_original_config_and_from_shapes(config: LTXConfig) -> None:
    written = ltx_config_to_original(config)
    assert ltx_config_from_original(written) == config
    state = ltx_original_keys(config).to_theirs(LTXTransformer(config, device="meta").state_dict())
    read = ltx_original_config({}, {name: tuple(tensor.shape) for name, tensor in state.items()})
    assert ltx_config_from_original(read) == config
    assert written == written | read


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"sizes": 3}, r"config has keys \['sizes'\], which Transformer3DModel does not have"),
        ({"adaptive_norm": "single_scale"}, "adaptive_norm='single_scale', but this model has 'single_scale_shift'"),
        ({"positional_embedding_theta": 1e6}, "positional_embedding_theta=1000000.0"),
        ({"num_attention_heads": 16}, "cross_attention_dim=2048, but the projected text is 1024 wide"),
    ],
)
def test_original_configs_of_other_models_are_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ltx_config_from_original(config)


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
    for write in (ltx_config_to_diffusers, ltx_config_to_original):
        with pytest.raises(ValueError, match="time_scale=1.0"):
            write(LTXConfig(dim=24, depth=1, heads=2, time_scale=1.0))
