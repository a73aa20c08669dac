"""DiT's own files: the published model against its definition, one file that says all, and weights bit by bit."""

import dataclasses
from pathlib import Path
from typing import Any

import dit_files
import pytest
import torch
from parity import error

from tubelet.hub import from_original, load_original, to_original
from tubelet.hub.dit_original import (
    DIT_ORIGINAL,
    dit_config_from_original,
    dit_config_to_original,
    dit_original_config,
    fixed_table,
)
from tubelet.layout import Grid, TokenLayout
from tubelet.models import DiT, DiTConfig, dit_b, dit_l, dit_s, dit_xl
from tubelet.patchify import fold, unfold

PRESETS = [make(patch) for make in (dit_s, dit_b, dit_l, dit_xl) for patch in (8, 4, 2)]
TINY = DiTConfig(dim=24, depth=2, heads=3, mlp_dim=96, classes=4)
HEADS = {"num_heads": 3}


@pytest.mark.parametrize("config", PRESETS)
def test_the_shapes_of_a_file_are_the_preset(config: DiTConfig) -> None:
    assert dit_config_from_original(dit_config_to_original(config)) == config
    state = DIT_ORIGINAL.keys(config).to_theirs(DiT(config, device="meta").state_dict())
    read = dit_original_config({}, {name: tuple(tensor.shape) for name, tensor in state.items()})
    assert read | {"class_dropout_prob": 0.1} == dit_config_to_original(config)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("patch", [1, 2])
def test_the_published_files_make_the_published_model(patch: int, learned: bool) -> None:
    """Against its definition in float64; a table of any square grid is read."""
    config = dataclasses.replace(TINY, patch=(1, patch, patch), variance_channels=4 * learned)
    state, grid = dit_files.published(config, 3), Grid(1, 3, 3)
    model = from_original(HEADS, state, family="dit")
    assert model.config == config
    z, steps, labels = torch.randn(2, 4, 1, 3 * patch, 3 * patch).double(), torch.tensor([0, 731]), torch.tensor([4, 1])
    layout = TokenLayout.dense(2, grid)
    with torch.no_grad():
        out = model(fold(z, config.patch), layout.rows((steps.double() + 1) / 1000, "sample"), layout, labels)
    parts = out.split([config.patch_dim, config.out_dim - config.patch_dim], -1)
    got = torch.cat([unfold(part, grid, config.patch) for part in parts if part.shape[-1]], 1)
    # their table of positions is rounded to float32
    assert error(got, dit_files.by_definition(state, config, z, steps, labels)) <= 1e-6
    exact = {**state, "pos_embed": model.positions(layout.on("cpu").coords[:1], torch.float64)}
    assert error(got, dit_files.by_definition(exact, config, z, steps, labels)) <= 1e-12


@pytest.mark.parametrize("patch", [2, 4])
def test_files_return_bit_by_bit(patch: int, tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, dim=384, heads=6, depth=1, mlp_dim=1536, patch=(1, patch, patch))
    state = {name: tensor.float() for name, tensor in dit_files.published(config, 32 // patch).items()}
    torch.save(state, tmp_path / "DiT.pt")
    model = load_original(tmp_path / "DiT.pt", family="dit")
    assert model.config == config
    written, back = to_original(model)
    assert written == {"_class_name": "DiT"} | dit_config_to_original(config)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_files_of_other_positions_or_sizes_are_refused() -> None:
    state = dit_files.published(TINY, 3)
    with pytest.raises(ValueError, match=r"no shape tells the number of heads, and none .* is 24"):
        from_original({}, state, family="dit")
    state["pos_embed"][0, 1, 0] += 1e-3
    with pytest.raises(ValueError, match="pos_embed holds other numbers than the sinusoids of 9 places"):
        from_original(HEADS, state, family="dit")
    state["pos_embed"] = state["pos_embed"][:, :8]
    with pytest.raises(ValueError, match=r"pos_embed has shape \(1, 8, 24\), but there are sinusoids \(1, 4, 24\)"):
        from_original(HEADS, state, family="dit")
    del state["pos_embed"]
    with pytest.raises(ValueError, match="there is no pos_embed of rank 3"):
        from_original(HEADS, state, family="dit")
    with pytest.raises(ValueError, match=r"there is no x_embedder\.proj\.weight of rank 4"):
        dit_original_config({}, {})


def test_half_precision_files_have_rounded_tables() -> None:
    table = fixed_table("places", lambda n: torch.arange(3.0 * n).view(n, 3).sin(), 4)
    exact = table.to_theirs()[0]
    assert not table.to_ours(exact.bfloat16()) and not table.to_ours(exact.double()) and not table.to_ours(exact[:, :2])
    for wrong in (exact.bfloat16() + 0.1, exact + 1e-4, exact[..., :2], exact[0]):
        with pytest.raises(ValueError, match="places (holds other numbers|has shape)"):
            table.to_ours(wrong)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"sizes": 3}, r"config has keys \['sizes'\], which DiT does not have"),
        ({"class_dropout_prob": 0.0}, "class_dropout_prob=0.0, but DiT has a null class"),
    ],
)
def test_configs_of_other_models_are_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        dit_config_from_original(config)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"freq_shift": 1}, "freq_shift=1, but their DiT has 0"),
        ({"base_grid": (16, 16)}, r"base_grid=\(16, 16\), but their DiT has None"),
        ({"mlp_eps": 1e-5}, "mlp_eps=1e-05"),
        ({"variance_channels": 2}, "variance_channels=2, but their DiT has none or latent_channels=4"),
        ({"patch": (2, 2, 2)}, r"patch=\(2, 2, 2\)"),
    ],
)
def test_what_has_no_place_in_their_config_is_named(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        dit_config_to_original(dataclasses.replace(dit_s(), **change))


def test_patches_that_do_not_divide_the_written_grid_are_named() -> None:
    with pytest.raises(ValueError, match="patches of 3 cells do not divide the 32 cells that pos_embed is written for"):
        DIT_ORIGINAL.keys(dataclasses.replace(dit_s(), patch=(1, 3, 3)))
