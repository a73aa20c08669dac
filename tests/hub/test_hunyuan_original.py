"""HunyuanVideo's original checkpoints: names as published, weights as diffusers' own converter reads them."""

import inspect
import textwrap
from pathlib import Path
from typing import Any

import hunyuans
import pytest
import torch
from diffusers.loaders import single_file_utils
from torch import Tensor

from tubelet.hub import from_diffusers, from_original, load_original, to_original
from tubelet.hub.hunyuan_original import (
    hunyuan_video_config_from_original,
    hunyuan_video_config_to_original,
    hunyuan_video_original_config,
    hunyuan_video_original_keys,
)
from tubelet.models import (
    HunyuanVideoConfig,
    HunyuanVideoTransformer,
    hunyuan_video,
    hunyuan_video_i2v,
    hunyuan_video_i2v_concat,
)

PRESETS = [hunyuan_video(), hunyuan_video_i2v(), hunyuan_video_i2v_concat()]


def converted(state: dict[str, Tensor], dim: int) -> dict[str, Tensor]:
    """By diffusers' converter, whose width is written in its text."""
    convert = single_file_utils.convert_hunyuan_video_transformer_to_diffusers
    source = textwrap.dedent(inspect.getsource(convert))
    assert source.count("hidden_size = 3072") == 1
    names: dict[str, Any] = {"torch": torch}
    exec(source.replace("hidden_size = 3072", f"hidden_size = {dim}"), names)
    return names[convert.__name__](dict(state))


@pytest.mark.parametrize("kind", hunyuans.KINDS)
def test_what_we_write_is_what_diffusers_converter_takes_for_the_original(kind: str) -> None:
    theirs = hunyuans.peer(kind, num_refiner_layers=2)
    model = from_diffusers(dict(theirs.config) | {"_class_name": type(theirs).__name__}, theirs.state_dict())
    (config, state), expected = to_original(model), theirs.state_dict()
    got = converted(state, model.config.dim)
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    again = from_original(config, state)
    assert again.config == model.config
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


def test_a_file_alone_as_it_is_published(tmp_path: Path) -> None:
    """PyTorch's own form, the tensors below ``"module"``, no config."""
    theirs = hunyuans.peer(
        "guided", num_refiner_layers=2, attention_head_dim=128, num_attention_heads=1, rope_axes_dim=(16, 56, 56),
        rope_theta=256.0, patch_size=2, patch_size_t=1, in_channels=16, out_channels=16,
    )  # fmt: skip
    model = from_diffusers(dict(theirs.config) | {"_class_name": type(theirs).__name__}, theirs.state_dict())
    torch.save({"module": to_original(model)[1]}, tmp_path / "mp_rank_00_model_states.pt")
    again = load_original(tmp_path / "mp_rank_00_model_states.pt", family="hunyuan")
    assert again.config == model.config
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("config", PRESETS)
def test_configs_return_from_their_form_and_from_shapes(config: HunyuanVideoConfig) -> None:
    """All but ``"token_replace"``, which no shape tells."""
    assert hunyuan_video_config_from_original(hunyuan_video_config_to_original(config)) == config
    empty = HunyuanVideoTransformer(config, device="meta")
    state = hunyuan_video_original_keys(config).to_theirs(empty.state_dict())
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    known = {"i2v_condition_type": "token_replace"} if config.image_condition == "token_replace" else {}
    assert hunyuan_video_config_from_original(hunyuan_video_original_config(known, shapes)) == config


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"sizes": 3}, r"config has keys \['sizes'\]"),
        ({"in_channels": 4}, "in_channels=4 are fewer than out_channels=16"),
    ],
)
def test_configs_of_other_models_are_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        hunyuan_video_config_from_original(config)


@pytest.mark.parametrize(
    ("change", "says"), [({"time_scale": 1.0}, "time_scale=1.0"), ({"refiner_depth": 1}, "refiner_depth=1")]
)
def test_what_has_no_place_in_their_config_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        hunyuan_video_config_to_original(HunyuanVideoConfig(**vars(hunyuan_video()) | change))


def test_tensors_of_another_model_are_named() -> None:
    with pytest.raises(ValueError, match=r"there is no img_in\.proj\.weight of rank 5"):
        hunyuan_video_original_config({}, {"img_in.weight": (8, 8)})
