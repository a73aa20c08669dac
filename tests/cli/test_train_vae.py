"""``tubelet train-vae`` on small made clips: files, scores, mistakes in one line, and an exact resume."""

import json
import signal
from pathlib import Path
from unittest import mock

import pytest
import torch

from tubelet import hub
from tubelet.cli import main
from tubelet.cli.autoencoders import autoencoder
from tubelet.data import read_video, write_video
from tubelet.training import History, load_checkpoint
from tubelet.vae.families import WaltAutoencoder

CONFIG = {"latent_channels": 3, "widths": [4, 6], "depths": [1, 1]}


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two clips to train on, one to judge, an image, and a small config."""
    generator = torch.Generator().manual_seed(0)
    for name, frames in (("clips/a.mp4", 9), ("clips/b.mp4", 7), ("held/c.mp4", 6), ("images/d.png", 1)):
        smooth = torch.randn(3, frames, 32, 40, generator=generator).cumsum(2).cumsum(3) / 10
        write_video(tmp_path / name, smooth.clamp(-1, 1), fps=8)
    named = {"_class": "tubelet.vae.families.PrincipalAutoencoder", "config": CONFIG}
    (tmp_path / "small.json").write_text(json.dumps(named))
    return tmp_path


def run(folder: Path, *more: object, config: tuple[object, ...] | None = None, clips: str = "clips") -> int:
    config = ("--config", folder / "small.json") if config is None else config
    fixed = ("--clips", folder / clips, "--size", 16, "--frames", 5, "--batch", 2, "--save-every", 2, *config)
    try:
        return main(["train-vae", *map(str, (*fixed, "--out", folder / "run", *more))])
    except SystemExit as stop:
        return int(stop.code or 0)


def test_it_leaves_an_autoencoder_pictures_and_a_report(folder, capsys) -> None:
    assert run(folder, "--steps", 3, "--judge", folder / "held", "--images", folder / "images") == 0
    out = folder / "run"
    said = capsys.readouterr().out
    assert "step 2: " in said
    assert "dB, bicubic with as many numbers" in said
    names = {path.name for path in out.iterdir()}
    made = {f"{stem}.{kind}" for stem in ("step-000002", "step-000003", "reconstructions") for kind in ("png", "gif")}
    assert names == made | {"autoencoder", "report.json", "loss.png", "run.json", "vae.run.safetensors"}
    report = json.loads((out / "report.json").read_text())
    assert report["steps"] == 3
    vae = hub.load(out / "autoencoder")
    assert list(report["clips"]) == ["c.mp4"]
    assert torch.allclose(vae.latent_std, torch.tensor(report["latent_std"]), rtol=1e-5)
    assert report["parameters"] == sum(p.numel() for p in vae.parameters())
    clip = read_video(folder / "held" / "c.mp4", frames=5, size=(16, 16))  # near the window that was drawn
    with torch.no_grad():
        assert vae(clip[None]).shape == (1, 3, 5, 16, 16)
    average = load_checkpoint(out / "vae.run.safetensors")["parts"]["ema"]["average"]
    weights = vae.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in average.items())
    strip = read_video(out / "reconstructions.gif")
    assert strip.shape[2:] == (16 * 8, 3 * 16 * 8)  # one row of three, each pixel eight times


def test_a_stopped_run_goes_on_to_the_same_autoencoder(folder, capsys) -> None:
    """Ctrl-C in the third step, between two saves; the resumed run's weights equal the unbroken run's to the bit."""
    assert run(folder, "--steps", 4) == 0
    whole = hub.load(folder / "run" / "autoencoder").state_dict()
    (folder / "run").rename(folder / "whole")
    original = History.add

    def stop(self, step, record) -> None:
        original(self, step, record)
        if step == 2:
            signal.raise_signal(signal.SIGINT)

    with mock.patch.object(History, "add", stop):
        assert run(folder, "--steps", 4) == 130
    assert "stopped after step 3; --resume goes on" in capsys.readouterr().err
    assert run(folder, "--steps", 4) == 2
    assert "go on with --resume" in capsys.readouterr().err
    for more, says in (
        (("--seed", 4), "begun with --seed 0, got --seed 4"),
        (("--batch", 3), "begun with --batch 2, got --batch 3"),
        (("--steps", 50), "begun with --steps 4, got --steps 50"),
        (("--minutes", 1), "begun with no --minutes, got --minutes 1"),
    ):
        assert run(folder, "--resume", *more) == 2
        assert says in capsys.readouterr().err
    (folder / "clips" / "b.mp4").rename(folder / "b.mp4")
    assert run(folder, "--resume") == 2
    assert "other clips: a.mp4, b.mp4 then, a.mp4 now" in capsys.readouterr().err
    (folder / "b.mp4").rename(folder / "clips" / "b.mp4")
    assert run(folder, "--resume") == 0
    resumed = hub.load(folder / "run" / "autoencoder").state_dict()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_a_run_that_was_killed_before_its_first_save_resumes_too(folder) -> None:
    assert run(folder, "--steps", 2) == 0
    whole = hub.load(folder / "run" / "autoencoder").state_dict()
    for name in ("vae.run.safetensors", "report.json"):
        (folder / "run" / name).unlink()
    assert run(folder, "--steps", 2) == 2
    assert run(folder, "--resume") == 0
    resumed = hub.load(folder / "run" / "autoencoder").state_dict()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_a_saved_autoencoder_is_trained_further_for_some_minutes(folder) -> None:
    assert run(folder, "--steps", 1) == 0
    (folder / "run").rename(folder / "before")
    assert run(folder, "--minutes", 0.001, config=("--vae", folder / "before" / "autoencoder")) == 0
    assert json.loads((folder / "run" / "run.json").read_text())["steps"] >= 1


def test_discriminators_begin_halfway(folder, capsys) -> None:
    assert run(folder, "--steps", 2, "--frames-weight", 0.5, "--clips-weight", 0.1) == 0
    before = (folder / "run" / "vae.run.safetensors").read_bytes()
    assert run(folder, "--steps", 1) == 2
    assert "holds a finished run: name another folder with --out, or empty this one" in capsys.readouterr().err
    assert (folder / "run" / "vae.run.safetensors").read_bytes() == before
    history = load_checkpoint(folder / "run" / "vae.run.safetensors")["parts"]["history"]
    assert history["steps"]["frames.real"] == history["steps"]["clips.real"] == [1]


def test_mistakes_are_one_line(folder, capsys) -> None:
    (folder / "none").mkdir()
    (folder / "list.json").write_text("[]")
    (folder / "other.json").write_text('{"_class": "tubelet.text.WordEncoder", "config": {}}')
    (folder / "wrong.json").write_text(
        '{"_class": "tubelet.vae.families.PrincipalAutoencoder", "config": {"width": 3}}'
    )
    for more, other, says in (
        ((), {"clips": "none"}, "no usable clips in"),
        ((), {"clips": "small.json"}, "--clips must be a folder, got the file"),
        (("--judge", folder / "none"), {}, "no usable clips in"),
        (("--judge", folder / "images"), {}, "has 5 frames: name videos with --judge"),
        (("--size", 8), {}, "--size must be at least 11 for SSIM, got 8"),
        (("--size", 11, "--frames-weight", 1), {}, "--size must be at least 12 for discriminators, got 11"),
        (("--frames", 1), {}, "--frames must be above 1: PrincipalAutoencoder starts from videos, got --frames 1"),
        (("--resume",), {}, "there is no run in"),
        (("--lpips", 0.1), {}, "--lpips and --lpips-weights go together, got 0.1 and None"),
        (("--size", 20), {}, "height must be a multiple of the spatial factor 8, not 20"),
        (("--frames", 6), {}, "frames must be 1 + 4·k, not 6"),
        (("--frames", 13), {}, "a.mp4 has 9 frames, but 13 are needed"),
        (("--size", 64), {}, "32x40 pixels, but crops have 64x64"),
        (
            (),
            {"config": ("--config", "principle_vae")},
            "no autoencoder is called principle_vae; there are principal_vae",
        ),
        ((), {"config": ("--config", folder / "no.json")}, "there is no file"),
        ((), {"config": ("--config", folder / "list.json")}, "list.json is damaged or of another format"),
        ((), {"config": ("--config", folder / "other.json")}, "which is no autoencoder"),
        ((), {"config": ("--config", folder / "wrong.json")}, "has unknown keys"),
        ((), {"config": ("--config", "tiny_vae")}, "its posterior, a Point, is no Gaussian"),
        ((), {"config": ("--config", "digits")}, "must take 3 channels, but takes 1"),
    ):
        assert run(folder, "--steps", 1, *more, **other) == 2, says
        *_, error = capsys.readouterr().err.splitlines()
        assert says in error, error
        assert not (folder / "run").exists()


def test_a_damaged_file_is_named_and_passed_over(folder, capsys) -> None:
    (folder / "clips" / "z.mp4").write_bytes(b"no video")
    with mock.patch("tubelet.vae_recipe.train_on_crops", side_effect=ValueError("far enough")):
        assert run(folder, "--steps", 1) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("tubelet: skipped z.mp4: ")
    assert lines[-1] == "tubelet: far enough"


def test_presets_of_every_family_are_found() -> None:
    with torch.device("meta"):
        assert isinstance(autoencoder("walt_vae"), WaltAutoencoder)
