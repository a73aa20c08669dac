"""The shipped checkpoint: small, recorded, past every bar, and made by this very code."""

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tubelet.demo.build import FULL, Plan, build, latents_of, vae_batch
from tubelet.demo.evaluate import autoencoder_metrics, judged_clips, sample_like
from tubelet.demo.judge import train_judge
from tubelet.demo.metrics import digit_accuracy, direction_accuracy
from tubelet.demo.shipped import NAME, load_model
from tubelet.diffusion import Process
from tubelet.recipe import Recipe, train_autoencoder, train_denoiser
from tubelet.training import Progress, save_checkpoint

RECORD: dict[str, Any] = json.loads((files("tubelet.demo") / f"{NAME}.json").read_text())
STEPS = 5


class EnoughError(Exception):
    pass


class Watch(Progress):
    """Collects the losses of the first steps, then stops the training."""

    def __init__(self, losses: list[float], steps: int, start: int) -> None:
        super().__init__(steps, start=start, stream=io.StringIO())
        self.losses = losses

    def update(self, done: int, record: Mapping[str, Any]) -> None:
        self.losses.append(float(record["loss"]))
        if len(self.losses) == STEPS:
            raise EnoughError


def first_losses(train: Callable[[Callable[[int, int], Progress]], object]) -> list[float]:
    losses: list[float] = []
    flushed = torch.set_flush_denormal(True)
    try:
        with pytest.raises(EnoughError):
            train(lambda steps, start: Watch(losses, steps, start))
    finally:
        torch.set_flush_denormal(False)
    assert flushed in (True, False)
    return losses


def test_it_is_small_and_says_how_it_was_made() -> None:
    assert len((files("tubelet.demo") / f"{NAME}.safetensors").read_bytes()) <= 8_000_000
    assert RECORD["command"].startswith("tubelet demo --full --seed 0")
    assert {"tubelet", "torch", "python", "training_seconds", "threads"} <= set(RECORD)
    assert Plan(recipe=Recipe(**RECORD["plan"]["recipe"]), clips=RECORD["plan"]["clips"]) == FULL


def test_its_record_passes_every_bar() -> None:
    bars = RECORD["metrics"]["bars"]
    assert len(bars) == 7
    assert all(bar["passes"] for bar in bars.values())
    samples = RECORD["metrics"]["samples"]
    assert min(samples[name]["samples"] for name in ("digit_accuracy", "direction_accuracy")) >= 500


def test_its_record_was_measured_on_the_file_that_ships() -> None:
    file = (files("tubelet.demo") / f"{NAME}.safetensors").read_bytes()
    assert RECORD["measured"]["sha256"] == hashlib.sha256(file).hexdigest()
    assert RECORD["measured"]["command"] == "tubelet demo --judge --seed 0"
    found = autoencoder_metrics(load_model(), 0)
    assert found == pytest.approx(RECORD["metrics"]["autoencoder"], rel=1e-5)


@pytest.mark.slow
def test_samples_of_the_file_score_what_its_record_says() -> None:
    """A tenth of the recorded measurement: the share that is read right, within what so few samples allow."""
    clips, judge = judged_clips(0, 50), train_judge(0)
    videos, captions = sample_like(load_model(), clips, 10_000), [clip.caption for clip in clips]
    read = digit_accuracy(judge, videos, captions)
    assert abs(read.value - RECORD["metrics"]["samples"]["digit_accuracy"]["value"]) < 0.06
    assert direction_accuracy(videos, captions).value == RECORD["metrics"]["samples"]["direction_accuracy"]["value"]


def test_it_loads_in_single_precision_and_evaluation_mode() -> None:
    model = load_model()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not model.training
    assert (model.vae.latent_std > 0).all() and not torch.equal(model.vae.latent_std, torch.ones(16))


def test_a_missing_checkpoint_is_named(tmp_path) -> None:
    with pytest.raises(ValueError, match="there is no checkpoint .*none"):
        load_model(tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="is a folder: name the checkpoint in it"):
        load_model(tmp_path)
    for name in ("a.run.safetensors", "model.safetensors"):
        (tmp_path / name).write_text("")
    with pytest.raises(ValueError, match=r"name the checkpoint in it, such as model\.safetensors$"):
        load_model(tmp_path)


def test_what_lies_beside_a_checkpoint_is_told_from_one(tmp_path) -> None:
    save_checkpoint(tmp_path / "denoiser.run.safetensors", {"step": 1, "model": {"weight": torch.ones(2)}})
    with pytest.raises(
        ValueError, match=r"denoiser\.run\.safetensors is the state of a training that --resume goes on"
    ):
        load_model(tmp_path / "denoiser.run.safetensors")
    save_file({"weight": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="no checkpoint of tubelet demo or tubelet train"):
        load_model(tmp_path / "other.safetensors")
    (tmp_path / "junk").write_bytes(b"not what it should be")
    with pytest.raises(ValueError, match="is no safetensors file"):
        load_model(tmp_path / "junk")


def test_training_the_autoencoder_again_begins_with_the_recorded_losses() -> None:
    model = build(0)
    found = first_losses(
        lambda show: train_autoencoder(model.vae, lambda step: vae_batch(0, step), FULL.recipe, on_progress=show)
    )
    assert found == pytest.approx(RECORD["first_losses"]["autoencoder"][:STEPS], rel=0.02)


def as_it_was(shape: tuple[int, ...], generator: torch.Generator | None = None) -> torch.Tensor:
    """The recipe's density from a seed's normal numbers, as when the file was trained; now it comes from uniform ones.

    The distribution is the same.
    """
    return torch.sigmoid(0.3 + torch.randn(shape, generator=generator, dtype=torch.float64))


@pytest.mark.slow
def test_training_the_denoiser_again_begins_with_the_recorded_losses(monkeypatch) -> None:
    monkeypatch.setattr(Recipe, "process", Process(density=as_it_was))
    model = build(0)
    model.vae = load_model().vae  # the trained one, which the file holds rounded to bfloat16
    data = latents_of(model, "train", 1, FULL.clips)
    found = first_losses(lambda show: train_denoiser(model, data, FULL.recipe, on_progress=show))
    assert found == pytest.approx(RECORD["first_losses"]["denoiser"][:STEPS], rel=0.02)
