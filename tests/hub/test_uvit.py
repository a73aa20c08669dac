"""U-ViT's files: the published model against its definition, one file that says all, and weights bit by bit."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import uvits
from parity import error

from tubelet import models
from tubelet.hub import from_original, load_original, to_original
from tubelet.hub.uvit import (
    uvit_config_from_original,
    uvit_config_to_original,
    uvit_original_config,
    uvit_original_keys,
)
from tubelet.layout import Grid, TokenLayout
from tubelet.models import UViT, uvit_coco, uvit_h_imagenet256, uvit_m_imagenet64
from tubelet.patchify import fold, unfold


@pytest.mark.parametrize("kind", uvits.KINDS)
def test_the_published_files_make_the_published_model(kind: str) -> None:
    """In float64 against its definition, in float32 against that; outputs, gradients of all weights, and the file."""
    config, grid = uvits.tiny(kind), Grid(1, 3, 3)
    state = uvits.published(config)
    keys, side = uvit_original_keys(config), 3 * config.patch[1]
    model = UViT(config, dtype=torch.float64)
    model.load_state_dict(keys.to_ours(state))
    z, level = torch.randn(2, 2, side, side).double(), torch.tensor([0.25, 0.9]).double()
    inputs, condition = {}, None
    if config.classes is not None:
        condition = inputs["labels"] = torch.tensor([3, 1 + 3 * config.null_class])
    if config.text_dim is not None:
        condition = inputs["text"] = torch.randn(2, 3, 5).double()
        inputs["text_layout"] = TokenLayout.padded([3, 3], 3)
    layout = TokenLayout.dense(2, grid)
    patches = model(fold(z[:, :, None], config.patch), layout.rows(level, "sample"), layout, **inputs)
    got = unfold(patches, grid, config.patch)[:, :, 0]
    file = {name: tensor.clone().requires_grad_() for name, tensor in state.items()}
    expected = uvits.by_definition(file, config, z, 1000 * level, condition)
    assert error(got, expected) <= 1e-12
    got.square().sum().backward()
    expected.square().sum().backward()
    grads = keys.to_ours({name: tensor.grad for name, tensor in file.items()})
    for name, parameter in model.named_parameters():
        if not name.endswith("k_proj.bias"):  # the same for all keys: softmax does not see it
            assert error(parameter.grad, grads[name]) <= 1e-10, name
    back = keys.to_theirs(model.state_dict())
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_models_of_videos_have_no_such_file() -> None:
    for change, says in (({"patch": (2, 2, 2)}, "square and of one frame"), ({"grid": (2, 3, 3)}, "no frames")):
        with pytest.raises(ValueError, match=says):
            uvit_original_keys(uvits.tiny("plain", **change))


@pytest.mark.parametrize("preset", [name for name in models.__all__ if name.startswith("uvit_")])
def test_the_shapes_of_a_file_are_the_preset(preset: str) -> None:
    config = getattr(models, preset)()
    written = uvit_config_to_original(config)
    assert uvit_config_from_original(written) == config and not {"null_class", "time_scale"} & set(written)
    state = uvit_original_keys(config).to_theirs(UViT(config, device="meta").state_dict())
    read = uvit_original_config({}, {name: tuple(tensor.shape) for name, tensor in state.items()})
    assert uvit_config_from_original(read) == config


@pytest.mark.parametrize("kind", uvits.KINDS)
def test_files_and_configs_return_bit_by_bit(kind: str) -> None:
    config = uvits.tiny(kind)
    model = from_original(config, uvits.published(config))
    written, back = to_original(model)
    assert from_original(written, back).config == model.config == config
    assert all(torch.equal(back[name], tensor) for name, tensor in uvits.published(config).items())


def test_a_file_alone_as_it_is_published(tmp_path: Path) -> None:
    config = dataclasses.replace(uvit_h_imagenet256(), dim=512, heads=8, depth=2, mlp_dim=64)
    state = {name: tensor.float() for name, tensor in uvits.published(config).items()}
    torch.save(state, tmp_path / "uvit.pth")
    model = load_original(tmp_path / "uvit.pth", family="uvit")
    assert model.config == config and model.label.null == 1000  # type: ignore[union-attr]
    back = to_original(model)[1]
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


def test_files_of_other_models_are_refused() -> None:
    state = uvits.published(uvits.tiny("plain"))
    with pytest.raises(ValueError, match=r"no shape tells the number of heads, and none .* is 16"):
        from_original({}, state, family="uvit")
    with pytest.raises(ValueError, match=r"in 1 places:\n  pos_embed is \(1, 11, 16\), expected \(1, 10"):
        from_original({"num_heads": 2}, state | {"pos_embed": torch.zeros(1, 11, 16)}, family="uvit")
    with pytest.raises(ValueError, match=r"there is no patch_embed\.proj\.weight of rank 4"):
        uvit_original_config({}, {})


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"sizes": 3}, r"config has keys \['sizes'\], which UViT does not have"),
        ({"skip": False}, "skip=False, but this model has True"),
        ({"img_size": 30}, "img_size=30 is not a multiple of patch_size=16"),
        ({"num_classes": 10, "clip_dim": 8}, "classes=10 and text_dim=8 exclude each other"),
    ],
)
def test_configs_of_other_models_are_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        uvit_config_from_original(config)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"grid": (1, 4, 6)}, r"grid=\(1, 4, 6\), but their UViT has the side of one square"),
        ({"eps": 1e-6}, "eps=1e-06, but their UViT has 1e-05"),
        ({"patch": (1, 2, 4)}, r"patch=\(1, 2, 4\)"),
    ],
)
def test_what_has_no_place_in_their_config_is_named(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        uvit_config_to_original(dataclasses.replace(uvit_coco(), **change))


def test_what_is_not_as_published_is_written_in_words_of_ours() -> None:
    changed = dataclasses.replace(uvit_m_imagenet64(), null_class=True, classes=999, time_scale=500.0)
    written = uvit_config_to_original(changed)
    assert (written["num_classes"], written["null_class"], written["time_scale"]) == (1000, True, 500.0)
    assert uvit_config_from_original(written) == changed
