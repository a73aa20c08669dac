"""Every model in the form that its authors publish it in: one file alone, through the command, and back."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tubelet import hub, models
from tubelet.cli import main

TINY: dict[str, nn.Module] = {
    "allegro": models.AllegroTransformer(models.AllegroConfig(dim=96, depth=1, heads=1, text_dim=6)),
    "dit": models.DiT(models.DiTConfig(dim=384, depth=1, heads=6, mlp_dim=384, classes=3, variance_channels=0)),
    "latte_class": models.LatteClassTransformer(models.LatteClassConfig(dim=384, depth=2, heads=6, classes=3)),
    "ltx": models.LTXTransformer(models.LTXConfig(dim=64, depth=1, heads=32, latent_channels=3, text_dim=6)),
    "mochi": models.MochiTransformer(models.MochiConfig(dim=96, depth=2, heads=2, text_width=96, text_dim=16)),
    "uvit": models.UViT(models.UViTConfig(dim=512, depth=2, heads=8, mlp_dim=32, grid=(1, 4, 4), null_class=True)),
    "wan": models.WanTransformer(models.WanConfig(dim=128, depth=1, heads=1, mlp_dim=32)),
}
"""Of sizes that the shapes of a file tell."""


@pytest.mark.parametrize("family", TINY)
def test_one_file_of_the_authors_becomes_ours_and_returns_bit_by_bit(family: str, tmp_path: Path, capsys: Any) -> None:
    model = TINY[family]
    _, state = hub.to_original(model)
    torch.save(state, tmp_path / "model.pt")
    ours, again = tmp_path / "ours", tmp_path / "again"
    source = ["--from", "original", "--family", family, "--to", "tubelet"]
    assert main(["convert", *source, str(tmp_path / "model.pt"), str(ours)]) == 0
    loaded = hub.load(ours)
    assert loaded.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))
    assert main(["convert", "--from", "tubelet", "--to", "original", str(ours), str(again)]) == 0
    _, back = hub.to_original(hub.load_original(again))  # the config names the class
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


@pytest.mark.parametrize("family", TINY)
def test_files_of_no_such_model_are_refused_by_name(family: str) -> None:
    with pytest.raises(ValueError, match="the tensors are not .*'s: there is no "):
        hub.from_original({}, {"encoder.weight": torch.zeros(2, 2)}, family=family)
