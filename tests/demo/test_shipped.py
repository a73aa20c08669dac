"""The shipped checkpoint: small, recorded, past every bar, and made by this very code."""

import io
import json
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any

import pytest
import torch

from tubelet.demo.build import FULL, Plan, build, latents_of, vae_batch
from tubelet.demo.shipped import NAME, load_model
from tubelet.recipe import Recipe, train_autoencoder, train_denoiser
from tubelet.training import Progress

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
    assert RECORD["metrics"]["samples"]["digit_accuracy"]["samples"] >= 500


def test_it_loads_in_single_precision_and_evaluation_mode() -> None:
    model = load_model()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not model.training
    assert (model.vae.latent_std > 0).all() and not torch.equal(model.vae.latent_std, torch.ones(16))


def test_a_missing_checkpoint_is_named(tmp_path) -> None:
    with pytest.raises(ValueError, match="there is no checkpoint .*none"):
        load_model(tmp_path / "none.safetensors")


def test_training_the_autoencoder_again_begins_with_the_recorded_losses() -> None:
    model = build(0)
    found = first_losses(
        lambda show: train_autoencoder(model.vae, lambda step: vae_batch(0, step), FULL.recipe, on_progress=show)
    )
    assert found == pytest.approx(RECORD["first_losses"]["autoencoder"][:STEPS], rel=0.02)


@pytest.mark.slow
def test_training_the_denoiser_again_begins_with_the_recorded_losses() -> None:
    model = build(0)
    model.vae = load_model().vae  # the trained one, which the file holds rounded to bfloat16
    data = latents_of(model, "train", 1, FULL.clips)
    found = first_losses(lambda show: train_denoiser(model, data, FULL.recipe, on_progress=show))
    assert found == pytest.approx(RECORD["first_losses"]["denoiser"][:STEPS], rel=0.02)
