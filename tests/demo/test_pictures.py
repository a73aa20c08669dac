"""Pictures are written whole, at the sizes their contents ask for."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tubelet.demo import digits
from tubelet.demo.pictures import _smooth, loss_curves, reconstruction_sheet, sample_sheet
from tubelet.training import History


def history(values: list[float]) -> History:
    made = History()
    for step, value in enumerate(values):
        made.add(step, {"loss": value})
    return made


def test_loss_curves_draw_a_panel_a_run_and_the_baseline_in_red(tmp_path: Path) -> None:
    runs = {"autoencoder": history([3.0, 2.0, 1.0]), "denoiser": history([-1.0, 0.5])}
    loss_curves(tmp_path / "plain.png", runs)
    loss_curves(tmp_path / "lines.png", runs, baselines={"denoiser": ("linear", 0.2)})
    plain, lines = (np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB")) for name in ("plain", "lines"))
    assert plain.shape == lines.shape == (374, 1100, 3)

    def red(picture: np.ndarray) -> np.ndarray:
        return picture[..., 0].astype(int) - picture[..., 1] > 60

    assert not red(plain).any()
    assert red(lines)[:, 550:].sum() > 50 and not red(lines)[:, :550].any()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lines.png", "plain.png"]


def test_smoothing_is_a_trailing_mean() -> None:
    values = np.random.default_rng(0).normal(size=200)
    expected = [values[max(0, i - 3) : i + 1].mean() for i in range(200)]
    np.testing.assert_allclose(_smooth(values.tolist()), expected, atol=1e-12)


def test_loss_curves_name_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one run"):
        loss_curves(tmp_path / "a.png", {})
    with pytest.raises(ValueError, match=r"'speed' is not in \['x'\]"):
        loss_curves(tmp_path / "a.png", {"x": history([1.0])}, series="speed")
    with pytest.raises(ValueError, match=r"got \['y'\]"):
        loss_curves(tmp_path / "a.png", {"x": history([1.0])}, baselines={"y": ("linear", 1.0)})
    assert not list(tmp_path.iterdir())


def test_a_missing_matplotlib_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"tubelet\[demo\]"):
        loss_curves(tmp_path / "a.png", {"x": history([1.0])})


def test_reconstructions_stand_beside_their_originals(tmp_path: Path) -> None:
    white, black = torch.ones(1, 5, 32, 32), -torch.ones(1, 5, 32, 32)
    reconstruction_sheet(tmp_path / "pairs.png", [white, white], [black, black], ["a two", "a six"])
    picture = np.asarray(Image.open(tmp_path / "pairs.png").convert("L"))
    half = picture.shape[1] // 2
    assert (picture[20:90, half:] == 0).mean() > 0.8
    assert (picture[20:90, :half] == 0).mean() < 0.1
    with pytest.raises(ValueError, match="got 1, 2 and 1"):
        reconstruction_sheet(tmp_path / "other.png", [white], [black, black])


def test_samples_of_mixed_sizes_stand_over_their_captions(tmp_path: Path) -> None:
    clips = digits.batch("train", 0, 0, 6)
    sample_sheet(tmp_path / "samples.png", [c.video for c in clips], [c.caption for c in clips], columns=3)
    assert np.asarray(Image.open(tmp_path / "samples.png")).std() > 20
    with pytest.raises(ValueError, match="one per video"):
        sample_sheet(tmp_path / "samples.png", [clips[0].video], [])
