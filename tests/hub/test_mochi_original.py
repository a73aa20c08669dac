"""Mochi's original checkpoints: names as published, weights as diffusers' own converter reads them."""

import inspect
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import MochiTransformer3DModel
from diffusers.loaders import single_file_utils
from parity import randomise
from safetensors.torch import save_file
from torch import Tensor

from tubelet.hub import from_diffusers, from_original, load_original, to_original
from tubelet.hub.mochi_original import (
    mochi_config_from_original,
    mochi_config_to_original,
    mochi_original_config,
    mochi_original_keys,
)
from tubelet.models import MochiConfig, MochiTransformer, mochi_10b

SIZES = {"attention_head_dim": 12, "pooled_projection_dim": 96, "in_channels": 3, "text_embed_dim": 16}


def converted(state: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    """By diffusers' converter, whose depth is written in its text."""
    convert = single_file_utils.convert_mochi_transformer_checkpoint_to_diffusers
    source = textwrap.dedent(inspect.getsource(convert))
    assert source.count("num_layers = 48") == 1
    names: dict[str, Any] = dict(vars(single_file_utils))
    exec(source.replace("num_layers = 48", f"num_layers = {depth}"), names)
    return names[convert.__name__](dict(state))


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_what_we_write_is_what_diffusers_converter_takes_for_the_original(prefix: str, tmp_path: Path) -> None:
    """And a file alone, as it is published, says which model it is."""
    theirs = randomise(MochiTransformer3DModel(num_layers=2, num_attention_heads=8, **SIZES))
    model = from_diffusers(dict(theirs.config) | {"_class_name": type(theirs).__name__}, theirs.state_dict())
    (config, state), expected = to_original(model), theirs.state_dict()
    file = {prefix + name: tensor for name, tensor in state.items()}
    got = converted(file, 2)
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    save_file(file, tmp_path / "dit.safetensors")
    for again in (load_original(tmp_path / "dit.safetensors", family="mochi"), from_original(config, state)):
        assert again.config == model.config
        assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
        back = to_original(again)[1]
        assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


def test_the_preset_returns_from_their_form_and_from_shapes() -> None:
    config = mochi_10b()
    written = mochi_config_to_original(config)
    assert mochi_config_from_original(written) == mochi_config_from_original({}) == config
    state = mochi_original_keys(config).to_theirs(MochiTransformer(config, device="meta").state_dict())
    read = mochi_original_config({}, {name: tuple(tensor.shape) for name, tensor in state.items()})
    assert written == written | read and mochi_config_from_original(read) == config
    assert state["blocks.0.mlp_x.w1.weight"].shape == (16384, 3072)
    assert "blocks.47.mod_y.weight" in state and "blocks.47.mlp_y.w1.weight" not in state


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"sizes": 3}, r"config has keys \['sizes'\], which AsymmDiTJoint does not have"),
        ({"qkv_bias": True}, "qkv_bias=True, but this model has False"),
        ({"mlp_ratio_x": 8.0}, "mlp_ratio_x=8.0, but this model has 4.0"),
    ],
)
def test_configs_of_other_models_are_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        mochi_config_from_original(config)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"time_scale": 1.0}, "time_scale=1.0, but AsymmDiTJoint has 1000"),
        ({"frequencies": 128}, "frequencies=128, but AsymmDiTJoint has 256"),
        ({"pool_heads": 4}, "pool_heads=4"),
        ({"area": 1.0}, "area=1.0"),
        ({"patch": (2, 2, 2)}, r"patch=\(2, 2, 2\)"),
        ({"text_width": 1530}, "text_width=1530 makes MLPs of 4080, but AsymmDiTJoint's are multiples of 256 wide"),
    ],
)
def test_what_has_no_place_in_their_config_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        mochi_config_to_original(MochiConfig(**vars(mochi_10b()) | change))


def test_tensors_of_another_model_are_named() -> None:
    model = MochiTransformer(MochiConfig(dim=96, depth=2, heads=2, text_width=96, text_dim=16))
    _, state = to_original(model)
    with pytest.raises(ValueError, match=r"do not fit AsymmDiTJoint in 2 places:\n  missing blocks\.0\.mod_x\.bias"):
        wrong = {name: tensor for name, tensor in state.items() if name != "blocks.0.mod_x.bias"}
        from_original({}, {**wrong, "blocks.1.mod_z.bias": torch.zeros(1)}, family="mochi")
    with pytest.raises(ValueError, match=r"there is no x_embedder\.proj\.weight of rank 4"):
        mochi_original_config({}, {"x_embedder.weight": (8, 8)})
    assert model.config == from_original({}, state, family="mochi").config
