"""Latte's own files: the published model against its definition, one file that says all, and weights bit by bit."""

import dataclasses
from pathlib import Path
from typing import Any

import dit_files
import pytest
import torch
from parity import error

from tubelet.hub import from_original, load_original, to_original
from tubelet.hub.latte_original import (
    LATTE_CLASS_ORIGINAL,
    latte_class_config_from_original,
    latte_class_config_to_original,
    latte_class_original_config,
)
from tubelet.layout import Grid, TokenLayout
from tubelet.models import LatteClassConfig, LatteClassTransformer, latte_b, latte_l, latte_s, latte_xl
from tubelet.patchify import fold, unfold

TINY = LatteClassConfig(dim=24, depth=4, heads=3, sample_size=6)


@pytest.mark.parametrize("classes", [None, 101])
@pytest.mark.parametrize("preset", [latte_s, latte_b, latte_l, latte_xl])
def test_the_shapes_of_a_file_are_the_preset(preset: Any, classes: int | None) -> None:
    config = preset(classes)
    assert latte_class_config_from_original(latte_class_config_to_original(config)) == config
    empty = LatteClassTransformer(config, device="meta")
    state = LATTE_CLASS_ORIGINAL.keys(config).to_theirs(empty.state_dict())
    read = latte_class_original_config({}, {name: tuple(tensor.shape) for name, tensor in state.items()})
    assert latte_class_config_from_original(read) == config and read["num_frames"] == 16


@pytest.mark.parametrize("classes", [None, 4])
def test_the_published_files_make_the_published_model(classes: int | None) -> None:
    """Against its definition in float64; tables of any number of frames are read."""
    config, grid = dataclasses.replace(TINY, classes=classes), Grid(5, 3, 3)
    state = dit_files.published(config, 3, frames=5)
    model = from_original({"num_heads": 3}, state, family="latte_class")
    assert model.config == config
    z, steps = torch.randn(2, 4, 5, 6, 6).double(), torch.tensor([0, 731])
    labels = None if classes is None else torch.tensor([4, 1])
    layout = TokenLayout.dense(2, grid)
    with torch.no_grad():
        out = model(fold(z, config.patch), layout.rows((steps.double() + 1) / 1000, "sample"), layout, labels)
    got = torch.cat([unfold(part, grid, config.patch) for part in out.chunk(2, -1)], 1)
    # their tables of positions are rounded to float32
    assert error(got, dit_files.by_definition(state, config, z, steps, labels)) <= 1e-6


@pytest.mark.parametrize("classes", [None, 4])
def test_files_return_bit_by_bit(classes: int | None, tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, dim=384, heads=6, depth=2, classes=classes)
    state = {name: tensor.float() for name, tensor in dit_files.published(config, 3, frames=16).items()}
    torch.save({"ema": state}, tmp_path / "ffs.pt")
    model = load_original(tmp_path / "ffs.pt", family="latte_class")
    assert model.config == config
    written, back = to_original(model)
    assert written == {"_class_name": "Latte"} | latte_class_config_to_original(config)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_files_of_other_positions_or_models_are_refused() -> None:
    state = dit_files.published(TINY, 3, frames=5)
    other = {**state, "norm.weight": torch.zeros(2), "t_embedder.mlp.0.bias": torch.zeros(3)}
    with pytest.raises(ValueError, match="its tensors do not fit Latte in 2 places"):
        from_original({"num_heads": 3}, other, family="latte_class")
    state["temp_embed"][0, 1, 0] += 1e-3
    with pytest.raises(ValueError, match="temp_embed holds other numbers than the sinusoids of 5 places"):
        from_original({"num_heads": 3}, state, family="latte_class")
    with pytest.raises(ValueError, match="there is no temp_embed of rank 3"):
        from_original({"num_heads": 3}, dit_files.published(TINY, 3), family="latte_class")


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"sizes": 3}, r"config has keys \['sizes'\], which Latte does not have"),
        ({"extras": 78}, "extras=78, but this model has none"),
        ({"mlp_ratio": 2.0}, "mlp_ratio=2.0, but this model has 4.0"),
        ({"class_dropout_prob": 0.0}, "class_dropout_prob=0.0"),
    ],
)
def test_configs_of_other_models_are_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        latte_class_config_from_original(config)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"variant": "late_fusion"}, "variant='late_fusion', but their Latte has 'interleaved'"),
        ({"temporal_from": 1}, "temporal_from=1"),
        ({"variance_channels": 2}, "variance_channels=2, but their Latte has none or latent_channels=4"),
        ({"patch": (2, 2, 2)}, r"patch=\(2, 2, 2\)"),
    ],
)
def test_what_has_no_place_in_their_config_is_named(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        latte_class_config_to_original(dataclasses.replace(latte_s(), **change))
